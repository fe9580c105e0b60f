"""Tracking point by point in double precision: slow, and plainly what `mme.motion.tracking` says it computes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def track(
    start: tuple[float, float],
    forward: NDArray[np.floating],
    backward: NDArray[np.floating] | None,
    length: int,
) -> tuple[NDArray[np.float64], int]:
    """Displacements ``[L, 2]`` of a point along flows ``[T, H, W, 2]``, and how many leading steps are valid."""
    height, width = forward.shape[1:3]
    displacements = np.zeros((length, 2))
    x, y = start
    for step in range(min(length, len(forward))):
        fx, fy = bilinear(forward[step], x, y)
        if not (0 <= x + fx <= width - 1 and 0 <= y + fy <= height - 1):
            return displacements, step
        if backward is not None:
            bx, by = bilinear(backward[step], x + fx, y + fy)
            if (fx + bx) ** 2 + (fy + by) ** 2 > 0.01 * (fx**2 + fy**2 + bx**2 + by**2) + 0.5:
                return displacements, step
        displacements[step] = fx, fy
        x, y = x + fx, y + fy
    return displacements, min(length, len(forward))


def bilinear(field: NDArray[np.floating], x: float, y: float) -> tuple[float, float]:
    """Value of ``[H, W, 2]`` between pixel centres."""
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, field.shape[1] - 1), min(y0 + 1, field.shape[0] - 1)
    wx, wy = x - x0, y - y0
    value = (
        (1 - wx) * (1 - wy) * field[y0, x0].astype(np.float64)
        + wx * (1 - wy) * field[y0, x1]
        + (1 - wx) * wy * field[y1, x0]
        + wx * wy * field[y1, x1]
    )
    return float(value[0]), float(value[1])
