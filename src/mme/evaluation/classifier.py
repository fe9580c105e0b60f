"""Classification of whole videos with a finetuned model: the one path from a file to logits.

Evaluation, the command line and the service all call ``prepare`` -> ``predict``. ``prepare`` is
``mme.video.sampling.sample_views`` with clip and rate of the model, so a server can run it in decoding processes that
hold no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from mme.config import ModelPrecision
from mme.evaluation.answers import softmax
from mme.models.checkpoints import FolderConfig, content_digest, load_folder
from mme.models.classifier import MotionClassifier
from mme.models.encoder import model_input
from mme.models.precision import has_bf16
from mme.video.metadata import VideoInfo
from mme.video.sampling import VideoInput, Views, sample_views


@dataclass(frozen=True)
class Prediction:
    """Label and probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Timings:
    """Wall time of the two steps: decoding with resizing, and the model."""

    decode_ms: float
    inference_ms: float


@dataclass(frozen=True)
class Classification:
    """Classification of one video.

    Attributes:
        predictions: the most probable labels, best first; equal probabilities in label order.
        logits: float32 ``[K]``, mean over the views, in the order of the model's labels.
        num_views: number of averaged views.
        video: metadata of the file; None if decoded frames were given.
        timings: wall time of the steps.
    """

    predictions: tuple[Prediction, ...]
    logits: Float32[np.ndarray, " K"]
    num_views: int
    video: VideoInfo | None
    timings: Timings


class Classifier:
    """Classifier of a model folder, safe to call from several threads.

    Attributes:
        config: the folder's ``config.json``.
        digest: content digest of the folder, which identifies the model whatever its path.
        folder: the model folder.
        device: device of the model.
        precision: of the model's weights and activations.
    """

    def __init__(
        self,
        model: MotionClassifier,
        config: FolderConfig,
        folder: Path,
        digest: str,
        device: torch.device,
        precision: ModelPrecision = "32",
    ) -> None:
        self.config, self.folder, self.digest, self.device, self.precision = config, folder, digest, device, precision
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = model.eval().requires_grad_(False).to(device, self._dtype)

    @classmethod
    def load(cls, address: Path | str, device: str = "cpu", precision: ModelPrecision = "32") -> Classifier:
        """Load a model folder, or a registered model by an address such as ``models:/NAME@champion``.

        Args:
            address: a folder or a ``models:/`` address, which the tracking server's registry resolves.
            device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``32``, or ``bf16``: half the memory, a quarter to two thirds of the time, and logits that differ
                by about a percent.

        Raises:
            ValueError: the folder is not a sound model folder, the address names no registered model, or the processor
                has no instructions for the precision.
        """
        place = choose_device(device)
        check_precision(precision, place)
        folder = Path(address)
        if str(address).startswith("models:/"):
            from mme.tracking import resolve  # MLflow is needed for registered models only

            folder = resolve(str(address))
        model, config = load_folder(folder)
        return cls(model, config, folder, content_digest(folder), place, precision)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the logits."""
        return self.config.labels

    def classify(
        self, video: VideoInput, top_k: int = 5, segments: int | None = None, crops: int | None = None
    ) -> Classification:
        """Classify one video.

        Args:
            video: a path, the bytes of a video file, or RGB frames uint8 ``[T, H, W, 3]`` at ``config.fps`` per second.
                Files of any rate are sampled by time. Where a view reaches beyond the last frame, that is repeated.
            top_k: number of labels to return, at most all of them.
            segments: clips along the video; None = the model folder's setting.
            crops: squares per frame, 1 or 3; None = the model folder's setting.

        Raises:
            VideoError: the video cannot be decoded; see its ``reason``.
            ValueError: an argument is out of range.
        """
        if top_k < 1:
            raise ValueError(f"top_k: {top_k} must be at least 1")
        views = self.prepare(video, segments, crops)
        started = time.perf_counter()
        (logits,) = self.predict([views])
        inference_ms = 1000 * (time.perf_counter() - started)
        timings = Timings(views.decode_ms, inference_ms)
        return Classification(self.rank(logits, top_k), logits, len(views.frames), views.info, timings)

    def prepare(self, video: VideoInput, segments: int | None = None, crops: int | None = None) -> Views:
        """Decode, resize and crop the views of a video, on the CPU and without the model; see ``sample_views``."""
        default = self.config.views
        return sample_views(
            video,
            self.config.clip,
            self.config.fps,
            default.segments if segments is None else segments,
            default.crops if crops is None else crops,
        )

    def predict(self, batch: Sequence[Views], max_clips: int | None = None) -> list[Float32[np.ndarray, " K"]]:
        """Compute the logits of several videos in common forward passes, each the mean over its views.

        Args:
            batch: prepared videos; they may differ in their number of views.
            max_clips: views per forward pass, to limit memory; None = all at once.
        """
        return self._means(batch, self._model, max_clips)

    def pause_between_blocks(self, pause: Callable[[], None]) -> None:
        """From now on call ``pause`` before each block of the encoder, in the thread of the pass."""
        for block in self._model.encoder.blocks:
            block.register_forward_pre_hook(lambda *_: pause())

    def features(
        self, video: VideoInput, segments: int | None = None, crops: int | None = None
    ) -> Float32[np.ndarray, " D"]:
        """Extract pooled, normalised features ``[D]``, mean over the views.

        Raises:
            VideoError, ValueError: as ``classify``.
        """
        (features,) = self._means([self.prepare(video, segments, crops)], self._model.features, None)
        return features

    def views(
        self, video: VideoInput, segments: int | None = None, crops: int | None = None
    ) -> Float[Tensor, "V 3 T S S"]:
        """Return the model's input for a video: normalised views, on the model's device."""
        return self._normalise(self.prepare(video, segments, crops).frames)

    def rank(self, logits: Float32[np.ndarray, " K"], top_k: int) -> tuple[Prediction, ...]:
        """Return the ``top_k`` most probable labels, best first."""
        order = np.argsort(-logits, kind="stable")[:top_k]
        chances = softmax(logits)
        return tuple(Prediction(self.labels[i], float(chances[i])) for i in order)

    def _normalise(self, frames: UInt8[np.ndarray, "V T S S 3"]) -> Float[Tensor, "V 3 T S S"]:
        return model_input(torch.from_numpy(frames).to(self.device), self.config.clip)

    @torch.inference_mode()
    def _means(
        self, batch: Sequence[Views], function: Callable[[Tensor], Tensor], max_clips: int | None
    ) -> list[Float32[np.ndarray, " D"]]:
        """Apply ``function`` to every view and average per video."""
        if not batch:
            return []
        frames = np.concatenate([views.frames for views in batch])
        step = len(frames) if max_clips is None else max_clips
        parts = [function(self._normalise(frames[i : i + step]).to(self._dtype)) for i in range(0, len(frames), step)]
        outputs = torch.cat(parts).float().cpu()  # (sum of V, D)
        return [part.mean(dim=0).numpy() for part in outputs.split([len(views.frames) for views in batch])]


def check_precision(precision: ModelPrecision, device: torch.device) -> None:
    """Check that a device is made for a precision.

    Raises:
        ValueError: it is not.
    """
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        raise ValueError(
            "precision bf16: this processor has no instructions for it (AVX512_BF16, AMX, or BF16 of ARM) and would "
            "take several times as long; use 32"
        )


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if there is a device, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
