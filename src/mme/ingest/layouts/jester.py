"""Jester (Materzynska et al. 2019) and Something-Something V1 (Goyal et al. 2017): folders of frames, ``ID/00001.jpg``.

``jester-v1-train.csv`` and ``jester-v1-validation.csv`` have lines ``ID;CLASS``, ``jester-v1-test.csv`` has lines
``ID``, ``jester-v1-labels.csv`` lines ``CLASS``; the files of the other data set begin with ``something-something-v1``.
The frames were taken at 12 a second.
"""

from __future__ import annotations

from mme.config import IngestParams, Split
from mme.ingest.listing import LineErrors, Listing, SourceFile, index_videos, read_lines, register_video, stem_of

_LABEL_FOLDERS = (".", "labels", "annotations")
_LISTS: dict[str, Split] = {"train": "train", "validation": "val"}


def list_jester(params: IngestParams) -> Listing:
    """Read the lists of Jester; the folders of frames may be anywhere below the root, and may be videos instead.

    The test has no labels and is left out.

    Raises:
        ValueError: a list is missing, lines are wrong, or the frames have no rate; the message names file and line.
    """
    return _list_numbered(params, "jester-v1")


def list_something_v1(params: IngestParams) -> Listing:
    """Read the lists of Something-Something V1, as ``list_jester`` does."""
    return _list_numbered(params, "something-something-v1")


def _list_numbered(params: IngestParams, prefix: str) -> Listing:
    root = params.root
    folder = next((root / name for name in _LABEL_FOLDERS if (root / name / f"{prefix}-train.csv").is_file()), None)
    if folder is None:
        raise ValueError(f"{root}: has no {prefix}-train.csv, and labels and annotations in it have none either")
    videos, tree = index_videos(root, stem_of, frames=True)
    if tree.frame_folders and params.frames_fps is None:
        raise ValueError(
            f"{root}: {len(tree.frame_folders)} folders of pictures have no rate; that of {prefix} is"
            " ingest.frames_fps=12"
        )
    labels = folder / f"{prefix}-labels.csv"
    classes = {line for _, line in read_lines(labels)} if labels.is_file() else set()

    errors = LineErrors()
    listed: dict[str, str] = {}
    files = []
    for name, split in _LISTS.items():
        path = folder / f"{prefix}-{name}.csv"
        for number, line in read_lines(path):
            with errors.at(path, number):
                video_id, label = _parse_line(line, classes)
                place = f"{path.name}, line {number}"
                video = register_video(video_id, place, listed, videos, f"folder {video_id}", root)
                files.append(SourceFile(video, label, split))
    errors.check()

    unused = [found for video_id, paths in videos.items() if video_id not in listed for found in paths]
    lists = folder.relative_to(root) / prefix
    ignored = [name for name in tree.others if not name.startswith(lists.as_posix())]
    return Listing(files, ignored, unused=unused, broken=tree.broken)


def _parse_line(line: str, classes: set[str]) -> tuple[str, str]:
    video_id, _, label = (part.strip() for part in line.partition(";"))
    if not video_id or not label:
        raise ValueError(f"{line!r} is not ID;CLASS")
    if classes and label not in classes:
        raise ValueError(f"class {label!r} is not in the list of labels")
    return video_id, label
