"""Display matrices, literally: every point of the stored picture is mapped by the matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 16
"""One in fixed point, 16.16."""

TURNS_AND_MIRRORS: tuple[tuple[int, int, int, int], ...] = tuple(
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a * d - b * c) == 1 and abs(a) + abs(b) + abs(c) + abs(d) == 2
)
"""The eight ``(a, b, c, d)`` that map a rectangle with upright sides to another one."""


def matrix_of(a: float, b: float, c: float, d: float, x: float = 0, y: float = 0) -> tuple[int, ...]:
    """Return a display matrix in FFmpeg's order and fixed point."""
    return (*(round(ONE * value) for value in (a, b)), 0, *(round(ONE * v) for v in (c, d)), 0, *(
        round(ONE * value) for value in (x, y)
    ), 1 << 30)  # fmt: skip


def shown(picture: NDArray[np.uint8], matrix: Sequence[int]) -> NDArray[np.uint8]:
    """Return what a display matrix shows of a picture ``[H, W, 3]``; the matrix maps it to upright sides, at one scale.

    A stored pixel is the square between its corners (column, row) and (column + 1, row + 1). It is shown between the
    images of these corners, relative to the image of the whole picture.
    """
    height, width = picture.shape[:2]
    a, b, _, c, d, _, left, top, _ = (value / ONE for value in matrix)
    y, x = np.mgrid[0 : height + 1, 0 : width + 1]
    corners = np.stack([a * x + c * y + left, b * x + d * y + top])  # (2, H + 1, W + 1)
    corners = np.round(corners - corners.min(axis=(1, 2), keepdims=True)).astype(int)
    columns, rows = corners.max(axis=(1, 2))
    result = np.zeros((rows, columns, 3), np.uint8)
    for row, column in np.ndindex(height, width):
        image_x, image_y = np.minimum(corners[:, row, column], corners[:, row + 1, column + 1])
        result[image_y, image_x] = picture[row, column]
    return result


def nearest(a: float, b: float, c: float, d: float) -> tuple[int, int, int, int]:
    """Return the one of ``TURNS_AND_MIRRORS`` that puts the corners of a square nearest to where the matrix does."""
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)

    def distance(numbers: tuple[float, ...]) -> float:
        p, q, r, s = (candidate - given for candidate, given in zip(numbers, (a, b, c, d), strict=True))
        return float(sum((p * x + r * y) ** 2 + (q * x + s * y) ** 2 for x, y in square))

    return min(TURNS_AND_MIRRORS, key=distance)
