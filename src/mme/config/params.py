"""The pydantic mirror of ``params.yaml``: frozen, nothing unknown, nothing missing, nothing defaulted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mme.config.ablation import AblationParams
from mme.config.base import NonNegative, Positive, PositiveFloat, Range, Ratio, Section, faults
from mme.config.sweep import SweepParams

Split = Literal["pretrain", "train", "val", "test"]
MaskKind = Literal["tube", "random", "motion"]
Protocol = Literal["finetuned", "linear", "knn"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Primitive = Literal[
    "left",
    "right",
    "up",
    "down",
    "up-left",
    "up-right",
    "down-left",
    "down-right",
    "clockwise",
    "counterclockwise",
    "grow",
    "shrink",
    "orbit-clockwise",
    "orbit-counterclockwise",
    "shake-horizontal",
    "shake-vertical",
]

CELLS_PER_PATCH_SIDE = 2
"""A token predicts the motion of 2 x 2 cells (Sun et al. 2023, section 3.3)."""


class RunParams(Section):
    """Values that every stage shares."""

    seed: Annotated[int, Field(ge=0)]
    num_workers: Positive
    device: Literal["auto", "cpu", "cuda"]
    devices: Positive
    num_nodes: Positive

    @property
    def num_processes(self) -> int:
        """Processes that train together, one a device."""
        return self.devices * self.num_nodes


class TrackingParams(Section):
    """Where runs are recorded."""

    experiment: Annotated[str, Field(min_length=1)]


class SynthesizeParams(Section):
    """The motion primitives: sizes in pixels, speeds per frame."""

    output: Path
    classes: Annotated[tuple[Primitive, ...], Field(min_length=2)]
    size: Annotated[int, Field(ge=16, multiple_of=2)]
    num_frames: Positive
    fps: Positive
    num_pretrain: Annotated[int, Field(ge=0)]
    train_per_class: Positive
    val_per_class: Positive
    test_per_class: Positive
    sprite_size: Range
    speed_px: Range
    turn_degrees: Range
    zoom: Range
    swing_px: Range
    period_frames: Range
    drift_px: NonNegative
    noise_std: NonNegative
    crf: Annotated[int, Field(ge=0, le=51)]

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("sprite_size", "speed_px", "turn_degrees", "zoom", "swing_px", "period_frames"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: [{low}, {high}] must ascend")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {list(self.classes)} name one twice")
        if self.zoom[0] <= 1.0:
            raise ValueError(f"zoom: {self.zoom[0]} must be above 1 (shrinking uses its inverse)")
        return self


class IngestParams(Section):
    """From any source to videos in the normal form and a manifest."""

    source: Literal["motion-primitives", "folder", "csv", "ucf101", "hmdb51", "something-something-v2", "kinetics"]
    root: Path
    split_number: Literal[1, 2, 3]
    list_file: Path | None
    group_pattern: str | None
    short_side: Annotated[int, Field(ge=16, multiple_of=2)]
    crf: Annotated[int, Field(ge=0, le=51)]
    gop_frames: Positive
    min_frames: Positive
    deadline_s: PositiveFloat
    max_bad_ratio: Ratio
    val_ratio: Ratio
    test_ratio: Ratio
    engine: Literal["local", "ray"]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source == "csv" and self.list_file is None:
            raise ValueError("list_file: source 'csv' needs the path of its list")
        if self.list_file is not None and self.source not in {"motion-primitives", "csv", "kinetics"}:
            raise ValueError(f"list_file: source {self.source!r} has lists of its own")
        if self.group_pattern is not None:
            if self.source != "folder":
                raise ValueError(f"group_pattern: only source 'folder' has one, {self.source!r} knows its groups")
            try:
                num_groups = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ValueError(f"group_pattern: {self.group_pattern!r}: {error}") from error
            if num_groups != 1:
                raise ValueError(f"group_pattern: {self.group_pattern!r} has {num_groups} groups, must have one")
        if self.val_ratio + self.test_ratio >= 1:
            raise ValueError(
                f"val_ratio + test_ratio = {self.val_ratio + self.test_ratio:g} leaves nothing to train on"
            )
        return self


DatasetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
DataFolder = Annotated[str, Field(pattern=r"^data(/[a-z0-9][a-z0-9_-]*)?$")]
"""Where an ingested data set is: ``data`` is that of ``ingest``, ``data/NAME`` one of ``datasets``."""


class TrajectoriesParams(Section):
    """Flow, camera compensation and tracks."""

    splits: Annotated[tuple[Split, ...], Field(min_length=1)]
    flow: Literal["ultrafast", "fast", "medium"]
    median_px: Literal[0, 3, 5]
    compensate_camera: bool
    camera_threshold_px: PositiveFloat
    camera_min_inliers: Ratio
    forward_backward: bool
    cell: Annotated[int, Field(ge=2)]
    max_length: Annotated[int, Field(ge=1, le=255)]
    videos_per_shard: Positive
    max_bad_ratio: Ratio
    engine: Literal["local", "ray"]


class ClipParams(Section):
    """The sparse clip that the model sees."""

    num_frames: Positive
    stride_frames: Positive
    sampling: Literal["stride", "segments"]
    size: Positive
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]

    @property
    def span_frames(self) -> int:
        """Raw frames from the clip's first frame to its last, both included."""
        return (self.num_frames - 1) * self.stride_frames + 1


class ModelParams(Section):
    """The encoder: a ViT over tubelets of ``tubelet_frames x patch_size x patch_size``."""

    patch_size: Positive
    tubelet_frames: Positive
    dim: Positive
    depth: Positive
    num_heads: Positive
    mlp_ratio: PositiveFloat
    positions: Literal["axes", "flat"]

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.patch_size % CELLS_PER_PATCH_SIDE:
            raise ValueError(f"patch_size: {self.patch_size} must be even, a token has 2 x 2 cells")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} must divide dim {self.dim}")
        if self.dim % 8:
            raise ValueError(f"dim: {self.dim} must be a multiple of 8 for sine-cosine positions of three axes")
        return self


class OptimisedParams(Section):
    """What pretraining and finetuning share: schedule, optimiser, precision, loading."""

    data: DataFolder
    epochs: Positive
    warmup_epochs: NonNegative
    batch_size: Positive
    accumulate: Positive
    lr: PositiveFloat
    lr_batch_size: Positive | None
    min_lr_ratio: Ratio
    weight_decay: NonNegative
    betas: tuple[Ratio, Ratio]
    clip_grad: PositiveFloat
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    precision: Precision
    gradient_checkpointing: bool
    compile: bool
    num_loader_workers: Annotated[int, Field(ge=0)]
    frame_cache_mb: NonNegative
    min_scale: Annotated[float, Field(gt=0, le=1)]

    @property
    def scaled_lr(self) -> float:
        """Learning rate of this batch size (Goyal et al. 2017): proportional to it, or as it stands."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} must be below epochs {self.epochs}")
        return self


class PretrainParams(OptimisedParams):
    """Masked motion encoding."""

    splits: Annotated[tuple[Split, ...], Field(min_length=1)]
    objective: Annotated[str, Field(min_length=1)]
    mask: MaskKind
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    length: Annotated[int, Field(ge=1, le=255)]
    position_norm: Literal["none", "patch_std"]
    patch_std_floor_px: PositiveFloat
    hog_steps: Literal["all", "first"]
    hog_window_px: Annotated[int, Field(ge=2)]
    hog_norm_floor: PositiveFloat
    weights: dict[str, NonNegative]
    decoder_dim: Positive
    decoder_depth: Positive
    decoder_heads: Positive
    horizontal_flip: bool

    @model_validator(mode="after")
    def _decoder(self) -> Self:
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 8:
            raise ValueError(
                f"decoder_dim: {self.decoder_dim} must be divisible by 8 and by {self.decoder_heads} heads"
            )
        return self


class FinetuneParams(OptimisedParams):
    """Action recognition on labelled videos."""

    init: Literal["pretrained", "scratch"]
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    rand_augment: Annotated[str, Field(pattern=r"^rand(-[a-z]+[0-9.]+)+$")] | None
    erasing: Ratio
    repeats: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    mixup: NonNegative
    cutmix: NonNegative
    horizontal_flip: bool
    flip_pairs: tuple[tuple[str, str], ...]


class EvaluateParams(Section):
    """Multi-view evaluation."""

    split: Split
    segments: Positive
    crops: Literal[1, 3]
    batch_size: Positive
    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _finetuned_model_is_evaluated(self) -> Self:
        if "finetuned" not in self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise ValueError(f"protocols: {list(self.protocols)} must name 'finetuned', and each once")
        return self


class RegistryParams(Section):
    """The gate in front of the model registry."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/:]+$")]
    metric: str
    minimum: Ratio
    tolerance: Ratio


class Params(Section):
    """The whole of ``params.yaml``."""

    run: RunParams
    tracking: TrackingParams
    synthesize: SynthesizeParams
    ingest: IngestParams
    datasets: dict[DatasetName, IngestParams]
    trajectories: TrajectoriesParams
    clip: ClipParams
    model: ModelParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    registry: RegistryParams
    sweep: SweepParams
    ablation: AblationParams

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.clip.size % self.model.patch_size:
            raise ValueError(f"model.patch_size: {self.model.patch_size} must divide clip.size {self.clip.size}")
        if self.clip.num_frames % self.model.tubelet_frames:
            raise ValueError(
                f"model.tubelet_frames: {self.model.tubelet_frames} must divide clip.num_frames {self.clip.num_frames}"
            )
        if self.pretrain.length > self.trajectories.max_length:
            raise ValueError(
                f"pretrain.length: {self.pretrain.length} exceeds"
                f" trajectories.max_length {self.trajectories.max_length}"
            )
        for name, section in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            parts = self.run.num_processes * section.accumulate
            if section.batch_size % parts:
                raise ValueError(
                    f"{name}.batch_size: {section.batch_size} must be a multiple of"
                    f" run.devices x run.num_nodes x accumulate = {parts}"
                )
        missing = set(self.pretrain.splits) - set(self.trajectories.splits)
        if missing:
            raise ValueError(f"pretrain.splits: {sorted(missing)} are not in trajectories.splits")
        for name in (*self.sweep.fixed, *self.sweep.space):
            part, _, key = name.partition(".")
            if part not in ("clip", "model", "pretrain") or key not in type(getattr(self, part)).model_fields:
                raise ValueError(
                    f"sweep: {name!r} is no parameter of clip, model or pretrain, which a trial depends on"
                )
        return self

    @model_validator(mode="after")
    def _data_sets_suit(self) -> Self:
        folders = ["data", *(f"data/{name}" for name in self.datasets)]
        taken = sorted({"raw", "trajectories", "videos"} & set(self.datasets))
        if taken:
            raise ValueError(f"datasets: {taken} are folders of the first data set")
        for name, section in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if section.data not in folders:
                raise ValueError(f"{name}.data: {section.data!r} is none of {', '.join(folders)}; add it to datasets")
        needed = frames_needed(self.clip, self.model, self.pretrain.length)
        ingests = {"ingest": self.ingest, **{f"datasets.{name}": data for name, data in self.datasets.items()}}
        pretrained_on = "ingest" if self.pretrain.data == "data" else self.pretrain.data.replace("data/", "datasets.")
        for name, data in ingests.items():
            if name == pretrained_on and data.min_frames < needed:  # shorter ones can be classified all the same
                raise ValueError(
                    f"{name}.min_frames: {data.min_frames} is too few: clip and trajectories span {needed} frames"
                )
            if data.source == "motion-primitives" and self.synthesize.num_frames < data.min_frames:
                raise ValueError(
                    f"synthesize.num_frames: {self.synthesize.num_frames} is below {name}.min_frames {data.min_frames}"
                )
            if data.short_side < self.clip.size:
                raise ValueError(f"{name}.short_side: {data.short_side} is below clip.size {self.clip.size}")
        return self


def frames_needed(clip: ClipParams, model: ModelParams, length: int) -> int:
    """Raw frames that a clip and the trajectories of its last tubelet span together."""
    last_start = (clip.num_frames - model.tubelet_frames) * clip.stride_frames
    return max(clip.span_frames, last_start + length + 1)


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check ``params.yaml``.

    Raises:
        ValueError: the file is missing, not YAML, or a key is unknown, missing or out of range; the message names
            the file and every such key.
    """
    path = Path(path)
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {faults(error, '(whole file)')}") from error
