"""Kinetics-400/600/700 (Kay et al. 2017): ``train/CLASS/YOUTUBEID_000095_000105.mp4`` and lists in CSV.

``train.csv``, ``val.csv`` (or ``validate.csv``) and ``test.csv`` have the columns ``youtube_id``, ``time_start``,
``time_end``, ``split`` and ``label``, in any order and beside others; the seconds are in the files' names, six digits
each. Videos vanish from YouTube, so every copy lacks some: missing videos are counted and are not an error. The scripts
of the common copy (github.com/cvdfoundation/kinetics-dataset) unpack ``train/``, ``val/`` and ``test/`` without class
folders, videos for broken ones into ``replacement/``, and link them by class below ``videos/``.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from mme.config import IngestParams, Split
from mme.ingest.listing import (
    SPLIT_OF_NAME,
    LineErrors,
    Listing,
    SourceFile,
    index_videos,
    named_fields,
    read_csv,
    stem_of,
)

_LIST_FOLDERS = (".", "annotations")
_LIST_NAME = re.compile(r"(kinetics[-_]?)?(\d+[-_])?(train|val|validate|validation|test)\.csv", re.IGNORECASE)
_REQUIRED_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
_YOUTUBE_ID = re.compile(r"[\w-]{11}")
_ID_LENGTH = 11
_SPOILT_ID = "#NAME?"
"""Result of opening ids that begin with a minus sign in a spreadsheet; published lists have it."""


def list_kinetics(params: IngestParams) -> Listing:
    """Read all lists, or ``params.list_file`` alone; the class folders may be anywhere below the root.

    Of several files of one clip that in a folder ``replacement...`` is taken, where the makers put those for broken
    ones, then that in the folder of its class; links to one file count once. A clip whose file has other seconds in its
    name is found by its id, as the makers' own script does. Test videos without a label are left out.

    Raises:
        ValueError: there is no list, lines are wrong, or several files match; the message names file and line.
    """
    root = params.root
    lists = _find_lists(root) if params.list_file is None else [root / params.list_file]
    videos, tree = index_videos(root, stem_of, frames=params.frames_fps is not None)
    stems_of_id: defaultdict[str, list[str]] = defaultdict(list)
    for stem in videos:
        stems_of_id[stem[:_ID_LENGTH]].append(stem)
    errors = LineErrors()
    clips, missing = _read_clips(lists, errors)

    num_of_id = Counter(stem[:_ID_LENGTH] for stem in clips)
    files, used, num_by_id = [], set(), 0
    for stem, clip in clips.items():
        found = videos.get(stem, [])
        if not found and num_of_id[stem[:_ID_LENGTH]] == 1:
            found = [path for other in stems_of_id[stem[:_ID_LENGTH]] for path in videos[other]]
            num_by_id += bool(found)
        with errors.at(clip.path, clip.line):
            video = _choose_video(root, found, stem, clip.label)
            if video is None:
                missing.append(stem)
            elif clip.label is not None:
                used.add(video)
                files.append(SourceFile(video, clip.label, clip.split))
    errors.check()

    left = [name for paths in videos.values() for name in paths if name not in used]
    real_root = os.path.realpath(root)
    unused = [name for name in left if os.path.relpath(os.path.realpath(root / name), real_root) not in used]
    list_names = {path.relative_to(root).as_posix() for path in lists if path.is_relative_to(root)}
    ignored = [name for name in tree.others if name not in list_names]
    what = f"{num_by_id} videos are found by their ids alone: their names have other seconds than the lists"
    return Listing(files, ignored, missing, unused, broken=tree.broken, warnings=[what] if num_by_id else [])


class _Clip(NamedTuple):
    """A line of a list."""

    path: Path
    line: int
    stem: str
    split: Split
    label: str | None


def _read_clips(lists: Sequence[Path], errors: LineErrors) -> tuple[dict[str, _Clip], list[str]]:
    """Return the clips of all lists by the stems of their files, and the lines that a spreadsheet has spoilt.

    A clip may be in two lists with the same split and label: copies have both ``val.csv`` and ``validate.csv``.
    """
    clips: dict[str, _Clip] = {}
    spoilt = []
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
                    spoilt.append(f"{_SPOILT_ID} in line {line} of {path.name}")
                    continue
                clip = _Clip(path, line, *_parse_clip(fields))
                before = clips.setdefault(clip.stem, clip)
                if before is not clip and (before.path == path or before[3:] != clip[3:]):
                    raise ValueError(f"{clip.stem!r} is already in {before.path.name}, line {before.line}")
    return clips, spoilt


def _find_lists(root: Path) -> list[Path]:
    folders = [root / name for name in _LIST_FOLDERS]
    for folder in [*folders, *(path for parent in reversed(folders) for path in sorted(parent.glob("*/")))]:
        lists = sorted(path for path in folder.glob("*.csv") if _LIST_NAME.fullmatch(path.name))
        if lists:
            return lists
    raise ValueError(
        f"{root}: has no train.csv, val.csv or test.csv, and {_LIST_FOLDERS[1]} in it has none either; lists in other"
        " forms (train.txt) are not read, and class folders without lists are ingest.source=folder"
    )


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
    if SPLIT_OF_NAME.get(split, "pretrain") == "pretrain":
        raise ValueError(f"split {fields['split']!r} is not one of train, val, validate, test")
    if label is None and split != "test":
        raise ValueError(f"split {split!r} needs a label")
    return f"{youtube_id}_{start:06d}_{end:06d}", SPLIT_OF_NAME[split], label


def _choose_video(root: Path, candidates: list[str], stem: str, label: str | None) -> str | None:
    """Return the file of a clip, or None if there is none."""
    if len(candidates) > 1:
        repaired = [path for path in candidates if any(map(_is_replacement, PurePath(path).parts[:-1]))]
        candidates = repaired or candidates
        by_file = {os.path.realpath(root / path): path for path in sorted(candidates, key=_depth, reverse=True)}
        candidates = list(by_file.values())
    if len(candidates) > 1 and label is not None:
        of_class = [path for path in candidates if _letters(PurePath(path).parent.name) == _letters(label)]
        candidates = of_class or candidates
    if len(candidates) > 1:
        raise ValueError(f"{len(candidates)} files match {stem!r}: {', '.join(sorted(candidates)[:3])}")
    return candidates[0] if candidates else None


def _is_replacement(folder: str) -> bool:
    return folder.casefold().startswith("replacement")


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _letters(label: str) -> str:
    """Return the letters and digits of a class: tools write spaces as underscores and leave out quotes and brackets."""
    return re.sub(r"[^a-z0-9]+", "", label.lower())
