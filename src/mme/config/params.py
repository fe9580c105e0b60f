"""The whole of ``params.yaml``: frozen, nothing unknown, nothing missing; defaults in ``runtime`` alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mme.config.ablation import Budget
from mme.config.base import Section, faults
from mme.config.data import NO_DATA, DatasetName, IngestParams, SynthesizeParams, TrajectoriesParams, data_name
from mme.config.evaluation import EvaluateParams, RegistryParams
from mme.config.model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipParams,
    ModelParams,
    check_clip_fits,
    frames_needed,
)
from mme.config.names import flatten, moved_names
from mme.config.runtime import DEFAULT_RUNTIME, RuntimeParams
from mme.config.sweep import SweepParams
from mme.config.training import FinetuneParams, OptimiserParams, PretrainParams
from mme.system.files import digest

DERIVING = ("trajectories", "clip", "model", "optimiser", "pretrain", "finetune", "evaluate", "registry")
"""Sections with values that others follow from, or that follow from others."""

PRETRAINING = ("trajectories", "clip", "pretrain")
"""Sections that a pretraining of ``warm_starts`` has of its own."""

PHASES = ("pretrain", "finetune")
"""Sections that take the values of ``optimiser``."""

SHARED = {f"{phase}.{name}" for phase in PHASES for name in OptimiserParams.model_fields}


class WarmStartParams(Section):
    """A pretraining that others start from: sections of its own beside the common model, optimiser and seed."""

    trajectories: TrajectoriesParams
    clip: ClipParams
    pretrain: PretrainParams


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0)]
    runtime: RuntimeParams = DEFAULT_RUNTIME
    synthesize: SynthesizeParams
    ingest: IngestParams
    datasets: dict[DatasetName, IngestParams]
    warm_starts: dict[DatasetName, WarmStartParams]
    trajectories: TrajectoriesParams
    clip: ClipParams
    model: ModelParams
    optimiser: OptimiserParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    registry: RegistryParams
    sweep: SweepParams
    ablation: Budget

    def digest(self) -> str:
        """Digest of everything that decides results: all but ``runtime``."""
        return digest(self.model_dump(mode="json", exclude={"runtime"}))

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, raw: Any) -> Any:
        """Add the values that follow from others, where a section has none of its own, or null in `registry`."""
        if not isinstance(raw, dict) or not all(isinstance(raw.get(name), dict) for name in DERIVING):
            return raw
        shared = {name: value for name, value in raw["optimiser"].items() if name in OptimiserParams.model_fields}
        starts = raw.get("warm_starts")
        if isinstance(starts, dict):
            derived = {name: _with_derived(start, raw["model"], shared) for name, start in starts.items()}
            raw = raw | {"warm_starts": derived}
        raw = _with_derived(raw, raw["model"], shared)
        following = registered_name(raw) | {"metric": f"{raw['evaluate'].get('split')}/top1"}
        registry = {name: following.get(name) if value is None else value for name, value in raw["registry"].items()}
        return raw | {"finetune": shared | raw["finetune"], "registry": registry}

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        check_clip_fits(self.clip, self.model)
        if self.pretrain.length > self.trajectories.max_length:
            raise ValueError(
                f"pretrain.length: {self.pretrain.length} exceeds"
                f" trajectories.max_length {self.trajectories.max_length}"
            )
        for name, section in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            parts = self.runtime.num_processes * self.runtime.accumulate
            if section.batch_size % parts:
                raise ValueError(
                    f"{name}.batch_size: {section.batch_size} must be a multiple of"
                    f" runtime.devices x runtime.num_nodes x runtime.accumulate = {parts}"
                )
            share = section.batch_size // self.runtime.num_processes
            if share % section.epochs_per_pass:
                raise ValueError(
                    f"{name}.batch_size: {section.batch_size} gives a process {share} clips, which must be a multiple"
                    f" of {name}.draws_per_decode {section.epochs_per_pass}"
                )
        missing = set(self.pretrain.splits) - set(self.trajectories.splits)
        if missing:
            raise ValueError(f"pretrain.splits: {sorted(missing)} are not in trajectories.splits")
        for name in (*self.sweep.fixed, *self.sweep.space):
            part, _, key = name.partition(".")
            if part not in ("clip", "model", "pretrain") or key not in type(getattr(self, part)).model_fields:
                hint = moved_names([name])
                raise ValueError(
                    f"sweep: {name!r} is no parameter of clip, model or pretrain, which a trial depends on"
                    + (f"; {hint}" if hint else "")
                )
        return self

    @model_validator(mode="after")
    def _data_sets_suit(self) -> Self:
        folders = ["data", *(f"data/{name}" for name in self.datasets)]
        taken = sorted({"none", "raw", "sources", "trajectories", "videos"} & set(self.datasets))
        if taken:
            raise ValueError(f"datasets: {taken} are folders of the first data set, or of none")
        for name, section in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if section.data not in folders:
                raise ValueError(f"{name}.data: {section.data!r} is none of {', '.join(folders)}; add it to datasets")
        self._check_more_data()
        for name, data in map(self.dataset, (self.pretrain.data, self.finetune.data)):
            if data.short_side < self.clip.size:
                raise ValueError(f"{name}.short_side: {data.short_side} is below clip.size {self.clip.size}")

        pretrained_name, pretrained = self.dataset(self.pretrain.data)
        finetuned_name, finetuned = self.dataset(self.finetune.data)
        if pretrained.fps != finetuned.fps:
            raise ValueError(
                f"{pretrained_name}.fps: {pretrained.fps:g} is not {finetuned_name}.fps {finetuned.fps:g}: pretraining"
                " and finetuning must have one frame rate, in which a clip counts"
            )
        needed = frames_needed(self.clip, self.model, self.pretrain.length)
        num_frames = math.floor(self.synthesize.num_frames * pretrained.fps / self.synthesize.fps + 0.5)
        if pretrained.source == "motion-primitives" and num_frames < needed:
            raise ValueError(
                f"synthesize.num_frames: {self.synthesize.num_frames}, at {pretrained_name}.fps {num_frames}, are too"
                f" few to pretrain on: clip and trajectories span {needed} frames"
            )
        return self

    def _check_more_data(self) -> None:
        more, own = self.finetune.more_data, self.finetune.data
        if more == NO_DATA:
            return
        others = [NO_DATA, *(f"data/{name}" for name in self.datasets if f"data/{name}" != own)]
        if more not in others:
            raise ValueError(
                f"finetune.more_data: {more!r} is none of {', '.join(others)}; add it to datasets, and name another one"
                " than finetune.data"
            )
        rate, own_rate = self.dataset(more)[1].fps, self.dataset(own)[1].fps
        if rate != own_rate:
            raise ValueError(f"finetune.more_data: has {rate:g} frames per second, finetune.data {own_rate:g}")

    def dataset(self, folder: str) -> tuple[str, IngestParams]:
        """Return name and values of the section of a data set, from its folder such as ``data/NAME``."""
        name = folder.removeprefix("data").removeprefix("/")
        return (f"datasets.{name}", self.datasets[name]) if name else ("ingest", self.ingest)


def _with_derived(sections: Any, model: dict[str, Any], shared: dict[str, Any]) -> Any:
    """Add to the sections of a pretraining the values that follow from others, where it has none of its own."""
    if not isinstance(sections, dict) or not all(isinstance(sections.get(name), dict) for name in PRETRAINING):
        return sections
    pretrain = shared | sections["pretrain"]
    derived: dict[str, dict[str, Any]] = {
        "clip": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "pretrain": shared | decoder_heads(model, pretrain),
    }
    if isinstance(pretrain.get("splits"), list | tuple):
        derived["trajectories"] = {"splits": list(dict.fromkeys([*pretrain["splits"], "val"]))}
    return sections | {name: values | sections[name] for name, values in derived.items()}


def registered_name(raw: dict[str, Any]) -> dict[str, str]:
    """Return the ``name`` that follows from the data set of finetuning; empty without a data set."""
    folder = str(raw["finetune"].get("data", ""))
    ingest = raw.get("ingest") if folder == "data" else (raw.get("datasets") or {}).get(folder.removeprefix("data/"))
    if not isinstance(ingest, dict) or not {"source", "root"} <= ingest.keys():
        return {}
    return {"name": "mme-" + re.sub(r"[^\w.-]+", "-", data_name(str(ingest["source"]), str(ingest["root"])))}


def decoder_heads(model: dict[str, Any], pretrain: dict[str, Any]) -> dict[str, int]:
    """Return ``decoder_heads`` for heads as wide as the encoder's; empty where the widths do not divide."""
    dim, num_heads, decoder_dim = model.get("dim"), model.get("num_heads"), pretrain.get("decoder_dim")
    if not (isinstance(dim, int) and isinstance(num_heads, int) and isinstance(decoder_dim, int)):
        return {}
    width = dim // max(num_heads, 1)
    return {"decoder_heads": decoder_dim // width} if width and decoder_dim % width == 0 else {}


def load_params(path: Path | str = "params.yaml", *, warm_start: str | None = None) -> Params:
    """Read and check ``params.yaml``.

    Args:
        path: the file.
        warm_start: pretraining of ``warm_starts`` whose sections replace those of the file.

    Raises:
        ValueError: the file is missing, not YAML, or a key is unknown, missing or out of range; the message names
            the file and every such key. Names of an earlier version are listed with their new names.
    """
    path = Path(path)
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        params = Params.model_validate(raw)
        starts = {name: _started(params, name) for name in params.warm_starts}
    except ValidationError as error:
        moved = earlier_names(raw, error)
        if moved:
            raise ValueError(f"{path}: has names of an earlier version: {moved}") from error
        raise ValueError(f"{path}: {faults(error, '(whole file)')}") from error
    if warm_start is None:
        return params
    if warm_start not in starts:
        raise ValueError(f"{path}: warm_starts has no {warm_start!r}, only {sorted(starts)}")
    return starts[warm_start]


def _started(params: Params, name: str) -> Params:
    """Return the parameters of a pretraining of ``warm_starts``, checked; finetuning would be on its data."""
    start = params.warm_starts[name].model_dump()
    raw = params.model_dump(exclude={"warm_starts"}) | start | {"warm_starts": {}}
    raw["finetune"] |= {"data": start["pretrain"]["data"]}
    return Params.model_validate(raw)


def earlier_names(raw: Any, error: ValidationError) -> str:
    """Return ``old -> new`` for every unknown name that an earlier version had; empty if there is none.

    Args:
        raw: content of ``params.yaml``.
        error: of its validation.
    """
    unknown = [".".join(map(str, fault["loc"])) for fault in error.errors() if fault["type"] == "extra_forbidden"]
    names = flatten(raw) if isinstance(raw, dict) else {}
    return moved_names(
        name
        for name in names
        if name.startswith("sweep.space.")
        or any(f"{name}.".startswith(f"{part}.") for part in unknown)
        or ("optimiser" not in raw and name in SHARED)
    )
