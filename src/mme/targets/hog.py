"""Histograms of oriented gradients (Dalal & Triggs 2005) at any sub-pixel position, for many frames at once.

Definition: the gradient of luma by central differences (zero across the frame's border); unsigned orientation in nine
circular bins whose centres are at 0, 20, ..., 160 degrees, so that an axis-aligned edge falls on a centre or midway
between two by design, never on the border of the range; the magnitude is shared linearly between the two nearest bins; the
histogram sums a square window; it is divided by ``max(norm, floor)``.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_BINS = 9

NORM_FLOOR_PER_PIXEL = 8.0
"""Mean gradient magnitude (grey levels over two pixels) below which a histogram fades to zero.

With a tiny floor a flat cell becomes a unit vector of noise, which nothing can predict."""


def orientation_maps(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Gradient magnitude of each pixel shared among the orientation bins.

    Args:
        frames: uint8 RGB ``[T, H, W, 3]``.

    Returns:
        float32 ``[T, H, W, 9]``.
    """
    num_frames, height, width = frames.shape[:3]
    gray = cv2.cvtColor(frames.reshape(num_frames * height, width, 3), cv2.COLOR_RGB2GRAY)
    gray = gray.reshape(num_frames, height, width).astype(np.int32)
    index = np.zeros((num_frames, height, width), dtype=np.int32)
    index[:, :, 1:-1] += gray[:, :, 2:] - gray[:, :, :-2]
    index[:, 1:-1] += (gray[:, 2:] - gray[:, :-2]) * _SPAN
    index += 255 * _SPAN + 255
    return _soft_bins().take(index, axis=0, mode="clip")


_SPAN = 511
"""Values that a difference of two 8-bit levels can take."""


@functools.cache
def _soft_bins() -> NDArray[np.float32]:
    """Soft histogram of every possible gradient, ``[(dy + 255) * 511 + dx + 255, 9]``.

    Differences of 8-bit levels take few values, so a table is both exact and faster than trigonometry.
    """
    dy, dx = np.mgrid[-255:256, -255:256].astype(np.float64)
    place = np.degrees(np.arctan2(dy, dx)) % 180.0 / (180.0 / NUM_BINS)  # (511, 511) in units of bins
    low = np.floor(place)
    weight = place - low
    magnitude = np.hypot(dx, dy)
    table = np.zeros((_SPAN, _SPAN, NUM_BINS), dtype=np.float32)
    for bin_ in range(NUM_BINS):
        table[..., bin_] += magnitude * (1 - weight) * (low % NUM_BINS == bin_)
        table[..., bin_] += magnitude * weight * ((low + 1) % NUM_BINS == bin_)
    return table.reshape(-1, NUM_BINS)


def window_sums(maps: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Sums over ``window x window`` pixels, float32 ``[T, H + 1, W + 1, 9]``; pixels outside the frame count as zero.

    Entry ``[t, i, j]`` belongs to the position ``(j, i)`` (odd window; the last row and column are unused) or
    ``(j - 0.5, i - 0.5)`` (even window).
    """
    num_frames, height, width, _ = maps.shape
    before, after = window // 2, (window - 1) // 2 + 1
    padded = np.zeros((num_frames, height + before + after, width + before + after, NUM_BINS), dtype=np.float32)
    padded[:, before : before + height, before : before + width] = maps
    rows = _running_sum(padded, window, 1)[:, : height + 1]
    return _running_sum(rows, window, 2)[:, :, : width + 1]


def _running_sum(values: NDArray[np.float32], window: int, axis: int) -> NDArray[np.float32]:
    """Sums of ``window`` neighbours along an axis, by doubling: log2(window) additions an entry."""
    length = values.shape[axis] - window + 1
    take = lambda a, start, n: a[(slice(None),) * axis + (slice(start, start + n),)]  # noqa: E731
    total: NDArray[np.float32] | None = None
    power, span, offset = values, 1, 0
    while True:
        if window & span:
            part = take(power, offset, length)
            total = part if total is None else total + part
            offset += span
        if 2 * span > window:
            assert total is not None
            return total
        size = power.shape[axis] - span
        power = take(power, 0, size) + take(power, span, size)
        span *= 2


def hog_along(
    frames: NDArray[np.uint8], points: NDArray[np.float32], frame_index: NDArray[np.int64], window: int
) -> NDArray[np.float32]:
    """Normalised histograms at sub-pixel positions.

    Args:
        frames: uint8 RGB ``[T, H, W, 3]``.
        points: ``(x, y)`` ``[..., 2]``, pixels, pixel centres at integers.
        frame_index: frame of each point, broadcastable to ``points.shape[:-1]``.
        window: side of the window, pixels.

    Returns:
        float32 ``[..., 9]``; each of norm at most 1.
    """
    sums = window_sums(orientation_maps(frames), window)
    return normalise(sample_windows(sums, points, frame_index, window), window)


def sample_windows(
    sums: NDArray[np.float32], points: NDArray[np.float32], frame_index: NDArray[np.int64], window: int
) -> NDArray[np.float32]:
    """Bilinear samples ``[..., 9]`` of `window_sums` at points ``(x, y)`` ``[..., 2]``, clamped to the frame."""
    _, rows, columns, _ = sums.shape
    shift = np.float32(0.5 if window % 2 == 0 else 0.0)
    x = np.clip(points[..., 0] + shift, 0, columns - 1)
    y = np.clip(points[..., 1] + shift, 0, rows - 1)
    x0 = np.minimum(x.astype(np.int32), columns - 2)
    y0 = np.minimum(y.astype(np.int32), rows - 2)
    wx, wy = (x - x0.astype(np.float32))[..., None], (y - y0.astype(np.float32))[..., None]
    flat = np.ascontiguousarray(sums).reshape(-1, NUM_BINS)
    index = (frame_index * rows + y0) * columns + x0
    top, top_right = flat.take(index, axis=0), flat.take(index + 1, axis=0)
    bottom, bottom_right = flat.take(index + columns, axis=0), flat.take(index + columns + 1, axis=0)
    top += (top_right - top) * wx
    bottom += (bottom_right - bottom) * wx
    top += (bottom - top) * wy
    return top


def normalise(histograms: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """``h / max(||h||, floor)`` with a floor in proportion to the window's area."""
    norm = np.sqrt(np.einsum("...k,...k->...", histograms, histograms))
    return histograms / np.maximum(norm, np.float32(NORM_FLOOR_PER_PIXEL * window**2))[..., None]
