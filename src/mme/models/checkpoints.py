"""Model folders: weights as safetensors and a ``config.json`` with everything needed to build and feed the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat, JsonValue, ValidationError, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mme.config import ClipParams, ModelParams, Pooling, check_clip_fits
from mme.config.base import FrameRate, Section, faults
from mme.models.classifier import MotionClassifier
from mme.system.files import atomic_path, digest, read_json, sha256_file, write_json

FOLDER_FORMAT = 2
"""Version of the folder's layout; any other is refused. In 1, a clip counted frames of any rate."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


State = dict[str, Tensor]
"""Weights by their keys, as in ``state_dict``."""


class StateError(ValueError):
    """Raised if weights do not fit the model; the message names their source and every key at fault."""


class ViewsConfig(Section):
    """Default views of a video, whose logits are averaged."""

    segments: Annotated[int, Field(ge=1)]
    crops: Literal[1, 3]


class FolderConfig(Section):
    """``config.json`` of a model folder.

    Attributes:
        format: version of the folder's layout.
        name: name of the model, as in the registry.
        model, clip: sections that build the network and its input.
        fps: frames per second that the clip counts in; videos are sampled by time at this rate.
        views: default views of a video.
        pool: pooling of the tokens; folders without it take the mean.
        labels: labels in the order of the logits.
        provenance: any JSON: git commit, digests of data and parameters, run id, time.
        metrics: values by flat names such as ``val/top1``.
    """

    format: Literal[2]
    name: Annotated[str, Field(min_length=1)]
    model: ModelParams
    clip: ClipParams
    fps: FrameRate
    views: ViewsConfig
    pool: Pooling = "mean"
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
        check_clip_fits(self.clip, self.model)
        return self


def save_folder(folder: Path | str, model: MotionClassifier, config: FolderConfig) -> None:
    """Write a model folder, atomically; an existing one is replaced only by a complete one.

    Raises:
        ValueError: the model does not have the shapes that ``config`` describes, or a weight is not finite.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_weights(temporary / WEIGHTS_FILE, model)
        write_json(temporary / CONFIG_FILE, config.model_dump(mode="json"))
        load_folder(temporary)


def load_folder(folder: Path | str) -> tuple[MotionClassifier, FolderConfig]:
    """Load the model of a folder, on the CPU and in evaluation mode.

    Raises:
        ValueError: a file is missing or unreadable, ``config.json`` has another format version or a bad key, or the
            weights do not fit; the message names the file and every key at fault.
    """
    config = load_config(folder)
    model = MotionClassifier(config.model, config.clip, len(config.labels), pool=config.pool)
    load_state(Path(folder) / WEIGHTS_FILE, model)
    return model.eval(), config


def load_config(folder: Path | str) -> FolderConfig:
    """Read and check ``config.json``.

    Raises:
        ValueError: as ``load_folder``.
    """
    path = Path(folder) / CONFIG_FILE
    raw = read_json(path)
    version = raw.get("format") if isinstance(raw, dict) else None
    if version == 1:
        raise ValueError(
            f"{path}: format 1 has no frame rate, without which videos cannot be sampled by time; make the folder anew:"
            " `dvc repro register`, or `mme convert SOURCE FOLDER --fps RATE` if it was converted"
        )
    if version != FOLDER_FORMAT:
        raise ValueError(f"{path}: format is {version!r}, this version of mme reads format {FOLDER_FORMAT}")
    try:
        return FolderConfig.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {faults(error, '(whole file)')}") from error


def content_digest(folder: Path | str) -> str:
    """Return the SHA-256 of the weights file and of model, clip, fps, views, pooling and labels.

    These decide the logits. Name, provenance and metrics do not enter, so equal models have equal digests.

    Raises:
        ValueError: as ``load_folder``.
    """
    config = load_config(folder)
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file")
    parts = config.model_dump(mode="json", include={"model", "clip", "fps", "views", "pool", "labels"})
    return digest({"weights": sha256_file(weights), **parts})


def save_weights(path: Path | str, module: nn.Module) -> None:
    """Write a module's state as safetensors, atomically and with equal bytes for equal values."""
    # safetensors saves contiguous tensors only, in an order of its own: equal values give equal bytes.
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def read_state(path: Path | str) -> State:
    """Read a safetensors file.

    Raises:
        ValueError: it is missing or damaged; the message names it.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error


def load_state(path: Path | str, module: nn.Module, prefix: str = "") -> None:
    """Fill a module from a safetensors file, as `fill_module`.

    Raises:
        ValueError: the file is missing or damaged, or does not fit.
    """
    fill_module(module, read_state(path), path, prefix)


def fill_module(module: nn.Module, state: State, source: Path | str, prefix: str = "") -> None:
    """Fill a module from a state; every key and shape must agree.

    Args:
        module: the module to fill.
        state: the weights.
        source: their file, for messages.
        prefix: the part of the state to take, such as ``encoder.``: other keys are ignored.

    Raises:
        StateError: keys are missing or unexpected, shapes differ, or values are not finite; all are listed.
    """
    found = {key: value for key, value in state.items() if key.startswith(prefix)}
    expected = {prefix + key: value for key, value in module.state_dict().items()}

    # Collect every fault: a user who mixed up two models sees that at once.
    faults = []
    for key in sorted(expected.keys() & found.keys()):
        if found[key].shape != expected[key].shape:
            faults.append(f"{key} has shape {list(found[key].shape)}, the model {list(expected[key].shape)}")
        elif not torch.isfinite(found[key]).all():
            faults.append(f"{key} has values that are not finite")
    check_keys(source, expected.keys() - found.keys(), found.keys() - expected.keys(), faults)

    module.load_state_dict({key.removeprefix(prefix): value for key, value in found.items()})


def check_keys(
    source: Path | str, missing: Iterable[str], unexpected: Iterable[str], faults: Iterable[str] = ()
) -> None:
    """Raise `StateError` if a state lacks keys, has other ones, or has further faults; all are listed."""
    found = [*(f"missing {key}" for key in sorted(missing)), *(f"unexpected {key}" for key in sorted(unexpected))]
    found += faults
    if found:
        raise StateError(f"{source}: weights do not fit the model: " + "; ".join(found))
