"""MLflow pyfunc form of a registered classifier: code that MLflow runs when it loads the model.

``mlflow.pyfunc.load_model("models:/NAME@champion").predict(DataFrame({"video": [...]}))`` returns one row per
video; an entry is the path of a file or its content as ``data:video/mp4;base64,...``.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mme.evaluation.classifier import Classifier


class VideoClassifier(PythonModel):
    """Predict the most probable labels of each video."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that was logged with the model."""
        self._classifier = Classifier.load(context.artifacts["folder"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the best label and the top k labels of each video, one row per video.

        Columns: ``label``, ``probability``, ``labels``, ``probabilities``.

        Args:
            context: not used.
            model_input: the column ``video``.
            params: ``top_k``, the number of labels returned.

        Raises:
            VideoError: a video cannot be decoded.
        """
        top_k = int((params or {}).get("top_k", 5))
        rows = []
        for video in model_input["video"]:
            best = self._classifier.classify(_source(video), top_k=top_k).predictions
            rows.append(
                {
                    "label": best[0].label,
                    "probability": best[0].probability,
                    "labels": [prediction.label for prediction in best],
                    "probabilities": [prediction.probability for prediction in best],
                }
            )
        return pd.DataFrame(rows)


def _source(video: str) -> Path | bytes:
    head, comma, body = video.partition(",")
    if head.startswith("data:") and comma:
        return base64.b64decode(body, validate=True)
    return Path(video)


set_model(VideoClassifier())
