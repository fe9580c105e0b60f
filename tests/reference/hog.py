"""HOG by loops over pixels, bins and windows: slow, and plainly what `mme.targets.hog` says it computes."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray


def hog_at(frame: NDArray[np.uint8], x: float, y: float, window: int, floor_per_pixel: float) -> NDArray[np.float64]:
    """Normalised histogram ``[9]`` of an RGB frame at one position."""
    maps = _maps_of(frame.tobytes(), frame.shape)
    shift = 0.5 if window % 2 == 0 else 0.0
    x0, y0 = math.floor(x + shift), math.floor(y + shift)
    total = np.zeros(9)
    for row, weight_y in ((y0, 1 - (y + shift - y0)), (y0 + 1, y + shift - y0)):
        for column, weight_x in ((x0, 1 - (x + shift - x0)), (x0 + 1, x + shift - x0)):
            total += weight_x * weight_y * window_sum(maps, row - window // 2, column - window // 2, window)
    return total / max(math.sqrt(float((total**2).sum())), floor_per_pixel * 219 / 255 * window**2)


@functools.lru_cache(maxsize=64)
def _maps_of(pixels: bytes, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return bin_maps(luma(np.frombuffer(pixels, np.uint8).reshape(shape)))


def luma(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """ITU-R BT.709 luma from 16 (black) to 235 (white), rounded to whole levels."""
    red, green, blue = np.moveaxis(frame.astype(np.float64), -1, 0)
    return np.asarray(np.rint(16 + 219 / 255 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)))


def bin_maps(gray: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitude of each pixel's gradient shared among nine bins, ``[H, W, 9]``."""
    height, width = gray.shape
    maps = np.zeros((height, width, 9))
    for y in range(height):
        for x in range(width):
            dx = gray[y, x + 1] - gray[y, x - 1] if 0 < x < width - 1 else 0.0
            dy = gray[y + 1, x] - gray[y - 1, x] if 0 < y < height - 1 else 0.0
            angle = math.degrees(math.atan2(dy, dx)) % 180.0
            for number in range(9):
                distance = abs(angle - 20.0 * number)
                distance = min(distance, 180.0 - distance)
                maps[y, x, number] = math.hypot(dx, dy) * max(0.0, 1.0 - distance / 20.0)
    return maps


def window_sum(maps: NDArray[np.float64], top: int, left: int, window: int) -> NDArray[np.float64]:
    """Sum over a window, of which what is outside the frame counts as zero."""
    height, width, _ = maps.shape
    total = np.zeros(9)
    for y in range(max(top, 0), min(top + window, height)):
        for x in range(max(left, 0), min(left + window, width)):
            total += maps[y, x]
    return total
