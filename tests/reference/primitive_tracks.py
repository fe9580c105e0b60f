"""True trajectories of the motion primitives, from how the scenes were made."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mme.ingest.motion_primitives import Scene


def true_tracks(
    scene: Scene, start: int, points: NDArray[np.float64], length: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Where points ``(x, y)`` ``[P, 2]`` of frame ``start`` go.

    Returns:
        positions ``[P, L + 1, 2]``, whether a point is on the sprite ``[P]``, and whether it is visible up to each
        position ``[P, L + 1]``: in the frame, and not covered by the sprite.
    """
    on_sprite, texture = locate(scene, start, points)
    positions = np.empty((len(points), length + 1, 2))
    visible = np.ones((len(points), length + 1), dtype=bool)
    centre = scene.centres + scene.camera
    for step in range(length + 1):
        frame = start + step
        drift = scene.camera[frame] - scene.camera[start]
        positions[:, step] = points + drift
        linear, origin = _linear(scene, start), _linear(scene, frame)
        moved = (points - centre_near(scene, start, points, texture)) @ np.linalg.inv(linear).T @ origin.T
        moved += centre_near(scene, start, points, texture) + centre[frame] - centre[start]
        positions[on_sprite, step] = moved[on_sprite]
        inside = ((positions[:, step] >= 0) & (positions[:, step] <= scene.size - 1)).all(axis=-1)
        covered, _ = locate(scene, frame, positions[:, step])
        visible[:, step] = inside & (on_sprite | ~covered)
    return positions, on_sprite, np.logical_and.accumulate(visible, axis=1)


def locate(scene: Scene, frame: int, points: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which points ``[P, 2]`` show the sprite, and the texture coordinates ``[P, 2]`` of its copy that they show."""
    matrix = scene.sprite_matrix(frame)
    inverse = np.linalg.inv(matrix[:, :2])
    found = np.zeros(len(points), dtype=bool)
    texture = np.full((len(points), 2), np.nan)
    for dx in (-scene.size, 0, scene.size):
        for dy in (-scene.size, 0, scene.size):
            place = (points - matrix[:, 2] - (dx, dy)) @ inverse.T
            x, y = place.astype(np.float32).T[:, None]
            opacity = cv2.remap(scene.outline, x, y, cv2.INTER_LINEAR)[0]
            hit = opacity > 0.5
            found |= hit
            texture[hit] = place[hit]
    return found, texture


def centre_near(
    scene: Scene, frame: int, points: NDArray[np.float64], texture: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centre ``[P, 2]`` of the sprite's copy that each point shows."""
    middle = (scene.sprite.shape[0] - 1) / 2
    return np.asarray(points - (texture - middle) @ _linear(scene, frame).T, dtype=np.float64)


def _linear(scene: Scene, frame: int) -> NDArray[np.float64]:
    zoom = scene.sides[frame] / scene.sprite.shape[0]
    cos, sin = np.cos(scene.angles[frame]) * zoom, np.sin(scene.angles[frame]) * zoom
    return np.array([[cos, -sin], [sin, cos]])
