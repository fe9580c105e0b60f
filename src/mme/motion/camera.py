"""Camera motion between two frames: the homography that most of the textured flow agrees with.

After Wang & Schmid, "Action recognition with improved trajectories" (ICCV 2013), section 3.1, with the dense flow as
the only source of matches. Pixel centres are at integer coordinates ``(x, y)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_POINTS = 1200
"""Flow vectors that are looked at, about: enough for a homography, few enough for a millisecond."""

NUM_RANSAC_POINTS = 300
"""Of these, about as many find the first guess."""

MIN_POINTS = 24
"""Textured points below which no homography is trusted."""

MIN_CORNER_STRENGTH = 0.5
"""Mean squared gradient along the weakest direction, in grey levels a pixel of the frame at half its size, from which
flow is determined. Sensor noise of five grey levels stays below it."""

MIN_COVERAGE = 0.5
"""Share of the blocks of a 4 x 4 partition of the frame that must hold inliers: in front of a smooth background all
texture may be on one object, and its motion is not the camera's."""

_BLOCK_PX = 3
_MIN_BLOCK_POINTS = 3
_MAX_REFITS = 8
_CONVERGED_PX = 0.002
_MIN_WIDTH_PX = 0.05


@dataclass(frozen=True)
class CameraMotion:
    """Motion of the camera from frame t to t + 1.

    Attributes:
        homography: float64 ``[3, 3]``; a static point at ``(x, y)`` in frame t is at ``H @ (x, y, 1)`` in t + 1. The
            identity when not trusted.
        trusted: whether enough textured points agree.
        inlier_ratio: share of the textured points that agree with the best homography.
    """

    homography: NDArray[np.float64]
    trusted: bool
    inlier_ratio: float


def estimate_homography(
    flow: NDArray[np.float32], threshold_px: float, min_inliers: float, gray: NDArray[np.uint8] | None = None
) -> CameraMotion:
    """Homography of the camera from flow ``[H, W, 2]``.

    Args:
        flow: pixels a frame, ``(x, y)``.
        threshold_px: a point within this distance of the homography is an inlier.
        min_inliers: share of inliers below which the homography is not trusted.
        gray: ``[H, W]`` the first frame; flow is only believed where it has corners. None believes all of the flow.
    """
    points = _points(flow, gray)  # (N, 2)
    if len(points) < MIN_POINTS:
        return CameraMotion(np.eye(3), False, 0.0)
    x, y = points[:, 0], points[:, 1]
    source = points.astype(np.float64)
    target = source + flow[y, x]
    homography, inliers = _robust_fit(source, target, threshold_px)
    ratio = float(inliers.mean())
    if (
        homography is None
        or ratio < min_inliers
        or _coverage(points[inliers], flow.shape[1], flow.shape[0]) < MIN_COVERAGE
        or not _plausible(homography, flow.shape[1], flow.shape[0])
    ):
        return CameraMotion(np.eye(3), False, ratio)
    return CameraMotion(homography, True, ratio)


def camera_shift(homography: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far the camera moves static points: ``H(p) - p``.

    Computed from ``H - I``, so that float32 is exact enough for small motions far from the origin.

    Args:
        homography: ``[..., 3, 3]``, leading axes broadcast with those of the points.
        points: ``(x, y)`` ``[..., 2]``.

    Returns:
        ``[..., 2]``.
    """
    x, y = points[..., 0], points[..., 1]
    h = homography
    perspective = h[..., 2, 0] * x + h[..., 2, 1] * y + (h[..., 2, 2] - 1)  # depth - 1
    shift = np.empty(points.shape, dtype=np.result_type(homography, points))
    shift[..., 0] = (h[..., 0, 0] - 1 - perspective) * x + h[..., 0, 1] * y + h[..., 0, 2]
    shift[..., 1] = h[..., 1, 0] * x + (h[..., 1, 1] - 1 - perspective) * y + h[..., 1, 2]
    shift /= (perspective + 1)[..., None]
    return shift


def _points(flow: NDArray[np.float32], gray: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """Grid points ``(x, y)`` ``[N, 2]`` at which flow is determined by texture."""
    height, width = flow.shape[:2]
    step = max(2, round((height * width / NUM_POINTS) ** 0.5))
    ys, xs = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)  # (rows, columns, 2)
    if gray is None:
        return grid.reshape(-1, 2)
    half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    # cv2 takes 255 grey levels as 1, and its Sobel filter gives twice the gradient.
    strength = cv2.cornerMinEigenVal(half, _BLOCK_PX) * (255 / 2) ** 2
    rows, columns = np.minimum(ys // 2, half.shape[0] - 1), np.minimum(xs // 2, half.shape[1] - 1)
    return np.asarray(grid[strength[rows[:, None], columns] > MIN_CORNER_STRENGTH], dtype=np.int64)


def _robust_fit(
    source: NDArray[np.float64], target: NDArray[np.float64], threshold_px: float
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_]]:
    """RANSAC on some points for a first guess, reweighted least squares on all for precision; and the inliers.

    OpenCV fixes the random state of RANSAC, so equal input gives equal output.
    """
    every = max(1, len(source) // NUM_RANSAC_POINTS)
    guess, _ = cv2.findHomography(
        source[::every], target[::every], cv2.RANSAC, threshold_px, maxIters=300, confidence=0.995
    )
    if guess is None:
        return None, np.zeros(len(source), dtype=bool)
    system = _LinearSystem(source, target)
    entries = system.entries_of(np.asarray(guess, dtype=np.float64))
    for _ in range(_MAX_REFITS):
        distance = system.distance(entries)
        inliers = distance <= threshold_px
        num_inliers = int(np.count_nonzero(inliers))
        if num_inliers < MIN_POINTS:
            return None, inliers
        # Tukey's weights, as narrow as the flow is good: points at the rim of a moving object, whose flow is a blend
        # of two motions, are within the threshold and would still pull the camera along.
        typical = float(np.partition(distance[inliers], num_inliers // 2)[num_inliers // 2])
        width = min(threshold_px, max(_MIN_WIDTH_PX, 4 * typical))
        former, entries = entries, system.solve(np.square(np.maximum(1 - np.square(distance / width), 0)))
        if np.abs(entries - former).max() / system.scale < _CONVERGED_PX:
            break
    return system.homography(entries), system.distance(entries) <= threshold_px


class _LinearSystem:
    """``(I + D) p = q`` for N pairs of points, linear in the eight entries of D, in centred and scaled coordinates.

    Errors are measured before the division by the depth, which is 1 within a percent from frame to frame.
    """

    def __init__(self, source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
        middle = source.mean(axis=0)
        self.scale = 1 / max(float(np.abs(source - middle).max()), 1.0)
        self._to_unit = np.array(
            [[self.scale, 0, -self.scale * middle[0]], [0, self.scale, -self.scale * middle[1]], [0, 0, 1]]
        )
        self._from_unit = np.array([[1 / self.scale, 0, middle[0]], [0, 1 / self.scale, middle[1]], [0, 0, 1]])
        x, y = ((source - middle) * self.scale).T
        qx, qy = ((target - middle) * self.scale).T
        zero, one = np.zeros_like(x), np.ones_like(x)
        for_x = np.stack([x, y, one, zero, zero, zero, -qx * x, -qx * y])
        for_y = np.stack([zero, zero, zero, x, y, one, -qy * x, -qy * y])
        self._factors = np.concatenate([for_x, for_y], axis=1)  # (8, 2 N)
        self._values = np.concatenate([qx - x, qy - y])  # (2 N)

    def solve(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Entries ``[8]`` of least squared error for weights ``[N]``."""
        weighted = self._factors * np.concatenate([weights, weights])
        normal = weighted @ self._factors.T
        # Points on a line leave it singular; the tiny ridge gives them some answer, and trust is decided elsewhere.
        normal[np.diag_indices(8)] += 1e-12 * normal.trace() + 1e-300
        return np.asarray(np.linalg.solve(normal, weighted @ self._values), dtype=np.float64)

    def distance(self, entries: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far each point ``[N]`` lands from where it should, pixels."""
        error = (entries @ self._factors - self._values).reshape(2, -1)
        return np.asarray(np.sqrt(error[0] * error[0] + error[1] * error[1]) / self.scale, dtype=np.float64)

    def entries_of(self, homography: NDArray[np.float64]) -> NDArray[np.float64]:
        """The entries ``[8]`` that stand for a homography in pixels."""
        unit = self._to_unit @ homography @ self._from_unit
        return np.asarray((unit / unit[2, 2] - np.eye(3)).reshape(-1)[:8], dtype=np.float64)

    def homography(self, entries: NDArray[np.float64]) -> NDArray[np.float64]:
        """The homography in pixels that entries ``[8]`` stand for."""
        unit = np.eye(3)
        unit.reshape(-1)[:8] += entries
        homography = self._from_unit @ unit @ self._to_unit
        return np.asarray(homography / homography[2, 2], dtype=np.float64)


def _coverage(points: NDArray[np.int64], width: int, height: int) -> float:
    """Share of the blocks of a 4 x 4 partition of the frame that hold points ``(x, y)`` ``[N, 2]``."""
    block = points[:, 1] * 4 // height * 4 + points[:, 0] * 4 // width
    return float((np.bincount(block, minlength=16) >= _MIN_BLOCK_POINTS).mean())


def _plausible(homography: NDArray[np.float64], width: int, height: int) -> bool:
    """Whether the frame keeps its orientation and no side shrinks or grows beyond a factor of two in one frame."""
    corners: NDArray[np.float64] = np.array(
        [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64
    )
    depth = corners @ homography[2, :2] + homography[2, 2]
    if not np.isfinite(homography).all() or (depth <= 0).any():
        return False
    moved = corners + camera_shift(homography, corners)
    diagonals = moved[2:] - moved[:2]
    area = 0.5 * (diagonals[0, 0] * diagonals[1, 1] - diagonals[0, 1] * diagonals[1, 0])
    return bool(0.25 < area / ((width - 1) * (height - 1)) < 4.0)
