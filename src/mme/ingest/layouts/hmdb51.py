"""HMDB51 (Kuehne et al. 2011): ``CLASS/NAME.avi`` and the lists of ``testTrainMulti_7030_splits``.

For every class and each of three divisions there is a file ``CLASS_test_split1.txt`` with one line a video of the
class, ``NAME.avi 1``: 1 is training, 2 is test, 0 is neither.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from mme.config import Split
from mme.ingest.listing import LineErrors, Listing, SourceFile, index_videos, text_lines, the_one

LISTS_FOLDERS = ("testTrainMulti_7030_splits", "metafile")

_SIDES: dict[str, Split | None] = {"1": None, "2": "test"}
_UNUSED = "0"
_FILM = re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d_\w\w_(?:goo|med|bad)_\d+")
"""The name of a clip: film and class, visible body part, camera motion, people, viewpoint, quality, number."""


def list_hmdb51(root: Path, split_number: int) -> Listing:
    """Read one of the three divisions; where the class folders stand below ``root`` does not matter.

    Training clips of one film and class are a group, so that validation does not know them.

    Raises:
        ValueError: a list is missing, or lines are wrong or missing; the message names files and lines.
    """
    folder = next((root / name for name in LISTS_FOLDERS if (root / name).is_dir()), root / LISTS_FOLDERS[0])
    ending = f"_test_split{split_number}.txt"
    lists = sorted(folder.glob(f"*{ending}"))
    if not lists:
        raise ValueError(f"{folder}: holds no list CLASS{ending}")
    errors = LineErrors()
    videos, others = index_videos(root, _key)
    listed: dict[str, int] = {}
    files, unused = [], []
    for path in lists:
        label = path.name.removesuffix(ending)
        lines = text_lines(path)
        for number, line in lines:
            try:
                wanted, flag = _parse(line)
                key = _key(PurePath(label, wanted))
                if key in listed:
                    raise ValueError(f"{wanted!r} stands in line {listed[key]} already")
                listed[key] = number
                if flag == _UNUSED:
                    unused += videos.get(key, [])
                    continue
                video = the_one(videos.get(key, []), f"{label}/{wanted}", root)
            except ValueError as error:
                errors.add(path, number, error)
                continue
            split = _SIDES[flag]
            files.append(SourceFile(video, label, split, _film(wanted) if split is None else None))
        unlisted = [video for key, found in videos.items() if _in_class(key, label, listed) for video in found]
        if unlisted:
            errors.add(path, lines[-1][0], f"the list ends without a line of {', '.join(unlisted[:3])}")
    errors.check()
    classes = {path.name.removesuffix(ending).casefold() for path in lists}
    strangers = [video for key, found in videos.items() if key.partition("/")[0] not in classes for video in found]
    if strangers:
        raise ValueError(f"{folder}: no list of the class of {len(strangers)} videos, such as {strangers[0]!r}")
    ignored = [name for name in others if not name.startswith(f"{folder.name}/")]
    return Listing(files, ignored, unused=unused, splits_training=True)


def _parse(line: str) -> tuple[str, str]:
    wanted, _, flag = line.rpartition(" ")
    if not wanted or flag not in {_UNUSED, *_SIDES}:
        raise ValueError(f"{line!r} is no name and 1 (training), 2 (test) or 0 (unused)")
    return wanted.strip(), flag


def _film(wanted: str) -> str | None:
    match = _FILM.fullmatch(PurePath(wanted).stem)
    return match[1] if match else None


def _in_class(key: str, label: str, listed: dict[str, int]) -> bool:
    return key.startswith(f"{label.casefold()}/") and key not in listed


def _key(path: PurePath) -> str:
    return "/".join(path.with_suffix("").parts[-2:]).casefold()  # without suffix: some have made mp4 files of them
