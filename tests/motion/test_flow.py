from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from jaxtyping import Float32, UInt8

from mme.motion.flow import DenseFlow, gray_frames
from tests.reference.moving_scene import MovingScene, Similarity


def flow_sequence(flow: DenseFlow, frames: UInt8[np.ndarray, "T H W 3"]) -> Float32[np.ndarray, "T-1 H W 2"]:
    """Flow from each frame to the next."""
    return np.stack([flow.pair(first, second) for first, second in itertools.pairwise(gray_frames(frames))])


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (128, 64)])
@pytest.mark.parametrize("shift", [(1.3, 0.0), (0.0, -2.6)])
def test_flow_of_a_translated_scene(size: tuple[int, int], shift: tuple[float, float]) -> None:
    frames = MovingScene(*size, camera=Similarity(shift)).frames(2)
    flow = flow_sequence(DenseFlow("medium", 3), frames)
    assert flow.shape == (1, *size, 2)
    assert flow.dtype == np.float32
    inner = flow[0, 8:-8, 8:-8]
    assert np.median(np.abs(inner[..., 0] - shift[0])) < 0.1
    assert np.median(np.abs(inner[..., 1] - shift[1])) < 0.1


def test_flow_of_reversed_frames_is_reversed() -> None:
    frames = MovingScene(64, 96, camera=Similarity((2.0, 0.0))).frames(3)
    flow = flow_sequence(DenseFlow("medium", 0), frames[::-1])
    assert np.median(flow[..., 0]) == pytest.approx(-2.0, abs=0.1)


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_small_frames_use_a_finer_pyramid_level(preset: str) -> None:
    """In 64 px, DIS at half resolution alone loses three pixels per frame."""
    frames = MovingScene(64, 64, camera=Similarity((3.2, 0.0)), noise_std=2.0).frames(2)
    flow = flow_sequence(DenseFlow(preset, 3), frames)
    assert np.median(np.abs(flow[0, :, 8:-8] - [3.2, 0.0])) < 0.1


def test_reused_object_gives_equal_flow() -> None:
    frames = MovingScene(48, 64, camera=Similarity((1.0, 0.5))).frames(4)
    together = flow_sequence(DenseFlow("medium", 3), frames)
    apart = [flow_sequence(DenseFlow("medium", 3), frames[number : number + 2])[0] for number in range(3)]
    np.testing.assert_array_equal(together, apart)


def test_flow_is_independent_of_opencv_threads() -> None:
    frames = MovingScene(96, 128, camera=Similarity((1.0, 0.5))).frames(2)
    before = flow_sequence(DenseFlow("medium", 0), frames)
    cv2.setNumThreads(4)
    np.testing.assert_array_equal(flow_sequence(DenseFlow("medium", 0), frames), before)


def test_median_filter_removes_outliers() -> None:
    frames = MovingScene(64, 64, camera=Similarity((1.0, 0.0)), noise_std=12.0).frames(2)
    spread = [np.abs(np.diff(flow_sequence(DenseFlow("medium", px), frames)[0], axis=1)).mean() for px in (0, 3, 5)]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 12, 64, 3), np.uint8), "64 x 12 px"),
        (np.zeros((2, 32), np.uint8), r"\[32\]"),
        (np.zeros((2, 32, 32, 4), np.uint8), r"\[32, 32, 4\]"),
        (np.zeros((2, 32, 32, 3), np.float32), "float32"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)], "changes"),
    ],
)
def test_invalid_frames_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(gray_frames(frames))


def test_change_of_frame_size_is_refused() -> None:
    flow = DenseFlow("medium", 0)
    flow.pair(np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))
    with pytest.raises(ValueError, match="size changes"):
        flow.pair(np.zeros((32, 48), np.uint8), np.zeros((32, 48), np.uint8))


def test_unknown_preset_and_median_are_refused() -> None:
    with pytest.raises(ValueError, match="'slow'"):
        DenseFlow("slow", 0)
    with pytest.raises(ValueError, match="median_px: 4"):
        DenseFlow("fast", 4)
