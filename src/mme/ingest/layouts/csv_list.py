"""A CSV list with the columns ``path``, ``label``, ``split``, ``group``, ``start`` and ``end``.

Only the first is needed. ``start`` and ``end`` (seconds from the beginning) make a clip of a long video; clips that
have neither group nor split form a group with all others of their video.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePath

from mme.config import IngestParams
from mme.ingest.listing import SPLIT_OF_NAME, LineErrors, Listing, SourceFile, named_fields, read_csv

CSV_COLUMNS = ("path", "label", "split", "group", "start", "end")
PRIMITIVES_LIST = "list.csv"
"""List of the motion primitives, in their folder."""


def list_csv(params: IngestParams) -> Listing:
    """Read the list ``params.list_file``, or that of the motion primitives.

    Raises:
        ValueError: the list cannot be read, or some of its lines are wrong; the message names file and lines.
    """
    return Listing(read_list(params.root / (params.list_file or PRIMITIVES_LIST), params.root), [])


def read_list(list_file: Path, root: Path) -> list[SourceFile]:
    """Read a CSV list whose paths are relative to ``root``.

    Raises:
        ValueError: the list cannot be read, or some of its lines are wrong; the message names file and lines.
    """
    header, rows = read_csv(list_file)
    unknown = set(header) - set(CSV_COLUMNS)
    if unknown or "path" not in header or len(set(header)) < len(header):
        raise ValueError(f"{list_file}, line 1: columns {header}, expected path and any of {list(CSV_COLUMNS[1:])}")

    files: list[SourceFile] = []
    errors = LineErrors()
    line_of: dict[str, int] = {}
    for line, row in rows:
        with errors.at(list_file, line):
            file = _parse_csv_row(named_fields(header, row), root)
            if file.name in line_of:
                raise ValueError(f"{file.name!r} is already in line {line_of[file.name]}")
            line_of[file.name] = line
            files.append(file)
    errors.check()
    return files


def _parse_csv_row(fields: dict[str, str], root: Path) -> SourceFile:
    path, label, split, group, start, end = (fields.get(name) or None for name in CSV_COLUMNS)
    if path is None:
        raise ValueError("no path")
    if not (root / path).exists():
        raise ValueError(f"no file {path!r} in {root}")
    if split is not None and split not in SPLIT_OF_NAME:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLIT_OF_NAME)}")
    if label is None and split not in {None, "pretrain"}:
        raise ValueError(f"split {split!r} needs a label")
    name = PurePath(path).as_posix()
    span_s = _parse_span(start, end)
    if span_s is not None and group is None and split is None:
        group = name
    return SourceFile(name, label, None if split is None else SPLIT_OF_NAME[split], group, span_s)


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
