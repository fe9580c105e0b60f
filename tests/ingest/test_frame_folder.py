from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mme.config import IngestParams, load_params
from mme.ingest.frame_folder import frame_sequence, source_stamp
from mme.ingest.frame_video import FrameFolder
from mme.ingest.report import IngestResult
from mme.ingest.run import Ingest
from mme.ingest.sources import list_source
from mme.ingest.validate import ValidationJob, validate_file
from mme.video.codec import read_frames
from mme.video.containers import VideoError


def write(
    folder: Path, numbers: list[int], name: Callable[[int], str] = "{:05}.png".format, size: tuple[int, int] = (48, 32)
) -> Path:
    """Write pictures whose grey level is four times their position."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, number in enumerate(numbers):
        path = str(folder / name(number))
        assert cv2.imwrite(path, np.full((size[1], size[0], 3), 4 * position, np.uint8))
    return folder


def levels(frames: Any) -> list[int]:
    return [round(float(frame.mean()) / 4) for frame in frames]


def params(root: Path, **changes: Any) -> IngestParams:
    values = (
        load_params().ingest.model_dump() | {"source": "folder", "root": root, "short_side": 32, "crf": 4} | changes
    )
    return IngestParams.model_validate(values)


def ingest(wanted: IngestParams, folder: Path) -> IngestResult:
    stage = Ingest(wanted, 0, folder / "work")
    result = stage.run(1, lambda: None)
    stage.finish(result, folder / "data")
    return result


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["2.jpg", "10.jpg", "1.jpg"], ["1.jpg", "2.jpg", "10.jpg"]),
        (["img_00003.jpg", "img_00001.jpg", "x.txt"], ["img_00001.jpg", "img_00003.jpg"]),
        (["00000.PNG", "00001.png"], ["00000.PNG", "00001.png"]),
        (["frame-1.webp", "frame-2.webp", "cover.webp", "._frame-3.webp"], ["frame-1.webp", "frame-2.webp"]),
        (["1.bmp"], []),
        (["a.jpg", "b.jpg"], []),
        (
            [f"{kind}_{number}.jpg" for kind in ("flow_x", "flow_y", "img") for number in (1, 2)],
            ["img_1.jpg", "img_2.jpg"],
        ),
        ([f"{kind}_{number}.jpg" for kind in ("flow_x", "img") for number in range(3)][:5], ["img_0.jpg", "img_1.jpg"]),
        (["00001.jpg", "00001_mask.png", "00002.jpg", "00002_mask.png", "7.png"], ["00001.jpg", "00002.jpg"]),
    ],
)
def test_frames_among_the_names_of_a_folder(names: list[str], expected: list[str]) -> None:
    assert frame_sequence(names) == expected
    assert frame_sequence(reversed(names)) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".JPEG"])
def test_kinds_of_pictures(tmp_path: Path, suffix: str) -> None:
    folder = FrameFolder(write(tmp_path / "clip", [8, 9, 10, 11], lambda number: f"{number}{suffix}"), 12)
    assert levels(folder.frames(12)) == [0, 1, 2, 3]
    assert (folder.info.num_frames, folder.info.fps, folder.info.width, folder.info.height) == (4, 12.0, 48, 32)
    assert next(folder.frames(12)).shape == (32, 48, 3)


def test_colours_are_rgb(tmp_path: Path) -> None:
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((32, 32, 3), (0, 0, 255), np.uint8))  # BGR
    assert next(FrameFolder(tmp_path, 12).frames(12))[0, 0].tolist() == [255, 0, 0]


def test_a_clip_of_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", list(range(24)))
    assert levels(FrameFolder(folder, 12, (0.5, 1.0)).frames(12)) == list(range(6, 12))
    assert FrameFolder(folder, 12, (0.5, 1.0)).sha256 != FrameFolder(folder, 12).sha256
    with pytest.raises(VideoError, match="the clip is empty"):
        FrameFolder(folder, 12, (2.0, 3.0))


def test_damaged_frames_are_held_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", list(range(30)), "{}.jpg".format)
    for number in (0, 1, 7):
        data = (folder / f"{number}.jpg").read_bytes()
        (folder / f"{number}.jpg").write_bytes({0: b"", 1: b"text", 7: data[: len(data) * 2 // 3]}[number])
    video = FrameFolder(folder, 12)
    with pytest.raises(VideoError, match="3 of 30 pictures cannot be decoded") as caught:
        video.count(12, decode=True)
    assert caught.value.reason == "truncated"
    assert video.count(12, decode=False) == 30
    write(folder, [0], "{}.jpg".format)
    (folder / "0.jpg").rename(folder / "1.jpg")
    (folder / "0.jpg").write_bytes(b"")
    assert levels(video.frames(12)) == [0, 0, 2, 3, 4, 5, 6, 6, *range(8, 30)]
    for path in folder.iterdir():
        path.write_bytes(b"text")
    with pytest.raises(VideoError, match="none of its 30 pictures can be decoded"):
        list(FrameFolder(folder, 12).frames(12))


def test_ingest_by_time(tmp_path: Path) -> None:
    """Two seconds at 12 a second become 32 frames at 16; by the rule, picture k is that of k / 16 seconds."""
    for label in ("up", "down"):
        write(tmp_path / f"root/{label}/clip", list(range(1, 25)))
    result = ingest(params(tmp_path / "root", frames_fps=12, fps=16), tmp_path)
    assert result.manifest.quarantined == []
    for row in result.manifest.rows:
        assert (row.label, row.source_fps, row.fps, row.num_frames) == (row.source_path.split("/")[0], 12, 16, 32)
        frames = read_frames(tmp_path / "data/videos" / row.path)
        # The look goes 0.35 of the shorter interval beyond the instant, 0.35 / 16 s here.
        assert levels(frames) == [int((k + 0.35) * 12 / 16) for k in range(32)]


def test_mixed_sizes_and_other_files_beside_frames(tmp_path: Path) -> None:
    for label in ("up", "down"):
        folder = write(tmp_path / f"root/{label}/clip.v1", list(range(12)), "img_{:05}.jpg".format)
        write(folder, [3], "img_{:05}.jpg".format, size=(96, 64))
        write(folder, list(range(11)), "flow_x_{:05}.jpg".format)
        (folder / "notes.txt").write_text("Mine.", encoding="utf-8")
    wanted = params(tmp_path / "root", frames_fps=16, fps=16)
    assert list_source(wanted).ignored == [
        f"{label}/clip.v1/{name}" for label in ("down", "up") for name in ("flow_x_*.jpg", "notes.txt")
    ]
    result = ingest(wanted, tmp_path)
    assert [(row.num_frames, row.width, row.height, row.status) for row in result.manifest.rows] == [
        (12, 48, 32, "ok")
    ] * 2


def test_resume_after_a_frame_or_the_rate_has_changed(tmp_path: Path) -> None:
    for label in ("up", "down"):
        write(tmp_path / f"root/{label}/clip", list(range(12)))
    wanted = params(tmp_path / "root", frames_fps=12)
    Ingest(wanted, 0, tmp_path / "work").run(1, lambda: None)
    assert Ingest(wanted, 0, tmp_path / "work").num_done == 2
    assert Ingest(params(tmp_path / "root", frames_fps=24), 0, tmp_path / "work").num_done == 0
    write(tmp_path / "root/up/clip", [5])
    assert Ingest(wanted, 0, tmp_path / "work").num_done == 1
    (tmp_path / "root/down/clip/00011.png").unlink()
    assert Ingest(wanted, 0, tmp_path / "work").num_done == 0


def test_the_stamp_of_a_folder_covers_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", [1, 2])
    before = source_stamp(folder)
    (folder / "00002.png").rename(folder / "00003.png")
    assert source_stamp(folder) != before
    assert len({FrameFolder(shutil.copytree(folder, tmp_path / name), 12).sha256 for name in "ab"}) == 1


def test_folders_of_pictures_need_a_rate(tmp_path: Path) -> None:
    write(tmp_path / "root/up/clip", [1, 2])
    with pytest.raises(
        ValueError, match=r"no video, but 1 folders of pictures, such as 'up/clip'; .*ingest\.frames_fps"
    ):
        list_source(params(tmp_path / "root"))
    for label in ("up", "down"):
        (tmp_path / f"root/{label}").mkdir(exist_ok=True)
        (tmp_path / f"root/{label}/1.mp4").write_bytes(b"")
    listing = list_source(params(tmp_path / "root"))
    assert [file.path for file in listing.files] == ["down/1.mp4", "up/1.mp4"]
    [warning] = listing.warnings
    assert warning.startswith("1 folders of pictures, such as 'up/clip', are left out;")
    assert [file.path for file in list_source(params(tmp_path / "root", frames_fps=12)).files] == [
        "down/1.mp4",
        "up/1.mp4",
        "up/clip",
    ]


def test_folders_in_a_list(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [1, 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.mp4").write_bytes(b"")
    lines = ["path,label,fps", "a,up,12", "b,down,", "c.mp4,down,"]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    listing = list_source(params(tmp_path, source="csv", list_file="list.csv", frames_fps=30))
    assert [(file.path, file.frames_fps) for file in listing.files] == [("a", 12.0), ("b", 30.0), ("c.mp4", None)]
    with pytest.raises(ValueError, match=r"line 3: 'b' is a folder of pictures without a rate: the column fps, or"):
        list_source(params(tmp_path, source="csv", list_file="list.csv"))
    wrong = ["path,label,fps", "a,up,x", "a,up,0", "c.mp4,down,12", "empty,down,12"]
    (tmp_path / "list.csv").write_text("\n".join(wrong), encoding="utf-8")
    with pytest.raises(ValueError, match="fps 'x' is not a number") as caught:
        list_source(params(tmp_path, source="csv", list_file="list.csv"))
    for message in ("line 3: fps 0 is not above 0", "line 4: fps 12: 'c.mp4' is a file", "'empty' is a folder without"):
        assert message in str(caught.value)


def test_check_reads_each_frame_once_and_decodes_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "clip", [1, 2, 3, 4])
    opened: list[str] = []
    real_open = open

    def counting_open(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path).name)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", counting_open)
    outcome = validate_file(ValidationJob("clip", folder, 16, False, None, 8.0))
    assert (outcome.reason, outcome.num_frames) == (None, 8)
    assert opened == ["00001.png", "00002.png", "00003.png", "00004.png", "00001.png"]
