"""Sections ``synthesize``, ``ingest``, ``datasets`` and ``trajectories``: from source files to tracks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mme.config.base import FrameRate, NonNegative, Positive, PositiveFloat, Range, Ratio, Section

Split = Literal["pretrain", "train", "val", "test"]
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

SourceLayout = Literal[
    "motion-primitives",
    "folder",
    "csv",
    "feedback",
    "ucf101",
    "hmdb51",
    "jester",
    "something-something-v1",
    "something-something-v2",
    "kinetics",
]
"""Layouts of source folders; `mme.ingest.sources.LAYOUTS` has the function of each."""

DatasetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
DataFolder = Annotated[str, Field(pattern=r"^data(/[a-z0-9][a-z0-9_-]*)?$")]
"""Folder of an ingested data set: ``data`` for that of ``ingest``, ``data/NAME`` for one of ``datasets``."""


SYNTHETIC = "motion-primitives"
FEEDBACK = "feedback"

NO_DATA = "data/none"
"""Value of ``finetune.more_data`` for none: a folder without videos, because a DVC stage depends on a folder whatever
the value."""


def data_name(source: str, root: Path | str) -> str:
    """Return the name of a data set: that of its folder, or of the motion primitives."""
    return SYNTHETIC if source == SYNTHETIC else Path(root).absolute().name or source


class SynthesizeParams(Section):
    """The motion primitives: sizes in pixels, speeds per frame."""

    classes: Annotated[tuple[Primitive, ...], Field(min_length=2)]
    size: Annotated[int, Field(ge=16, multiple_of=2)]
    num_frames: Positive
    fps: Positive
    num_pretrain: Annotated[int, Field(ge=0)]
    train_per_class: Positive
    val_per_class: Positive
    test_per_class: Positive
    speed_px: Range
    drift_px: NonNegative

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        low, high = self.speed_px
        if low > high:
            raise ValueError(f"speed_px: [{low}, {high}] must ascend")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {list(self.classes)} name one twice")
        return self


class IngestParams(Section):
    """From any source to videos in the normal form and a manifest."""

    source: SourceLayout
    root: Path
    split_number: Literal[1, 2, 3]
    list_file: Path | None
    group_pattern: str | None
    frames_fps: FrameRate | None
    fps: FrameRate
    short_side: Annotated[int, Field(ge=16, multiple_of=2)]
    crf: Annotated[int, Field(ge=0, le=51)]
    val_ratio: Ratio
    test_ratio: Ratio

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
