from __future__ import annotations

import numpy as np
import pytest
import skimage.feature
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mme.targets.hog import NUM_BINS, gradient_codes, hog_at, soft_bins
from mme.video.colour import luma_of
from tests.reference import hog as reference
from tests.reference.moving_scene import MovingScene, Similarity

CENTRE = np.array([15.5, 15.5], np.float32)
FRAME_0 = np.array(0)
NORM_FLOOR = 8.0


def hog_along(
    luma: NDArray[np.uint8], points: NDArray[np.float32], frames: NDArray[np.int64], window: int
) -> NDArray[np.float32]:
    """Histograms at points ``[..., 2]``, whose frames are broadcast."""
    index = np.broadcast_to(frames, points.shape[:-1]).copy()
    levels, place = torch.from_numpy(np.ascontiguousarray(luma)), torch.from_numpy(np.ascontiguousarray(points))
    return np.asarray(hog_at(levels, place, torch.from_numpy(index), window, NORM_FLOOR).numpy())


def gray_to_rgb(gray: NDArray[np.floating]) -> NDArray[np.uint8]:
    """One frame ``[1, H, W, 3]``."""
    levels = np.clip(np.rint(gray), 0, 255).astype(np.uint8)
    return np.repeat(levels[None, ..., None], 3, axis=-1)


def grating(degrees: float, side: int = 32, period_px: float = 16.0) -> NDArray[np.uint8]:
    """Waves whose gradient points along ``degrees``."""
    ys, xs = np.mgrid[:side, :side]
    along = xs * np.cos(np.radians(degrees)) + ys * np.sin(np.radians(degrees))
    return gray_to_rgb(128 + 110 * np.sin(2 * np.pi * along / period_px))


def at_centre(frames: NDArray[np.uint8], window: int = 16) -> NDArray[np.float32]:
    return hog_along(luma_of(frames), CENTRE, FRAME_0, window)


@settings(max_examples=12)
@given(
    height=st.integers(3, 14),
    width=st.integers(3, 14),
    window=st.integers(2, 9),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 1000),
)
def test_agrees_with_loops(height: int, width: int, window: int, place: tuple[float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    points = np.array([[place[0] * (width - 1), place[1] * (height - 1)], [width - 1, 0], [0.5, height - 1.5]])
    points = points.astype(np.float32)
    index = np.array([1, 0, 1])
    found = hog_along(luma_of(frames), points, index, window)
    assert found.dtype == np.float32
    for number, ((x, y), frame) in enumerate(zip(points, index, strict=True)):
        expected = reference.hog_at(frames[frame], float(x), float(y), window, NORM_FLOOR)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)


@pytest.mark.parametrize("num_points", [1, 2000])
def test_few_points_and_many_give_the_same_shape_and_place(num_points: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    points = rng.uniform(-3, 45, (num_points, 3, 2)).astype(np.float32)  # some outside, where they are clamped
    result = hog_along(luma_of(frames), points, np.arange(3), 8)
    assert result.shape == (num_points, 3, NUM_BINS)
    alone = hog_along(luma_of(frames[2:]), points[0, 2], np.array(0), 8)
    np.testing.assert_allclose(result[0, 2], alone, atol=1e-5)


@pytest.mark.parametrize("degrees", range(0, 180, 5))
def test_every_orientation_is_measured_without_bias(degrees: int) -> None:
    histogram = at_centre(grating(degrees)).astype(np.float64)
    turns = np.exp(2j * np.radians(20.0 * np.arange(NUM_BINS)))  # an orientation and its opposite are one
    measured = np.degrees(np.angle(histogram @ turns)) / 2 % 180
    difference = (measured - degrees + 90) % 180 - 90
    assert abs(difference) < 2.0
    nearest = round(degrees / 20) % NUM_BINS
    assert histogram.argmax() in {nearest, int(degrees // 20) % NUM_BINS, (int(degrees // 20) + 1) % NUM_BINS}


def test_a_vertical_edge_is_one_bin_and_a_horizontal_edge_two_halves() -> None:
    vertical = at_centre(gray_to_rgb(np.where(np.arange(32) < 16, 40.0, 200.0) * np.ones((32, 1))))
    np.testing.assert_allclose(vertical, np.eye(NUM_BINS)[0], atol=1e-6)
    horizontal = at_centre(gray_to_rgb(np.where(np.arange(32) < 16, 40.0, 200.0)[:, None] * np.ones((1, 32))))
    expected = (np.eye(NUM_BINS)[4] + np.eye(NUM_BINS)[5]) / np.sqrt(2)
    np.testing.assert_allclose(horizontal, expected, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 135, 170])
def test_noise_does_not_toss_an_edge_between_bins(degrees: int) -> None:
    """Bins that begin at 0 degrees split a vertical edge between the first and the last as noise pleases."""
    clean = grating(degrees)
    noise = np.random.default_rng(0).normal(0, 5, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    assert at_centre(clean) @ at_centre(noisy) > 0.98


def test_bins_are_circular() -> None:
    """170 degrees lies between 160 and 0."""
    near = at_centre(grating(170))
    assert {int(number) for number in near.argsort()[-2:]} == {0, 8}
    assert near[0] == pytest.approx(near[8], rel=0.1)


def test_brightness_does_not_matter() -> None:
    luma = np.random.default_rng(0).integers(20, 190, (1, 32, 32), dtype=np.uint8)
    dark, bright = (hog_along(levels, CENTRE, FRAME_0, 16) for levels in (luma, luma + np.uint8(40)))
    np.testing.assert_array_equal(dark, bright)


def test_contrast_does_not_matter_above_the_floor() -> None:
    strong = grating(30)
    weak = (128 + (strong.astype(np.float64) - 128) / 2).round().astype(np.uint8)
    np.testing.assert_allclose(at_centre(weak), at_centre(strong), atol=0.02)


def test_norm_is_one_above_the_floor_and_fades_below_it() -> None:
    assert np.linalg.norm(at_centre(grating(30))) == pytest.approx(1.0, abs=1e-6)
    assert not at_centre(np.full((1, 32, 32, 3), 77, np.uint8)).any()
    noise = np.random.default_rng(0).normal(128, 2.0, (1, 32, 32, 3))
    assert np.linalg.norm(at_centre(noise.astype(np.uint8))) < 0.25


def test_a_mirror_image_has_mirrored_bins() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    point = np.array([13.25, 9.5], np.float32)
    there = hog_along(luma_of(frames), point, FRAME_0, 8)
    mirrored = hog_along(luma_of(frames[:, :, ::-1]), np.array([47 - 13.25, 9.5], np.float32), FRAME_0, 8)
    np.testing.assert_allclose(mirrored, there[(-np.arange(NUM_BINS)) % NUM_BINS], atol=1e-5)


def test_maps_hold_the_magnitude_of_the_gradient() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 17, 3), dtype=np.uint8)
    codes = gradient_codes(torch.from_numpy(luma_of(frames)), 1)[:, 1:-1, 1:-1]
    maps = soft_bins(codes.device)[codes].numpy()
    assert maps.shape == (2, 12, 17, NUM_BINS)
    expected = [reference.bin_maps(reference.luma(frame)) for frame in frames]
    np.testing.assert_allclose(maps, expected, atol=2e-4)


def test_agrees_with_scikit_image_on_the_share_of_every_orientation() -> None:
    """Its bins are hard; 180 of them, shared out as ours are, come within the half degree that they are wide."""
    frame = MovingScene(32, 48).frames(1)
    gray = reference.luma(frame[0])
    fine = skimage.feature.hog(
        gray, orientations=180, pixels_per_cell=(8, 8), cells_per_block=(1, 1), block_norm="L1", feature_vector=False
    )[:, :, 0, 0]
    distance = np.abs(np.arange(180)[:, None] + 0.5 - 20.0 * np.arange(NUM_BINS))
    shares = fine @ np.maximum(1 - np.minimum(distance, 180 - distance) / 20, 0)  # (4, 6, 9)
    xs, ys = np.meshgrid(3.5 + 8 * np.arange(6), 3.5 + 8 * np.arange(4))
    ours = hog_along(luma_of(frame), np.stack([xs, ys], axis=-1).astype(np.float32), FRAME_0, 8)
    np.testing.assert_allclose(ours / ours.sum(axis=-1, keepdims=True), shares, atol=0.03)


def test_along_its_track_the_histogram_of_a_moving_patch_stays_the_same() -> None:
    motion = Similarity((3.3, 1.2))
    scene = MovingScene(80, 128, Similarity(), (20, 14, 44, 40), motion)
    frames = scene.frames(9)
    point = np.array([[41.5, 33.5]], np.float32)
    path = scene.box_path(point, 8)[0].astype(np.float32)  # (9, 2)
    along = hog_along(luma_of(frames), path, np.arange(9), 8)
    staying = hog_along(luma_of(frames), np.repeat(point, 9, axis=0), np.arange(9), 8)
    along, staying = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (along, staying))
    assert (along @ along[0]).min() >= 0.98
    assert (staying @ staying[0]).min() < 0.9
