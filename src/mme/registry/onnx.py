"""Export a model folder as one ONNX file for other runtimes."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mme.config import ClipParams
from mme.evaluation.classifier import Classifier
from mme.models.checkpoints import load_folder
from mme.models.encoder import model_input
from mme.system.files import atomic_path

INPUT, OUTPUT = "frames", "logits"
"""Tensor names, the same as in the service's Open Inference Protocol."""

TOLERANCE = 1e-3
"""Largest allowed difference between the logits of ONNX Runtime and PyTorch."""

_PARITY_VIEWS = (1, 3)


class PixelsToLogits(nn.Module):
    """Classifier with pixel normalisation; clients only resize and crop."""

    def __init__(self, model: nn.Module, clip: ClipParams) -> None:
        super().__init__()
        self._model = model
        self._clip = clip

    def forward(self, frames: UInt8[Tensor, "V T S S 3"]) -> Float[Tensor, "V K"]:
        """Return the logits of each view."""
        logits: Tensor = self._model(model_input(frames, self._clip))
        return logits


def export_onnx(folder: Path, path: Path) -> float:
    """Write a model folder as ONNX and compare it with PyTorch.

    Input ``frames``: uint8 RGB ``[V, T, S, S, 3]``, any number of views V. Output ``logits``: float32 ``[V, K]``. The
    file's metadata contain the labels, the content digest and the folder's configuration.

    Returns:
        Largest difference between the logits of the two.

    Raises:
        ValueError: the folder is not a valid model folder, or the difference is above ``TOLERANCE``.
    """
    classifier = Classifier.load(folder)
    model, config = load_folder(folder)
    pixels = PixelsToLogits(model, config.clip).eval()
    shape = (config.clip.total_frames, config.clip.size, config.clip.size, 3)
    with atomic_path(path) as temporary:
        _export(pixels, torch.zeros((2, *shape), dtype=torch.uint8), temporary)
        document = onnx.load(temporary)
        onnx.helper.set_model_props(
            document,
            {
                "name": config.name,
                "labels": json.dumps(config.labels),
                "digest": classifier.digest,
                "config": config.model_dump_json(),
            },
        )
        onnx.save(document, temporary)
        error = largest_difference(pixels, temporary, shape)
        if not error <= TOLERANCE:
            raise ValueError(f"{folder}: exported logits differ by {error:g}, more than {TOLERANCE:g}")
    return error


def _export(pixels: PixelsToLogits, example: UInt8[Tensor, "V T S S 3"], path: Path) -> None:
    views = torch.export.Dim("views", min=1)
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own internals
        torch.onnx.export(
            pixels, (example,), path, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False,
            dynamic_shapes={"frames": {0: views}}, external_data=False,
        )  # fmt: skip


@torch.inference_mode()
def largest_difference(pixels: nn.Module, path: Path, shape: tuple[int, ...]) -> float:
    """Return the largest difference between the logits of ONNX Runtime and PyTorch, over random views."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    gaps = []
    for num_views in _PARITY_VIEWS:
        frames = generator.integers(0, 256, (num_views, *shape), dtype=np.uint8)
        (logits,) = session.run([OUTPUT], {INPUT: frames})
        gaps.append(float(np.abs(logits - pixels(torch.from_numpy(frames)).numpy()).max()))
    return max(gaps)
