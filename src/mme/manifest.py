"""The manifest: one row a video, the only list of videos that later stages read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mme.system.files import atomic_path, digest
from mme.video.containers import Reason

Status = Literal["ok", "quarantined"]

MANIFEST_FILE = "manifest.parquet"
VIDEOS_FOLDER = "videos"
"""Folder of the videos, beside the manifest."""


@dataclass(frozen=True)
class Video:
    """One row.

    Attributes:
        id: unique, readable, safe as a file name; it stays the same as long as source path and content do.
        path: file in the normal form, relative to the folder ``videos`` beside the manifest; empty if quarantined.
        sha256: of the source file's bytes.
        label: class, or None.
        split: ``pretrain``, ``train``, ``val`` or ``test``.
        group: videos of one group are in one split (a subject, a scene), or None.
        num_frames: decoded frames; 0 if quarantined.
        fps: frames a second.
        width: pixels of the normal form.
        height: pixels of the normal form.
        status: ``ok`` or ``quarantined``.
        reason: why it is quarantined, or None.
        source_path: the source file, relative to the source's root.
    """

    id: str
    path: str
    sha256: str
    label: str | None
    split: str
    group: str | None
    num_frames: int
    fps: float
    width: int
    height: int
    status: Status
    reason: Reason | None
    source_path: str


_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("source_path", pa.string(), nullable=False),
    ]
)


class Manifest:
    """Videos in order of their ids, and where their files are."""

    def __init__(self, rows: Iterable[Video], folder: Path | str) -> None:
        """Take ``rows``; ``folder`` is the one that holds the manifest and the folder ``videos``.

        Raises:
            ValueError: two rows have one id.
        """
        self.folder = Path(folder)
        self._rows: dict[str, Video] = {}
        for row in sorted(rows, key=lambda row: row.id):
            if row.id in self._rows:
                raise ValueError(f"{self.folder}: two videos have the id {row.id!r}")
            self._rows[row.id] = row

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, video_id: str) -> Video:
        if video_id not in self._rows:
            raise ValueError(f"{self.folder}: no video has the id {video_id!r}")
        return self._rows[video_id]

    @property
    def rows(self) -> list[Video]:
        """Every video, quarantined ones included."""
        return list(self._rows.values())

    def videos(self, split: str | Sequence[str]) -> list[Video]:
        """Usable videos of one split or several, in order of their ids."""
        wanted = {split} if isinstance(split, str) else set(split)
        return [row for row in self.rows if row.status == "ok" and row.split in wanted]

    @property
    def quarantined(self) -> list[Video]:
        """Videos that cannot be used; ``reason`` says why."""
        return [row for row in self.rows if row.status == "quarantined"]

    @cached_property
    def labels(self) -> list[str]:
        """Classes of the usable videos, sorted; a label that only the pretraining split has is none."""
        return sorted({row.label for row in self.videos(("train", "val", "test")) if row.label is not None})

    def path_of(self, video: Video) -> Path:
        """The file of a usable video.

        Raises:
            ValueError: it is quarantined and has none.
        """
        if video.status != "ok":
            raise ValueError(f"{video.source_path}: is quarantined ({video.reason}), it has no file")
        return self.folder / VIDEOS_FOLDER / video.path

    @cached_property
    def digest(self) -> str:
        """What the usable videos hold and how they are labelled and split; paths and folders do not matter."""
        return digest([[v.id, v.sha256, v.label, v.split, v.group] for v in self.rows if v.status == "ok"])

    def save(self, path: Path | str) -> None:
        """Write the manifest as Parquet, atomically."""
        table = pa.Table.from_pylist([asdict(row) for row in self.rows], schema=_SCHEMA)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: Path | str) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: the file is missing, not Parquet, or lacks a column.
        """
        path = Path(path)
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: cannot be read as a manifest: {error}") from error
        missing = {field.name for field in fields(Video)} - set(table.column_names)
        if missing:
            raise ValueError(f"{path}: not a manifest, it lacks the columns {sorted(missing)}")
        names = [field.name for field in fields(Video)]
        return cls((Video(**row) for row in table.select(names).to_pylist()), path.parent)


def write_quarantine(path: Path | str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write the list of unusable files as CSV ``path,reason,detail``, sorted by path, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason", "detail"])
        writer.writerows(sorted(rows))
