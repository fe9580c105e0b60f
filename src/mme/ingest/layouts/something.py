"""Something-Something V2 (Goyal et al. 2017): ``20bn-something-something-v2/ID.webm`` and label files in JSON.

``train.json`` and ``validation.json`` are lists of ``{"id": "78687", "label": "holding potato next to vicks bottle",
"template": "Holding [something] next to [something]", "placeholders": [...]}``, ``test.json`` has ids alone, and
``test-answers.csv``, if present, lines ``ID;TEMPLATE``. ``labels.json`` numbers the classes, which are templates
without brackets. Older releases name the files ``something-something-v2-train.json`` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme.config import IngestParams, Split
from mme.ingest.listing import (
    LineErrors,
    Listing,
    SourceFile,
    index_videos,
    json_entries,
    read_lines,
    register_video,
    stem_of,
)
from mme.system.files import read_json

_LABEL_FOLDERS = ("labels", ".", "annotations")
_OLD_PREFIX = "something-something-v2-"
_TEST_ANSWERS = "test-answers.csv"
_LABEL_FILES: dict[Split, str] = {"train": "train.json", "val": "validation.json"}


def list_something_v2(params: IngestParams) -> Listing:
    """Read the label files; the videos may be anywhere below the root.

    Test videos are used only with their answers; without them models are measured on ``val``, as in publications.

    Raises:
        ValueError: a label file is missing, or entries are wrong; the message names files and lines.
    """
    root = params.root
    folder = _find_label_folder(root)
    classes = _read_label_names(_label_file(folder, "labels.json"))
    videos, tree = index_videos(root, stem_of, frames=params.frames_fps is not None)
    errors = LineErrors()
    listed: dict[str, str] = {}
    files = []
    for split, path, line, entry in _read_entries(folder):
        with errors.at(path, line):
            video_id, template = _parse_entry(entry)
            label = template.replace("[", "").replace("]", "")
            if label not in classes:
                raise ValueError(f"template {template!r} is not a class of labels.json")
            place = f"{path.name}, line {line}"
            video = register_video(video_id, place, listed, videos, f"{video_id}.webm", root)
            files.append(SourceFile(video, label, split))
    errors.check()

    unused = [path for video_id, paths in videos.items() if video_id not in listed for path in paths]
    label_folder = folder.relative_to(root).as_posix()
    ignored = [name for name in tree.others if Path(name).parent.as_posix() != label_folder]
    return Listing(files, ignored, unused=unused, broken=tree.broken)


def _find_label_folder(root: Path) -> Path:
    for name in _LABEL_FOLDERS:
        if _label_file(root / name, _LABEL_FILES["train"]).is_file():
            return root / name
    raise ValueError(f"{root}: has no {_LABEL_FILES['train']}, and {_LABEL_FOLDERS[0]} in it has none either")


def _label_file(folder: Path, name: str) -> Path:
    """Return a file by its present name, or by that of older releases if it exists."""
    old = folder / f"{_OLD_PREFIX}{name}"
    return old if old.is_file() else folder / name


def _read_label_names(path: Path) -> set[str]:
    labels: Any = read_json(path)
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{path}: not a JSON object of classes and numbers")
    return set(labels)


def _read_entries(folder: Path) -> Iterator[tuple[Split, Path, int, Any]]:
    for split, name in _LABEL_FILES.items():
        path = _label_file(folder, name)
        for line, entry in json_entries(path):
            yield split, path, line, entry
    answers = folder / _TEST_ANSWERS
    if answers.is_file():
        for line, text in read_lines(answers):
            video_id, _, template = text.partition(";")
            yield "test", answers, line, {"id": video_id, "template": template}


def _parse_entry(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
        raise ValueError(f"{entry!r} has no id")
    if not isinstance(entry.get("template"), str) or not entry["template"]:
        raise ValueError(f"the entry of id {entry['id']!r} has no template")
    return entry["id"], entry["template"]
