from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mme.motion.camera import camera_shift
from mme.motion.tracking import (
    GridTracker,
    StartTracks,
    cell_centres,
    consistent,
    extract_tracks,
    iter_tracks,
    sample_bilinear,
)
from tests.reference.moving_scene import MovingScene, Similarity
from tests.reference.tracking import track
from tests.targets.cases import trajectories_params

HEIGHT, WIDTH, LENGTH = 96, 160, 8


def follow(
    forward: NDArray[np.float32], backward: NDArray[np.float32] | None, cell: int, length: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Displacements ``[S, h, w, L, 2]`` and valid steps ``[S, h, w]`` along given flows ``[T, H, W, 2]``."""
    tracker = GridTracker(forward.shape[1], forward.shape[2], cell, length)
    starts = []
    for number, flow in enumerate(forward):
        if tracker.step(flow, None if backward is None else backward[number]):
            starts.append(tracker.pop())
    starts += [tracker.pop() for _ in range(len(forward) - len(starts))]
    return np.stack([start[0] for start in starts]), np.stack([start[1] for start in starts])


def smooth_flow(rng: np.random.Generator, num_flows: int, height: int, width: int, size: float) -> NDArray[np.float32]:
    """Random flow ``[T, H, W, 2]`` that varies smoothly."""
    ys, xs = np.mgrid[:height, :width]
    waves = rng.uniform(-0.25, 0.25, (num_flows, 2, 2))
    phase = rng.uniform(0, 6, (num_flows, 2))
    angle = waves[:, :, 0, None, None] * xs + waves[:, :, 1, None, None] * ys + phase[:, :, None, None]
    return np.asarray(np.moveaxis(size * np.sin(angle), 1, -1), dtype=np.float32)


# Against closed forms, through flow and tracking.


@pytest.mark.parametrize("shift", [(1.3, 0.0), (0.0, -2.7), (6.0, 0.4), (-3.3, 4.1), (0.25, 0.25), (-0.6, -6.0)])
def test_tracks_follow_translation(shift: tuple[float, float]) -> None:
    frames = MovingScene(HEIGHT, WIDTH, camera=Similarity(shift)).frames(LENGTH + 1)
    tracks = extract_tracks(frames, trajectories_params(cell=8, max_length=LENGTH)).select([0], LENGTH)
    whole = tracks.num_valid == LENGTH
    assert whole.mean() > 0.3
    error = tracks.displacements[whole] - shift
    assert np.median(np.linalg.norm(error, axis=-1)) <= 0.10  # a step
    assert np.median(np.linalg.norm(error.sum(axis=1), axis=-1)) <= 0.25  # all eight of them
    for axis, part in enumerate(shift):
        if part == 0:
            assert np.median(np.abs(error[..., axis])) <= 0.05


@pytest.mark.parametrize("motion", [Similarity(degrees=1.5), Similarity(scale=1.015), Similarity(scale=0.985)])
def test_tracks_follow_rotation_and_zoom(motion: Similarity) -> None:
    scene = MovingScene(HEIGHT, WIDTH, camera=motion)
    tracks = extract_tracks(scene.frames(LENGTH + 1), trajectories_params(cell=8, max_length=LENGTH)).select(
        [0], LENGTH
    )
    whole = tracks.num_valid == LENGTH
    assert whole.mean() > 0.6
    true = scene.background_path(cell_centres(HEIGHT, WIDTH, 8), LENGTH)
    error = np.linalg.norm(tracks.positions()[0] - true, axis=-1)[whole[0]]  # (P, L + 1)
    assert np.median(error[:, -1]) <= 0.25


@pytest.mark.parametrize("camera", [Similarity((2.0, -1.0)), Similarity(scale=1.012), Similarity(degrees=1.0)])
def test_residuals_of_a_static_scene_are_small(camera: Similarity) -> None:
    frames = MovingScene(HEIGHT, WIDTH, camera=camera, noise_std=1.0).frames(6)
    tracks = extract_tracks(frames, trajectories_params(cell=8, max_length=4))
    assert tracks.trusted.all()
    whole = tracks.select([0, 1], 4)
    residual = np.linalg.norm(whole.residuals()[whole.num_valid == 4], axis=-1)
    assert np.median(residual) <= 0.15
    assert np.median(np.linalg.norm(whole.displacements[whole.num_valid == 4], axis=-1)) > 3 * np.median(residual)


def test_compensation_can_be_disabled() -> None:
    frames = MovingScene(64, 96, camera=Similarity((2.0, -1.0))).frames(4)
    tracks = extract_tracks(frames, trajectories_params(compensate_camera=False, max_length=2))
    assert not tracks.trusted.any()
    chosen = tracks.select([0], 2)
    np.testing.assert_array_equal(chosen.residuals(), chosen.displacements)


# Tracking alone, against the reference.


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_tracker_agrees_with_the_reference(size: tuple[int, int], checked: bool) -> None:
    rng = np.random.default_rng(3)
    forward = smooth_flow(rng, 7, *size, 2.5)
    backward = -forward + rng.normal(0, 0.45, forward.shape).astype(np.float32) if checked else None
    displacements, num_valid = follow(forward, backward, 4, 5)
    grid = cell_centres(*size, 4)
    unlike = 0
    for s, y, x in np.ndindex(num_valid.shape):
        rest = None if backward is None else backward[s:]
        expected, expected_valid = track((grid[y, x, 0], grid[y, x, 1]), forward[s:], rest, 5)
        if num_valid[s, y, x] != expected_valid:
            unlike += 1  # on the very limit, rounding decides
            continue
        np.testing.assert_allclose(displacements[s, y, x], expected, atol=1e-4)
    assert unlike <= 1
    assert len(np.unique(num_valid)) == 6  # points leave, or become inconsistent, at every step


def test_sub_pixel_motion_is_never_rounded() -> None:
    displacements, num_valid = follow(np.full((6, 32, 48, 2), 0.3, np.float32), None, 8, 6)
    assert (num_valid[0, :3] == 6).all()
    np.testing.assert_array_equal(displacements[0, :3], np.float32(0.3))


def test_displacements_are_x_y() -> None:
    """A point that goes right by the width of the left half lands in the half that goes down."""
    flow = np.zeros((2, 32, 64, 2), np.float32)
    flow[0, :, :32] = 20, 0
    flow[1, :, 20:] = 0, 5
    displacements, num_valid = follow(flow, None, 8, 2)
    np.testing.assert_array_equal(displacements[0, 1, 1], [[20, 0], [0, 5]])
    assert num_valid[0, 1, 1] == 2


def test_mirrored_flow_gives_mirrored_tracks() -> None:
    rng = np.random.default_rng(5)
    forward, backward = smooth_flow(rng, 6, 32, 48, 2.0), smooth_flow(rng, 6, 32, 48, 2.0)
    flip = np.array([-1, 1], np.float32)
    displacements, num_valid = follow(forward, backward, 4, 6)
    mirrored, mirrored_valid = follow(forward[:, :, ::-1] * flip, backward[:, :, ::-1] * flip, 4, 6)
    np.testing.assert_array_equal(mirrored_valid[:, :, ::-1], num_valid)
    np.testing.assert_allclose(mirrored[:, :, ::-1] * flip, displacements, atol=1e-5)


# Validity.


def test_points_are_valid_until_they_leave_the_frame() -> None:
    flow = np.zeros((4, 16, 32, 2), np.float32)
    flow[..., 0] = 6
    displacements, num_valid = follow(flow, None, 4, 4)
    columns = 1.5 + 4 * np.arange(8)
    expected = np.minimum(np.floor((31 - columns) / 6), 4)
    np.testing.assert_array_equal(num_valid[0], np.broadcast_to(expected, (4, 8)))
    steps = np.arange(4) < num_valid[0][..., None]
    np.testing.assert_array_equal(displacements[0, ..., 0], np.where(steps, 6, 0))


def test_centre_of_the_last_pixel_is_inside() -> None:
    flow = np.zeros((1, 16, 16, 2), np.float32)
    flow[..., 0] = 1.5
    assert follow(flow, None, 4, 1)[1][0, :, 3].tolist() == [1, 1, 1, 1]  # 13.5 + 1.5 = 15, the last pixel's centre
    flow[..., 0] = 1.51
    assert follow(flow, None, 4, 1)[1][0, :, 3].tolist() == [0, 0, 0, 0]


def test_consistency_is_equation_5_of_sundaram() -> None:
    forward = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [30.0, 40.0]], np.float32)
    backward = np.array([[-3.0, -4.0], [-3.0, -2.9], [0.75, 0.0], [-30.0, -33.0]], np.float32)
    # |f + b|^2 = 0, 1.21, 0.5625, 49; 0.01 (|f|^2 + |b|^2) + 0.5 = 1.0, 0.924, 0.506, 45.4
    assert consistent(forward, backward).tolist() == [True, False, False, False]
    assert consistent(forward, -forward).all()


def test_occluded_points_are_invalid() -> None:
    scene = MovingScene(HEIGHT, WIDTH, Similarity(), (40, 20, 48, 56), Similarity((8.0, 0.0)))
    tracks = extract_tracks(scene.frames(4), trajectories_params(cell=4, max_length=3)).select([0], 3)
    grid = cell_centres(HEIGHT, WIDTH, 4)
    covered = (grid[..., 0] > 98) & (grid[..., 0] < 108) & (grid[..., 1] > 24) & (grid[..., 1] < 72)
    assert (tracks.num_valid[0][covered] < 3).mean() > 0.7
    assert (tracks.num_valid[0][scene.in_box(grid, 6)] == 3).mean() > 0.95


def test_steps_past_the_end_of_the_video_are_invalid() -> None:
    frames = MovingScene(32, 48).frames(5)
    tracks = extract_tracks(frames, trajectories_params(max_length=3))
    assert tracks.num_valid.shape == (4, 8, 12)
    assert tracks.num_valid.max(axis=(1, 2)).tolist() == [3, 3, 2, 1]
    assert not tracks.displacements[2, ..., 2:, :].any()
    assert [start.complete for start in iter_tracks(frames, trajectories_params(max_length=3))] == [
        True,
        True,
        False,
        False,
    ]


# Videos.


def test_tracks_are_yielded_as_soon_as_they_are_whole() -> None:
    frames = MovingScene(32, 48, camera=Similarity((1.0, 0.0))).frames(8)
    num_read = 0

    def read() -> Iterator[NDArray[np.uint8]]:
        nonlocal num_read
        for frame in frames:
            num_read += 1
            yield frame

    params = trajectories_params(max_length=3)
    starts: list[StartTracks] = []
    for start in iter_tracks(read(), params):
        starts.append(start)
        assert num_read <= len(starts) + 3
    whole = extract_tracks(frames, params)
    np.testing.assert_array_equal(whole.displacements, [start.displacements for start in starts])
    np.testing.assert_array_equal(
        whole.homographies, np.array([start.camera.homography for start in starts], np.float32)
    )


def test_extraction_is_deterministic() -> None:
    frames = MovingScene(48, 64, Similarity((1.0, 0.3)), (20, 10, 24, 24), Similarity((-2.0, 0.0)), 3.0).frames(6)
    first, second = (extract_tracks(frames, trajectories_params()) for _ in range(2))
    for name in ("displacements", "num_valid", "homographies", "trusted"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_select_takes_the_homography_of_each_step() -> None:
    tracks = extract_tracks(
        MovingScene(32, 48, camera=Similarity((1.5, 0.0))).frames(6), trajectories_params(max_length=3)
    )
    chosen = tracks.select([1, 4], 2)
    np.testing.assert_array_equal(chosen.homographies[0], tracks.homographies[1:3])
    np.testing.assert_array_equal(chosen.homographies[1], [tracks.homographies[4], np.eye(3)])
    assert chosen.num_valid.max() == 2
    first_step = chosen.displacements[0, :, :, 0] - camera_shift(tracks.homographies[1], cell_centres(32, 48, 4))
    np.testing.assert_allclose(chosen.residuals()[0, :, :, 0], first_step, atol=1e-6)


def test_video_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 2 frames"):
        extract_tracks(np.zeros((1, 32, 32, 3), np.uint8), trajectories_params())


def test_cell_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="cell: 40 px"):
        extract_tracks(np.zeros((2, 32, 64, 3), np.uint8), trajectories_params(cell=40))


def test_cells_tile_the_frame_from_the_upper_left_corner() -> None:
    grid = cell_centres(19, 30, 4)
    assert grid.shape == (4, 7, 2)
    np.testing.assert_array_equal(grid[0, 0], [1.5, 1.5])
    np.testing.assert_array_equal(grid[2, 5], [21.5, 9.5])


@settings(max_examples=25)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    cell=st.integers(2, 8),
    length=st.integers(1, 9),
    num_flows=st.integers(1, 10),
    checked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_track_invariants_for_any_size_and_length(
    *, height: int, width: int, cell: int, length: int, num_flows: int, checked: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    forward = smooth_flow(rng, num_flows, height, width, 3.0)
    backward = -forward if checked else None
    displacements, num_valid = follow(forward, backward, cell, length)
    assert displacements.shape == (num_flows, height // cell, width // cell, length, 2)
    left = np.minimum(num_flows - np.arange(num_flows), length)
    assert (num_valid <= left[:, None, None]).all()
    ended = np.arange(length) >= num_valid[..., None]
    assert not displacements[ended].any()
    places = cell_centres(height, width, cell)[None, :, :, None] + np.cumsum(displacements, axis=3)
    assert (places >= -1e-4).all()
    assert (places <= np.array([width, height]) - 1 + 1e-4).all()


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 1000))
def test_bilinear_samples_of_a_plane_are_exact(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    plane = np.stack([0.5 * xs - 0.25 * ys, 0.125 * xs + ys], axis=-1).astype(np.float32)
    points = (rng.uniform(0, 1, (50, 2)) * (width - 1, height - 1)).astype(np.float32)
    points[0] = 0, 0
    points[1] = width - 1, height - 1
    x, y = points[:, 0], points[:, 1]
    expected = np.stack([0.5 * x - 0.25 * y, 0.125 * x + y], axis=-1)
    np.testing.assert_allclose(sample_bilinear(plane, points), expected, atol=1e-5)
