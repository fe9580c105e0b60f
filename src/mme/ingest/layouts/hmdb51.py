"""HMDB51 (Kuehne et al. 2011): ``CLASS/NAME.avi`` and the lists of ``testTrainMulti_7030_splits``.

For every class and each of three divisions there is a file ``CLASS_test_split1.txt`` with one line per video of the
class, ``NAME.avi 1``: 1 is training, 2 is test, 0 is neither.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from mme.config import IngestParams, Split
from mme.ingest.listing import (
    LineErrors,
    Listing,
    SourceFile,
    class_and_stem,
    index_videos,
    read_lines,
    single_match,
)

HMDB51_LISTS = ("testTrainMulti_7030_splits", "metafile", "test_train_splits", "annotations")

_SPLIT_OF_FLAG: dict[str, Split | None] = {"1": None, "2": "test"}
_UNUSED_FLAG = "0"
_CLIP_NAME = re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d_\w\w_(?:goo|med|bad)_\d+")
"""Film and class, visible body part, camera motion, number of people, viewpoint, quality, number."""


def list_hmdb51(params: IngestParams) -> Listing:
    """Read one of the three divisions; the class folders may be anywhere below the root.

    Training clips of one film and class form a group, so that validation uses other films.

    Raises:
        ValueError: a list is missing, or lines are wrong or missing; the message names files and lines.
    """
    root = params.root
    folder = next((root / name for name in HMDB51_LISTS if (root / name).is_dir()), root / HMDB51_LISTS[0])
    ending = f"_test_split{params.split_number}.txt"
    lists = sorted(folder.glob(f"*{ending}"))
    if not lists:
        raise ValueError(f"{folder}: has no list CLASS{ending}")

    errors = LineErrors()
    videos, tree = index_videos(root, class_and_stem, frames=params.frames_fps is not None)
    listed: dict[str, int] = {}
    files, unused = [], []
    for path in lists:
        label = path.name.removesuffix(ending)
        lines = read_lines(path)
        for number, line in lines:
            with errors.at(path, number):
                wanted, flag = _parse_flag(line)
                key = class_and_stem(PurePath(label, wanted))
                if key in listed:
                    raise ValueError(f"{wanted!r} is already in line {listed[key]}")
                listed[key] = number
                if flag == _UNUSED_FLAG:
                    unused += videos.get(key, [])
                    continue
                video = single_match(videos.get(key, []), f"{label}/{wanted}", root)
                split = _SPLIT_OF_FLAG[flag]
                match = _CLIP_NAME.fullmatch(PurePath(wanted).stem)
                group = match[1] if match and split is None else None
                files.append(SourceFile(video, label, split, group))

        class_prefix = f"{label.casefold()}/"
        unlisted = [
            video
            for key, found in videos.items()
            if key.startswith(class_prefix) and key not in listed
            for video in found
        ]
        if unlisted:
            errors.add(path, lines[-1][0], f"the list ends without a line of {', '.join(unlisted[:3])}")
    errors.check()

    classes = {path.name.removesuffix(ending).casefold() for path in lists}
    strangers = [video for key, found in videos.items() if key.partition("/")[0] not in classes for video in found]
    if strangers:
        raise ValueError(f"{folder}: no list of the class of {len(strangers)} videos, such as {strangers[0]!r}")
    ignored = [name for name in tree.others if not name.startswith(f"{folder.name}/")]
    return Listing(files, ignored, unused=unused, splits_training=True, broken=tree.broken)


def _parse_flag(line: str) -> tuple[str, str]:
    wanted, _, flag = line.rpartition(" ")
    if not wanted or flag not in {_UNUSED_FLAG, *_SPLIT_OF_FLAG}:
        raise ValueError(f"{line!r} is not a name and 1 (training), 2 (test) or 0 (unused)")
    return wanted.strip(), flag
