from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import UInt8
from starlette.testclient import TestClient

from mme.video.codec import write_video
from serving.decoding.tracks import LENGTH, NUM_WINDOWS, tracked_size, window_starts
from tests import media
from tests.reference.orientation import TURNS_AND_MIRRORS, matrix_of, shown
from tests.serving.service import RAW
from tests.tiny import moving_frames


def tracks(client: TestClient, path: Path) -> Any:
    response = client.post("/trajectories", content=path.read_bytes(), headers=RAW)
    assert response.status_code == 200, response.text
    return response.json()


def textured(num_frames: int, height: int, width: int, step: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Return blobs that all move by ``step`` = (x, y) pixels per frame."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 4 + 40, width // 4 + 40), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((4, 4), dtype=np.uint8))
    frames = []
    for index in range(num_frames):
        top, left = 60 - step[1] * index, 60 - step[0] * index
        frames.append(picture[top : top + height, left : left + width])
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


@pytest.mark.parametrize(("size", "step"), [((64, 96), (2, 0)), ((128, 96), (0, -2)), ((256, 480), (4, 2))])
def test_tracks_follow_the_motion_of_the_frames(
    client: TestClient, tmp_path: Path, size: tuple[int, int], step: tuple[int, int]
) -> None:
    height, width = size
    write_video(tmp_path / "clip.mp4", textured(14, height, width, step), 16, 10, 8)
    answer = tracks(client, tmp_path / "clip.mp4")
    assert answer["video"]["num_frames"] == 14
    assert answer["num_steps"] == LENGTH
    (first, second) = answer["windows"]
    assert (first["start_frame"], first["start_s"]) == (0, 0.0)
    assert second["start_frame"] == LENGTH
    whole = [path for path in first["paths"] if len(path) == LENGTH + 1]
    moved = np.median([np.subtract(path[-1], path[0]) for path in whole], axis=0) * [width, height] / LENGTH
    np.testing.assert_allclose(moved, step, atol=0.3)
    points = np.array([point for path in first["paths"] for point in path])
    assert points.min() >= 0
    assert points.max() <= 1
    assert 100 < len(first["paths"]) < 400


def test_tracks_end_where_points_leave_the_frame(client: TestClient, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", textured(13, 64, 96, (3, 0)), 16, 10, 8)
    (window,) = tracks(client, tmp_path / "clip.mp4")["windows"]
    lengths = {round(96 * path[0][0]): len(path) for path in window["paths"] if 0.3 < path[0][1] < 0.7}
    assert max(lengths.values()) == LENGTH + 1
    assert lengths[max(lengths)] <= 3  # the rightmost column is gone after a frame or two


def test_rotated_video_is_tracked_upright(client: TestClient, tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mov", rotation=90, num_frames=6)
    answer = tracks(client, path)
    assert (answer["video"]["width"], answer["video"]["height"]) == (64, 96)
    columns = {path[0][0] for path in answer["windows"][0]["paths"]}
    rows = {path[0][1] for path in answer["windows"][0]["paths"]}
    assert len(rows) > len(columns)


@pytest.mark.parametrize("numbers", TURNS_AND_MIRRORS)
def test_tracks_are_those_of_the_picture_as_it_is_shown(
    client: TestClient, tmp_path: Path, numbers: tuple[int, int, int, int]
) -> None:
    matrix, pictures = matrix_of(*numbers), textured(14, 96, 128, (3, 1))
    write_video(tmp_path / "stored.mp4", pictures, 16, 2, 8)
    write_video(tmp_path / "upright.mp4", np.stack([shown(picture, matrix) for picture in pictures]), 16, 2, 8)
    data = (tmp_path / "stored.mp4").read_bytes()
    at = data.index(b"tkhd") + 44  # of a track header of version 0
    (tmp_path / "turned.mp4").write_bytes(data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :])
    answers = [tracks(client, tmp_path / name) for name in ("turned.mp4", "upright.mp4")]
    turned, upright = (
        {tuple(path[0]): path[LENGTH] for path in answer["windows"][0]["paths"] if len(path) == LENGTH + 1}
        for answer in answers
    )
    both = turned.keys() & upright.keys()
    assert len(both) > 0.8 * len(upright)
    distances = [math.dist(turned[start], upright[start]) for start in both]
    assert np.median(distances) < 0.005
    assert answers[0]["video"] == answers[1]["video"]


def test_stretch_from_a_time_on(client: TestClient, tmp_path: Path) -> None:
    pictures = textured(128, 64, 96, (0, 0))  # 8 s
    pictures[100:] = textured(28, 64, 96, (2, 0))
    write_video(tmp_path / "clip.mp4", pictures, 16, 10, 8)
    body = (tmp_path / "clip.mp4").read_bytes()
    assert [window["start_frame"] for window in tracks(client, tmp_path / "clip.mp4")["windows"]][:2] == [0, 16]
    for start_s, frames in ((0, list(range(0, 96, 12))), (1.5, list(range(24, 120, 12))), (6.25, [100, 112, 124])):
        answer = client.post(f"/trajectories?start_s={start_s}", content=body, headers=RAW).json()
        assert [window["start_frame"] for window in answer["windows"]] == frames
    whole = [path for path in answer["windows"][0]["paths"] if len(path) == LENGTH + 1]
    moved = np.median([np.subtract(path[-1], path[0]) for path in whole], axis=0) * [96, 64] / LENGTH
    np.testing.assert_allclose(moved, (2, 0), atol=0.3)
    for start_s, problem in ((7.93, "too-short"), (1e300, "too-short"), (-1, "invalid-parameter")):
        refused = client.post("/trajectories", params={"start_s": start_s}, content=body, headers=RAW)
        assert (refused.status_code, refused.json()["type"]) == (422, f"/problems/{problem}")


def test_single_frame_is_too_short(client: TestClient, tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", num_frames=1)
    response = client.post("/trajectories", content=path.read_bytes(), headers=RAW)
    assert response.status_code == 422
    assert response.json()["type"] == "/problems/too-short"


@pytest.mark.parametrize(("make", "status"), [(media.text, 415), (media.empty, 400), (media.audio_only, 422)])
def test_bad_file_is_a_client_error(client: TestClient, tmp_path: Path, make: Any, status: int) -> None:
    response = client.post("/trajectories", content=make(tmp_path / "clip.mp4").read_bytes(), headers=RAW)
    assert response.status_code == status


def test_large_frames_are_decoded_in_several_passes(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.mp4", moving_frames(40, 64, 96), 16, 10, 8)
    whole = tracks(client, tmp_path / "clip.mp4")
    from serving.decoding import tracks as track_job
    from serving.decoding.child import VideoLimits, open_within_limits

    monkeypatch.setattr(track_job, "MAX_FRAME_BYTES", 1)
    task = track_job.TracksTask(tmp_path / "clip.mp4", 16, VideoLimits(math.inf, 10**9, 10**9, 60.0))
    with open_within_limits(task) as video:
        header, payload = task.work(video)
    assert track_job.windows(task.parse(header, bytes(payload))) == whole["windows"]
    assert len(payload) <= task.max_bytes


@pytest.mark.parametrize("num_frames", [2, 3, 12, 13, 14, 25, 97, 98, 99, 1000])
def test_windows_do_not_overlap_and_reach_the_last_frame(num_frames: int) -> None:
    starts = window_starts(num_frames)
    assert starts[0] == 0
    assert len(starts) <= NUM_WINDOWS
    assert all(later - earlier >= LENGTH for earlier, later in itertools.pairwise(starts))
    assert starts[-1] <= num_frames - 2
    assert starts[-1] + LENGTH >= num_frames - 1


@pytest.mark.parametrize("size", [(1, 1), (16, 4096), (2304, 4096), (64, 64), (2, 100_000), (100_000, 2), (720, 1280)])
def test_tracked_size_is_bounded(size: tuple[int, int]) -> None:
    height, width = tracked_size(*size)
    assert min(height, width) >= 16
    assert height * width <= 40_000
