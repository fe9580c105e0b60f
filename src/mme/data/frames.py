"""Decoded frames of many short videos, kept in memory up to a budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mme.data.video import read_frames


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
