"""The table of what ingest reads must change with everything that it reads, wherever that lies, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mme.config import IngestParams, load_params
from mme.ingest.survey import Digests, survey
from tests.small_disk import fill, read_only, small_disk


def table(root: Path, source: str = "folder", **changes: object) -> str:
    values = load_params().ingest.model_dump() | {"source": source, "root": root} | changes
    return survey(IngestParams.model_validate(values), Digests(root.parent / "cache.sqlite", 2))


def put(path: Path, content: bytes = b"1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def link(place: Path, target: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def linked_file(folder: Path) -> tuple[Path, Path]:
    link(folder / "root/wave/2.mp4", put(folder / "disk/2.mp4"))
    return folder / "root", folder / "disk/2.mp4"


def linked_class(folder: Path) -> tuple[Path, Path]:
    put(folder / "disk/wave/2.mp4")
    link(folder / "root/wave", folder / "disk/wave")
    return folder / "root", folder / "disk/wave/2.mp4"


def linked_root(folder: Path) -> tuple[Path, Path]:
    put(folder / "disk/jump/1.mp4")
    put(folder / "disk/wave/2.mp4")
    shutil.rmtree(folder / "root")
    return link(folder / "root", folder / "disk"), folder / "disk/wave/2.mp4"


def linked_twice(folder: Path) -> tuple[Path, Path]:
    put(folder / "far/deep/2.mp4")
    link(folder / "disk/part", folder / "far/deep")
    link(folder / "root/wave", folder / "disk")
    return folder / "root", folder / "far/deep/2.mp4"


@pytest.mark.parametrize("make", [linked_file, linked_class, linked_root, linked_twice])
def test_changes_behind_links_are_seen(tmp_path: Path, make: Callable[[Path], tuple[Path, Path]]) -> None:
    put(tmp_path / "root/jump/1.mp4")
    root, video = make(tmp_path)
    before = table(root)
    assert table(root) == before
    put(video, b"2")
    changed = table(root)
    assert changed != before
    put(video.with_name("3.mp4"))
    if make is not linked_file:
        assert table(root) != changed
    put(root / "jump/notes.txt")
    put(video, b"1")
    video.with_name("3.mp4").unlink()
    assert table(root) == before, "notes and times are not read"


def test_a_link_that_leads_elsewhere_and_two_equal_trees(tmp_path: Path) -> None:
    for disk, content in (("old", b"1"), ("new", b"2")):
        put(tmp_path / disk / "1.mp4", content)
    for name in ("a", "b"):
        put(tmp_path / name / "root/jump/0.mp4")
        link(tmp_path / name / "root/wave", tmp_path / "old")
    assert table(tmp_path / "a/root") == table(tmp_path / "b/root")
    (tmp_path / "b/root/wave").unlink()
    link(tmp_path / "b/root/wave", tmp_path / "new")
    assert table(tmp_path / "a/root") != table(tmp_path / "b/root")


def test_lists_reach_out_of_the_root(tmp_path: Path) -> None:
    video = put(tmp_path / "elsewhere/1.mp4")
    put(tmp_path / "root/2.mp4")
    lines = ["path,label", f"{video},up", "../elsewhere/1.mp4,down", "2.mp4,down"]
    (tmp_path / "root/list.csv").write_text("\n".join(lines), encoding="utf-8")
    before = table(tmp_path / "root", "csv", list_file="list.csv")
    put(video, b"2")
    assert table(tmp_path / "root", "csv", list_file="list.csv") != before
    put(video, b"1")
    (tmp_path / "root/list.csv").write_text("\n".join([*lines[:3], "2.mp4,up"]), encoding="utf-8")
    assert table(tmp_path / "root", "csv", list_file="list.csv") != before


def test_every_frame_of_a_folder_counts(tmp_path: Path) -> None:
    for label in ("up", "down"):
        for number in range(3):
            put(tmp_path / f"root/{label}/clip/{number}.jpg")
    before = table(tmp_path / "root", frames_fps=12)
    put(tmp_path / "root/up/clip/1.jpg", b"2")
    changed = table(tmp_path / "root", frames_fps=12)
    (tmp_path / "root/up/clip/1.jpg").unlink()
    assert len({before, changed, table(tmp_path / "root", frames_fps=12), table(tmp_path / "root", frames_fps=25)}) == 4


def test_what_cannot_be_read_is_in_the_table(tmp_path: Path) -> None:
    put(tmp_path / "root/up/1.mp4")
    put(tmp_path / "root/down/1.mp4")
    link(tmp_path / "root/up/gone.mp4", tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "root/pipe.mp4")  # reading it blocks for ever: nobody writes to it
    lines = ["path,label", "up/1.mp4,up", "down/1.mp4,down", "up/gone.mp4,up", "pipe.mp4,up"]
    (tmp_path / "root/list.csv").write_text("\n".join(lines), encoding="utf-8")
    text = table(tmp_path / "root", "csv", list_file="list.csv")
    assert '"up/gone.mp4", "up", null, null, null, null, "cannot be read: No such file or directory"]' in text
    assert '"pipe.mp4", "up", null, null, null, null, "is no file"]' in text
    put(tmp_path / "gone.mp4")
    assert table(tmp_path / "root", "csv", list_file="list.csv") != text


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    """A file whose bytes change while its size and time stay is taken for the same, as DVC and git do."""
    video = put(tmp_path / "root/up/1.mp4")
    put(tmp_path / "root/down/1.mp4")
    before = table(tmp_path / "root")
    times = (time.time_ns(), video.stat().st_mtime_ns)
    put(video, b"2")
    os.utime(video, ns=times)
    assert table(tmp_path / "root") == before
    os.utime(video)
    assert table(tmp_path / "root") != before


def test_a_cache_that_cannot_be_used_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    videos = [put(tmp_path / f"{name}.mp4", name.encode()) for name in "abcd"]
    expected = Digests(tmp_path / "cache.sqlite", 2).of(videos)

    def warns(cache: Path, num_warnings: int = 1) -> None:
        caplog.clear()
        digests = Digests(cache, 2)
        assert digests.of(videos) == expected
        assert digests.of(videos) == expected
        assert [str(cache) in record.message for record in caplog.records] == [True] * num_warnings

    warns(put(tmp_path / "broken.sqlite", b"no database" * 100))
    warns(put(tmp_path / "in the way") / "cache.sqlite")
    with small_disk(tmp_path / "disk", 2**17) as disk:
        filling = fill(disk)
        warns(disk / "cache.sqlite")
        filling.unlink()
        (disk / "cache.sqlite").unlink()
        assert Digests(disk / "cache.sqlite", 2).of(videos[:2]) == {path: expected[path] for path in videos[:2]}
        fill(disk)
        with read_only(disk, tmp_path / "view") as view:
            warns(view / "cache.sqlite")
            os.utime(videos[1])
            os.utime(videos[2])
        (disk / "filling").unlink()
        warns(disk / "cache.sqlite", 0)


def test_a_source_below_a_folder_that_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    put(folder / "jump/1.mp4")
    put(folder / "wave/1.mp4")
    before = table(link(tmp_path / "root", folder))
    assert table(tmp_path / "root") == before
    put(folder / "wave/1.mp4", b"2")
    assert table(tmp_path / "root") != before
