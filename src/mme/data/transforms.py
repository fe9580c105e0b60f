"""Random choices of one training sample, a function of (seed, epoch, index) alone."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mme.data.views import resize
from mme.targets.crops import Crop

SEED_PRETRAIN, SEED_FINETUNE, SEED_ORDER = 1, 2, 3
"""Streams of randomness that never meet, whatever the seed."""


def sample_rng(stream: int, seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample: a resumed run draws what an uninterrupted one would have drawn."""
    return np.random.default_rng((stream, seed, epoch, index))


def draw_crop(rng: np.random.Generator, height: int, width: int, min_scale: float, horizontal_flip: bool) -> Crop:
    """A random square, its side a share of at least ``min_scale`` of the short side, flipped half of the times.

    The square lies on whole pixels, so that cutting it out is exact.
    """
    short = min(height, width)
    side = round(short * rng.uniform(min_scale, 1.0))
    top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    flip = bool(rng.random() < 0.5) and horizontal_flip
    return Crop(top=top, left=left, height=side, width=side, flip=flip)


def apply_crop(frames: NDArray[np.uint8], crop: Crop, size: int) -> NDArray[np.uint8]:
    """Cut ``crop`` out of frames [T, H, W, 3], resize it to ``size`` x ``size``, then flip."""
    top, left = round(crop.top), round(crop.left)
    cut = frames[:, top : top + round(crop.height), left : left + round(crop.width)]
    resized = np.ascontiguousarray(resize(cut, size, size))
    if not crop.flip:
        return resized
    # One tall picture of all frames: NumPy takes ten times as long to copy pixels of three bytes backwards.
    flipped = cv2.flip(resized.reshape(-1, size, 3), 1)
    return np.asarray(flipped, dtype=np.uint8).reshape(resized.shape)
