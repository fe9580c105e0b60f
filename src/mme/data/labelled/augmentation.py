"""RandAugment and random erasing of finetuning: the same in all frames of a clip, drawn from the sample's generator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from mme.config import ClipParams, FinetuneParams

ERASED_SHARE = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Area and aspect of the erased rectangle (Zhong et al. 2020)."""

TRANSLATE_SHARE = 0.45
"""RandAugment moves a frame by at most this share of its side, as timm's classification recipes have it."""


class Augmentation:
    """RandAugment (Cubuk et al. 2020), then random erasing.

    Args:
        finetune: what is on.
        clip: size and statistics of the clips.

    Raises:
        ValueError: ``rand_augment`` is not in timm's notation.
    """

    def __init__(self, finetune: FinetuneParams, clip: ClipParams) -> None:
        self.erasing, self.clip = finetune.erasing, clip
        self.transform = None
        if finetune.rand_augment is not None:
            fill = tuple(round(255 * mean) for mean in clip.mean)
            settings = {"translate_const": round(TRANSLATE_SHARE * clip.size), "img_mean": fill}
            try:
                self.transform = rand_augment_transform(finetune.rand_augment, settings)
            except AssertionError as error:
                raise ValueError(f"finetune.rand_augment: {finetune.rand_augment!r}: {error}") from error

    def __call__(self, frames: UInt8[np.ndarray, "T S S 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "T S S 3"]:
        """Change a clip; ``rng`` is drawn from only if something is on."""
        if self.transform is not None:
            seed = int(rng.integers(2**32))
            changed = []
            for frame in frames:
                with _seeded(seed):  # timm draws from the global generators, anew for every picture
                    changed.append(np.asarray(self.transform(Image.fromarray(frame))))
            frames = np.stack(changed)
        if self.erasing and rng.random() < self.erasing:
            frames = self._erase(frames, rng)
        return frames

    def _erase(self, frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Put noise of the clips' mean and deviation, fresh for each pixel, on a rectangle."""
        side = self.clip.size
        area = rng.uniform(*ERASED_SHARE) * side**2
        aspect = np.exp(rng.uniform(*np.log(ERASED_ASPECT)))
        height = min(side, max(1, round(np.sqrt(area * aspect))))
        width = min(side, max(1, round(np.sqrt(area / aspect))))
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        noise = rng.normal(self.clip.mean, self.clip.std, (len(frames), height, width, 3))
        frames = frames.copy()
        frames[:, top : top + height, left : left + width] = np.clip(255 * noise, 0, 255).round()
        return frames


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and numpy's global generators in a known state, and afterwards as they were."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002
