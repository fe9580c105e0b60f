"""Reading frames for training: random choices of one sample, and caches of decoded videos.

What is drawn is a function of (seed, epoch, index) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mme.manifest import Video
from mme.video.codec import read_frames
from mme.video.crop import Crop
from mme.video.planes import YuvFrame, iter_planes

SampleKey = tuple[int, int]
"""(draw, index of the video), as `mme.training.loop.loaders.EpochSampler` yields it: the first draw of a video is 0."""

SEED_PRETRAIN, SEED_FINETUNE, SEED_ORDER, SEED_BALANCE = 1, 2, 3, 4
"""Streams of randomness that never meet, whatever the seed."""


def sample_rng(stream: int, seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample: a resumed run draws what an uninterrupted one would have drawn."""
    return np.random.default_rng((stream, seed, epoch, index))


def draw_crop(rng: np.random.Generator, height: int, width: int, min_scale: float, horizontal_flip: bool) -> Crop:
    """A random square, its side a share of at least ``min_scale`` of the short side, flipped half of the times.

    The square lies on even pixels, so that cutting it out is exact in the planes of colour too, which have half the
    size.
    """
    side = 2 * round(min(height, width) * rng.uniform(min_scale, 1.0) / 2)
    top, left = (2 * int(rng.integers(0, (extent - side) // 2 + 1)) for extent in (height, width))
    flip = bool(rng.random() < 0.5) and horizontal_flip
    return Crop(top=top, left=left, height=side, width=side, flip=flip)


def video_bytes(video: Video) -> int:
    """Return the size of all decoded frames of a video."""
    return video.num_frames * video.height * video.width * 3


class FrameCache:
    """Reads frames of normal-form videos; whole videos stay in memory while the budget lasts.

    A small data set is thus decoded once a run and not once an epoch. Videos that no longer fit are read anew each
    time, only the frames asked for. What comes out is the same either way.
    """

    def __init__(self, budget_mb: float) -> None:
        self._budget_bytes = int(budget_mb * 2**20)
        self._videos: dict[Path, NDArray[np.uint8]] = {}

    def read(self, path: Path, indices: NDArray[np.int64], video_bytes: int) -> NDArray[np.uint8]:
        """Frames ``indices`` of ``path``, uint8 RGB [T, H, W, 3].

        Args:
            path: a video file.
            indices: frame numbers, ascending; they may repeat.
            video_bytes: size of the whole decoded video, which decides whether it is kept.

        Raises:
            VideoError: the video cannot be decoded.
        """
        if path in self._videos:
            return self._videos[path][indices]
        if video_bytes > self._budget_bytes:
            unique, inverse = np.unique(indices, return_inverse=True)
            return read_frames(path, unique.tolist())[inverse]
        frames = read_frames(path)
        self._budget_bytes -= frames.nbytes
        self._videos[path] = frames
        return frames[indices]


class PlaneCache:
    """Reads the planes of normal-form videos, like `FrameCache`."""

    def __init__(self, budget_mb: float) -> None:
        self._budget_bytes = int(budget_mb * 2**20)
        self._videos: dict[Path, list[YuvFrame]] = {}

    def read(self, path: Path, start: int, stop: int, video_bytes: int) -> Iterator[YuvFrame]:
        """Yield the planes of the frames ``start`` to ``stop - 1``; they are valid until the next one.

        Args:
            path: a video file.
            start: first frame.
            stop: frame to stop before.
            video_bytes: size of the whole video decoded to RGB, twice that of its planes.

        Raises:
            VideoError: the video cannot be decoded.
            ValueError: the video has fewer frames.
        """
        if path not in self._videos:
            if video_bytes // 2 > self._budget_bytes:
                yield from iter_planes(path, start, stop)
                return
            self._budget_bytes -= video_bytes // 2
            self._videos[path] = [frame.copy() for frame in iter_planes(path)]
        frames = self._videos[path]
        if stop > len(frames):
            raise ValueError(f"{path}: frame {stop - 1} is out of range, the video has {len(frames)} frames")
        yield from frames[start:stop]
