"""UCF101 (Soomro et al. 2012): ``UCF-101/CLASS/v_CLASS_g01_c01.avi`` and the lists in ``ucfTrainTestlist``.

``classInd.txt`` numbers the classes from 1; ``trainlist01.txt`` has lines ``CLASS/v_CLASS_g08_c01.avi 1``,
``testlist01.txt`` the same without the number; there are three such divisions. Videos of one class and group (``g08``)
are cut from one recording, and are never on both sides.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Literal

from mme.ingest.listing import LineErrors, Listing, SourceFile, index_videos, text_lines, the_one

LISTS_FOLDER = "ucfTrainTestlist"

_Side = Literal["train", "test"]
_GROUP = re.compile(r"v_(\w+_g\d+)_c\d+")


def list_ucf101(root: Path, split_number: int) -> Listing:
    """Read one of the three divisions; where the videos' class folders stand below ``root`` does not matter.

    Raises:
        ValueError: a list is missing, or lines are wrong or missing; the message names files and lines.
    """
    folder, errors = root / LISTS_FOLDER, LineErrors()
    videos, others = index_videos(root, _key)
    classes = _read_classes(folder / "classInd.txt", errors)
    found: dict[str, tuple[_Side, int]] = {}
    sides: dict[str, _Side] = {}
    files = []
    for side, path in _list_files(folder, split_number).items():
        lines = text_lines(path)
        for number, line in lines:
            try:
                wanted, label = _parse(line, side, classes)
                key = _key(PurePath(wanted))
                if key in found:
                    raise ValueError(f"{wanted!r} stands in line {found[key][1]} of the {found[key][0]} list already")
                found[key] = side, number
                group = _group(wanted)
                if sides.setdefault(group, side) != side:
                    raise ValueError(f"group {group!r} is in the train list too")
                video = the_one(videos.get(key, []), wanted, root)
            except ValueError as error:
                errors.add(path, number, error)
                continue
            files.append(SourceFile(video, label, None if side == "train" else "test", group))
        absent = sorted(set(classes) - {wanted.partition("/")[0] for _, wanted in lines})
        if absent:
            errors.add(path, lines[-1][0], f"the list ends without a line of class {', '.join(absent)}")
    unlisted = [path for key, paths in videos.items() if key not in found for path in paths]
    if unlisted:
        last = _list_files(folder, split_number)["test"]
        what = f"{len(unlisted)} videos are in neither list, such as {unlisted[0]!r}"
        errors.add(last, text_lines(last)[-1][0], f"the list ends, and {what}")
    errors.check()
    ignored = [name for name in others if not name.startswith(f"{LISTS_FOLDER}/")]
    return Listing(files, ignored, splits_training=True)


def _list_files(folder: Path, split_number: int) -> dict[_Side, Path]:
    return {"train": folder / f"trainlist{split_number:02d}.txt", "test": folder / f"testlist{split_number:02d}.txt"}


def _read_classes(path: Path, errors: LineErrors) -> dict[str, int]:
    classes: dict[str, int] = {}
    for number, line in text_lines(path):
        index, _, name = line.partition(" ")
        if not index.isdecimal() or not name or name in classes or int(index) in classes.values():
            errors.add(path, number, f"{line!r} is no new number and class, such as '1 ApplyEyeMakeup'")
        else:
            classes[name] = int(index)
    return classes


def _parse(line: str, side: _Side, classes: dict[str, int]) -> tuple[str, str]:
    wanted, _, index = line.partition(" ")
    label, slash, _ = wanted.partition("/")
    if not slash or label not in classes:
        raise ValueError(f"{wanted!r} is not CLASS/VIDEO with a class of classInd.txt")
    if (side == "train" or index) and index.strip() != str(classes[label]):
        raise ValueError(f"class number {index!r}, classInd.txt has {classes[label]} for {label}")
    return wanted, label


def _group(wanted: str) -> str:
    match = _GROUP.fullmatch(PurePath(wanted).stem)
    if match is None:
        raise ValueError(f"{wanted!r} has no group, its name is not like v_CLASS_g01_c01.avi")
    return match[1]


def _key(path: PurePath) -> str:
    # Without suffix, for who has made other files of them; without case, as HandstandPushups/v_HandStandPushups_...
    # is written in two ways.
    return "/".join(path.with_suffix("").parts[-2:]).casefold()
