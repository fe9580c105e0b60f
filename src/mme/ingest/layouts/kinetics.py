"""Kinetics-400/600/700 (Kay et al. 2017): ``train/CLASS/YOUTUBEID_000095_000105.mp4`` and lists in CSV.

``train.csv``, ``val.csv`` (or ``validate.csv``) and ``test.csv`` have the columns ``youtube_id``, ``time_start``,
``time_end``, ``split`` and ``label``, in any order and beside others; the seconds are in the files' names, six digits
each. Videos vanish from YouTube, so that nobody has all of them: those are counted, and are no error.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from mme.config import Split
from mme.ingest.listing import SPLITS, LineErrors, Listing, SourceFile, index_videos

_FOLDERS = (".", "annotations")
_LIST = re.compile(r"(kinetics[-_]?)?(\d+[-_])?(train|val|validate|validation|test)\.csv", re.IGNORECASE)
_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")
_SPOILT_ID = "#NAME?"
"""What a spreadsheet once made of ids that begin with a minus sign; published lists have it."""


def list_kinetics(root: Path, list_file: Path | None) -> Listing:
    """Read the lists, or the one that is named; where the class folders stand below ``root`` does not matter.

    Test videos without a label are left out.

    Raises:
        ValueError: there is no list, lines are wrong, or a file could be several; the message names file and line.
    """
    lists = [root / list_file] if list_file is not None else _find_lists(root)
    videos, others = index_videos(root, lambda path: path.stem)
    errors = LineErrors()
    listed: dict[str, str] = {}
    files, missing, unused = [], [], []
    for path in lists:
        for number, row in _rows(path):
            if row["youtube_id"] == _SPOILT_ID:
                missing.append(f"{_SPOILT_ID} in line {number} of {path.name}")
                continue
            try:
                stem, split, label = _parse(row)
                if stem in listed:
                    raise ValueError(f"{stem!r} stands in {listed[stem]} already")
                listed[stem] = f"{path.name}, line {number},"
                video = _choose(videos.get(stem, []), stem, label)
            except ValueError as error:
                errors.add(path, number, error)
                continue
            if video is None:
                missing.append(stem)
            elif label is None:
                unused.append(video)
            else:
                files.append(SourceFile(video, label, split))
    errors.check()
    unused += [name for stem, paths in videos.items() if stem not in listed for name in paths]
    names = {path.relative_to(root).as_posix() for path in lists if path.is_relative_to(root)}
    return Listing(files, [name for name in others if name not in names], sorted(missing), sorted(unused))


def _find_lists(root: Path) -> list[Path]:
    for folder in _FOLDERS:
        lists = sorted(path for path in (root / folder).glob("*.csv") if _LIST.fullmatch(path.name))
        if lists:
            return lists
    raise ValueError(f"{root}: holds no train.csv, val.csv or test.csv, nor does {_FOLDERS[1]} in it")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            absent = sorted(set(_COLUMNS) - set(header))
            if absent:
                raise ValueError(f"{path}, line 1: columns {header} lack {', '.join(absent)}")
            for fields in reader:
                if any(field.strip() for field in fields):
                    if len(fields) != len(header):
                        what = f"{len(fields)} fields, the header has {len(header)}"
                        raise ValueError(f"{path}, line {reader.line_num}: {what}")
                    yield reader.line_num, dict(zip(header, (field.strip() for field in fields), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a CSV list: {error}") from error


def _parse(row: dict[str, str]) -> tuple[str, Split, str | None]:
    if not _YOUTUBE_ID.fullmatch(row["youtube_id"]):
        raise ValueError(f"youtube_id {row['youtube_id']!r} is none: they have eleven letters, digits, - and _")
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"time_start {row['time_start']!r} or time_end {row['time_end']!r} is no number") from error
    if not 0 <= start < end:
        raise ValueError(f"time_start {start} is not before time_end {end}")
    split, label = row["split"].lower(), row.get("label") or None
    if split not in SPLITS or split == "pretrain":
        raise ValueError(f"split {row['split']!r} is none of train, val, validate, test")
    if label is None and split != "test":
        raise ValueError(f"split {split!r} needs a label")
    return f"{row['youtube_id']}_{start:06d}_{end:06d}", SPLITS[split], label


def _choose(candidates: list[str], stem: str, label: str | None) -> str | None:
    """The only file of a name, or of several the one in the folder of its class."""
    if len(candidates) > 1 and label is not None:
        of_class = [path for path in candidates if _plain(PurePath(path).parent.name) == _plain(label)]
        candidates = of_class or candidates
    if len(candidates) > 1:
        raise ValueError(f"{len(candidates)} files could be {stem!r}: {', '.join(candidates[:3])}")
    return candidates[0] if candidates else None


def _plain(label: str) -> str:
    """A class as folders have it: tools write spaces as underlines, and leave quotes and brackets out."""
    return re.sub(r"[^a-z0-9]+", "", label.lower())
