from __future__ import annotations

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
    with pytest.raises(ValueError, match=r"list\.csv: cannot be read"):
        read_list(make_list(tmp_path, "path\na\xe4.mp4\n", encoding="latin-1"), tmp_path)


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
