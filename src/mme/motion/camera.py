"""Camera motion between two frames: the homography that most of the textured flow agrees with.

After Wang & Schmid, "Action recognition with improved trajectories" (ICCV 2013), section 3.1, with the dense flow as
the only source of matches. Pixel centres are at integer coordinates ``(x, y)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8

NUM_CAMERA_POINTS = 1200
"""Approximate number of flow vectors sampled per frame: enough for a homography, and about 1 ms."""

NUM_RANSAC_POINTS = 300
"""Approximate number of them that RANSAC uses for the initial estimate."""

MIN_POINTS = 24
"""Number of textured points below which no homography is trusted."""

MIN_CORNER_STRENGTH = 0.5
"""Mean squared gradient along the weakest direction, in grey levels per pixel of the half-size frame, above which a
point is textured. Points on a straight edge stay below it at any contrast: their flow along the edge is arbitrary. No
parameter, because the result hardly depends on it: with values from 0.05 to 32 the error of the homography on scenes
with a moving object and noise is 0.020 to 0.022 px (median of 20). At 0.5, noise in luma with a deviation of two grey
levels leaves no point of an even surface, and one of five leaves half of them, which agree on no homography."""

MIN_COVERAGE = 0.5
"""Minimum share of the blocks of a 4 x 4 partition of the frame that hold inliers. In front of a smooth background all
texture may be on one object, whose motion is not that of the camera."""

MAX_ADDED_MOTION = (1.1, 0.05)
"""Largest median motion of a frame once the camera's is taken off: a factor of that before, and pixels more. A motion
that most of the frame does not share is not the camera's. A homography has enough freedom to agree with a moving hand
and a still shelf at once, and then moves the bare wall between them."""

_CORNER_BLOCK_PX = 3
_MIN_BLOCK_POINTS = 3
_MAX_REFITS = 8
_CONVERGED_PX = 0.002
_MIN_WIDTH_PX = 0.05


@dataclass(frozen=True)
class CameraMotion:
    """Camera motion from frame t to t + 1.

    Attributes:
        homography: a static point at ``(x, y)`` in frame t is at ``H @ (x, y, 1)`` in frame t + 1; the identity if not
            trusted.
        trusted: whether enough textured points agree, and most of the frame.
        inlier_ratio: share of the textured points that agree with the best homography.
    """

    homography: Float64[np.ndarray, "3 3"]
    trusted: bool
    inlier_ratio: float


def estimate_homography(
    flow: Float32[np.ndarray, "H W 2"],
    threshold_px: float,
    min_inliers: float,
    gray: UInt8[np.ndarray, "H W"] | None = None,
) -> CameraMotion:
    """Estimate the homography of the camera from dense flow.

    Args:
        flow: ``(x, y)`` in pixels per frame.
        threshold_px: largest distance of an inlier from the homography.
        min_inliers: share of inliers below which the homography is not trusted.
        gray: the first frame, whose corners select the flow vectors that are used; None uses flow everywhere.
    """
    height, width = flow.shape[:2]

    # Matches of textured points in both frames.
    grid = _sample_grid(height, width)  # (rows, columns, 2)
    points = _textured_points(grid, gray)  # (N, 2)
    if len(points) < MIN_POINTS:
        return CameraMotion(np.eye(3), False, 0.0)
    source = points.astype(np.float64)  # (N, 2)
    target = source + flow[points[:, 1], points[:, 0]]  # (N, 2)

    # Robust fit, trusted only if it explains the whole frame.
    homography, inliers = _fit_homography(source, target, threshold_px)  # (3, 3), (N,)
    ratio = float(inliers.mean())
    if (
        homography is None
        or ratio < min_inliers
        or _coverage(points[inliers], height, width) < MIN_COVERAGE
        or not _is_plausible(homography, height, width)
        or _adds_motion(homography, grid, flow)
    ):
        return CameraMotion(np.eye(3), False, ratio)
    return CameraMotion(homography, True, ratio)


def camera_shift(
    homography: Float[np.ndarray, "*#points 3 3"], points: Float[np.ndarray, "*points 2"]
) -> Float[np.ndarray, "*points 2"]:
    """Displacement of static points due to camera motion: ``H(p) - p``.

    Computed from ``H - I``, so that float32 is accurate for small motions far from the origin.

    Args:
        homography: one per point, or broadcast over the points.
        points: ``(x, y)`` in pixels.

    Returns:
        ``(x, y)`` in pixels.
    """
    x, y = points[..., 0], points[..., 1]  # (*points,)
    h = homography
    # Third homogeneous coordinate less 1.
    perspective = h[..., 2, 0] * x + h[..., 2, 1] * y + (h[..., 2, 2] - 1)  # (*points,)
    # (H p)_x / w - x = ((H p)_x - w x) / w, likewise for y.
    shift = np.empty(points.shape, dtype=np.result_type(homography, points))  # (*points, 2)
    shift[..., 0] = (h[..., 0, 0] - 1 - perspective) * x + h[..., 0, 1] * y + h[..., 0, 2]
    shift[..., 1] = h[..., 1, 0] * x + (h[..., 1, 1] - 1 - perspective) * y + h[..., 1, 2]
    shift /= (perspective + 1)[..., None]
    return shift


def _sample_grid(height: int, width: int) -> Int64[np.ndarray, "rows columns 2"]:
    """Return a regular grid of about NUM_CAMERA_POINTS points ``(x, y)``."""
    step = max(2, round((height * width / NUM_CAMERA_POINTS) ** 0.5))
    return np.stack(np.meshgrid(np.arange(step // 2, width, step), np.arange(step // 2, height, step)), axis=-1)


def _textured_points(
    grid: Int64[np.ndarray, "rows columns 2"], gray: UInt8[np.ndarray, "H W"] | None
) -> Int64[np.ndarray, "N 2"]:
    """Return grid points ``(x, y)`` at which texture determines the flow."""
    if gray is None:
        return grid.reshape(-1, 2)

    # Corner strength at half size, where noise is averaged out. OpenCV scales 255 grey levels to 1, and its Sobel
    # filter gives twice the gradient.
    half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # (H / 2, W / 2)
    strength = cv2.cornerMinEigenVal(half, _CORNER_BLOCK_PX) * (255 / 2) ** 2  # (H / 2, W / 2)

    # Grid points on corners.
    row = np.minimum(grid[..., 1] // 2, half.shape[0] - 1)  # (rows, columns)
    column = np.minimum(grid[..., 0] // 2, half.shape[1] - 1)  # (rows, columns)
    textured = strength[row, column] > MIN_CORNER_STRENGTH  # (rows, columns)
    return np.asarray(grid[textured], dtype=np.int64)


def _fit_homography(
    source: Float64[np.ndarray, "N 2"], target: Float64[np.ndarray, "N 2"], threshold_px: float
) -> tuple[Float64[np.ndarray, "3 3"] | None, Bool[np.ndarray, " N"]]:
    """Fit by RANSAC on some points, refine by reweighted least squares on all; return the homography and its inliers.

    OpenCV seeds RANSAC with a constant, so equal input gives equal output.
    """
    # Initial estimate from every n-th point.
    every = max(1, len(source) // NUM_RANSAC_POINTS)
    initial, _ = cv2.findHomography(
        source[::every], target[::every], cv2.RANSAC, threshold_px, maxIters=300, confidence=0.995
    )
    if initial is None:
        return None, np.zeros(len(source), dtype=bool)

    system = _LinearSystem(source, target)
    entries = system.to_entries(np.asarray(initial, dtype=np.float64))  # (8,)
    for _ in range(_MAX_REFITS):
        # Inliers of the present estimate.
        distance = system.distance(entries)  # (N,)
        inliers = distance <= threshold_px  # (N,)
        num_inliers = int(np.count_nonzero(inliers))
        if num_inliers < MIN_POINTS:
            return None, inliers

        # Tukey's weights, as narrow as the flow is accurate: at the rim of a moving object the flow is a blend of two
        # motions, which lies within the threshold and would still bias the estimate.
        median = float(np.partition(distance[inliers], num_inliers // 2)[num_inliers // 2])
        width = min(threshold_px, max(_MIN_WIDTH_PX, 4 * median))
        weights = np.square(np.maximum(1 - np.square(distance / width), 0))  # (N,)

        # Refit until the entries, in pixels, no longer change.
        previous = entries
        entries = system.solve(weights)  # (8,)
        if np.abs(entries - previous).max() / system.scale < _CONVERGED_PX:
            break
    return system.to_homography(entries), system.distance(entries) <= threshold_px


class _LinearSystem:
    """``(I + D) p = q`` for N pairs of points, linear in the eight entries of D, in centred and scaled coordinates.

    Errors are measured before the division by the third homogeneous coordinate, which is 1 within a percent from frame
    to frame.

    Attributes:
        scale: scaled units per pixel.
    """

    def __init__(self, source: Float64[np.ndarray, "N 2"], target: Float64[np.ndarray, "N 2"]) -> None:
        # Coordinates within -1 to 1, which keeps the normal equations well conditioned.
        centre = source.mean(axis=0)  # (2,)
        self.scale = 1 / max(float(np.abs(source - centre).max()), 1.0)
        scale, (cx, cy) = self.scale, centre
        self._to_unit = np.array([[scale, 0, -scale * cx], [0, scale, -scale * cy], [0, 0, 1]])  # (3, 3)
        self._from_unit = np.array([[1 / scale, 0, cx], [0, 1 / scale, cy], [0, 0, 1]])  # (3, 3)
        x, y = ((source - centre) * scale).T  # (N,) each
        qx, qy = ((target - centre) * scale).T  # (N,) each

        # Two equations per point, one in x and one in y.
        zero, one = np.zeros_like(x), np.ones_like(x)
        for_x = np.stack([x, y, one, zero, zero, zero, -qx * x, -qx * y])  # (8, N)
        for_y = np.stack([zero, zero, zero, x, y, one, -qy * x, -qy * y])  # (8, N)
        self._factors = np.concatenate([for_x, for_y], axis=1)  # (8, 2 N)
        self._values = np.concatenate([qx - x, qy - y])  # (2 N,)

    def solve(self, weights: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " 8"]:
        """Return the entries of least weighted squared error."""
        weighted = self._factors * np.concatenate([weights, weights])  # (8, 2 N)
        normal = weighted @ self._factors.T  # (8, 8)
        # Points on a line leave the matrix singular. The tiny ridge gives them some solution; trust is decided later.
        normal[np.diag_indices(8)] += 1e-12 * normal.trace() + 1e-300
        return np.asarray(np.linalg.solve(normal, weighted @ self._values), dtype=np.float64)

    def distance(self, entries: Float64[np.ndarray, " 8"]) -> Float64[np.ndarray, " N"]:
        """Return the distance in pixels between each mapped source point and its target."""
        error = (entries @ self._factors - self._values).reshape(2, -1)  # (2, N)
        return np.asarray(np.sqrt(error[0] * error[0] + error[1] * error[1]) / self.scale, dtype=np.float64)

    def to_entries(self, homography: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, " 8"]:
        """Convert a homography in pixels to the entries of D."""
        unit = self._to_unit @ homography @ self._from_unit
        return np.asarray((unit / unit[2, 2] - np.eye(3)).reshape(-1)[:8], dtype=np.float64)

    def to_homography(self, entries: Float64[np.ndarray, " 8"]) -> Float64[np.ndarray, "3 3"]:
        """Convert the entries of D to a homography in pixels."""
        unit = np.eye(3)
        unit.reshape(-1)[:8] += entries
        homography = self._from_unit @ unit @ self._to_unit
        return np.asarray(homography / homography[2, 2], dtype=np.float64)


def _coverage(points: Int64[np.ndarray, "N 2"], height: int, width: int) -> float:
    """Share of the blocks of a 4 x 4 partition of the frame that hold points ``(x, y)``."""
    block = points[:, 1] * 4 // height * 4 + points[:, 0] * 4 // width  # (N,), 0 to 15
    return float((np.bincount(block, minlength=16) >= _MIN_BLOCK_POINTS).mean())


def _adds_motion(
    homography: Float64[np.ndarray, "3 3"],
    grid: Int64[np.ndarray, "rows columns 2"],
    flow: Float32[np.ndarray, "H W 2"],
) -> bool:
    """Return whether the median point of the grid, textured or not, moves more once the homography is taken off."""
    sampled = flow[grid[..., 1], grid[..., 0]]  # (rows, columns, 2)
    before = np.median(np.linalg.norm(sampled, axis=-1))
    shift = camera_shift(homography, grid.astype(np.float64))  # (rows, columns, 2)
    after = np.median(np.linalg.norm(sampled - shift, axis=-1))
    factor, margin_px = MAX_ADDED_MOTION
    return bool(after > factor * before + margin_px)


def _is_plausible(homography: Float64[np.ndarray, "3 3"], height: int, width: int) -> bool:
    """Return whether the frame keeps its orientation, and its area changes by less than a factor of four."""
    right, bottom = width - 1, height - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], np.float64)  # (4, 2)

    # No corner behind the camera.
    depth = corners @ homography[2, :2] + homography[2, 2]  # (4,)
    if not np.isfinite(homography).all() or (depth <= 0).any():
        return False

    # Signed area of the moved quadrilateral, half the cross product of its diagonals.
    moved = corners + camera_shift(homography, corners)  # (4, 2)
    diagonals = moved[2:] - moved[:2]  # (2, 2)
    area = 0.5 * (diagonals[0, 0] * diagonals[1, 1] - diagonals[0, 1] * diagonals[1, 0])
    return bool(0.25 < area / (right * bottom) < 4.0)
