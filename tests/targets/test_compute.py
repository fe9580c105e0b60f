from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mme.motion.tracking import TrackSlice, extract_tracks
from mme.targets.drawing import TokenCanvas
from mme.targets.grid import MaskedBatch, TargetSpec, stored_tracks, token_tracks
from mme.targets.hog import NUM_BINS
from mme.targets.position import MOVING_PX, POSITION, drawn_units, log_compress, motion_scores, motion_sums
from mme.video.crop import Crop
from tests.reference.moving_scene import MovingScene, Similarity
from tests.reference.targets import target_of, to_source
from tests.targets.cases import (
    DEFAULTS,
    Computed,
    compute,
    compute_batch,
    exact_tracks,
    target_spec,
    trajectories_params,
)

WHOLE = Crop(0, 0, 48, 64, False)


def random_tracks(rng: np.random.Generator, spec: TargetSpec, height: int, width: int, cell: int) -> TrackSlice:
    """Tracks of arbitrary motion, partly invalid, under an arbitrary camera."""
    shape = (spec.num_tubelets, height // cell, width // cell)
    camera = rng.normal(0, 1, (spec.num_tubelets, spec.length, 3, 3)) * [[0.01, 0.01, 2], [0.01, 0.01, 2], [1e-5] * 3]
    return TrackSlice(
        displacements=rng.normal(0, 1.5, (*shape, spec.length, 2)).astype(np.float32),
        num_valid=np.where(rng.uniform(size=shape) < 0.9, spec.length, spec.length - 1).astype(np.uint8),
        homographies=(np.eye(3) + camera).astype(np.float32),
        starts=np.arange(spec.num_tubelets) * spec.tubelet_stride,
        cell=cell,
        height=height,
        width=width,
    )


def random_frames(rng: np.random.Generator, spec: TargetSpec) -> NDArray[np.uint8]:
    coarse = rng.integers(0, 256, (spec.dense_frames[-1] + 1, spec.height // 4, spec.width // 4, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, (spec.width, spec.height)) for frame in coarse])


def view(frames: NDArray[np.uint8], crop: Crop, spec: TargetSpec) -> NDArray[np.uint8]:
    """Frames as a clip shows them; the crop must be whole pixels."""
    top, left, height, width = (int(edge) for edge in (crop.top, crop.left, crop.height, crop.width))
    cut = frames[:, top : top + height, left : left + width]
    result = np.stack([cv2.resize(frame, (spec.width, spec.height)) for frame in cut])
    return result[:, :, ::-1] if crop.flip else result


def cell_grid(values: NDArray[Any], spec: TargetSpec) -> NDArray[Any]:
    """Tokens and cells ``[N, C, ...]`` back to ``[T, y, x, ...]``."""
    rows, columns = spec.height // spec.patch_size, spec.width // spec.patch_size
    parts = values.reshape(spec.num_tubelets, rows, columns, 2, 2, *values.shape[2:])
    return np.moveaxis(parts, 3, 2).reshape(spec.num_tubelets, 2 * rows, 2 * columns, *values.shape[2:])


# Against the reference.


@settings(max_examples=10)
@given(
    hog_steps=st.sampled_from(["all", "first"]),
    patch_size=st.sampled_from([8, 16]),
    num_tubelets=st.integers(1, 3),
    tubelet_stride=st.integers(1, 4),
    length=st.integers(1, 5),
    cell=st.integers(3, 8),
    flip=st.booleans(),
    edges=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.5, 1), st.floats(0.5, 1)),
    seed=st.integers(0, 1000),
)
def test_agrees_with_cell_by_cell(
    *,
    hog_steps: Any,
    patch_size: int,
    num_tubelets: int,
    tubelet_stride: int,
    length: int,
    cell: int,
    flip: bool,
    edges: tuple[float, float, float, float],
    seed: int,
) -> None:
    spec = target_spec(
        patch_size=patch_size,
        num_tubelets=num_tubelets,
        tubelet_stride=tubelet_stride,
        length=length,
        hog_steps=hog_steps,
    )
    rng = np.random.default_rng(seed)
    tracks, frames = random_tracks(rng, spec, 40, 72, cell), random_frames(rng, spec)
    height, width = edges[2] * 40, edges[3] * 72
    crop = Crop(edges[0] * (40 - height), edges[1] * (72 - width), height, width, flip)
    target = compute(tracks, crop, frames, spec)
    num_tokens = num_tubelets * (48 // patch_size) * (64 // patch_size)
    num_steps = length if hog_steps == "all" else 1
    assert target.position.shape == (num_tokens, 4, length, 2)
    assert target.hog.shape == (num_tokens, 4, num_steps, NUM_BINS)
    assert [str(part.dtype) for part in (target.position, target.hog, target.valid)] == ["float32", "float32", "bool"]
    for token in rng.integers(0, num_tokens, 4):
        for number in range(4):
            position, hog, valid = target_of(tracks, crop, frames, spec, int(token), number)
            assert target.valid[token, number] == valid
            np.testing.assert_allclose(target.position[token, number], position * valid, atol=2e-4)
            np.testing.assert_allclose(target.hog[token, number], hog * valid, atol=1e-4)


def test_stored_cells_are_taken_as_they_are() -> None:
    """Where the clip's cells are the grid's there is nothing to interpolate, and no neighbour to be invalid."""
    spec = target_spec()
    tracks = random_tracks(np.random.default_rng(0), spec, 48, 64, 8)
    tracks = dataclasses.replace(tracks, displacements=tracks.displacements * np.float32(0.1))
    target = compute(tracks, WHOLE, None, spec)
    inside = cell_grid(target.valid, spec)[:, 1:-1, 1:-1]
    np.testing.assert_array_equal(inside, (tracks.num_valid >= spec.length)[:, 1:-1, 1:-1])
    expected = np.where(cell_grid(target.valid, spec)[..., None, None], tracks.residuals(), 0)
    np.testing.assert_allclose(cell_grid(target.position, spec), expected, atol=1e-5)


# Augmentation commutes with tracking.


def test_a_flip_mirrors_everything() -> None:
    spec = target_spec()
    rng = np.random.default_rng(1)
    tracks, frames = random_tracks(rng, spec, 48, 64, 8), random_frames(rng, spec)
    crop = Crop(3.5, 8.25, 40, 50, False)
    plain = compute(tracks, crop, frames, spec)
    flipped = compute(tracks, dataclasses.replace(crop, flip=True), frames[:, :, ::-1], spec)
    np.testing.assert_array_equal(cell_grid(flipped.valid, spec)[:, :, ::-1], cell_grid(plain.valid, spec))
    mirrored = cell_grid(flipped.position, spec)[:, :, ::-1] * np.array([-1, 1])
    np.testing.assert_allclose(mirrored, cell_grid(plain.position, spec), atol=1e-5)
    bins = (-np.arange(NUM_BINS)) % NUM_BINS  # 20 k degrees becomes 180 - 20 k
    mirrored = cell_grid(flipped.hog, spec)[:, :, ::-1][..., bins]
    np.testing.assert_allclose(mirrored, cell_grid(plain.hog, spec), atol=1e-5)


def test_flipping_the_video_is_flipping_its_tracks() -> None:
    """Exact tracks of mirrored frames, assembled, are the exact tracks of the frames, assembled with a flip."""
    spec = target_spec()
    there = exact_tracks(MovingScene(48, 64, Similarity((1.5, -0.5), 2.0, 1.01)), [0, 3], 4, 8)
    back = exact_tracks(MovingScene(48, 64, Similarity((-1.5, -0.5), -2.0, 1.01)), [0, 3], 4, 8)
    flipped, mirrored = (
        compute(tracks, dataclasses.replace(WHOLE, flip=flip), None, spec)
        for tracks, flip in ((there, True), (back, False))
    )
    np.testing.assert_array_equal(flipped.valid, mirrored.valid)
    np.testing.assert_allclose(flipped.position, mirrored.position, atol=1e-5)


CROPS = [Crop(10, 24, 64, 96, False), Crop(4, 8, 80, 60, True), Crop(20, 30, 40, 52, False), Crop(0, 0, 96, 160, True)]
MOTIONS = [Similarity((1.7, -0.8)), Similarity(degrees=1.5), Similarity(scale=1.015)]


def true_motion(scene: MovingScene, crop: Crop, spec: TargetSpec) -> NDArray[np.float64]:
    """Displacements ``[T, y, x, L, 2]`` in clip pixels, from the closed form alone."""
    factors = np.array([spec.width / crop.width * (-1 if crop.flip else 1), spec.height / crop.height])
    rows, columns = spec.height // spec.cell, spec.width // spec.cell
    result = np.empty((spec.num_tubelets, rows, columns, spec.length, 2))
    for tubelet, y, x in np.ndindex(result.shape[:3]):
        start = tubelet * spec.tubelet_stride
        source = to_source((x + 0.5) * spec.cell - 0.5, (y + 0.5) * spec.cell - 0.5, crop, spec)
        origin = scene.camera.matrix(start, scene.centre)
        at_zero = np.linalg.inv(origin[:, :2]) @ (np.array(source) - origin[:, 2])
        path = scene.background_path(at_zero, start + spec.length)[start:]
        result[tubelet, y, x] = np.diff(path, axis=0) * factors
    return result


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_crop_and_resize_of_exact_tracks_is_exact(crop: Crop, motion: Similarity) -> None:
    scene, spec = MovingScene(96, 160, motion), target_spec()
    target = compute(exact_tracks(scene, spec.starts(0), spec.length, 8), crop, None, spec)
    assert target.valid.mean() > 0.5
    error = (cell_grid(target.position, spec) - true_motion(scene, crop, spec))[cell_grid(target.valid, spec)]
    assert np.abs(error).max() < 1e-3


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_crop_and_resize_of_extracted_tracks_is_close(crop: Crop, motion: Similarity) -> None:
    scene, spec = MovingScene(96, 160, motion), target_spec()
    params = trajectories_params(cell=8, max_length=4, compensate_camera=False)
    tracks = extract_tracks(scene.frames(spec.starts(0)[-1] + spec.length + 1), params).select(
        spec.starts(0), spec.length
    )
    target = compute(tracks, crop, None, spec)
    error = (cell_grid(target.position, spec) - true_motion(scene, crop, spec))[cell_grid(target.valid, spec)]
    in_video = error * [crop.width / spec.width, crop.height / spec.height]
    assert np.median(np.linalg.norm(in_video, axis=-1)) <= 0.05


def test_aspect_scales_x_and_y_apart() -> None:
    """Motion in x alone, in a crop that is made wider and flatter, is larger motion in x alone."""
    spec = target_spec()
    tracks = exact_tracks(MovingScene(96, 160, Similarity((1.0, 0.0))), spec.starts(0), 4, 8)
    target = compute(tracks, Crop(0, 0, 96, 32, False), None, spec)
    assert np.abs(target.position[target.valid] - [2.0, 0.0]).max() < 1e-5


def test_hog_follows_the_moving_patch() -> None:
    motion = Similarity((3.3, 1.2))
    scene, spec = (
        MovingScene(80, 128, Similarity(), (16, 12, 48, 48), motion),
        target_spec(height=80, width=128, num_tubelets=1, length=8),
    )
    frames = scene.frames(9)
    tracks = extract_tracks(frames, trajectories_params(cell=8, max_length=8)).select([0], 8)
    crop = Crop(0, 0, 80, 128, False)
    along = cell_grid(compute(tracks, crop, frames, spec).hog, spec)[0]
    centres = np.stack(np.meshgrid(8 * np.arange(16) + 3.5, 8 * np.arange(10) + 3.5), axis=-1)
    inside = scene.in_box(centres, 10)
    unit = along[inside] / np.linalg.norm(along[inside], axis=-1, keepdims=True)
    assert len(unit) >= 9
    assert np.median(np.einsum("plk,pk->pl", unit, unit[:, 0]).min(axis=1)) >= 0.98


# Validity.


def test_a_point_needs_all_its_nodes_and_stays_in_the_clip() -> None:
    spec = target_spec(num_tubelets=1)
    tracks = exact_tracks(MovingScene(96, 128), [0], 4, 8)
    tracks.num_valid[0, 5, 6] = 3
    crop = Crop(4, 4, 72, 96, False)
    valid = cell_grid(compute(tracks, crop, None, spec).valid, spec)[0]
    # 12 source pixels per cell: columns at 9.5, 21.5, ..., nodes at 3.5, 11.5, ...; node (5, 6) is at (51.5, 43.5).
    expected = np.ones((6, 8), dtype=bool)
    expected[3, 3:4] = False  # (45.5, 45.5), between nodes 5 and 6 in x, 5 and 6 in y
    expected[3, 4] = True  # (57.5, 45.5), between nodes 6 and 7
    expected[3, 4] = False
    np.testing.assert_array_equal(valid, expected)


def test_a_point_that_leaves_the_clip_is_invalid_though_it_stays_in_the_video() -> None:
    spec = target_spec(num_tubelets=1)
    tracks = exact_tracks(MovingScene(96, 160, Similarity((2.5, 0.0))), [0], 4, 8)
    valid = cell_grid(compute(tracks, Crop(16, 16, 48, 64, False), None, spec).valid, spec)[0]
    assert valid[:, :7].all()  # the last cell's centre is at 59.5 of 64, and goes 10 px
    assert not valid[:, 7].any()


def test_invalid_points_are_zero_in_both_targets() -> None:
    spec = target_spec(position_norm="patch_std")
    rng = np.random.default_rng(0)
    tracks, frames = random_tracks(rng, spec, 48, 64, 8), random_frames(rng, spec)
    target = compute(tracks, WHOLE, frames, spec)
    assert 0.2 < target.valid.mean() < 0.95
    assert not target.position[~target.valid].any()
    assert not target.hog[~target.valid].any()


def test_invalid_points_do_not_reach_their_patch() -> None:
    """What an invalid point does changes nothing in the other cells of its token."""
    spec = target_spec(position_norm="patch_std")
    tracks = exact_tracks(MovingScene(48, 64, Similarity(scale=1.02)), spec.starts(0), 4, 8)
    tracks.num_valid[:, 2, 2] = 0
    wild = dataclasses.replace(tracks, displacements=tracks.displacements.copy())
    wild.displacements[:, 2, 2] = 40
    first, second = (compute(choice, WHOLE, None, spec) for choice in (tracks, wild))
    np.testing.assert_array_equal(first.position, second.position)


# Normalisation.


def normalised(tracks: TrackSlice, **changes: Any) -> Computed:
    return compute(tracks, WHOLE, None, target_spec(**changes))


def test_patch_std_leaves_the_deviation_from_the_patch_mean() -> None:
    tracks = exact_tracks(MovingScene(48, 64, Similarity((1.0, -2.0), scale=1.06)), [0, 3], 4, 8)
    target = normalised(tracks, position_norm="patch_std", patch_std_floor_px=1e-3)
    whole = target.valid.all(axis=1)
    assert whole.sum() >= 4
    np.testing.assert_allclose(target.position[whole].mean(axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(np.square(target.position[whole]).mean(axis=(1, 2, 3)), 1, atol=1e-3)


@pytest.mark.parametrize("norm", ["none", "patch_std", "log"])
def test_a_static_patch_gives_zeros(norm: Any) -> None:
    tracks = exact_tracks(MovingScene(48, 64), [0, 3], 4, 8)
    target = normalised(tracks, position_norm=norm)
    assert target.valid.all()
    np.testing.assert_allclose(target.position, 0, atol=1e-5)


def test_log_compresses_lengths_and_keeps_directions() -> None:
    """Against a loop over points, and at the ends: proportional far below the scale, finite and ordered far above."""
    tracks = exact_tracks(MovingScene(48, 64, Similarity((1.0, -2.0), scale=1.06)), [0, 3], 4, 8)
    plain = normalised(tracks)
    target = normalised(tracks, position_norm="log", log_scale_px=0.5)
    for found, (x, y) in zip(target.position.reshape(-1, 2), plain.position.reshape(-1, 2).tolist(), strict=True):
        length = math.hypot(x, y)
        expected = [value / length * math.log(1 + length / 0.5) if length else 0.0 for value in (x, y)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    lengths = torch.tensor([0.0, 1e-30, 1e-4, 0.01, 1.0, 1e4])
    compressed = log_compress(torch.stack([lengths, torch.zeros(6)], dim=-1), 0.25)[:, 0]
    torch.testing.assert_close(compressed[:3], 4 * lengths[:3], rtol=1e-3, atol=0)
    assert (compressed.diff() > 0).all()
    assert compressed.isfinite().all()


@pytest.mark.parametrize("norm", ["patch_std", "log"])
def test_a_picture_shows_a_target_in_its_own_units(norm: str) -> None:
    """In log, a track is as long as its compressed lengths: the picture is that of these lengths in pixels."""
    values = torch.linspace(-3, 3, 4 * 4 * 2).reshape(1, 4, 4, 2).numpy()  # [M, C, L, 2]
    pictures = []
    for drawn in ("none", norm):
        cells = np.array([[[20, 20], [28, 20], [20, 28], [28, 28]]], np.float32)
        spec = target_spec(position_norm=drawn, length=4)
        canvas = TokenCanvas(np.zeros((48, 48, 3), np.uint8), 1.0, cells, np.ones((1, 4), bool), spec)
        POSITION.draw(canvas, values, None)
        pictures.append(canvas.picture)
    assert pictures[0].any()
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not drawn_units("none")
    assert drawn_units(norm)


@pytest.mark.parametrize("norm", ["none", "log"])
def test_scores_of_motion_agree_with_a_loop_over_the_points_that_move(norm: str) -> None:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 5, 4, 6, 2, generator=generator)
    pixels[:, ::2] *= 0.1  # their tracks are shorter than MOVING_PX
    valid = torch.rand(2, 5, 4, generator=generator) < 0.7
    target = pixels if norm == "none" else log_compress(pixels, 0.25)
    predicted = target * 0.8 + 0.3 * torch.randn(target.shape, generator=generator)
    length = pixels.norm(dim=-1).sum(dim=-1)
    scores = motion_scores(motion_sums(predicted, target, valid, length))

    error = power = 0.0
    cosines = []
    for place in itertools.product(range(2), range(5), range(4)):
        steps = pixels[place].tolist()
        if not valid[place] or sum(math.hypot(x, y) for x, y in steps) < MOVING_PX:
            continue
        true, guess = target[place].flatten().tolist(), predicted[place].flatten().tolist()
        error += sum((a - b) ** 2 for a, b in zip(guess, true, strict=True))
        power += sum(a * a for a in true)
        cosines.append(sum(a * b for a, b in zip(guess, true, strict=True)) / math.hypot(*true) / math.hypot(*guess))
    assert 5 < len(cosines) < 20
    assert float(scores["position_explained_moving"]) == pytest.approx(1 - error / power, rel=1e-5)
    assert float(scores["position_cosine"]) == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)


def test_no_motion_explains_nothing_and_the_opposite_has_cosine_minus_one() -> None:
    target, valid = torch.full((1, 1, 4, 6, 2), 2.0), torch.ones(1, 1, 4, dtype=torch.bool)
    length = target.norm(dim=-1).sum(dim=-1)
    still = motion_scores(motion_sums(torch.zeros_like(target), target, valid, length))
    assert (float(still["position_explained_moving"]), float(still["position_cosine"])) == (0, 0)
    perfect = motion_scores(motion_sums(target, target, valid, length))
    assert [float(value) for value in perfect.values()] == pytest.approx([1, 1])
    assert float(motion_scores(motion_sums(-target, target, valid, length))["position_cosine"]) == pytest.approx(-1)


def test_patch_std_does_not_blow_noise_up_where_nothing_moves() -> None:
    frames = MovingScene(48, 64, noise_std=2.0).frames(8)
    tracks = extract_tracks(frames, trajectories_params(cell=8, max_length=4)).select([0, 3], 4)
    floored = normalised(tracks, position_norm="patch_std", patch_std_floor_px=1.0)
    assert np.square(floored.position[floored.valid]).mean() < 0.05
    free = normalised(tracks, position_norm="patch_std", patch_std_floor_px=1e-6)
    assert np.square(free.position[free.valid]).mean() > 0.5


# Frames and starts.


def test_the_spec_of_params_yaml() -> None:
    params = DEFAULTS
    spec = TargetSpec.from_params(params.clip, params.model, params.pretrain)
    assert spec.num_tubelets == params.clip.num_frames // params.model.tubelet_frames
    assert spec.starts(5)[1] - spec.starts(5)[0] == params.model.tubelet_frames * params.clip.stride_frames
    assert spec.cell * 2 == params.model.patch_size
    assert (spec.height, spec.width, spec.length) == (params.clip.size, params.clip.size, params.pretrain.length)


def test_frames_that_are_needed() -> None:
    spec = target_spec(num_tubelets=3, tubelet_stride=4, length=6)
    assert spec.seen_frames == [0, 2, 4, 6, 8, 10]
    assert spec.dense_frames == list(range(14))
    assert target_spec(num_tubelets=3, tubelet_stride=4, hog_steps="first").dense_frames == spec.seen_frames
    assert target_spec(num_tubelets=2, tubelet_stride=8, length=3).dense_frames == [0, 1, 2, 4, 8, 9, 10, 12]


def test_more_frames_than_needed_change_nothing() -> None:
    spec = target_spec()
    rng = np.random.default_rng(0)
    tracks, frames = random_tracks(rng, spec, 48, 64, 8), random_frames(rng, spec)
    more = np.concatenate([frames, frames])
    np.testing.assert_array_equal(compute(tracks, WHOLE, more, spec).hog, compute(tracks, WHOLE, frames, spec).hog)


@pytest.mark.parametrize("norm", ["none", "patch_std", "log"])
@pytest.mark.parametrize("hog_steps", ["all", "first"])
def test_hidden_tokens_alone_are_the_same_as_among_all(norm: Any, hog_steps: Any) -> None:
    spec = target_spec(position_norm=norm, hog_steps=hog_steps)
    rng = np.random.default_rng(0)
    tracks, frames = random_tracks(rng, spec, 48, 64, 8), random_frames(rng, spec)
    hidden = rng.uniform(size=24) < 0.6
    whole, part = (compute(tracks, WHOLE, frames, spec, choice) for choice in (None, hidden))
    np.testing.assert_array_equal(part.position, whole.position[hidden])
    np.testing.assert_allclose(part.hog, whole.hog[hidden], atol=1e-6)
    np.testing.assert_array_equal(part.valid, whole.valid[hidden])


@pytest.mark.parametrize("norm", ["none", "patch_std", "log"])
@pytest.mark.parametrize("hog_steps", ["all", "first"])
def test_a_batch_is_its_clips_one_by_one_to_the_bit(norm: Any, hog_steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of videos of different sizes and crops, with different masks."""
    spec = target_spec(position_norm=norm, hog_steps=hog_steps)
    rng = np.random.default_rng(0)
    sizes = [(48, 64), (56, 80), (48, 64), (96, 48), (64, 64)]
    tracks = [random_tracks(rng, spec, *size, 8) for size in sizes]
    tracks[0] = dataclasses.replace(
        tracks[0], homographies=np.zeros_like(tracks[0].homographies) + np.eye(3, dtype="f")
    )
    crops = [Crop(0, 0, *size, bool(number % 2)) for number, size in enumerate(sizes)]
    crops[2] = Crop(3, 5, 40, 50, True)
    frames = [random_frames(rng, spec) for _ in sizes]
    hidden = [rng.permutation(24) < 14 for _ in sizes]
    monkeypatch.setattr("mme.targets.hog.LOOKUPS_PER_CALL", 81 * 100)  # HOG in several calls
    batch = compute_batch(tracks, crops, frames, spec, hidden)
    for number, target in enumerate(batch):
        alone = compute(tracks[number], crops[number], frames[number], spec, hidden[number])
        np.testing.assert_array_equal(target.position, alone.position)
        np.testing.assert_array_equal(target.hog, alone.hog)
        np.testing.assert_array_equal(target.valid, alone.valid)


def test_computation_does_not_change_its_input() -> None:
    spec = target_spec()
    rng = np.random.default_rng(0)
    tracks, frames = random_tracks(rng, spec, 48, 64, 8), random_frames(rng, spec)
    before = dataclasses.replace(tracks, displacements=tracks.displacements.copy(), num_valid=tracks.num_valid.copy())
    first, second = (compute(tracks, WHOLE, frames, spec) for _ in range(2))
    np.testing.assert_array_equal(first.position, second.position)
    np.testing.assert_array_equal(tracks.displacements, before.displacements)
    np.testing.assert_array_equal(tracks.num_valid, before.num_valid)


def test_without_frames_there_is_no_hog() -> None:
    spec = target_spec()
    target = compute(random_tracks(np.random.default_rng(0), spec, 48, 64, 8), WHOLE, None, spec)
    assert target.hog.shape == (24, 4, 0, NUM_BINS)


def test_what_does_not_fit_is_refused() -> None:
    spec = target_spec()
    rng = np.random.default_rng(0)
    tracks, frames = random_tracks(rng, spec, 48, 64, 8), random_frames(rng, spec)
    with pytest.raises(ValueError, match="2 start frames for 3 tubelets"):
        compute(tracks, WHOLE, None, target_spec(num_tubelets=3))
    with pytest.raises(ValueError, match="tracks of 4 steps are shorter than length 5"):
        compute(tracks, WHOLE, None, target_spec(length=5))
    with pytest.raises(ValueError, match=r"frames of \[7, 64, 48\], expected \[7, 48, 64\]"):
        compute(tracks, WHOLE, frames.swapaxes(1, 2), spec)


def test_video_of_another_aspect_than_the_clip() -> None:
    """A tall video in a wide clip: rows stay rows."""
    spec = target_spec()
    scene = MovingScene(128, 64, Similarity((0.0, 2.0)))
    batch = {
        name: value[None]
        for name, value in stored_tracks(
            exact_tracks(scene, [0, 3], 4, 8), Crop(0, 0, 128, 64, False), (16, 8), camera=True
        ).items()
    }
    batch["hidden"] = torch.ones((1, 24), dtype=torch.bool)
    found = token_tracks(cast(MaskedBatch, batch), spec, 24)
    assert np.abs(found.displacements[found.valid].numpy() - [0.0, 0.75]).max() < 1e-5
    path = cell_grid(found.path[0].numpy(), spec)
    np.testing.assert_allclose(path[0, 0, :, 0, 0], 8 * np.arange(8) + 3.5, atol=1e-4)
    np.testing.assert_allclose(path[0, :, 0, 0, 1], 8 * np.arange(6) + 3.5, atol=1e-4)
