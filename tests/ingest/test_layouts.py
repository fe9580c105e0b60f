from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mme.config import IngestParams, load_params
from mme.ingest.listing import Listing, json_entries
from mme.ingest.run import Ingest
from mme.ingest.sources import list_source
from tests.ingest import layouts


def params(source: str, root: Path, **changes: object) -> IngestParams:
    values = load_params().ingest.model_dump() | {"source": source, "root": root, "short_side": 32} | changes
    return IngestParams.model_validate(values)


def listed(source: str, root: Path, **changes: object) -> Listing:
    return list_source(params(source, root, **changes))


def splits(listing: Listing) -> Counter[tuple[str | None, str | None]]:
    return Counter((file.label, file.split) for file in listing.files)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("division", [1, 2, 3])
def test_ucf101(tmp_path: Path, division: int) -> None:
    listing = listed("ucf101", layouts.make_ucf101(tmp_path), split_number=division)
    expected = {(label, split): count for label in layouts.UCF101_CLASSES for split, count in ((None, 6), ("test", 2))}
    assert splits(listing) == expected
    assert {file.group for file in listing.files if file.split == "test" and file.label == "YoYo"} == {
        f"YoYo_g{division:02d}"
    }
    assert listing.files[0].path == "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    assert (listing.ignored, listing.missing, listing.unused) == ([], [], [])


def test_ucf101_with_mp4_files(tmp_path: Path) -> None:
    layouts.make_ucf101(tmp_path)
    for path in (tmp_path / "UCF-101").rglob("*.avi"):
        path.rename(path.with_name(path.name.lower()).with_suffix(".mp4"))
    assert len(listed("ucf101", tmp_path).files) == 24


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "message"),
    [
        ("classInd.txt", "2 Hand", "2Hand", 2, "is not a new number and class"),
        ("classInd.txt", "3 YoYo", "2 YoYo", 3, "is not a new number and class"),
        ("trainlist01.txt", "g02_c01.avi 1", "g02_c01.avi 3", 1, "class number '3', classInd.txt has 1"),
        ("trainlist01.txt", "g02_c01.avi 1", "g02_c01.avi", 1, "class number '', classInd.txt has 1"),
        ("trainlist01.txt", "ApplyEyeMakeup/v", "ApplyMakeup/v", 1, "is not CLASS/VIDEO with a class of classInd.txt"),
        ("trainlist01.txt", "g02_c02.avi", "g02_c01.avi", 2, "is already in line 1 of the train list"),
        ("trainlist01.txt", "g02_c02.avi", "g02_c07.avi", 2, "no video 'ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c07.avi'"),
        ("trainlist01.txt", "v_ApplyEyeMakeup_g02_c01", "v_ApplyEyeMakeup_2", 1, "has no group"),
        ("testlist01.txt", "g01_c01", "g02_c01", 1, "is already in line 1 of the train list"),
        ("testlist01.txt", "YoYo/v_YoYo_g01_c02.avi\r\n", "", 5, "the list ends, and 1 videos are in neither list"),
        ("trainlist01.txt", "_g02_c01.avi 1", "_g01_c09.avi 1", 1, "no video"),
    ],
)
def test_wrong_lines_of_ucf101(tmp_path: Path, file: str, old: str, new: str, line: int, message: str) -> None:
    layouts.make_ucf101(tmp_path)
    edit(tmp_path / "ucfTrainTestlist" / file, old, new)
    with pytest.raises(ValueError, match=rf"(?m)^\S+{file}, line {line}: .*{message}"):
        listed("ucf101", tmp_path)


def test_a_class_of_ucf101_without_lines_and_a_group_on_two_sides(tmp_path: Path) -> None:
    layouts.make_ucf101(tmp_path)
    lists = tmp_path / "ucfTrainTestlist"
    lines = (lists / "trainlist01.txt").read_text(encoding="utf-8").splitlines()
    (lists / "trainlist01.txt").write_text("\n".join(lines[:12]), encoding="utf-8")
    edit(lists / "testlist01.txt", "YoYo/v_YoYo_g01_c01", "YoYo/v_YoYo_g03_c01")
    with pytest.raises(ValueError, match=r"trainlist01.txt, line 12: the list ends without a line of class YoYo"):
        listed("ucf101", tmp_path)
    (lists / "trainlist01.txt").write_text("\n".join(line for line in lines if "YoYo_g03_c01" not in line), "utf-8")
    with pytest.raises(ValueError, match=r"testlist01.txt, line 5: group 'YoYo_g03' is in the train list too"):
        listed("ucf101", tmp_path)


def test_hmdb51(tmp_path: Path) -> None:
    listing = listed("hmdb51", layouts.make_hmdb51(tmp_path))
    expected = {(label, split): count for label in layouts.HMDB51_CLASSES for split, count in ((None, 3), ("test", 1))}
    assert splits(listing) == expected
    assert {file.group for file in listing.files if file.split is None and file.label == "cartwheel"} == {
        "April_09_cartwheel",
        "#20_Rhythm_clip_(2)!_cartwheel",
    }
    assert len(listing.unused) == 2
    assert Counter(file.split for file in listed("hmdb51", tmp_path, split_number=2).files) == {None: 4, "test": 4}


def test_hmdb51_with_its_lists_in_the_folder_metafile(tmp_path: Path) -> None:
    layouts.make_hmdb51(tmp_path)
    (tmp_path / "testTrainMulti_7030_splits").rename(tmp_path / "metafile")
    assert len(listed("hmdb51", tmp_path).files) == 8


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("goo_0.avi 1 ", "goo_0.avi 3 ", 1, r"is not a name and 1 \(training\)"),
        ("goo_0.avi 1 ", "goo_0.avi", 1, r"is not a name and 1 \(training\)"),
        ("goo_1.avi", "goo_0.avi", 2, "is already in line 1"),
        ("goo_3.avi", "goo_8.avi", 4, "no video 'brush_hair/.*goo_8.avi'"),
        ("atrapado_brush_hair_u_nm_np1_ba_goo_4.avi 0 \n", "", 4, "the list ends without a line of .*goo_4.avi"),
    ],
)
def test_wrong_lines_of_hmdb51(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    layouts.make_hmdb51(tmp_path)
    edit(tmp_path / "testTrainMulti_7030_splits/brush_hair_test_split1.txt", old, new)
    with pytest.raises(ValueError, match=rf"(?m)^\S+brush_hair_test_split1.txt, line {line}: .*{message}"):
        listed("hmdb51", tmp_path)


def test_a_class_of_hmdb51_without_a_list(tmp_path: Path) -> None:
    layouts.make_hmdb51(tmp_path)
    (tmp_path / "testTrainMulti_7030_splits/cartwheel_test_split1.txt").unlink()
    with pytest.raises(ValueError, match="no list of the class of 5 videos, such as 'hmdb51_org/cartwheel/"):
        listed("hmdb51", tmp_path)


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_something_something_v2(tmp_path: Path, prefix: str) -> None:
    listing = listed("something-something-v2", layouts.make_something_v2(tmp_path, prefix=prefix))
    counts = (("train", 2), ("val", 1), ("test", 1))
    assert splits(listing) == {(label, split): n for label in layouts.SOMETHING.values() for split, n in counts}
    assert listing.ignored == []


def test_something_something_v2_without_test_answers(tmp_path: Path) -> None:
    listing = listed("something-something-v2", layouts.make_something_v2(tmp_path, answers=False))
    assert Counter(file.split for file in listing.files) == {"train": 4, "val": 2}
    assert listing.unused == [f"20bn-something-something-v2/{number}.webm" for number in (1420, 1421)]


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "message"),
    [
        ("train.json", '"id": "78688"', '"id": "78687"', 2, "id '78687' is already in train.json, line 1"),
        ("train.json", '"id": "78689"', '"id": "5"', 3, "no video '5.webm'"),
        ("train.json", '"id": "78689"', '"video": "78689"', 3, "has no id"),
        ("train.json", '"template": "Pretending', '"template": "Feigning', 2, "is not a class of labels.json"),
        ("train.json", '"template"', '"tmplate"', 1, "the entry of id '78687' has no template"),
        ("validation.json", "},\n", "}\n", 2, "Expecting ',' delimiter"),
        ("validation.json", "]}]", "]}", 2, "Expecting ',' delimiter"),
        ("validation.json", '"id":', '"id"', 1, "Expecting ':' delimiter"),
        ("validation.json", "[", "", 1, "not a JSON list"),
        ("test-answers.csv", "1421;", "1420;", 2, "id '1420' is already in test-answers.csv, line 1"),
    ],
)
def test_wrong_entries_of_something(tmp_path: Path, file: str, old: str, new: str, line: int, message: str) -> None:
    layouts.make_something_v2(tmp_path)
    edit(tmp_path / "labels" / file, old, new)
    with pytest.raises(ValueError, match=rf"(?m)^\S+{file}, line {line}: .*{message}"):
        listed("something-something-v2", tmp_path)


def test_json_entries_have_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('\n [\n {"a":\n 1},\n\n 2 , [3]\n]\n', encoding="utf-8")
    assert list(json_entries(path)) == [(3, {"a": 1}), (6, 2), (6, [3])]
    path.write_text("[]", encoding="utf-8")
    assert list(json_entries(path)) == []


def test_kinetics(tmp_path: Path) -> None:
    listing = listed("kinetics", layouts.make_kinetics(tmp_path))
    counts = (("train", 2), ("val", 1), ("test", 1))
    assert splits(listing) == {(label, split): n for label in layouts.KINETICS_CLASSES for split, n in counts}
    assert listing.missing == ["#NAME? in line 9 of train.csv", "vanished_00_000000_000010"]
    assert (listing.ignored, listing.unused) == ([], [])


def test_kinetics_with_one_list_and_an_unlabelled_test(tmp_path: Path) -> None:
    layouts.make_kinetics(tmp_path)
    text = (tmp_path / "annotations/test.csv").read_text(encoding="utf-8").splitlines()
    lines = ["youtube_id,time_start,time_end,split", *(",".join(line.rsplit(",", 5)[1:5]) for line in text[1:])]
    (tmp_path / "annotations/test.csv").write_text("\n".join(lines), encoding="utf-8")
    listing = listed("kinetics", tmp_path)
    assert Counter(file.split for file in listing.files) == {"train": 6, "val": 3}
    assert len(listing.unused) == 3
    assert len(listed("kinetics", tmp_path, list_file="annotations/validate.csv").files) == 3


def test_kinetics_prefers_the_file_in_the_class_folder(tmp_path: Path) -> None:
    layouts.make_kinetics(tmp_path)
    name = "-a_b1Zo0XyP_000095_000105.mp4"
    (tmp_path / "train/abseiling" / name).write_bytes(b"")
    paths = {file.path for file in listed("kinetics", tmp_path).files}
    assert f"train/massaging_person's_head/{name}" in paths
    (tmp_path / "train/abseiling" / name).rename(tmp_path / "train" / name)
    (tmp_path / "train/massaging_person's_head" / name).rename(tmp_path / "val" / name)
    with pytest.raises(ValueError, match=r"train.csv, line 4: 2 files match '-a_b1Zo0XyP_000095_000105'"):
        listed("kinetics", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("-a_b0Zo0XyP", "short", 2, "youtube_id 'short' is not eleven letters"),
        ("95,105", "95,x", 2, "is not a number"),
        ("95,105", "105,95", 2, "time_start 105 is not before time_end 95"),
        (",train,0", ",dev,0", 2, "split 'dev' is not one of"),
        ('"abseiling"', "", 2, "split 'train' needs a label"),
        ("-a_b0Zo1XyP,96,106", "-a_b0Zo0XyP,95,105", 3, r"is already in train.csv, line 2"),
        (",train,0", ",train", 2, "5 fields, the header has 6"),
        ("youtube_id", "video", 1, "lack youtube_id"),
    ],
)
def test_wrong_lines_of_kinetics(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    layouts.make_kinetics(tmp_path)
    edit(tmp_path / "annotations/train.csv", old, new)
    with pytest.raises(ValueError, match=rf"train.csv, line {line}: .*{message}"):
        listed("kinetics", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ucf101", r"classInd\.txt: cannot be read"),
        ("hmdb51", r"testTrainMulti_7030_splits: has no list CLASS_test_split1\.txt"),
        ("something-something-v2", r"has no train\.json, and labels in it has none either"),
        ("kinetics", r"has no train\.csv, val\.csv or test\.csv, and annotations in it has none either"),
    ],
)
def test_a_layout_without_lists(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listed(source, tmp_path)


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "ucf101": layouts.make_ucf101,
    "hmdb51": layouts.make_hmdb51,
    "something-something-v2": layouts.make_something_v2,
    "kinetics": layouts.make_kinetics,
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("ucf101", {"train": 12, "val": 6, "test": 6}),
        ("hmdb51", {"train": 4, "val": 2, "test": 2}),
        ("something-something-v2", {"train": 4, "val": 2, "test": 2}),
        ("kinetics", {"train": 6, "val": 3, "test": 3}),
    ],
)
def test_every_layout_ingests(tmp_path: Path, source: str, expected: dict[str, int]) -> None:
    """Validation videos are drawn from training, in whole groups, if the makers define no validation split."""
    root = MAKERS[source](tmp_path / "root", layouts.one_clip(tmp_path))
    wanted = params(source, root, crf=30, val_ratio=0.25)
    result = Ingest(wanted, 0, tmp_path / "work").run(1, lambda: None)
    assert result.manifest.quarantined == []
    counts = Counter(row.split for row in result.manifest.rows)
    assert counts == expected
    sides: dict[str, set[str]] = {}
    for row in result.manifest.rows:
        if row.group is not None:
            sides.setdefault(row.group, set()).add(row.split)
    assert all(len(found) == 1 for found in sides.values())
    report = result.report()
    assert (report["missing"]["files"], report["unused"]["files"]) == (
        2 if source == "kinetics" else 0,
        2 if source == "hmdb51" else 0,
    )


IDS = ("abcdefghij0", "-bcdefghij1", "abcdefghij2", "abcdefghij3")


def make_common_kinetics(root: Path) -> Path:
    """Kinetics as the scripts of the common copy unpack and link it, with a replacement for the second video."""
    lines = [f'"{layouts.KINETICS_CLASSES[i % 2]}",{name},{i},{i + 10},train,0' for i, name in enumerate(IDS)]
    (root / "annotations/deepmind").mkdir(parents=True)
    for path in ("annotations/train.csv", "annotations/deepmind/train.csv"):
        (root / path).write_text(
            "\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines]), encoding="utf-8"
        )
    names = [f"{name}_{i:06d}_{i + 10:06d}.mp4" for i, name in enumerate(IDS)]
    for path in (*(f"train/{name}" for name in names), f"replacement/replacement_for_corrupted_k400/{names[1]}"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    for i, name in enumerate(names):
        folder = root / "videos/train" / layouts.KINETICS_CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        target = "replacement/replacement_for_corrupted_k400" if i == 1 else "train"
        (folder / name).symlink_to(root / target / name)
    return root


def test_kinetics_as_the_common_copy_unpacks_it(tmp_path: Path) -> None:
    listing = listed("kinetics", make_common_kinetics(tmp_path))
    assert {file.path for file in listing.files} == {
        "replacement/replacement_for_corrupted_k400/-bcdefghij1_000001_000011.mp4",
        "train/abcdefghij0_000000_000010.mp4",
        "train/abcdefghij2_000002_000012.mp4",
        "train/abcdefghij3_000003_000013.mp4",
    }
    assert listing.unused == ["train/-bcdefghij1_000001_000011.mp4"]


def test_kinetics_by_id_alone_and_with_both_names_of_validation(tmp_path: Path) -> None:
    make_common_kinetics(tmp_path)
    (tmp_path / "train/abcdefghij0_000000_000010.mp4").rename(tmp_path / "train/abcdefghij0.mp4")
    (tmp_path / "train/abcdefghij2_000002_000012.mp4").rename(tmp_path / "train/abcdefghij2_000007_000017.mp4")
    for path in (tmp_path / "videos").rglob("abcdefghij[02]*"):
        path.unlink()
    text = (tmp_path / "annotations/train.csv").read_text(encoding="utf-8").replace(",train,", ",val,")
    (tmp_path / "annotations/train.csv").unlink()
    for name in ("val.csv", "validate.csv"):
        (tmp_path / "annotations" / name).write_text(text, encoding="utf-8")
    listing = listed("kinetics", tmp_path)
    assert Counter(file.split for file in listing.files) == {"val": 4}
    assert {"train/abcdefghij0.mp4", "train/abcdefghij2_000007_000017.mp4"} <= {file.path for file in listing.files}
    assert listing.warnings == ["2 videos are found by their ids alone: their names have other seconds than the lists"]


@pytest.mark.parametrize(
    ("source", "prefix"), [("jester", "jester-v1"), ("something-something-v1", "something-something-v1")]
)
def test_numbered_folders_of_frames(tmp_path: Path, source: str, prefix: str) -> None:
    for number in range(1, 6):
        for frame in range(1, 4):
            path = tmp_path / f"20bn-{prefix}/{number}/{frame:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    lists = {"train": ["1;Swiping Left", "2;Doing other things"], "validation": ["3;Swiping Left"], "test": ["4"]}
    for name, lines in {**lists, "labels": ["Swiping Left", "Doing other things"]}.items():
        (tmp_path / f"{prefix}-{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"5 folders of pictures have no rate; .*frames_fps=12"):
        listed(source, tmp_path)
    listing = listed(source, tmp_path, frames_fps=12)
    assert [(Path(file.path).name, file.label, file.split, file.frames_fps) for file in listing.files] == [
        ("1", "Swiping Left", "train", 12),
        ("2", "Doing other things", "train", 12),
        ("3", "Swiping Left", "val", 12),
    ]
    assert (listing.ignored, len(listing.unused)) == ([], 2)
    edit(tmp_path / f"{prefix}-train.csv", "2;Doing other", "2;Doing no")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: class 'Doing no things' is not in the list"):
        listed(source, tmp_path, frames_fps=12)


def test_ucf101_with_its_lists_among_annotations_and_as_frames(tmp_path: Path) -> None:
    layouts.make_ucf101(tmp_path)
    (tmp_path / "ucfTrainTestlist").rename(tmp_path / "annotations")
    for path in list((tmp_path / "UCF-101").rglob("*.avi")):
        path.unlink()
        path.with_suffix("").mkdir()
        for number in (1, 2):
            (path.with_suffix("") / f"img_{number:05}.jpg").write_bytes(b"")
    listing = listed("ucf101", tmp_path, frames_fps=25)
    assert len(listing.files) == 24
    assert {file.frames_fps for file in listing.files} == {25}
