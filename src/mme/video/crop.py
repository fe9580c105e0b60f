"""Crop, resize and flip frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8


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
    """Resample frames: average areas when shrinking, bicubic when growing, unchanged if they have the size."""
    old_height, old_width = frames.shape[1:3]
    if (old_height, old_width) == (height, width):
        return frames
    rule = cv2.INTER_AREA if height * width < old_height * old_width else cv2.INTER_CUBIC
    resized = [cv2.resize(frame, (width, height), interpolation=rule) for frame in frames]
    return np.stack(resized).astype(np.uint8, copy=False)
