"""Where videos come from: a list, a folder of class folders, or a public data set."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path, PurePath

from mme.config import IngestParams, Split
from mme.ingest.layouts.hmdb51 import list_hmdb51
from mme.ingest.layouts.kinetics import list_kinetics
from mme.ingest.layouts.something import list_something_v2
from mme.ingest.layouts.ucf101 import list_ucf101
from mme.ingest.listing import SPLITS, VIDEO_SUFFIXES, LineErrors, Listing, SourceFile, walk

__all__ = ["Listing", "SourceFile", "list_source", "read_list"]

COLUMNS = ("path", "label", "split", "group", "start", "end")
LIST_FILE = "list.csv"
"""The list of the motion primitives, in their folder."""


def list_source(params: IngestParams) -> Listing:
    """List the videos of the source that ``params`` names; no video is opened.

    Raises:
        ValueError: the source is missing, holds no video, or its list is wrong; the message names file and line.
    """
    if not params.root.is_dir():
        raise ValueError(f"{params.root}: is no folder (ingest.root)")
    listing = _list(params)
    if not listing.files:
        missing = f", {len(listing.missing)} are missing" if listing.missing else ""
        raise ValueError(f"{params.root}: holds no video (ingest.root); {len(listing.ignored)} other files{missing}")
    for file in listing.files:
        try:
            file.path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{params.root}: the name {file.path!r} is not UTF-8") from error
    files = sorted(listing.files, key=lambda file: (file.path, file.span_s or ()))
    return Listing(files, sorted(listing.ignored), listing.missing, listing.unused, listing.splits_training)


def _list(params: IngestParams) -> Listing:
    match params.source:
        case "folder":
            return _list_folder(params.root, params.group_pattern)
        case "motion-primitives" | "csv":
            return Listing(read_list(params.root / (params.list_file or LIST_FILE), params.root), [])
        case "ucf101":
            return list_ucf101(params.root, params.split_number)
        case "hmdb51":
            return list_hmdb51(params.root, params.split_number)
        case "something-something-v2":
            return list_something_v2(params.root)
        case "kinetics":
            return list_kinetics(params.root, params.list_file)


def read_list(list_file: Path, root: Path) -> list[SourceFile]:
    """Read a CSV list with the columns ``path``, ``label``, ``split``, ``group``, ``start`` and ``end``.

    Only the first is needed. ``start`` and ``end`` (seconds from the beginning) make a clip of a long video; clips
    that have neither group nor split are a group with all others of their video.

    Raises:
        ValueError: the list cannot be read, or some of its lines are wrong; the message names file and lines.
    """
    try:
        with open(list_file, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            unknown = sorted(set(header) - set(COLUMNS))
            if unknown or "path" not in header or len(set(header)) < len(header):
                raise ValueError(f"{list_file}, line 1: columns {header}, expected path and any of {list(COLUMNS[1:])}")
            rows = [(lines.line_num, row) for row in lines if any(field.strip() for field in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{list_file}: cannot be read as a CSV list: {error}") from error
    files: list[SourceFile] = []
    errors = LineErrors()
    line_of: dict[str, int] = {}
    for number, row in rows:
        try:
            found = _parse_row(header, row, root)
            if found.name in line_of:
                raise ValueError(f"{found.name!r} stands in line {line_of[found.name]} already")
            line_of[found.name] = number
            files.append(found)
        except ValueError as error:
            errors.add(list_file, number, error)
    errors.check()
    return files


def _parse_row(header: list[str], row: list[str], root: Path) -> SourceFile:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, the header has {len(header)}")
    fields = {name: field.strip() or None for name, field in zip(header, row, strict=True)}
    path, label, split, group, start, end = (fields.get(name) for name in COLUMNS)
    if path is None:
        raise ValueError("no path")
    if not (root / path).exists():
        raise ValueError(f"no file {path!r} in {root}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if label is None and split not in {None, "pretrain"}:
        raise ValueError(f"split {split!r} needs a label")
    span_s, name = _parse_span(start, end), PurePath(path).as_posix()
    if span_s is not None and group is None and split is None:
        group = name
    return SourceFile(name, label, None if split is None else SPLITS[split], group, span_s)


def _parse_span(start: str | None, end: str | None) -> tuple[float, float] | None:
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise ValueError(f"start {start or 'empty'}, end {end or 'empty'}: a clip needs both")
    try:
        first_s, last_s = float(start), float(end)
    except ValueError as error:
        raise ValueError(f"start {start!r} or end {end!r} is no number of seconds") from error
    if not 0 <= first_s < last_s < math.inf:
        raise ValueError(f"start {start} is negative or not before end {end}")
    return first_s, last_s


def _list_folder(root: Path, group_pattern: str | None) -> Listing:
    """Files below ``[SPLIT/]CLASS/``; those in no class folder, and all below ``pretrain/``, have no label."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named_splits = [name for name in folders if name in SPLITS and name != "pretrain"]
    classes = [name for name in folders if name not in SPLITS]
    if len(named_splits) > 1 and classes:
        raise ValueError(f"{root}: holds splits ({', '.join(named_splits)}) and classes ({', '.join(classes)})")
    given_splits = bool(named_splits) and not classes
    files, ignored, groupless = [], [], []
    for path in walk(root):
        name = path.as_posix()
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            ignored.append(name)
            continue
        group = _group_of(path.name, group_pattern)
        if group_pattern is not None and group is None:
            groupless.append(name)
        *parents, _ = path.parts
        split: Split | None = None
        if parents and (parents[0] == "pretrain" or given_splits):
            split = SPLITS[parents.pop(0)]
        label = parents[0] if parents and split != "pretrain" else None
        if label is None and split not in {None, "pretrain"}:
            raise ValueError(f"{root / path}: a video of split {split!r} must be in a class folder")
        files.append(SourceFile(name, label, split, group))
    if groupless:
        raise ValueError(
            f"{root}: ingest.group_pattern {group_pattern!r} does not match {len(groupless)} of {len(files)} names,"
            f" such as {groupless[0]!r}"
        )
    return Listing(files, ignored)


def _group_of(name: str, pattern: str | None) -> str | None:
    match = re.search(pattern, name) if pattern is not None else None
    return match[1] if match else None
