"""UCF101 (Soomro et al. 2012): ``UCF-101/CLASS/v_CLASS_g01_c01.avi`` and the lists in ``ucfTrainTestlist``.

``classInd.txt`` numbers the classes from 1; ``trainlist01.txt`` has lines ``CLASS/v_CLASS_g08_c01.avi 1``,
``testlist01.txt`` the same without the number; there are three such divisions. Videos of one class and group (``g08``)
are cut from one recording, and are all in training or all in the test.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Literal

from mme.config import IngestParams
from mme.ingest.listing import (
    LineErrors,
    Listing,
    SourceFile,
    class_and_stem,
    index_videos,
    read_lines,
    single_match,
)

UCF101_LISTS = ("ucfTrainTestlist", "annotations", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist")

_Side = Literal["train", "test"]
_CLASS_AND_GROUP = re.compile(r"v_(\w+_g\d+)_c\d+")


def list_ucf101(params: IngestParams) -> Listing:
    """Read one of the three divisions; the class folders may be anywhere below the root.

    Raises:
        ValueError: a list is missing, or lines are wrong or missing; the message names files and lines.
    """
    root, number_of_lists = params.root, f"{params.split_number:02d}"
    lists_folder = next((name for name in UCF101_LISTS if (root / name / "classInd.txt").is_file()), UCF101_LISTS[0])
    folder = root / lists_folder
    lists: dict[_Side, Path] = {
        "train": folder / f"trainlist{number_of_lists}.txt",
        "test": folder / f"testlist{number_of_lists}.txt",
    }
    errors = LineErrors()
    videos, tree = index_videos(root, class_and_stem, frames=params.frames_fps is not None)
    classes = _read_classes(folder / "classInd.txt", errors)
    listed: dict[str, tuple[_Side, int]] = {}
    side_of_group: dict[str, _Side] = {}
    files = []
    for side, path in lists.items():
        lines = read_lines(path)
        for number, line in lines:
            with errors.at(path, number):
                wanted, label = _parse_ucf101_line(line, side, classes)
                key = class_and_stem(PurePath(wanted))
                if key in listed:
                    raise ValueError(f"{wanted!r} is already in line {listed[key][1]} of the {listed[key][0]} list")
                listed[key] = side, number
                group = _recording(wanted)
                if side_of_group.setdefault(group, side) != side:
                    raise ValueError(f"group {group!r} is in the train list too")
                video = single_match(videos.get(key, []), wanted, root)
                files.append(SourceFile(video, label, None if side == "train" else "test", group))

        absent = sorted(set(classes) - {line.partition("/")[0] for _, line in lines})
        if absent:
            errors.add(path, lines[-1][0], f"the list ends without a line of class {', '.join(absent)}")

    unlisted = [path for key, paths in videos.items() if key not in listed for path in paths]
    if unlisted:
        last_line, _ = read_lines(lists["test"])[-1]
        what = f"{len(unlisted)} videos are in neither list, such as {unlisted[0]!r}"
        errors.add(lists["test"], last_line, f"the list ends, and {what}")
    errors.check()
    ignored = [name for name in tree.others if not name.startswith(f"{lists_folder}/")]
    return Listing(files, ignored, splits_training=True, broken=tree.broken)


def _read_classes(path: Path, errors: LineErrors) -> dict[str, int]:
    classes: dict[str, int] = {}
    for number, line in read_lines(path):
        index, _, name = line.partition(" ")
        if not index.isdecimal() or not name or name in classes or int(index) in classes.values():
            errors.add(path, number, f"{line!r} is not a new number and class, such as '1 ApplyEyeMakeup'")
        else:
            classes[name] = int(index)
    return classes


def _parse_ucf101_line(line: str, side: _Side, classes: dict[str, int]) -> tuple[str, str]:
    wanted, _, index = line.partition(" ")
    label, slash, _ = wanted.partition("/")
    if not slash or label not in classes:
        raise ValueError(f"{wanted!r} is not CLASS/VIDEO with a class of classInd.txt")
    if (side == "train" or index) and index.strip() != str(classes[label]):
        raise ValueError(f"class number {index!r}, classInd.txt has {classes[label]} for {label}")
    return wanted, label


def _recording(wanted: str) -> str:
    match = _CLASS_AND_GROUP.fullmatch(PurePath(wanted).stem)
    if match is None:
        raise ValueError(f"{wanted!r} has no group: its name is not like v_CLASS_g01_c01.avi")
    return match[1]
