"""Kinetics-400/600/700 (Kay et al. 2017): ``train/CLASS/YOUTUBEID_000095_000105.mp4`` and lists in CSV.

``train.csv``, ``val.csv`` (or ``validate.csv``) and ``test.csv`` have the columns ``youtube_id``, ``time_start``,
``time_end``, ``split`` and ``label``, in any order and beside others; the seconds are in the files' names, six digits
each. Videos vanish from YouTube, so every copy lacks some: missing videos are counted and are not an error.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from mme.config import IngestParams, Split
from mme.ingest.listing import (
    SPLIT_OF_NAME,
    LineErrors,
    Listing,
    SourceFile,
    index_videos,
    named_fields,
    read_csv,
)

_LIST_FOLDERS = (".", "annotations")
_LIST_NAME = re.compile(r"(kinetics[-_]?)?(\d+[-_])?(train|val|validate|validation|test)\.csv", re.IGNORECASE)
_REQUIRED_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")
_SPOILT_ID = "#NAME?"
"""Result of opening ids that begin with a minus sign in a spreadsheet; published lists have it."""


def list_kinetics(params: IngestParams) -> Listing:
    """Read all lists, or ``params.list_file`` alone; the class folders may be anywhere below the root.

    Test videos without a label are left out.

    Raises:
        ValueError: there is no list, lines are wrong, or several files match; the message names file and line.
    """
    root = params.root
    lists = _find_lists(root) if params.list_file is None else [root / params.list_file]
    videos, others = index_videos(root, lambda path: path.stem)
    errors = LineErrors()
    listed: dict[str, str] = {}
    files, missing, unused = [], [], []
    for path in lists:
        header, rows = read_csv(path)
        header = [name.lower() for name in header]
        absent = sorted(set(_REQUIRED_COLUMNS) - set(header))
        if absent:
            raise ValueError(f"{path}, line 1: columns {header} lack {', '.join(absent)}")

        for line, row in rows:
            with errors.at(path, line):
                fields = named_fields(header, row)
                if fields["youtube_id"] == _SPOILT_ID:
                    missing.append(f"{_SPOILT_ID} in line {line} of {path.name}")
                    continue
                stem, split, label = _parse_clip(fields)
                if stem in listed:
                    raise ValueError(f"{stem!r} is already in {listed[stem]}")
                listed[stem] = f"{path.name}, line {line}"
                video = _find_video(videos.get(stem, []), stem, label)
                if video is None:
                    missing.append(stem)
                elif label is None:
                    unused.append(video)
                else:
                    files.append(SourceFile(video, label, split))
    errors.check()

    unused += [name for stem, paths in videos.items() if stem not in listed for name in paths]
    list_names = {path.relative_to(root).as_posix() for path in lists if path.is_relative_to(root)}
    return Listing(files, [name for name in others if name not in list_names], sorted(missing), sorted(unused))


def _find_lists(root: Path) -> list[Path]:
    for folder in _LIST_FOLDERS:
        lists = sorted(path for path in (root / folder).glob("*.csv") if _LIST_NAME.fullmatch(path.name))
        if lists:
            return lists
    raise ValueError(f"{root}: has no train.csv, val.csv or test.csv, and {_LIST_FOLDERS[1]} in it has none either")


def _parse_clip(fields: dict[str, str]) -> tuple[str, Split, str | None]:
    """Return the stem of the clip's file, its split and its label."""
    youtube_id = fields["youtube_id"]
    if not _YOUTUBE_ID.fullmatch(youtube_id):
        raise ValueError(f"youtube_id {youtube_id!r} is not eleven letters, digits, - and _")
    try:
        start, end = (int(float(fields[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError) as error:
        times = f"time_start {fields['time_start']!r} or time_end {fields['time_end']!r}"
        raise ValueError(f"{times} is not a number") from error
    if not 0 <= start < end:
        raise ValueError(f"time_start {start} is not before time_end {end}")
    split = fields["split"].lower()
    label = fields.get("label") or None
    if split not in SPLIT_OF_NAME or split == "pretrain":
        raise ValueError(f"split {fields['split']!r} is not one of train, val, validate, test")
    if label is None and split != "test":
        raise ValueError(f"split {split!r} needs a label")
    return f"{youtube_id}_{start:06d}_{end:06d}", SPLIT_OF_NAME[split], label


def _find_video(candidates: list[str], stem: str, label: str | None) -> str | None:
    """Return the file of a name, of several the one in the folder of its class, or None if there is none."""
    if len(candidates) > 1 and label is not None:
        of_class = [path for path in candidates if _letters(PurePath(path).parent.name) == _letters(label)]
        candidates = of_class or candidates
    if len(candidates) > 1:
        raise ValueError(f"{len(candidates)} files match {stem!r}: {', '.join(candidates[:3])}")
    return candidates[0] if candidates else None


def _letters(label: str) -> str:
    """Return the letters and digits of a class: tools write spaces as underscores and leave out quotes and brackets."""
    return re.sub(r"[^a-z0-9]+", "", label.lower())
