"""Rival of the service: LitServe with its own batching.

``python -m benchmarks.serving_litserve FOLDER PORT``, after ``pip install litserve``, which is not a
dependency. Its one worker decodes, batches and runs the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
from jaxtyping import Float32
from numpy import ndarray

from mme.evaluation.classifier import Classifier
from mme.video.sampling import Views

MAX_BATCH = 16
BATCH_WAIT_S = 0.005


class Api(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's interface to one model folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self._classifier = Classifier.load(self._folder)

    def decode_request(self, request) -> Views:  # type: ignore[no-untyped-def] # LitServe reads the annotation
        """Decode the field ``file`` of a form."""
        return self._classifier.prepare(request["file"].file.read())

    def batch(self, inputs: list[Views]) -> list[Views]:
        """Return the inputs as they are: their numbers of views may differ."""
        return inputs

    def predict(self, batch: list[Views]) -> list[Float32[ndarray, " K"]]:
        """Return the logits of each video."""
        return self._classifier.predict(batch)

    def unbatch(self, output: list[Float32[ndarray, " K"]]) -> list[Float32[ndarray, " K"]]:
        """Return one entry per video."""
        return output

    def encode_response(self, output: Float32[ndarray, " K"]) -> dict[str, Any]:
        """Return the five most likely labels."""
        return {"predictions": [[item.label, item.probability] for item in self._classifier.rank(output, 5)]}


if __name__ == "__main__":
    api = Api(Path(sys.argv[1]), max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
