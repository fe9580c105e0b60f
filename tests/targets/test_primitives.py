"""Tracks of the motion primitives against their ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from mme.ingest.motion_primitives import CLASSES, sample_scene
from mme.motion.tracking import cell_centres, extract_tracks
from tests.reference.primitive_tracks import true_tracks
from tests.targets.cases import DEFAULTS, trajectories_params

START, LENGTH, SIZE = 4, 6, 64


@dataclass(frozen=True)
class Errors:
    """Of points ``[P]`` that are truly visible: mean end-point error of a step, pixels; on the sprite; found valid."""

    pixels: NDArray[np.floating]
    on_sprite: NDArray[np.bool_]
    valid: NDArray[np.bool_]


@pytest.fixture(scope="module")
def errors() -> Errors:
    params = DEFAULTS.synthesize.model_copy(
        update={
            "size": SIZE,
            "num_frames": START + LENGTH + 1,
            "speed_px": (1.0, 2.5),
            "drift_px": 0.25,
        }
    )
    points = cell_centres(SIZE, SIZE, 4).reshape(-1, 2).astype(np.float64)
    parts = []
    for number, label in enumerate(CLASSES):
        scene = sample_scene(label, params, (11, number))
        tracks = extract_tracks(scene.render()[START:], trajectories_params(max_length=LENGTH)).select([0], LENGTH)
        path, on_sprite, visible = true_tracks(scene, START, points, LENGTH)
        found = tracks.displacements[0].reshape(len(points), LENGTH, 2)
        pixels = np.linalg.norm(np.diff(path, axis=1) - found, axis=-1).mean(axis=1)
        valid = tracks.num_valid[0].reshape(-1) == LENGTH
        parts.append((pixels[visible[:, -1]], on_sprite[visible[:, -1]], valid[visible[:, -1]]))
    return Errors(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def test_most_points_are_valid(errors: Errors) -> None:
    assert len(errors.pixels) > 1500
    assert errors.on_sprite.sum() > 300
    assert errors.valid.mean() > 0.85
    assert errors.valid[errors.on_sprite].mean() > 0.7


def test_sprites_are_tracked(errors: Errors) -> None:
    pixels = errors.pixels[errors.valid & errors.on_sprite]
    assert np.median(pixels) < 0.2
    assert np.quantile(pixels, 0.9) < 0.8


def test_the_smooth_background_is_tracked_through_the_noise(errors: Errors) -> None:
    pixels = errors.pixels[errors.valid & ~errors.on_sprite]
    assert np.median(pixels) < 0.3
    assert np.quantile(pixels, 0.9) < 1.0


def test_validity_takes_out_the_worst(errors: Errors) -> None:
    assert np.quantile(errors.pixels[errors.valid], 0.9) < np.quantile(errors.pixels, 0.9)
    assert errors.pixels[~errors.valid].mean() > 1.5 * errors.pixels[errors.valid].mean()
