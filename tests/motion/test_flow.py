from __future__ import annotations

import cv2
import numpy as np
import pytest

from mme.motion.flow import DenseFlow, gray_frames
from tests.reference.moving_scene import MovingScene, Similarity


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (128, 64)])
@pytest.mark.parametrize("shift", [(1.3, 0.0), (0.0, -2.6)])
def test_flow_of_a_translation_is_that_translation(size: tuple[int, int], shift: tuple[float, float]) -> None:
    frames = MovingScene(*size, camera=Similarity(shift)).frames(2)
    flow = DenseFlow("medium", 3).sequence(frames)
    assert flow.shape == (1, *size, 2)
    assert flow.dtype == np.float32
    inner = flow[0, 8:-8, 8:-8]
    assert np.median(np.abs(inner[..., 0] - shift[0])) < 0.1
    assert np.median(np.abs(inner[..., 1] - shift[1])) < 0.1


def test_backward_flow_goes_from_the_second_frame_to_the_first() -> None:
    frames = MovingScene(64, 96, camera=Similarity((2.0, 0.0))).frames(3)
    flow = DenseFlow("medium", 0).backward(frames)
    assert np.median(flow[..., 0]) == pytest.approx(-2.0, abs=0.1)


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_small_frames_get_at_least_as_fine_a_level_as_the_preset_has(preset: str) -> None:
    """In 64 px, DIS at half resolution alone loses three pixels a frame."""
    frames = MovingScene(64, 64, camera=Similarity((3.2, 0.0)), noise_std=2.0).frames(2)
    flow = DenseFlow(preset, 3).sequence(frames)
    assert np.median(np.abs(flow[0, :, 8:-8] - [3.2, 0.0])) < 0.1


def test_a_reused_object_gives_what_a_fresh_one_gives() -> None:
    frames = MovingScene(48, 64, camera=Similarity((1.0, 0.5))).frames(4)
    together = DenseFlow("medium", 3).sequence(frames)
    apart = [DenseFlow("medium", 3).sequence(frames[number : number + 2])[0] for number in range(3)]
    np.testing.assert_array_equal(together, apart)


def test_the_number_of_threads_changes_nothing() -> None:
    frames = MovingScene(96, 128, camera=Similarity((1.0, 0.5))).frames(2)
    before = DenseFlow("medium", 0).sequence(frames)
    cv2.setNumThreads(4)
    np.testing.assert_array_equal(DenseFlow("medium", 0).sequence(frames), before)


def test_the_median_filter_removes_outliers() -> None:
    frames = MovingScene(64, 64, camera=Similarity((1.0, 0.0)), noise_std=12.0).frames(2)
    spread = [np.abs(np.diff(DenseFlow("medium", px).sequence(frames)[0], axis=1)).mean() for px in (0, 3, 5)]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 12, 64, 3), np.uint8), "64 x 12 px"),
        (np.zeros((2, 32, 32), np.uint8), r"\[32, 32\]"),
        (np.zeros((2, 32, 32, 3), np.float32), "float32"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)], "changes"),
    ],
)
def test_frames_that_have_no_flow_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(gray_frames(frames))


def test_one_object_is_for_one_frame_size() -> None:
    flow = DenseFlow("medium", 0)
    flow.pair(np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))
    with pytest.raises(ValueError, match="size changes"):
        flow.pair(np.zeros((32, 48), np.uint8), np.zeros((32, 48), np.uint8))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="'slow'"):
        DenseFlow("slow", 0)
    with pytest.raises(ValueError, match="median_px: 4"):
        DenseFlow("fast", 4)
