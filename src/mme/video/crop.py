"""Crop, resize and flip frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

_MOST_SHRINK = 0.75
"""Ratio of new to old sides down to which frames are resampled bicubically."""


@dataclass(frozen=True)
class Crop:
    """Rectangle of the source frame that is resized to the frame of a clip, and then mirrored if ``flip``.

    Edges in source pixels: the whole frame is ``Crop(0, 0, height, width, False)``.
    """

    top: float
    left: float
    height: float
    width: float
    flip: bool


def apply_crop(frames: UInt8[np.ndarray, "T H W 3"], crop: Crop, size: int) -> UInt8[np.ndarray, "T {size} {size} 3"]:
    """Cut ``crop`` out of frames, resize it to ``size`` x ``size``, then flip."""
    top, left = round(crop.top), round(crop.left)
    cut = frames[:, top : top + round(crop.height), left : left + round(crop.width)]
    resized = np.ascontiguousarray(resize(cut, size, size))
    if not crop.flip:
        return resized
    # One tall picture of all frames: reversing pixels of three bytes takes NumPy ten times as long.
    flipped = cv2.flip(resized.reshape(-1, size, 3), 1)  # (T S, S, 3)
    return np.asarray(flipped, dtype=np.uint8).reshape(resized.shape)


def resize(frames: UInt8[np.ndarray, "T H W 3"], height: int, width: int) -> UInt8[np.ndarray, "T {height} {width} 3"]:
    """Resample frames by `resize_rule`; unchanged if they have the size."""
    if frames.shape[1:3] == (height, width):
        return frames
    rule = resize_rule(frames.shape[1:3], (height, width))
    resized = [cv2.resize(frame, (width, height), interpolation=rule) for frame in frames]
    return np.stack(resized).astype(np.uint8, copy=False)


def resize_rule(old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """Return OpenCV's interpolation for a resize from ``old`` to ``new`` = (height, width).

    Areas are averaged when the sides shrink by more than a quarter; otherwise bicubic, which takes a quarter of the
    time and has nothing to fold back but detail of less than three pixels.
    """
    return cv2.INTER_AREA if new[0] * new[1] < _MOST_SHRINK**2 * old[0] * old[1] else cv2.INTER_CUBIC
