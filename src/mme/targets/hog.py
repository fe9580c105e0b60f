"""Histograms of oriented gradients (Dalal & Triggs 2005) at any sub-pixel position, for many frames at once.

Definition:

- gradient ``(dx, dy)``: differences of luma between the right and left, lower and upper neighbour; zero across the
  frame's border;
- unsigned orientation in nine circular bins with centres at 0, 20, ..., 160 degrees, 0 being a vertical edge (gradient
  along x). Vertical edges fall on a centre, so that noise does not toss them between the ends of the range; horizontal
  edges fall midway between the bins 4 and 5, which share them evenly. The magnitude is shared linearly between the two
  nearest bins, so that there is no jump anywhere;
- the histogram at a position sums a square window centred on it, the frame being zero outside;
- normalisation: divided by ``max(norm, floor)``, the floor being ``norm_floor``, a mean gradient in grey levels between
  the two neighbours, times the window's area. With a tiny floor a flat cell would become a unit vector of noise, which
  nothing can predict.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

NUM_BINS = 9

MAX_LOOKUPS_A_PIXEL = 3
"""Pixels visited by all windows together, per pixel of the frames, from which it is faster to make maps of all sums."""

_SPAN = 511
"""Values that a difference of two 8-bit levels can take."""

_FLAT = 255 * _SPAN + 255
"""Place in the table of the gradient (0, 0)."""


def luma(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness (BT.601) uint8 ``[T, H, W]`` of RGB frames ``[T, H, W, 3]``."""
    num_frames, height, width = frames.shape[:3]
    gray = cv2.cvtColor(frames.reshape(num_frames * height, width, 3), cv2.COLOR_RGB2GRAY)
    return np.asarray(gray, dtype=np.uint8).reshape(num_frames, height, width)


def orientation_maps(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Gradient magnitude of each pixel shared among the orientation bins.

    Args:
        gray: `luma` of frames, uint8 ``[T, H, W]``.

    Returns:
        float32 ``[T, H, W, 9]``.
    """
    return _soft_bins().take(_gradient_codes(gray)[:, :-1, :-1], axis=0, mode="clip")


def window_sums(gray: NDArray[np.uint8], window: int) -> NDArray[np.float32]:
    """Sums of `orientation_maps` over ``window x window`` pixels, float32 ``[T, H + 1, W + 1, 9]``.

    Entry ``[t, i, j]`` is the histogram at the position ``(j, i)``, or ``(j - 0.5, i - 0.5)`` if the window is even.
    """
    codes = _gradient_codes(gray)
    table = _soft_bins()
    sums = np.empty((*codes.shape, NUM_BINS), dtype=np.float32)
    maps = np.empty(sums.shape[1:], dtype=np.float32)
    for frame_codes, frame_sums in zip(codes, sums, strict=True):  # frame by frame: a frame's maps stay in the cache
        table.take(frame_codes, axis=0, mode="clip", out=maps)
        cv2.boxFilter(maps, cv2.CV_32F, (window, window), frame_sums, normalize=False, borderType=cv2.BORDER_CONSTANT)
    return sums


def hog_along(
    gray: NDArray[np.uint8], points: NDArray[np.float32], frame_index: NDArray[np.int64], window: int, norm_floor: float
) -> NDArray[np.float32]:
    """Normalised histograms at sub-pixel positions.

    Args:
        gray: `luma` of frames, uint8 ``[T, H, W]``.
        points: ``(x, y)`` ``[..., 2]``, pixels, pixel centres at integers; clamped to the frame.
        frame_index: frame of each point, broadcastable to ``points.shape[:-1]``.
        window: side of the window, pixels.
        norm_floor: mean gradient, grey levels, below which a histogram fades to zero.

    Returns:
        float32 ``[..., 9]``, of norm at most 1.
    """
    num_points = points[..., 0].size
    if num_points * (window + 1) ** 2 < MAX_LOOKUPS_A_PIXEL * gray.size:
        histograms = gather_windows(gray, points, frame_index, window)
    else:
        histograms = sample_windows(window_sums(gray, window), points, frame_index, window)
    return normalise(histograms, window, norm_floor)


def gather_windows(
    gray: NDArray[np.uint8], points: NDArray[np.float32], frame_index: NDArray[np.int64], window: int
) -> NDArray[np.float32]:
    """Histograms ``[..., 9]`` summed pixel by pixel: the same as `sample_windows`, faster where points are few."""
    x, y = _window_corner(points, window, *gray.shape[1:])
    x0, y0 = np.floor(x), np.floor(y)
    right, down = (x - x0).reshape(-1), (y - y0).reshape(-1)
    side = window + bool(right.any() or down.any())  # windows that lie on pixels cover one less
    pad = window // 2 + 1
    codes = sliding_window_view(_gradient_codes(gray, pad), (side, side), axis=(1, 2))
    chosen = codes[frame_index, y0.astype(np.int32) + pad, x0.astype(np.int32) + pad].reshape(-1, side**2)
    weights = None if side == window else torch.from_numpy(_edge_weights(right, down, side))
    histograms = embedding_bag(
        torch.from_numpy(chosen), torch.from_numpy(_soft_bins()), per_sample_weights=weights, mode="sum"
    )
    return np.asarray(histograms.numpy(), dtype=np.float32).reshape(*x.shape, NUM_BINS)


def sample_windows(
    sums: NDArray[np.float32], points: NDArray[np.float32], frame_index: NDArray[np.int64], window: int
) -> NDArray[np.float32]:
    """Bilinear samples ``[..., 9]`` of `window_sums` at points ``(x, y)`` ``[..., 2]``, clamped to the frame."""
    _, rows, columns, _ = sums.shape
    x, y = _window_corner(points, window, rows - 1, columns - 1)
    x, y = x + window // 2, y + window // 2
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


def normalise(histograms: NDArray[np.float32], window: int, norm_floor: float) -> NDArray[np.float32]:
    """``h / max(norm, floor)``, the floor in proportion to the window's area."""
    norm = np.sqrt(np.einsum("...k,...k->...", histograms, histograms))
    floor = np.float32(norm_floor * window**2)
    return np.asarray(histograms / np.maximum(norm, floor)[..., None], dtype=np.float32)


def _window_corner(
    points: NDArray[np.float32], window: int, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """First column and row, fractional, of the windows centred on points clamped to the frame."""
    low, reach = np.float32(-0.5 if window % 2 == 0 else 0.0), np.float32((window - 1) / 2)
    x = np.clip(points[..., 0], low, width - 1 - low) - reach
    y = np.clip(points[..., 1], low, height - 1 - low) - reach
    return np.asarray(x), np.asarray(y)


def _edge_weights(right: NDArray[np.float32], down: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Weights ``[P, side^2]`` of the pixels that windows cover, moved off the pixels by fractions ``[P]``."""
    weights = np.ones((len(right), side, side), dtype=np.float32)
    weights[:, :, 0] -= right[:, None]
    weights[:, :, -1] = right[:, None]
    weights[:, 0] *= 1 - down[:, None]
    weights[:, -1] *= down[:, None]
    return weights.reshape(len(right), -1)


def _gradient_codes(gray: NDArray[np.uint8], pad: int = 0) -> NDArray[np.int32]:
    """Place in `_soft_bins` of each pixel's gradient, from `luma` ``[T, H, W]``.

    ``[T, H + 1, W + 1]``, the last row and column flat; or ``[T, H + 2 pad, W + 2 pad]``, flat on all sides.
    """
    num_frames, height, width = gray.shape
    levels = gray.astype(np.int16)
    margin = 2 * pad or 1
    codes = np.full((num_frames, height + margin, width + margin), _FLAT, dtype=np.int32)
    places = np.zeros(gray.shape, dtype=np.int32)
    np.subtract(levels[:, 2:], levels[:, :-2], out=places[:, 1 : height - 1])
    places *= _SPAN
    places[:, :, 1 : width - 1] += levels[:, :, 2:] - levels[:, :, :-2]
    codes[:, pad : pad + height, pad : pad + width] += places
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
