"""Planes as they are decoded, against RGB frames of the same file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mme.models.encoder import rgb_of
from mme.video.codec import read_frames, write_video
from mme.video.colour import luma_of
from mme.video.containers import VideoError
from mme.video.crop import Crop, apply_crop
from mme.video.planes import YuvFrame, cut_plane, iter_planes
from tests.reference.moving_scene import MovingScene, Similarity

NUM_FRAMES = 21


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planes") / "video.mp4"
    write_video(path, MovingScene(48, 82, Similarity((1.5, -0.5))).frames(NUM_FRAMES), 30, 10, 8)
    return path


def rgb(frame: YuvFrame) -> NDArray[np.uint8]:
    y, u, v = (torch.from_numpy(plane) for plane in frame.copy())
    return np.asarray(rgb_of(y, torch.stack([u, v])).numpy())


@pytest.mark.parametrize(("start", "stop"), [(0, 21), (0, 1), (5, 12), (8, 9), (15, 21), (20, 21), (3, None)])
def test_frames_of_a_range_are_those_of_the_file(start: int, stop: int | None, video: Path) -> None:
    expected = read_frames(video)[start:stop].astype(int)
    found = [rgb(frame) for frame in iter_planes(video, start, stop)]
    assert len(found) == len(expected)
    for frame, wanted in zip(found, expected, strict=True):
        assert np.abs(frame - wanted).max() <= 3  # FFmpeg cuts fractions off


def test_brightness_is_that_of_the_rgb_frames(video: Path) -> None:
    for frame, wanted in zip(iter_planes(video), luma_of(read_frames(video)).astype(int), strict=True):
        difference = np.abs(frame.y - wanted)
        assert difference.mean() < 1.5
        assert np.quantile(difference, 0.99) <= 2  # more where a colour was clipped


def test_a_range_beyond_the_end_and_another_form_are_named(video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"video\.mp4: frame 21 is out of range, the video has 21 frames"):
        list(iter_planes(video, 18, 22))
    other = tmp_path / "other.avi"
    writer = cv2.VideoWriter(str(other), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    with pytest.raises(VideoError, match=r"other\.avi: .*not in the normal form; ingest the video again"):
        list(iter_planes(other))


@pytest.mark.parametrize("crop", [Crop(4, 10, 40, 40, False), Crop(0, 30, 48, 48, True), Crop(8, 2, 32, 32, True)])
def test_a_crop_of_planes_shows_what_a_crop_of_rgb_shows(crop: Crop, video: Path) -> None:
    frame = next(iter_planes(video)).copy()
    out = YuvFrame(np.empty((40, 40), np.uint8), np.empty((20, 20), np.uint8), np.empty((20, 20), np.uint8))
    for plane, scale, target in zip(frame, (1, 2, 2), out, strict=True):
        cut_plane(plane, crop, scale, target)
    expected = apply_crop(read_frames(video, [0]), crop, 40)[0]
    assert np.abs(rgb(out).astype(int) - expected).mean() < (2.0 if crop.height == 40 else 6.0)
