"""Public data sets in miniature, in the layouts of their makers: names, separators and oddities."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests import media

UCF101_CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
HMDB51_CLASSES = ("brush_hair", "cartwheel")
SOMETHING = {
    "Holding [something] next to [something]": "Holding something next to something",
    "Pretending to be tearing [something that is not tearable]": "Pretending to be tearing something that is not"
    " tearable",
}
KINETICS_CLASSES = ("abseiling", "massaging person's head", "passing American football (in game)")


def make_ucf101(root: Path, clip: Path | None = None) -> Path:
    """Three classes of four groups with two videos each; group 1 is the test of division 1, 2 of division 2, ..."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    # The lists of UCF101 have the line ends of Windows.
    _text(lists / "classInd.txt", [f"{number} {name}" for number, name in enumerate(UCF101_CLASSES, 1)], "\r\n")
    for division in (1, 2, 3):
        train: list[str] = []
        test: list[str] = []
        for number, label in enumerate(UCF101_CLASSES, 1):
            for group in range(1, 5):
                for take in (1, 2):
                    name = f"{label}/v_{label.replace('stand', 'Stand')}_g{group:02d}_c{take:02d}.avi"
                    _put(root / "UCF-101" / name, clip)
                    (test if group == division else train).append(f"{name} {number}")
        _text(lists / f"trainlist{division:02d}.txt", train, "\r\n")
        _text(lists / f"testlist{division:02d}.txt", [line.rpartition(" ")[0] for line in test], "\r\n")
    return root


def make_hmdb51(root: Path, clip: Path | None = None) -> Path:
    """Two classes of five videos from three films: training, training, training, test, unused."""
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    films = ("April_09", "April_09", "#20_Rhythm_clip_(2)!", "Aussie;_Girl", "atrapado")
    for label in HMDB51_CLASSES:
        names = [f"{film}_{label}_u_nm_np1_ba_goo_{number}.avi" for number, film in enumerate(films)]
        for name in names:
            _put(root / "hmdb51_org" / label / name, clip)
        for division in (1, 2, 3):
            flags = (1, 1, 1, 2, 0) if division == 1 else (2, 2, 1, 1, 0)
            # There is a space at the end of each line.
            lines = [f"{name} {flag} " for name, flag in zip(names, flags, strict=True)]
            _text(lists / f"{label}_test_split{division}.txt", lines)
    return root


def make_something_v2(root: Path, clip: Path | None = None, *, answers: bool = True, prefix: str = "") -> Path:
    """Two classes, two training videos and one for validation each, and two for the test."""
    labels = root / "labels"
    labels.mkdir(parents=True)
    numbers = {label: str(number) for number, label in enumerate(SOMETHING.values())}
    (labels / f"{prefix}labels.json").write_text(json.dumps(numbers), encoding="utf-8")
    entries: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    templates = list(SOMETHING)
    for number in range(6):
        template = templates[number % 2]
        placeholders = ["potato", "vicks vaporub bottle"]
        entries["train" if number < 4 else "validation"].append({
            "id": str(78687 + number), "label": template.lower().replace("[something]", "potato"),
            "template": template, "placeholders": placeholders,
        })  # fmt: skip
    entries["test"] = [{"id": "1420"}, {"id": "1421"}]
    for split, part in entries.items():
        lines = ",\n".join(json.dumps(entry) for entry in part)
        (labels / f"{prefix}{split}.json").write_text(f"[{lines}]", encoding="utf-8")
        for entry in part:
            _put(root / "20bn-something-something-v2" / f"{entry['id']}.webm", clip)
    if answers:
        _text(labels / "test-answers.csv", [f"1420;{SOMETHING[templates[0]]}", f"1421;{SOMETHING[templates[1]]}"])
    return root


def make_kinetics(root: Path, clip: Path | None = None) -> Path:
    """Three classes with two training videos, one for validation and one for the test each, and one that is gone."""
    for number, label in enumerate(KINETICS_CLASSES):
        folder = label.replace(" ", "_") if number == 1 else label
        for split, takes in {"train": (0, 1), "val": (2,), "test": (3,)}.items():
            for take in takes:
                _put(root / split / folder / f"-a_b{number}Zo{take}XyP_{95 + take:06d}_{105 + take:06d}.mp4", clip)
    for split, name in {"train": "train", "val": "validate", "test": "test"}.items():
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for number, label in enumerate(KINETICS_CLASSES):
            takes = {"train": (0, 1), "val": (2,), "test": (3,)}[split]
            lines += [f'"{label}",-a_b{number}Zo{take}XyP,{95 + take},{105 + take},{name},0' for take in takes]
        if split == "train":
            lines += ["abseiling,vanished_00,0,10,train,0", "abseiling,#NAME?,4,14,train,0"]
        (root / "annotations").mkdir(exist_ok=True)
        _text(root / "annotations" / f"{name}.csv", lines)
    return root


def _put(path: Path, clip: Path | None) -> None:
    """A copy of a video, or an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if clip is None:
        path.write_bytes(b"")
    else:
        shutil.copyfile(clip, path)


def _text(path: Path, lines: list[str], end: str = "\n") -> None:
    path.write_bytes((end.join(lines) + end).encode())


def one_clip(folder: Path) -> Path:
    """A video to make all others of."""
    return media.write(folder / "clip.mp4", size=(48, 32), num_frames=24)
