"""A CSV list with the columns ``path``, ``label``, ``split``, ``group``, ``start``, ``end`` and ``fps``.

Only the first is needed. ``start`` and ``end`` (seconds from the beginning) make a clip of a long video; clips that
have neither group nor split form a group with all others of their video. A path may be a folder of numbered pictures;
``fps`` is its rate.
"""

from __future__ import annotations

import math
import os
import unicodedata
from pathlib import Path, PurePath

from mme.config import IngestParams
from mme.ingest.frame_folder import frame_names
from mme.ingest.listing import SPLIT_OF_NAME, LineErrors, Listing, SourceFile, named_fields, read_csv

CSV_COLUMNS = ("path", "label", "split", "group", "start", "end", "fps")
PRIMITIVES_LIST = "list.csv"
"""List of the motion primitives, in their folder."""


def list_csv(params: IngestParams) -> Listing:
    """Read the list ``params.list_file``, or that of the motion primitives.

    Raises:
        ValueError: the list cannot be read, or some of its lines are wrong; the message names file and lines.
    """
    return Listing(read_list(params.root / (params.list_file or PRIMITIVES_LIST), params.root, params.frames_fps), [])


def read_list(list_file: Path, root: Path, frames_fps: float | None = None) -> list[SourceFile]:
    """Read a CSV list whose paths are relative to ``root``.

    Args:
        list_file: the list.
        root: folder of its paths.
        frames_fps: frames per second of the folders of pictures for which the list gives none.

    Raises:
        ValueError: the list cannot be read, or some of its lines are wrong; the message names file and lines.
    """
    header, rows = read_csv(list_file)
    header = [name.lower() for name in header]
    unknown = set(header) - set(CSV_COLUMNS)
    if unknown or "path" not in header or len(set(header)) < len(header):
        raise ValueError(f"{list_file}, line 1: columns {header}, expected path and any of {list(CSV_COLUMNS[1:])}")

    files: list[SourceFile] = []
    errors = LineErrors()
    line_of: dict[str, int] = {}
    names = _Names(root)
    for line, row in rows:
        with errors.at(list_file, line):
            file = _parse_csv_row(named_fields(header, row), names, frames_fps)
            if file.name in line_of:
                raise ValueError(f"{file.name!r} is already in line {line_of[file.name]}")
            line_of[file.name] = line
            files.append(file)
    errors.check()
    return files


class _Names:
    """Names in the folders below a root; lists and disks may hold different Unicode forms of one name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, path: str) -> str:
        """Return a path as it stands on disk; a link whose target is gone stands there too.

        Raises:
            ValueError: there is no such file.
        """
        if os.path.lexists(self.root / path):
            return PurePath(path).as_posix()
        found = self.root
        for part in PurePath(path.replace("\\", "/")).parts:
            if found not in self._names:
                names = os.listdir(found) if found.is_dir() else []
                self._names[found] = {unicodedata.normalize("NFC", name): name for name in names}
            name = self._names[found].get(unicodedata.normalize("NFC", part))
            if name is None:
                raise ValueError(f"no file {path!r} in {self.root}")
            found /= name
        return found.relative_to(self.root).as_posix()


def _parse_csv_row(fields: dict[str, str], names: _Names, frames_fps: float | None) -> SourceFile:
    path, label, split, group, start, end, fps = (fields.get(name) or None for name in CSV_COLUMNS)
    if path is None:
        raise ValueError("no path")
    name = names.find(path)
    if split is not None and split.lower() not in SPLIT_OF_NAME:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLIT_OF_NAME)}")
    known_split = None if split is None else SPLIT_OF_NAME[split.lower()]
    if label is None and known_split not in {None, "pretrain"}:
        raise ValueError(f"split {split!r} needs a label")
    span_s = _parse_span(start, end)
    if span_s is not None and group is None and split is None:
        group = name
    return SourceFile(name, label, known_split, group, span_s, _parse_rate(names.root / name, fps, frames_fps))


def _parse_rate(path: Path, fps: str | None, frames_fps: float | None) -> float | None:
    """Return the rate of a folder of pictures; a file has its own."""
    if not path.is_dir():
        if fps is not None:
            raise ValueError(f"fps {fps}: {path.name!r} is a file and has its own rate; folders of pictures have none")
        return None
    if not frame_names(path):
        raise ValueError(f"{path.name!r} is a folder without numbered pictures")
    try:
        rate = frames_fps if fps is None else float(fps)
    except ValueError as error:
        raise ValueError(f"fps {fps!r} is not a number") from error
    if rate is None:
        raise ValueError(f"{path.name!r} is a folder of pictures without a rate: the column fps, or ingest.frames_fps")
    if not 0 < rate < math.inf:
        raise ValueError(f"fps {fps} is not above 0")
    return rate


def _parse_span(start: str | None, end: str | None) -> tuple[float, float] | None:
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise ValueError(f"start {start or 'empty'}, end {end or 'empty'}: a clip needs both")
    try:
        first_s, last_s = float(start), float(end)
    except ValueError as error:
        raise ValueError(f"start {start!r} or end {end!r} is not a number of seconds") from error
    if not 0 <= first_s < last_s < math.inf:
        raise ValueError(f"start {start} is negative or not before end {end}")
    return first_s, last_s
