from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mme.motion.camera import CameraMotion, camera_shift, estimate_homography
from mme.motion.flow import DenseFlow, gray_frames
from mme.motion.tracking import cell_centres, sample_bilinear
from tests.reference.moving_scene import MovingScene, Similarity

HEIGHT, WIDTH = 96, 160
GRID = cell_centres(HEIGHT, WIDTH, 8)
BOX = (40, 16, 74, 62)  # 30 % of the frame

CAMERAS = {
    "static": Similarity(),
    "pan": Similarity((2.3, -1.7)),
    "zoom": Similarity(scale=1.02),
    "rotation": Similarity(degrees=1.2),
    "all": Similarity((1.5, 0.7), 0.8, 0.985),
}


def estimate(scene: MovingScene) -> tuple[CameraMotion, NDArray[np.float32]]:
    """Camera motion of the first two frames, and the flow at the grid ``[h, w, 2]``."""
    first, second = gray_frames(scene.frames(2))
    flow = DenseFlow("medium", 3).pair(first, second)
    return estimate_homography(flow, 0.5, 0.35, first), sample_bilinear(flow, GRID)


def norm(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.linalg.norm(vectors, axis=-1))


@pytest.mark.parametrize("noise_std", [0.0, 2.0])
@pytest.mark.parametrize("name", CAMERAS)
def test_compensation_cancels_camera_motion_of_a_static_scene(name: str, noise_std: float) -> None:
    camera, flow = estimate(MovingScene(HEIGHT, WIDTH, camera=CAMERAS[name], noise_std=noise_std))
    assert camera.trusted
    assert camera.inlier_ratio > 0.9
    residual = norm(flow - camera_shift(camera.homography, GRID))
    assert np.median(residual) < 0.15


@pytest.mark.parametrize("own", [Similarity((-1.2, 0.8)), Similarity((3.0, 3.0)), Similarity(degrees=5.0)])
@pytest.mark.parametrize("name", CAMERAS)
def test_object_of_30_percent_of_the_frame_keeps_its_own_motion(name: str, own: Similarity) -> None:
    scene = MovingScene(HEIGHT, WIDTH, CAMERAS[name], BOX, own, noise_std=2.0)
    assert BOX[2] * BOX[3] / (HEIGHT * WIDTH) == pytest.approx(0.3, abs=0.01)
    camera, flow = estimate(scene)
    assert camera.trusted
    residual = flow - camera_shift(camera.homography, GRID)
    background = ~scene.in_box(GRID, -6)
    assert np.median(norm(residual[background])) < 0.2
    true_camera = np.vstack([scene.camera.matrix(1, scene.centre), [0, 0, 1]])
    own_motion = np.diff(scene.box_path(GRID, 1), axis=-2)[..., 0, :] - camera_shift(true_camera, GRID)
    inside = scene.in_box(GRID, 4)
    assert np.median(norm(residual - own_motion)[inside]) < 0.4


def test_untextured_frames_are_not_trusted() -> None:
    frames = np.full((2, HEIGHT, WIDTH, 3), 120, np.uint8)
    noise = np.random.default_rng(0).normal(0, 2, frames.shape)
    first, second = gray_frames((frames + noise).astype(np.uint8))
    camera = estimate_homography(DenseFlow("medium", 3).pair(first, second), 0.5, 0.35, first)
    assert not camera.trusted
    np.testing.assert_array_equal(camera.homography, np.eye(3))


def test_edges_in_one_direction_are_not_textured() -> None:
    """Flow along a stripe is arbitrary, so vertical stripes do not determine camera motion."""
    stripes = np.broadcast_to(128 + 80 * np.sin(np.arange(WIDTH) / 3), (HEIGHT, WIDTH)).astype(np.uint8)
    camera = estimate_homography(np.zeros((HEIGHT, WIDTH, 2), np.float32), 0.5, 0.35, stripes)
    assert not camera.trusted


def test_random_flow_is_not_trusted() -> None:
    flow = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 2)).astype(np.float32)
    camera = estimate_homography(flow, 0.5, 0.35)
    assert not camera.trusted
    assert camera.inlier_ratio < 0.35
    np.testing.assert_array_equal(camera.homography, np.eye(3))


def test_trust_depends_on_the_inlier_ratio() -> None:
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[:, 96:] = np.random.default_rng(0).normal(0, 6, (HEIGHT, 64, 2))
    assert estimate_homography(flow, 0.5, 0.5).trusted
    refused = estimate_homography(flow, 0.5, 0.7)
    assert not refused.trusted
    assert refused.inlier_ratio == pytest.approx(0.6, abs=0.03)


def test_inliers_on_one_object_only_are_not_trusted() -> None:
    gray = np.full((HEIGHT, WIDTH), 128, np.uint8)
    gray[24:72, 44:84] = np.random.default_rng(0).integers(0, 256, (48, 40))
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[24:72, 44:84] = 2, -1
    camera = estimate_homography(flow, 0.5, 0.35, gray)
    assert camera.inlier_ratio > 0.6
    assert not camera.trusted
    np.testing.assert_array_equal(camera.homography, np.eye(3))


def test_motion_that_most_of_the_frame_does_not_share_is_not_the_cameras() -> None:
    """Textured things, 45 % of the frame and all over it, move alike in front of an even wall that stands still."""
    gray = np.full((HEIGHT, WIDTH), 128, np.uint8)
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    for top in range(4, HEIGHT, HEIGHT // 3):
        for left in range(8, WIDTH, WIDTH // 4):
            gray[top : top + 24, left : left + 24] = np.random.default_rng(top + left).integers(0, 256, (24, 24))
            flow[top : top + 24, left : left + 24] = 3, -1
    camera = estimate_homography(flow, 0.5, 0.35, gray)
    assert camera.inlier_ratio > 0.5  # those that are out are on the rims
    assert not camera.trusted
    flow[:] = 3, -1  # the wall moves with them
    assert estimate_homography(flow, 0.5, 0.35, gray).trusted


@pytest.mark.parametrize("noise_std", [0.0, 2.0])
@pytest.mark.parametrize("name", CAMERAS)
def test_camera_that_moves_before_an_even_sky_is_trusted(name: str, noise_std: float) -> None:
    """The flow of the upper half comes from the lower one."""
    frames = MovingScene(HEIGHT, WIDTH, camera=CAMERAS[name]).frames(2).copy()
    frames[:, : HEIGHT // 2] = 150
    noise = np.random.default_rng(0).normal(0, noise_std, frames.shape)
    first, second = gray_frames((frames + noise).clip(0, 255).astype(np.uint8))
    assert estimate_homography(DenseFlow("medium", 3).pair(first, second), 0.5, 0.35, first).trusted


def test_implausible_zoom_is_not_trusted() -> None:
    centre = np.array([WIDTH / 2, HEIGHT / 2])
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    flow = (0.7 * (centre - np.stack([xs, ys], axis=-1))).astype(np.float32)
    assert not estimate_homography(flow, 0.5, 0.35).trusted


def test_estimate_is_deterministic() -> None:
    flow = np.random.default_rng(0).normal(0, 0.5, (HEIGHT, WIDTH, 2)).astype(np.float32)
    first, second = (estimate_homography(flow, 0.5, 0.1) for _ in range(2))
    np.testing.assert_array_equal(first.homography, second.homography)


@given(st.integers(0, 2**32 - 1))
def test_camera_shift_equals_perspective_transform_minus_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    homography = np.eye(3) + rng.normal(0, 1, (3, 3)) * [[0.02, 0.02, 3], [0.02, 0.02, 3], [1e-5, 1e-5, 0.02]]
    points = rng.uniform(0, 500, (7, 2))
    expected = cv2.perspectiveTransform(points[None], homography)[0] - points
    np.testing.assert_allclose(camera_shift(homography, points), expected, atol=1e-9)
    single = camera_shift(homography.astype(np.float32), points.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=5e-4)
