"""The model folder: weights as safetensors beside a ``config.json`` that says how to build and feed the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat, JsonValue, ValidationError, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mme.config import ClipParams, ModelParams
from mme.config.base import Section, faults
from mme.models.classifier import MotionClassifier
from mme.system.files import atomic_path, digest, read_json, sha256_file, write_json

FORMAT = 1
"""Version of the folder's layout; a reader refuses any other."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class ViewsConfig(Section):
    """Views of a video that are averaged unless the caller asks for others."""

    segments: Annotated[int, Field(ge=1)]
    crops: Literal[1, 3]


class FolderConfig(Section):
    """``config.json`` of a model folder.

    ``labels`` is in the order of the logits. ``metrics`` has flat names such as ``val/top1``. ``provenance`` is free:
    git commit, digests of data and parameters, run id, time.
    """

    format: Literal[1]
    name: Annotated[str, Field(min_length=1)]
    model: ModelParams
    clip: ClipParams
    views: ViewsConfig
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]
    provenance: dict[str, JsonValue]
    metrics: dict[str, FiniteFloat]

    @field_validator("labels")
    @classmethod
    def _labels_are_unique(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{twice} occur more than once")
        return labels

    @model_validator(mode="after")
    def _clip_fits_the_model(self) -> FolderConfig:
        if self.clip.size % self.model.patch_size:
            raise ValueError(f"model.patch_size: {self.model.patch_size} must divide clip.size {self.clip.size}")
        if self.clip.num_frames % self.model.tubelet_frames:
            raise ValueError(
                f"model.tubelet_frames: {self.model.tubelet_frames} must divide clip.num_frames {self.clip.num_frames}"
            )
        return self


def save_folder(folder: Path | str, model: MotionClassifier, config: FolderConfig) -> None:
    """Write a model folder; one that stands there is replaced only when the new one is complete.

    Raises:
        ValueError: the model does not have the shapes that ``config`` describes, or a weight is not finite.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_weights(temporary / WEIGHTS_FILE, model)
        write_json(temporary / CONFIG_FILE, config.model_dump(mode="json"))
        load_folder(temporary)


def load_folder(folder: Path | str) -> tuple[MotionClassifier, FolderConfig]:
    """Build the model of a folder, on the CPU and in evaluation mode.

    Raises:
        ValueError: a file is missing or unreadable, ``config.json`` has another format version or a bad key, or the
            weights do not fit; the message names the file and every key at fault.
    """
    config = load_config(folder)
    model = MotionClassifier(config.model, config.clip, len(config.labels))
    load_weights(Path(folder) / WEIGHTS_FILE, model)
    return model.eval(), config


def load_config(folder: Path | str) -> FolderConfig:
    """Read and check ``config.json``.

    Raises:
        ValueError: as ``load_folder``.
    """
    path = Path(folder) / CONFIG_FILE
    raw = read_json(path)
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise ValueError(f"{path}: format is {version!r}, this version of mme reads format {FORMAT}")
    try:
        return FolderConfig.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {faults(error, '(whole file)')}") from error


def content_digest(folder: Path | str) -> str:
    """SHA-256 of what decides an answer: the weights file, and model, clip, views and labels of the configuration.

    Name, provenance and metrics are left out, so the same training result has the same digest whenever it was made.

    Raises:
        ValueError: as ``load_folder``.
    """
    config = load_config(folder)
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file")
    parts = config.model_dump(mode="json", include={"model", "clip", "views", "labels"})
    return digest({"weights": sha256_file(weights), **parts})


def save_weights(path: Path | str, module: nn.Module) -> None:
    """Write a module's state as safetensors, atomically and with the same bytes for the same values."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def load_weights(path: Path | str, module: nn.Module) -> None:
    """Fill a module from a safetensors file; every key and shape must agree.

    Raises:
        ValueError: the file is missing or damaged, keys are missing or unexpected, shapes differ, or values are not
            finite; the message lists them.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error
    expected = module.state_dict()
    faults = [f"missing {key}" for key in sorted(expected.keys() - state.keys())]
    faults += [f"unexpected {key}" for key in sorted(state.keys() - expected.keys())]
    for key in sorted(expected.keys() & state.keys()):
        if state[key].shape != expected[key].shape:
            faults.append(f"{key} has shape {list(state[key].shape)}, the model {list(expected[key].shape)}")
        elif not torch.isfinite(state[key]).all():
            faults.append(f"{key} has values that are not finite")
    if faults:
        raise ValueError(f"{path}: weights do not fit the model: " + "; ".join(faults))
    module.load_state_dict(state)
