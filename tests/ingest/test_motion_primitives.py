"""The motion primitives: exact motion, determinism, and that a single frame does not tell the class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier

from mme.config import load_params
from mme.ingest.motion_primitives import CLASSES, Scene, sample_scene
from mme.motion.flow import DenseFlow
from mme.targets.hog import gradient_codes, soft_bins
from mme.video.colour import luma_of
from tests.motion.test_flow import flow_sequence

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml").synthesize
CHANCE = 1 / len(CLASSES)


def scenes(count: int, stream: int) -> list[Scene]:
    return [sample_scene(CLASSES[i % len(CLASSES)], PARAMS, (stream, i)) for i in range(count)]


def test_bytes_depend_on_the_seed_alone() -> None:
    first, again = (sample_scene("left", PARAMS, (1, 2)).render() for _ in range(2))
    assert (first == again).all()
    assert (first != sample_scene("left", PARAMS, (1, 3)).render()).mean() > 0.5
    assert first.shape == (PARAMS.num_frames, PARAMS.size, PARAMS.size, 3)
    assert first.dtype == np.uint8


def test_unknown_class_is_named() -> None:
    with pytest.raises(ValueError, match="'sideways'"):
        sample_scene("sideways", PARAMS, (0,))


@pytest.mark.parametrize("label", CLASSES)
def test_class_has_its_motion_and_no_other(label: str) -> None:
    scene = sample_scene(label, PARAMS, (5, 6))
    steps, turns, growth = np.diff(scene.centres, axis=0), np.diff(scene.angles), np.diff(np.log(scene.sides))
    parts = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    if set(label.split("-")) <= set(parts):
        total = np.sum([parts[word] for word in label.split("-")], axis=0)
        direction = total / np.hypot(*total)
        low, high = PARAMS.speed_px
        speed = steps @ direction
        assert ((speed > low - 1e-9) & (speed < high + 1e-9)).all()
        np.testing.assert_allclose(steps, np.outer(speed, direction), atol=1e-9)
    elif label.startswith("orbit"):
        cross = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        assert (np.sign(cross) == (-1 if "counter" in label else 1)).all()  # y points down
    elif label.startswith("shake"):
        still = steps[:, 1 if label.endswith("horizontal") else 0]
        moving = steps[:, 0 if label.endswith("horizontal") else 1]
        assert abs(still).max() == 0
        assert (np.diff(np.sign(moving)) != 0).sum() >= 2
    else:
        assert abs(steps).max() == 0
    assert (
        (turns > 0).all()
        if label == "clockwise"
        else (turns < 0).all()
        if label == "counterclockwise"
        else not turns.any()
    )
    assert (growth > 0).all() if label == "grow" else (growth < 0).all() if label == "shrink" else not growth.any()


def test_sprite_is_drawn_at_its_true_position() -> None:
    """The mean of the sprite's opacity, warped by the truth, is where the frame differs from its background."""
    scene = sample_scene("right", PARAMS, (3, 1))
    matrix = scene.sprite_matrix(0)
    side = (len(scene.outline) - 1) / 2
    expected = (scene.centres[0] + scene.camera[0]) % scene.size
    np.testing.assert_allclose(matrix @ np.array([side, side, 1]), expected, atol=1e-9)
    np.testing.assert_allclose(np.hypot(*matrix[:, 0]) * len(scene.outline), scene.sides[0])


def states(sample: list[Scene], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return position, angle and size of a random frame per scene: all that a frame can show of the motion."""
    rows = []
    for scene in sample:
        t = rng.integers(len(scene.angles))
        place = (scene.centres[t] + scene.camera[t]) % scene.size
        rows.append([*place, np.cos(scene.angles[t]), np.sin(scene.angles[t]), scene.sides[t]])
    return np.array(rows)


@pytest.mark.slow
def test_true_state_of_one_frame_does_not_predict_the_class() -> None:
    train, test = scenes(2400, 10), scenes(2400, 11)
    rng = np.random.default_rng(0)
    labels = np.arange(2400) % len(CLASSES)
    model = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(states(train, rng), labels)
    accuracy = float(np.mean(model.predict(states(test, rng)) == labels))
    assert abs(accuracy - CHANCE) < 0.03, f"{accuracy:.3f}"


def frame_features(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return coarse pixels and gradient histograms of a random frame."""
    frame = scene.frame(int(rng.integers(len(scene.angles))))
    codes = gradient_codes(torch.from_numpy(luma_of(frame[None])), 0)
    cells = soft_bins(codes.device)[codes][0].reshape(8, 8, 8, 8, 9).sum(dim=(1, 3)).numpy() if scene.size == 64 else 0
    return np.concatenate([cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA).ravel() / 255, np.ravel(cells)])


def motion_features(scene: Scene) -> NDArray[np.float64]:
    """Return optical flow on a coarse grid at a few times."""
    flow = flow_sequence(DenseFlow("medium", 3), scene.render()[6:18])
    coarse = np.stack([cv2.resize(field, (4, 4), interpolation=cv2.INTER_AREA) for field in flow])
    moving = np.hypot(flow[..., 0], flow[..., 1]) > 0.7
    means = np.stack(
        [field[mask].mean(axis=0) if mask.any() else np.zeros(2) for field, mask in zip(flow, moving, strict=True)]
    )
    return np.concatenate([coarse.mean(axis=0).ravel(), means.ravel(), means.std(axis=0)])


def accuracy_of(features: list[list[NDArray[np.float64]]]) -> float:
    train, test = (np.stack(part) for part in features)
    model = ExtraTreesClassifier(200, random_state=0, n_jobs=1).fit(train, np.arange(len(train)) % len(CLASSES))
    return float(np.mean(model.predict(test) == np.arange(len(test)) % len(CLASSES)))


@pytest.mark.slow
def test_pixels_of_one_frame_do_not_predict_the_class_and_flow_does() -> None:
    """Chance is one in the number of classes: a frame stays within three points of it, flow is far above."""
    rng = np.random.default_rng(0)
    one_frame = accuracy_of([[frame_features(s, rng) for s in scenes(n, k)] for n, k in ((1200, 20), (1800, 21))])
    motion = accuracy_of([[motion_features(s) for s in scenes(n, k)] for n, k in ((240, 22), (180, 23))])
    print(f"single frame {one_frame:.3f}, motion {motion:.3f}, chance {CHANCE:.3f}")
    assert abs(one_frame - CHANCE) < 0.03
    assert motion > 0.5
