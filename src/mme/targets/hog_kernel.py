"""Histograms of oriented gradients on a CUDA device: two kernels between grey levels and normalised histograms.

The first looks up magnitude and orientation of each pixel once, 8 bytes; the second sums the windows. Maps of nine
bins, of which integral images could be made, would be 36 bytes per pixel: to write and read them takes longer than to
sum every window anew, in which a pixel lies about a hundred times.
"""

from __future__ import annotations

import functools
from typing import no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

LEVELS = tl.constexpr(255)
SPAN = tl.constexpr(511)

_PIXELS, _POINTS = 1024, 16
"""Pixels and windows of one program."""


@functools.cache
def polar_gradients(device: torch.device) -> tuple[Tensor, Tensor]:
    """Magnitude, and orientation in bins, of every possible gradient; row ``(dy + 255) * 511 + dx + 255``."""
    dy, dx = np.mgrid[-255:256, -255:256].astype(np.float64)
    place = np.degrees(np.arctan2(dy, dx)) % 180.0 / 20.0
    magnitude, orientation = (
        torch.from_numpy(table.astype(np.float32).ravel()).to(device) for table in (np.hypot(dx, dy), place)
    )
    return magnitude, orientation


@triton.jit
@no_type_check
def _look_up(luma, magnitudes, orientations, out, num_pixels, height, width, PIXELS: tl.constexpr):
    """Write magnitude and orientation of each pixel's gradient, which is zero across the frame's border."""
    place = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    exists = place < num_pixels
    x, y = place % width, place // width % height
    across, along = exists & (x > 0) & (x < width - 1), exists & (y > 0) & (y < height - 1)
    dx = tl.load(luma + place + 1, mask=across, other=0).to(tl.int32)
    dx -= tl.load(luma + place - 1, mask=across, other=0).to(tl.int32)
    dy = tl.load(luma + place + width, mask=along, other=0).to(tl.int32)
    dy -= tl.load(luma + place - width, mask=along, other=0).to(tl.int32)
    code = (dy + LEVELS) * SPAN + dx + LEVELS
    tl.store(out + place, tl.load(magnitudes + code, mask=exists, other=0.0), mask=exists)
    tl.store(out + num_pixels + place, tl.load(orientations + code, mask=exists, other=0.0), mask=exists)


@triton.jit
@no_type_check
def _up_to(place, number: tl.constexpr):
    """Part of the way from a bin to the next that an orientation has gone, 0 to 1."""
    return tl.minimum(tl.maximum(place - number, 0.0), 1.0)


@triton.jit
@no_type_check
def _sum_windows(  # noqa: PLR0913, PLR0915, PLR0917 - a kernel is one function
    gradients, corner_x, corner_y, frames, out, num_pixels, num_points, height, width, floor,
    WINDOW: tl.constexpr, COLUMNS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Write the normalised histograms of POINTS windows, whose first column and row are fractional."""
    number = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)  # (P)
    exists = number < num_points
    x = tl.load(corner_x + number, mask=exists, other=0.0)
    y = tl.load(corner_y + number, mask=exists, other=0.0)
    frame = tl.load(frames + number, mask=exists, other=0).to(tl.int64)
    first_x, first_y = tl.floor(x), tl.floor(y)
    right, down = x - first_x, y - first_y

    # Columns under the windows: a window off the pixels covers parts of its first and last column, and of its rows.
    step = tl.arange(0, COLUMNS)[None, :]
    column = first_x.to(tl.int32)[:, None] + step  # (P, C)
    weight_x = tl.where(step == 0, 1.0 - right[:, None], tl.where(step == WINDOW, right[:, None], 1.0))
    covered = (step <= WINDOW) & (column >= 0) & (column < width) & exists[:, None]
    base = gradients + frame[:, None] * height * width + column

    # Sums of magnitudes, each times the way that its orientation has gone beyond a bin: the share of a bin, which
    # falls linearly to its neighbours, is the way beyond the bin before less that beyond itself.
    whole = tl.zeros([POINTS, COLUMNS], tl.float32)
    way_0, way_1, way_2, way_3, way_4 = whole, whole, whole, whole, whole
    way_5, way_6, way_7, way_8 = whole, whole, whole, whole
    for line in range(WINDOW + 1):
        row = first_y.to(tl.int32) + line  # (P)
        weight_y = tl.where(line == 0, 1.0 - down, tl.where(line == WINDOW, down, 1.0))
        seen = covered & ((row >= 0) & (row < height))[:, None]
        here = base + (row * width)[:, None]
        magnitude = tl.load(here, mask=seen, other=0.0) * (weight_x * weight_y[:, None])
        place = tl.load(here + num_pixels, mask=seen, other=0.0)
        whole += magnitude
        way_0 += magnitude * _up_to(place, 0)
        way_1 += magnitude * _up_to(place, 1)
        way_2 += magnitude * _up_to(place, 2)
        way_3 += magnitude * _up_to(place, 3)
        way_4 += magnitude * _up_to(place, 4)
        way_5 += magnitude * _up_to(place, 5)
        way_6 += magnitude * _up_to(place, 6)
        way_7 += magnitude * _up_to(place, 7)
        way_8 += magnitude * _up_to(place, 8)

    beyond_0, beyond_1, beyond_2 = tl.sum(way_0, axis=1), tl.sum(way_1, axis=1), tl.sum(way_2, axis=1)
    beyond_3, beyond_4, beyond_5 = tl.sum(way_3, axis=1), tl.sum(way_4, axis=1), tl.sum(way_5, axis=1)
    beyond_6, beyond_7, beyond_8 = tl.sum(way_6, axis=1), tl.sum(way_7, axis=1), tl.sum(way_8, axis=1)
    bin_0 = tl.sum(whole, axis=1) - beyond_0 + beyond_8  # bins are circular
    bin_1, bin_2, bin_3, bin_4 = beyond_0 - beyond_1, beyond_1 - beyond_2, beyond_2 - beyond_3, beyond_3 - beyond_4
    bin_5, bin_6, bin_7, bin_8 = beyond_4 - beyond_5, beyond_5 - beyond_6, beyond_6 - beyond_7, beyond_7 - beyond_8

    square = bin_0 * bin_0 + bin_1 * bin_1 + bin_2 * bin_2 + bin_3 * bin_3 + bin_4 * bin_4
    square += bin_5 * bin_5 + bin_6 * bin_6 + bin_7 * bin_7 + bin_8 * bin_8
    scale = 1.0 / tl.maximum(tl.sqrt(square), floor)
    target = out + number * 9
    tl.store(target, bin_0 * scale, mask=exists)
    tl.store(target + 1, bin_1 * scale, mask=exists)
    tl.store(target + 2, bin_2 * scale, mask=exists)
    tl.store(target + 3, bin_3 * scale, mask=exists)
    tl.store(target + 4, bin_4 * scale, mask=exists)
    tl.store(target + 5, bin_5 * scale, mask=exists)
    tl.store(target + 6, bin_6 * scale, mask=exists)
    tl.store(target + 7, bin_7 * scale, mask=exists)
    tl.store(target + 8, bin_8 * scale, mask=exists)


def window_histograms(
    luma: Tensor, corner_x: Tensor, corner_y: Tensor, frames: Tensor, window: int, floor: float
) -> Tensor:
    """Return normalised histograms ``[P, 9]``, as `mme.targets.hog.hog_at` does by table.

    Takes eight times the memory of ``luma``.

    Args:
        luma: brightness of frames ``[T, H, W]``, uint8.
        corner_x: first column of each window ``[P]``, fractional.
        corner_y: its first row.
        frames: frame of each window ``[P]``.
        window: side of the window, pixels.
        floor: least norm that a histogram is divided by.
    """
    height, width = luma.shape[1:]
    num_points, num_pixels = len(corner_x), luma.numel()
    out = torch.empty((num_points, 9), dtype=torch.float32, device=luma.device)
    if not num_points:
        return out
    gradients = torch.empty((2, *luma.shape), dtype=torch.float32, device=luma.device)
    _look_up[(triton.cdiv(num_pixels, _PIXELS),)](
        luma.contiguous(), *polar_gradients(luma.device), gradients, num_pixels, height, width, PIXELS=_PIXELS
    )
    _sum_windows[(triton.cdiv(num_points, _POINTS),)](
        gradients, corner_x.contiguous(), corner_y.contiguous(), frames.contiguous(), out,
        num_pixels, num_points, height, width, floor,
        WINDOW=window, COLUMNS=triton.next_power_of_2(window + 1), POINTS=_POINTS,
    )  # fmt: skip
    return out
