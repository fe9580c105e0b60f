"""Dense optical flow by DIS (Kroeger et al. 2016), median-filtered.

DIS works from coarse to fine and stops at half resolution in its preset ``medium``. In frames of 64 px that leaves one
level of 32 px, which loses whatever moves more than a pixel or two; there, the full resolution is worked on as well.

Coordinates are ``(x, y)`` in pixels with pixel centres at integer positions; arrays are indexed ``[..., y, x]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_PRESETS: dict[str, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

MIN_SIDE = 16
"""Shortest frame side in pixels that DIS can work on: two of its 8-pixel patches."""


_MIN_LEVELS = 3
"""Levels of the pyramid that DIS gets at least, as far as the frame has them."""

_FULL_RESOLUTION_BLUR_PX = 1.0
"""Deviation of the Gaussian before flow at full resolution, which sees the sensor noise that coarser levels average
out. With it the median error of the motion primitives' tracks is 0.08 px on sprites, without 0.13 px."""


class DenseFlow:
    """Flow between consecutive frames, with one DIS object that keeps its buffers from pair to pair.

    All frames that one object sees must have one size.

    Args:
        preset: DIS preset; ``medium`` has a median end-point error of 0.23 px on known warps of real frames.
        median_px: side of the median filter on the flow, 3 or 5; 0 switches it off.
    """

    def __init__(self, preset: str, median_px: int) -> None:
        if preset not in _PRESETS:
            raise ValueError(f"preset: {preset!r} is none of {sorted(_PRESETS)}")
        if median_px not in (0, 3, 5):
            raise ValueError(f"median_px: {median_px} is none of 0, 3, 5")
        self.median_px = median_px
        self._dis = cv2.DISOpticalFlow.create(_PRESETS[preset])
        self._frame_size: tuple[int, ...] | None = None
        self._blur = False

    def pair(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Flow ``[H, W, 2]`` of gray frames ``[H, W]``: ``second[p + flow[p]]`` shows what ``first[p]`` shows."""
        if cv2.getNumThreads() != 1:
            # DIS cuts the frame into as many stripes as there are threads and propagates within a stripe only, so
            # another number of threads gives another flow.
            cv2.setNumThreads(1)
        if self._frame_size is None:
            self._fit(first.shape)
        if self._frame_size != first.shape or first.shape != second.shape:
            raise ValueError(f"frame size changes: {self._frame_size} to {first.shape}, {second.shape}")
        if self._blur:
            first, second = (
                cv2.GaussianBlur(gray, (0, 0), _FULL_RESOLUTION_BLUR_PX).astype(np.uint8) for gray in (first, second)
            )
        flow = self._dis.calc(first, second, None)  # type: ignore[call-overload]
        if self.median_px:
            flow = cv2.medianBlur(flow, self.median_px)
        return np.asarray(flow, dtype=np.float32)

    def _fit(self, frame_size: tuple[int, ...]) -> None:
        """Choose the finest level for a frame size, as coarse as the preset's or finer."""
        patch_px = self._dis.getPatchSize()
        # DIS's own choice of its coarsest level: about four patches along the frame, one patch across at least.
        coarsest = min(
            int(math.log2(max(frame_size) / (4 * patch_px)) + 0.5), int(math.log2(min(frame_size) / patch_px))
        )
        finest = max(min(self._dis.getFinestScale(), coarsest - _MIN_LEVELS + 1), 0)
        self._dis.setFinestScale(finest)
        self._blur = finest == 0
        self._frame_size = frame_size

    def sequence(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Flow ``[T-1, H, W, 2]`` from each RGB frame of ``[T, H, W, 3]`` to the next."""
        return np.stack([self.pair(first, second) for first, second in itertools.pairwise(gray_frames(frames))])

    def backward(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Flow ``[T-1, H, W, 2]`` back from each RGB frame but the first to the one before it."""
        return np.stack([self.pair(second, first) for first, second in itertools.pairwise(gray_frames(frames))])


def gray_frames(frames: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
    """Luma ``uint8 [H, W]`` of each RGB frame ``uint8 [H, W, 3]``.

    Raises:
        ValueError: a frame has another shape or type than the first, or is too small for DIS.
    """
    shape: tuple[int, ...] | None = None
    for frame in frames:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if shape is None:
            shape = frame.shape
            if min(shape[:2]) < MIN_SIDE:
                raise ValueError(
                    f"frames of {shape[1]} x {shape[0]} px are too small for flow, less than {MIN_SIDE} px"
                )
        if frame.shape != shape:
            raise ValueError(f"frame size changes within the video: {list(shape)} to {list(frame.shape)}")
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
