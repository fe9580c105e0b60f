"""Histograms of oriented gradients (Dalal & Triggs 2005) at any sub-pixel position, for many frames at once.

Definition:

- gradient ``(dx, dy)``: differences of luma between the right and left, lower and upper neighbour; zero across the
  frame's border;
- unsigned orientation in nine circular bins with centres at 0, 20, ..., 160 degrees, 0 being a vertical edge (gradient
  along x). Vertical edges fall on a centre, so that noise does not toss them between the ends of the range; horizontal
  edges fall midway between the bins 4 and 5, which share them evenly. The magnitude is shared linearly between the two
  nearest bins, so that there is no jump anywhere;
- the histogram at a position sums a square window centred on it, the frame being zero outside;
- normalisation: divided by ``max(norm, floor)``, the floor being `NORM_FLOOR_PER_PIXEL` times the window's area. With a
  tiny floor a flat cell would become a unit vector of noise, which nothing can predict.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_BINS = 9

NORM_FLOOR_PER_PIXEL = 8.0
"""Mean gradient (grey levels between the two neighbours) below which a histogram fades to zero."""

_SPAN = 511
"""Values that a difference of two 8-bit levels can take."""

_FLAT = 255 * _SPAN + 255
"""Place in the table of the gradient (0, 0)."""


def orientation_maps(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Gradient magnitude of each pixel shared among the orientation bins.

    Args:
        frames: uint8 RGB ``[T, H, W, 3]``.

    Returns:
        float32 ``[T, H, W, 9]``.
    """
    return _soft_bins().take(_gradient_codes(frames)[:, :-1, :-1], axis=0, mode="clip")


def window_sums(frames: NDArray[np.uint8], window: int) -> NDArray[np.float32]:
    """Sums of `orientation_maps` over ``window x window`` pixels, float32 ``[T, H + 1, W + 1, 9]``.

    Entry ``[t, i, j]`` is the histogram at the position ``(j, i)``, or ``(j - 0.5, i - 0.5)`` if the window is even.
    """
    codes = _gradient_codes(frames)
    table = _soft_bins()
    sums = np.empty((*codes.shape, NUM_BINS), dtype=np.float32)
    maps = np.empty(sums.shape[1:], dtype=np.float32)
    for frame_codes, frame_sums in zip(codes, sums, strict=True):  # frame by frame: a frame's maps stay in the cache
        table.take(frame_codes, axis=0, mode="clip", out=maps)
        cv2.boxFilter(maps, cv2.CV_32F, (window, window), frame_sums, normalize=False, borderType=cv2.BORDER_CONSTANT)
    return sums


def hog_along(
    frames: NDArray[np.uint8], points: NDArray[np.float32], frame_index: NDArray[np.int64], window: int
) -> NDArray[np.float32]:
    """Normalised histograms at sub-pixel positions.

    Args:
        frames: uint8 RGB ``[T, H, W, 3]``.
        points: ``(x, y)`` ``[..., 2]``, pixels, pixel centres at integers; clamped to the frame.
        frame_index: frame of each point, broadcastable to ``points.shape[:-1]``.
        window: side of the window, pixels.

    Returns:
        float32 ``[..., 9]``, of norm at most 1.
    """
    return normalise(sample_windows(window_sums(frames, window), points, frame_index, window), window)


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
    flat = sums.reshape(-1, NUM_BINS)
    index = (frame_index * rows + y0) * columns + x0
    result: NDArray[np.float32] = flat.take(index, axis=0)
    result *= (1 - wx) * (1 - wy)
    for offset, weight in ((1, wx * (1 - wy)), (columns, (1 - wx) * wy), (columns + 1, wx * wy)):
        corner = flat.take(index + offset, axis=0)
        corner *= weight
        result += corner
    return result


def normalise(histograms: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """``h / max(norm, floor)``, the floor in proportion to the window's area."""
    norm = np.sqrt(np.einsum("...k,...k->...", histograms, histograms))
    floor = np.float32(NORM_FLOOR_PER_PIXEL * window**2)
    return np.asarray(histograms / np.maximum(norm, floor)[..., None], dtype=np.float32)


def _gradient_codes(frames: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Place of each pixel's gradient in `_soft_bins`, int32 ``[T, H + 1, W + 1]``; the last row and column are flat."""
    num_frames, height, width = frames.shape[:3]
    gray = cv2.cvtColor(frames.reshape(num_frames * height, width, 3), cv2.COLOR_RGB2GRAY)
    levels = gray.reshape(num_frames, height, width).astype(np.int32)
    codes = np.full((num_frames, height + 1, width + 1), _FLAT, dtype=np.int32)
    codes[:, :height, 1 : width - 1] += levels[:, :, 2:] - levels[:, :, :-2]
    codes[:, 1 : height - 1, :width] += (levels[:, 2:] - levels[:, :-2]) * _SPAN
    return codes


@functools.cache
def _soft_bins() -> NDArray[np.float32]:
    """Soft histogram of every possible gradient, ``[(dy + 255) * 511 + dx + 255, 9]``.

    Differences of 8-bit levels take few values, so a table is both exact and faster than trigonometry.
    """
    dy, dx = np.mgrid[-255:256, -255:256].astype(np.float64)
    place = np.degrees(np.arctan2(dy, dx)) % 180.0 / (180.0 / NUM_BINS)  # (511, 511), in bins
    low = np.floor(place)
    weight = place - low
    magnitude = np.hypot(dx, dy)
    table = np.zeros((_SPAN, _SPAN, NUM_BINS), dtype=np.float32)
    for number in range(NUM_BINS):
        table[..., number] += magnitude * (1 - weight) * (low % NUM_BINS == number)
        table[..., number] += magnitude * weight * ((low + 1) % NUM_BINS == number)
    return table.reshape(-1, NUM_BINS)
