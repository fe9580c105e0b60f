"""Windows along a video of any length: what a classifier sees of each, cut in one pass and in little memory."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from mme.config import ClipParams
from mme.video.sampling import Views, square_crops, view_indices
from mme.video.timeline import exact_rate


@dataclass(frozen=True)
class WindowPlan:
    """Windows of ``window_s`` seconds, one every ``hop_s``, over a video at a constant rate.

    A window begins at the frame nearest to its time and has as many frames as a video of its length. One that would
    reach beyond the end of the video is moved back, so that it ends with the video; it is the last, and left out if the
    window before it ends there. A video that is shorter than a window has one, the whole of it.

    Raises:
        ValueError: a window or a hop is shorter than one frame.
    """

    window_s: float
    hop_s: float
    fps: float

    def __post_init__(self) -> None:
        for name, seconds in (("window_s", self.window_s), ("hop_s", self.hop_s)):
            if not (math.isfinite(seconds) and seconds > 0 and _frames(seconds, self.fps) >= 1):
                raise ValueError(f"{name}: {seconds:g} s must be at least one frame of the model, {1 / self.fps:.3g} s")

    @property
    def length(self) -> int:
        """Frames of a window."""
        return _nearest(_frames(self.window_s, self.fps))

    def start(self, number: int) -> int:
        """Return the first frame of a window, unless it is moved back."""
        return _nearest(number * _frames(self.hop_s, self.fps))

    def span(self, number: int, num_frames: int) -> tuple[int, int] | None:
        """Return first frame and end of a window of a video of ``num_frames`` frames; None if there is none."""
        start, end = self.start(number), self.start(number) + self.length
        if end <= num_frames:
            return start, end
        if number == 0:
            return 0, num_frames
        if start >= num_frames or self.start(number - 1) + self.length >= num_frames:
            return None
        return num_frames - self.length, num_frames

    def num_windows(self, num_frames: int) -> int:
        """Return the number of windows of a video of ``num_frames`` frames."""
        slack = max(0, num_frames - self.length)
        whole = math.ceil((slack + Fraction(1, 2)) / _frames(self.hop_s, self.fps))
        return whole if num_frames < self.length or self.span(whole, num_frames) is None else whole + 1


@dataclass(frozen=True)
class Window:
    """A window: its first frame and its end in the video at the model's rate, and what a classifier sees of it."""

    start: int
    end: int
    views: Views


def cut_windows(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    plan: WindowPlan,
    clip: ClipParams,
    segments: int,
    crops: int,
    pixel_aspect: float = 1.0,
) -> Iterator[Window]:
    """Cut windows out of a video while it is decoded; each sees what ``sample_views`` of its frames does.

    No more than the squares of one window are held.

    Args:
        frames: all frames of a video at ``plan.fps``, RGB, one by one.
        plan: the windows.
        clip: frames, stride and size of a view.
        segments: clips along each window.
        crops: squares per frame, 1 or 3.
        pixel_aspect: width of a pixel over its height.
    """
    squares: deque[UInt8[np.ndarray, "C S S 3"]] = deque(maxlen=plan.length)
    number, num_frames, since = 0, 0, time.perf_counter()

    def cut(start: int, end: int) -> Window:
        indices = view_indices(end - start, clip, segments) + len(squares) - (end - start)  # (segments, T)
        chosen = np.stack([squares[index] for index in indices.ravel()])  # (segments x T, C, S, S, 3)
        views = chosen.reshape(*indices.shape, *chosen.shape[1:]).swapaxes(1, 2)  # (segments, C, T, S, S, 3)
        content = np.ascontiguousarray(views).reshape(-1, *views.shape[2:])  # (V, T, S, S, 3)
        return Window(start, end, Views(content, None, 1000 * (time.perf_counter() - since)))

    for num_frames, frame in enumerate(frames, start=1):
        squares.append(square_crops(frame[None], clip.size, crops, pixel_aspect)[:, 0])
        if num_frames == plan.start(number) + plan.length:
            yield cut(num_frames - plan.length, num_frames)
            number, since = number + 1, time.perf_counter()
    last = plan.span(number, num_frames) if num_frames else None
    if last is not None:
        yield cut(*last)


def _frames(seconds: float, fps: float) -> Fraction:
    return Fraction(seconds).limit_denominator(1000) * exact_rate(fps)


def _nearest(frames: Fraction) -> int:
    return math.floor(frames + Fraction(1, 2))
