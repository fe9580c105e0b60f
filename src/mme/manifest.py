"""The manifest: one row per video, the contract between stages and their only list of videos."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mme.config import Split
from mme.system.files import atomic_path, digest
from mme.video.codec import NORMAL_FORM_VERSION
from mme.video.containers import Reason

VideoStatus = Literal["ok", "quarantined"]

SPLITS: tuple[Split, ...] = get_args(Split)
"""All splits, in order of their use."""

MANIFEST_FILE = "manifest.parquet"
VIDEOS_FOLDER = "videos"
"""Folder of the videos, beside the manifest."""


@dataclass(frozen=True)
class Video:
    """One row of a manifest.

    Attributes:
        id: unique, readable, safe as a file name; the same as long as source path and content are.
        path: transcoded file, relative to the folder ``videos`` beside the manifest; empty if quarantined.
        sha256: of the source file's bytes.
        label: class, or None.
        split: ``pretrain``, ``train``, ``val`` or ``test``.
        group: videos of one group are in one split (a subject, a scene), or None.
        num_frames: frames of the transcoded file; 0 if quarantined.
        fps: frames per second of the transcoded file, ``ingest.fps``.
        width: pixels of the transcoded file.
        height: pixels of the transcoded file.
        status: ``ok`` or ``quarantined``.
        reason: reason for the quarantine, or None.
        source_path: the source file, relative to the source's root.
        source_fps: frames per second of the source, the average if its rate varies.
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
    status: VideoStatus
    reason: Reason | None
    source_path: str
    source_fps: float


_VERSION_KEY = b"normal_form"
"""Key in the metadata of the Parquet file: version of the normal form that its videos are in."""

# One column per field; those of `X | None` may be null. Annotations are strings, and literals are stored as strings.
_TYPES = {"int": pa.int32(), "float": pa.float64()}
_SCHEMA = pa.schema(
    pa.field(field.name, _TYPES.get(str(field.type), pa.string()), nullable="None" in str(field.type))
    for field in fields(Video)
).with_metadata({_VERSION_KEY: str(NORMAL_FORM_VERSION)})


class Manifest:
    """Videos sorted by id, and the paths of their files."""

    def __init__(self, rows: Iterable[Video], folder: Path | str) -> None:
        """Collect rows.

        Args:
            rows: videos in any order.
            folder: parent of the manifest file and of the folder ``videos``.

        Raises:
            ValueError: two rows have the same id.
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
        """All videos, including quarantined ones."""
        return list(self._rows.values())

    def videos(self, split: str | Sequence[str], min_frames: int = 1) -> list[Video]:
        """Return the usable videos of one split or several that have at least ``min_frames``, sorted by id."""
        wanted = {split} if isinstance(split, str) else set(split)
        good = (row for row in self.rows if row.status == "ok")
        return [row for row in good if row.split in wanted and row.num_frames >= min_frames]

    def labelled(self, split: str | Sequence[str], min_frames: int = 1) -> list[Video]:
        """Return the videos of `videos` that have a label."""
        return [video for video in self.videos(split, min_frames) if video.label is not None]

    @property
    def quarantined(self) -> list[Video]:
        """Videos that cannot be used; each has a ``reason``."""
        return [row for row in self.rows if row.status == "quarantined"]

    @cached_property
    def labels(self) -> list[str]:
        """Sorted classes of the usable videos; labels that occur in the pretraining split alone are left out."""
        return sorted({row.label for row in self.videos(("train", "val", "test")) if row.label is not None})

    @cached_property
    def fps(self) -> float:
        """Frame rate of the transcoded files.

        Raises:
            ValueError: there is no usable video, or they have several rates.
        """
        rates = sorted({row.fps for row in self.rows if row.status == "ok"})
        if len(rates) != 1:
            found = " and ".join(f"{rate:g}" for rate in rates) or "no"
            raise ValueError(f"{self.folder}: its videos have {found} frames per second, not one rate; run `dvc repro`")
        return rates[0]

    def path_of(self, video: Video) -> Path:
        """Return the file of a usable video.

        Raises:
            ValueError: the video is quarantined and has no file.
        """
        if video.status != "ok":
            raise ValueError(f"{video.source_path}: quarantined ({video.reason}), it has no file")
        return self.folder / VIDEOS_FOLDER / video.path

    def without(self, video_ids: Collection[str]) -> Manifest:
        """Return a manifest of all other videos, with the same files."""
        return Manifest([row for row in self.rows if row.id not in video_ids], self.folder)

    def with_training_videos_of(self, more: Manifest) -> tuple[Manifest, Counter[str]]:
        """Return a manifest with the training videos of another data set, and counts of what became of each of them.

        A video that is in this data set's validation or test is left out, and so is one whose label this data set does
        not have. One that is a training video here already has the other label in future. A video is known by the
        digest of its source file, or, as a clip that the service kept, by its name, which is the digest of the upload.
        """
        known = {row.sha256: row for row in self.videos(SPLITS)}
        added, replaced, counts = [], set(), Counter[str]()
        for row in more.videos("train"):
            same = known.get(row.sha256) or known.get(PurePath(row.source_path).stem)
            if row.label not in self.labels:
                counts["label unknown"] += 1
            elif same is not None and same.split in ("val", "test"):
                counts["held out"] += 1
            elif same is not None and same.label == row.label:
                counts["known"] += 1
            else:
                counts["added"] += 1
                replaced |= set() if same is None or same.split == "pretrain" else {same.id}
                added.append(replace(row, id=f"{more.folder.name}-{row.id}", path=str(more.path_of(row).absolute())))
        kept = [row for row in self.rows if row.id not in replaced]
        return Manifest([*kept, *added], self.folder), counts

    @cached_property
    def digest(self) -> str:
        """Digest of the contents, labels, splits and groups of the usable videos, independent of paths and folders."""
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
            ValueError: the file is missing, not Parquet, lacks a column, or its videos are in another normal form.
        """
        path = Path(path)
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: cannot be read as a manifest: {error}") from error
        missing = set(_SCHEMA.names) - set(table.column_names)
        if missing:
            raise ValueError(
                f"{path}: not a manifest of this version, it lacks the columns {sorted(missing)}; run `dvc repro`"
            )
        version = (table.schema.metadata or {}).get(_VERSION_KEY, b"3").decode()
        if version != str(NORMAL_FORM_VERSION):
            raise ValueError(
                f"{path}: its videos are in version {version} of the normal form, not {NORMAL_FORM_VERSION};"
                " run `dvc repro ingest`"
            )
        return cls((Video(**row) for row in table.select(_SCHEMA.names).to_pylist()), path.parent)


def write_quarantine(path: Path | str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write the list of unusable files as CSV ``path,reason,detail``, sorted by path, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason", "detail"])
        writer.writerows(sorted(rows))
