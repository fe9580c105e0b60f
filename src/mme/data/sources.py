"""Where videos come from: a list, or a folder of class folders."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import get_args

from mme.config import IngestParams, Split

VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip
COLUMNS = ("path", "label", "split", "group")
LIST_FILE = "list.csv"
"""The list of the motion primitives, in their folder."""

_SPLITS: dict[str, Split] = {**{name: name for name in get_args(Split)}, "validation": "val", "valid": "val"}
_MAX_ERRORS = 20


@dataclass(frozen=True)
class SourceFile:
    """A file that claims to be a video.

    Attributes:
        path: relative to the source's root, with forward slashes.
        label: class, or None.
        split: as given by the source, or None.
        group: files of one group belong into one split; None is a group of its own.
    """

    path: str
    label: str | None = None
    split: Split | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a source holds: its videos in order of their paths, and the paths of files that are none by their names."""

    files: list[SourceFile]
    ignored: list[str]


def list_source(params: IngestParams) -> Listing:
    """List the videos of the source that ``params`` names; no video is opened.

    Raises:
        ValueError: the source is missing, holds no video, or its list is wrong; the message names file and line.
    """
    if not params.root.is_dir():
        raise ValueError(f"{params.root}: is no folder (ingest.root)")
    if params.source == "folder":
        listing = _list_folder(params.root, params.group_pattern)
    else:
        list_file = params.root / (params.list_file or LIST_FILE)
        listing = Listing(read_list(list_file, params.root), [])
    if not listing.files:
        raise ValueError(f"{params.root}: holds no video (ingest.root); {len(listing.ignored)} other files")
    for file in listing.files:
        try:
            file.path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{params.root}: the name {file.path!r} is not UTF-8") from error
    return Listing(sorted(listing.files, key=lambda file: file.path), sorted(listing.ignored))


def read_list(list_file: Path, root: Path) -> list[SourceFile]:
    """Read a CSV list with the columns ``path``, ``label``, ``split``, ``group``, of which only the first is needed.

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
    errors: list[str] = []
    line_of: dict[str, int] = {}
    for number, row in rows:
        try:
            found = _parse_row(header, row, root)
            if found.path in line_of:
                raise ValueError(f"{found.path!r} stands in line {line_of[found.path]} already")
            line_of[found.path] = number
            files.append(found)
        except ValueError as error:
            errors.append(f"{list_file}, line {number}: {error}")
    if errors:
        more = [f"and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        raise ValueError("\n".join(errors[:_MAX_ERRORS] + more))
    return files


def _parse_row(header: list[str], row: list[str], root: Path) -> SourceFile:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, the header has {len(header)}")
    fields = {name: field.strip() or None for name, field in zip(header, row, strict=True)}
    path, label, split, group = (fields.get(name) for name in COLUMNS)
    if path is None:
        raise ValueError("no path")
    if not (root / path).exists():
        raise ValueError(f"no file {path!r} in {root}")
    if split is not None and split not in _SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(_SPLITS)}")
    if label is None and split not in {None, "pretrain"}:
        raise ValueError(f"split {split!r} needs a label")
    return SourceFile(PurePath(path).as_posix(), label, None if split is None else _SPLITS[split], group)


def _list_folder(root: Path, group_pattern: str | None) -> Listing:
    """Files below ``[SPLIT/]CLASS/``; those in no class folder, and all below ``pretrain/``, have no label."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named_splits = [name for name in folders if name in _SPLITS and name != "pretrain"]
    classes = [name for name in folders if name not in _SPLITS]
    if len(named_splits) > 1 and classes:
        raise ValueError(f"{root}: holds splits ({', '.join(named_splits)}) and classes ({', '.join(classes)})")
    given_splits = bool(named_splits) and not classes
    files, ignored, groupless = [], [], []
    for path in _walk(root):
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
            split = _SPLITS[parents.pop(0)]
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


def _walk(root: Path) -> Iterator[Path]:
    """All files below ``root`` relative to it, hidden ones left out; links are followed, each folder is seen once."""
    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith((".", "__MACOSX")) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root)
