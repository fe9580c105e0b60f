from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mme.config import IngestParams, load_params
from mme.ingest.layouts.csv_list import read_list
from mme.ingest.listing import SourceFile
from mme.ingest.sources import list_source


def params(root: Path, source: str, **changes: Any) -> IngestParams:
    values = load_params().ingest.model_dump() | {"root": root, "source": source} | changes
    return IngestParams.model_validate(values)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def make_list(root: Path, text: str, **encoding: str) -> Path:
    touch(root, "a.mp4", "b/c d.avi", "e.mp4")
    (root / "list.csv").write_text(text, **({"encoding": "utf-8"} | encoding))
    return root / "list.csv"


def test_a_full_list(tmp_path: Path) -> None:
    make_list(tmp_path, "path,label,split,group\na.mp4,up,validation,g1\nb/c d.avi, down ,,\ne.mp4,,,\n\n")
    listing = list_source(params(tmp_path, "csv", list_file="list.csv"))
    assert listing.files == [
        SourceFile("a.mp4", "up", "val", "g1"),
        SourceFile("b/c d.avi", "down", None, None),
        SourceFile("e.mp4", None, None, None),
    ]
    assert listing.ignored == []


def test_columns_may_be_missing_and_in_any_order(tmp_path: Path) -> None:
    path = make_list(tmp_path, "label,path\nup,a.mp4\n", encoding="utf-8-sig")
    assert read_list(path, tmp_path) == [SourceFile("a.mp4", "up")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_as_spreadsheets_write_them(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    """A comma within a field, and one within all of them, do not count: the header decides."""
    rows = [["path", "label"], ["a.mp4", "up, é"], ["e.mp4", "down; ü"]]
    text = end.join(separator.join(f'"{field}"' for field in row) for row in rows) + end
    touch(tmp_path, "a.mp4", "e.mp4")
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    assert read_list(tmp_path / "list.csv", tmp_path) == [SourceFile("a.mp4", "up, é"), SourceFile("e.mp4", "down; ü")]


def test_clips_of_a_long_video(tmp_path: Path) -> None:
    path = make_list(tmp_path, "path,label,split,start,end\na.mp4,up,,2,4.5\na.mp4,down,,4.50,6\ne.mp4,up,test,0,1\n")
    files = read_list(path, tmp_path)
    assert files == [
        SourceFile("a.mp4", "up", None, "a.mp4", (2.0, 4.5)),
        SourceFile("a.mp4", "down", None, "a.mp4", (4.5, 6.0)),
        SourceFile("e.mp4", "up", "test", None, (0.0, 1.0)),
    ]
    assert [file.name for file in files] == ["a.mp4#t=2,4.5", "a.mp4#t=4.5,6", "e.mp4#t=0,1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4,2,", "start 2, end empty: a clip needs both"),
        ("a.mp4,,2", "start empty, end 2: a clip needs both"),
        ("a.mp4,0:02,4", "start '0:02' or end '4' is not a number of seconds"),
        ("a.mp4,4,4", "start 4 is negative or not before end 4"),
        ("a.mp4,-1,4", "start -1 is negative"),
        ("a.mp4,1,inf", "not before end inf"),
        ("e.mp4,1.0,2", r"'e\.mp4#t=1,2' is already in line 2"),
    ],
)
def test_wrong_seconds(tmp_path: Path, line: str, message: str) -> None:
    path = make_list(tmp_path, f"path,start,end\ne.mp4,1,2\n{line}\n")
    with pytest.raises(ValueError, match=rf"list\.csv, line 3: .*{message}"):
        read_list(path, tmp_path)


def test_motion_primitives_have_their_own_list(tmp_path: Path) -> None:
    make_list(tmp_path, "path,label,split\na.mp4,up,train\nb/c d.avi,down,train\ne.mp4,,pretrain\n")
    listing = list_source(params(tmp_path, "motion-primitives"))
    assert [(file.path, file.split) for file in listing.files] == [
        ("a.mp4", "train"),
        ("b/c d.avi", "train"),
        ("e.mp4", "pretrain"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4,up,train", "3 fields, the header has 4"),
        ("a.mp4,up,train,,", "5 fields, the header has 4"),
        (",up,train,", "no path"),
        ("gone.mp4,up,train,", r"no file 'gone\.mp4'"),
        ("a.mp4,up,dev,", "split 'dev' is not one of"),
        ("a.mp4,,test,", "split 'test' needs a label"),
        ("e.mp4,up,test,", r"'e\.mp4' is already in line 2"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = make_list(tmp_path, f"path,label,split,group\ne.mp4,up,train,\n{line}\nb/c d.avi,,,\n")
    with pytest.raises(ValueError, match=rf"list\.csv, line 3: .*{message}"):
        read_list(path, tmp_path)


def test_all_wrong_lines_are_named_at_once(tmp_path: Path) -> None:
    path = make_list(tmp_path, "path\n" + "".join(f"gone{number}.mp4\n" for number in range(30)))
    with pytest.raises(ValueError, match="line 2: ") as caught:
        read_list(path, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more"


@pytest.mark.parametrize("header", ["name,label", "path,lable", "path,path", ""])
def test_a_wrong_header_is_named(tmp_path: Path, header: str) -> None:
    with pytest.raises(ValueError, match=r"list\.csv, line 1: columns"):
        read_list(make_list(tmp_path, f"{header}\na.mp4,up\n"), tmp_path)


def test_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.csv: cannot be read"):
        read_list(tmp_path / "nothing.csv", tmp_path)
    with pytest.raises(ValueError, match=r"list\.csv: is not UTF-8"):
        read_list(make_list(tmp_path, "path\na\xe4.mp4\n", encoding="latin-1"), tmp_path)
    for data in (b"PK\3\4\x14\0\6\0" + bytes(range(256)), "path\na.mp4\n".encode("utf-16-le")):
        (tmp_path / "list.csv").write_bytes(data)
        with pytest.raises(ValueError, match=r"list\.csv: is no text, as a workbook is none; save it as CSV in UTF-8$"):
            read_list(tmp_path / "list.csv", tmp_path)


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "up/1.mp4", "up/deep/2.AVI", "down/3.webm", "loose.mkv", "README.md", "up/notes.txt", "up/.4.mp4")
    touch(tmp_path, ".hidden/5.mp4", "__MACOSX/6.mp4")
    listing = list_source(params(tmp_path, "folder"))
    assert listing.files == [
        SourceFile("down/3.webm", "down"),
        SourceFile("loose.mkv"),
        SourceFile("up/1.mp4", "up"),
        SourceFile("up/deep/2.AVI", "up"),
    ]
    assert listing.ignored == [".hidden/", "README.md", "__MACOSX/", "up/.4.mp4", "up/notes.txt"]


def test_split_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/1.mp4", "validation/up/2.mp4", "test/down/3.mp4", "pretrain/4.mp4", "pretrain/part/5.mp4")
    assert list_source(params(tmp_path, "folder")).files == [
        SourceFile("pretrain/4.mp4", None, "pretrain"),
        SourceFile("pretrain/part/5.mp4", None, "pretrain"),
        SourceFile("test/down/3.mp4", "down", "test"),
        SourceFile("train/up/1.mp4", "up", "train"),
        SourceFile("validation/up/2.mp4", "up", "val"),
    ]


def test_unlabelled_videos_beside_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "pretrain/1.mp4", "up/2.mp4", "down/3.mp4")
    files = list_source(params(tmp_path, "folder")).files
    assert files[1] == SourceFile("pretrain/1.mp4", None, "pretrain")
    assert [file.label for file in files] == ["down", None, "up"]


def test_class_named_like_a_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.mp4", "bus/2.mp4")
    assert [(file.label, file.split) for file in list_source(params(tmp_path, "folder")).files] == [
        ("bus", None),
        ("train", None),
    ]


def test_split_folders_beside_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/1.mp4", "test/up/2.mp4", "down/3.mp4")
    with pytest.raises(ValueError, match=r"has splits \(test, train\) beside classes \(down\)"):
        list_source(params(tmp_path, "folder"))


def test_a_labelled_split_needs_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/1.mp4", "test/2.mp4")
    with pytest.raises(ValueError, match=r"2\.mp4: a video of split 'test' must be in a class folder"):
        list_source(params(tmp_path, "folder"))


def test_groups_from_file_names(tmp_path: Path) -> None:
    touch(tmp_path, "up/s1_1.mp4", "down/s1_2.mp4", "down/s12_1.mp4")
    files = list_source(params(tmp_path, "folder", group_pattern=r"^(s\d+)_")).files
    assert [file.group for file in files] == ["s12", "s1", "s1"]
    touch(tmp_path, "down/other.mp4")
    with pytest.raises(ValueError, match=r"does not match 1 of 4 names, such as 'down/other\.mp4'"):
        list_source(params(tmp_path, "folder", group_pattern=r"^(s\d+)_"))


@pytest.mark.parametrize(("pattern", "message"), [("(", "unterminated"), ("s", "has 0 groups"), ("(s)(t)", "2 groups")])
def test_wrong_group_patterns(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"group_pattern: .*{message}"):
        params(tmp_path, "folder", group_pattern=pattern)
    with pytest.raises(ValueError, match="only source 'folder' has one"):
        params(tmp_path, "csv", list_file="list.csv", group_pattern="(s)")


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.mp4")
    touch(tmp_path / "root", "down/2.mp4")
    (tmp_path / "root/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/down/again").symlink_to(tmp_path / "root")
    files = list_source(params(tmp_path / "root", "folder")).files
    assert [file.path for file in files] == ["down/2.mp4", "up/1.mp4"]


def test_missing_folder_and_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a folder \(ingest\.root\)"):
        list_source(params(tmp_path / "nothing", "folder"))
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"no video \(ingest\.root\); 1 other files"):
        list_source(params(tmp_path, "folder"))


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "val"),
        ("training", "testing", "test"),
        ("videos_train", "videos_val", "val"),
        ("train_videos", "test_videos", "test"),
        ("rawframes_train", "rawframes_val", "val"),
        ("train_256", "val_256", "val"),
        ("trainset", "k400-test-set", "test"),
    ],
)
def test_names_of_splits(tmp_path: Path, train: str, other: str, split: str) -> None:
    touch(tmp_path, *(f"{folder}/{label}/1.mp4" for folder in (train, other) for label in ("up", "down")))
    touch(tmp_path, f"__MACOSX/{train}/up/._1.mp4", "annotations/list.txt", "@eaDir/up/1.mp4", "lost+found/2.mp4")
    listing = list_source(params(tmp_path, "folder"))
    found = {(file.path.split("/")[0], file.split, file.label) for file in listing.files}
    assert found == {(train, "train", "up"), (train, "train", "down"), (other, split, "up"), (other, split, "down")}
    assert listing.ignored == ["@eaDir/", "__MACOSX/", "annotations/list.txt", "lost+found/"]


def test_a_split_beside_a_folder_of_another_name(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/1.mp4", "train/down/1.mp4", "holdout/up/1.mp4", "holdout/down/1.mp4")
    with pytest.raises(ValueError, match=r"has splits \(train\) beside classes \(holdout\); move one kind elsewhere"):
        list_source(params(tmp_path, "folder"))


def test_one_folder_too_high(tmp_path: Path) -> None:
    touch(tmp_path, "UCF-101/Archery/1.avi", "UCF-101/YoYo/1.avi", "lists/classInd.txt")
    with pytest.raises(ValueError, match=r"one class, 'UCF-101': .*\(Archery, YoYo\) are the classes.*/UCF-101;"):
        list_source(params(tmp_path, "folder"))
    (tmp_path / "UCF-101").rename(tmp_path / "pretrain")
    assert {file.label for file in list_source(params(tmp_path, "folder")).files} == {None}


def test_one_class_under_several_names(tmp_path: Path) -> None:
    nfc, nfd = "café", "cafe\u0301"
    touch(tmp_path, f"train/{nfc}/1.mp4", f"val/{nfd}/1.mp4", "train/Wave/1.mp4", "train/Wave/2.mp4", "val/wave/1.mp4")
    touch(tmp_path, "train/high  jump/1.mp4", "val/high jump/1.mp4")
    listing = list_source(params(tmp_path, "folder"))
    assert {file.label for file in listing.files} == {nfc, "Wave", "high jump"}
    assert listing.warnings == [
        "the classes 'Wave', 'wave' differ by case alone and are taken for one, 'Wave'",
        "the class 'high  jump' is called 'high jump': blanks count once",
    ]


def test_a_list_and_a_disk_of_different_unicode_forms(tmp_path: Path) -> None:
    on_disk = "Übung/cafe\u0301 1.mp4".replace("Ü", "U\u0308")
    touch(tmp_path, on_disk, "2.mp4")
    (tmp_path / "list.csv").write_text("path,label\nÜbung/café 1.mp4,up\n2.mp4,down\n", encoding="utf-8")
    assert on_disk in {file.path for file in list_source(params(tmp_path, "csv", list_file="list.csv")).files}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, "up/1.mp4", "down/1.mp4")
    (tmp_path / "up" / os.fsdecode(b"\xfcbung.mp4")).write_bytes(b"")
    listing = list_source(params(tmp_path, "folder"))
    assert len(listing.files) == 2
    assert listing.warnings[0].startswith(r"1 videos are left out, such as up/\xfcbung.mp4: their names are not UTF-8")


def test_training_keeps_its_labels_beside_a_link_to_it(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{split}/{label}/1.mp4" for split in ("train", "test") for label in ("up", "down")))
    (tmp_path / "pretrain").symlink_to("train")
    files = list_source(params(tmp_path, "folder")).files
    assert [(file.path, file.label, file.split) for file in files if file.split != "test"] == [
        ("pretrain/down/1.mp4", None, "pretrain"),
        ("pretrain/up/1.mp4", None, "pretrain"),
        ("train/down/1.mp4", "down", "train"),
        ("train/up/1.mp4", "up", "train"),
    ]


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "up/1.mp4", "down/1.mp4")
    (tmp_path / "up/gone.mp4").symlink_to("/nowhere/gone.mp4")
    (tmp_path / "left").symlink_to("/nowhere/left")
    listing = list_source(params(tmp_path, "folder"))
    assert [file.path for file in listing.files] == ["down/1.mp4", "up/1.mp4", "up/gone.mp4"]
    assert listing.broken == ["left -> /nowhere/left", "up/gone.mp4 -> /nowhere/gone.mp4"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The folder lies where another user may look; pytest's own folder is private."""
    touch(tmp_path, "jump/1.mp4", "wave/1.mp4", "run/1.mp4")
    for folder in (tmp_path, *tmp_path.parents):
        if Path(tempfile.gettempdir()) not in folder.parents:
            break
        folder.chmod(0o755)
    (tmp_path / "jump").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match=r"/jump: the folder cannot be read \(Permission denied\)"):
            list_source(params(tmp_path, "folder"))
    finally:
        os.seteuid(0)
