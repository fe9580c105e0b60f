"""Something-Something V2 (Goyal et al. 2017): ``20bn-something-something-v2/ID.webm`` and label files in JSON.

``train.json`` and ``validation.json`` are lists of ``{"id": "78687", "label": "holding potato next to vicks bottle",
"template": "Holding [something] next to [something]", "placeholders": [...]}``, ``test.json`` has ids alone, and
``test-answers.csv``, where it is there, lines ``ID;TEMPLATE``. ``labels.json`` gives each class, its template without
brackets, a number. Older releases name the files ``something-something-v2-train.json`` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme.config import Split
from mme.ingest.listing import LineErrors, Listing, SourceFile, index_videos, json_entries, text_lines, the_one
from mme.system.files import read_json

_FOLDERS = ("labels", ".", "annotations")
_OLD_PREFIX = "something-something-v2-"
_ANSWERS = "test-answers.csv"
_FILES: dict[Split, str] = {"train": "train.json", "val": "validation.json"}


def list_something_v2(root: Path) -> Listing:
    """Read the label files; where the videos stand below ``root`` does not matter.

    Test videos are used only with their answers; a model is otherwise measured on ``val``, as in publications.

    Raises:
        ValueError: a label file is missing, or entries are wrong; the message names files and lines.
    """
    folder = _folder(root)
    classes: set[str] = set(_label_numbers(_named(folder, "labels.json")))
    videos, others = index_videos(root, lambda path: path.stem)
    errors = LineErrors()
    listed: dict[str, str] = {}
    files = []
    for split, path, number, entry in _entries(folder):
        try:
            video_id, template = _parse(entry)
            label = template.replace("[", "").replace("]", "")
            if label not in classes:
                raise ValueError(f"template {template!r} is no class of labels.json")
            if video_id in listed:
                raise ValueError(f"id {video_id!r} stands in {listed[video_id]} already")
            listed[video_id] = f"{path.name}, line {number},"
            video = the_one(videos.get(video_id, []), f"{video_id}.webm", root)
        except ValueError as error:
            errors.add(path, number, error)
            continue
        files.append(SourceFile(video, label, split))
    errors.check()
    unused = [path for video_id, paths in videos.items() if video_id not in listed for path in paths]
    labels_folder = folder.relative_to(root).as_posix()
    ignored = [name for name in others if Path(name).parent.as_posix() != labels_folder]
    return Listing(files, ignored, unused=unused)


def _folder(root: Path) -> Path:
    for name in _FOLDERS:
        if _named(root / name, _FILES["train"]).is_file():
            return root / name
    raise ValueError(f"{root}: holds no {_FILES['train']}, nor does {_FOLDERS[0]} in it")


def _named(folder: Path, name: str) -> Path:
    """The file by its present name, or by that of older releases if it has that."""
    old = folder / f"{_OLD_PREFIX}{name}"
    return old if old.is_file() else folder / name


def _label_numbers(path: Path) -> dict[str, str]:
    labels: Any = read_json(path)
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{path}: is no JSON object of classes and numbers")
    return labels


def _entries(folder: Path) -> Iterator[tuple[Split, Path, int, Any]]:
    for split, name in _FILES.items():
        path = _named(folder, name)
        for number, entry in json_entries(path):
            yield split, path, number, entry
    answers = folder / _ANSWERS
    if answers.is_file():
        for number, line in text_lines(answers):
            video_id, _, template = line.partition(";")
            yield "test", answers, number, {"id": video_id, "template": template}


def _parse(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
        raise ValueError(f"{entry!r} has no id")
    if not isinstance(entry.get("template"), str) or not entry["template"]:
        raise ValueError(f"the entry of id {entry['id']!r} has no template")
    return entry["id"], entry["template"]
