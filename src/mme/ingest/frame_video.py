"""A folder of numbered pictures as a video: hash, metadata and frames by time."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from mme.ingest.frame_folder import frame_names, sha256_frames
from mme.video.containers import VideoError
from mme.video.metadata import VideoInfo
from mme.video.timeline import Timeline, exact_rate
from mme.video.trim import TimeSpan

# A folder is truncated if it lacks more frames than this share and this number.
_FRAMES_TOLERANCE = 0.05
_NUM_FRAMES_TOLERANCE = 2

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class FrameFolder:
    """A folder of frames, or a clip of it: hash, metadata and frames, as those of a video.

    A frame that cannot be decoded is left out: the one before it stays on screen.

    Attributes:
        sha256: of names and bytes of the frames.
    """

    def __init__(self, path: Path, fps: float, span_s: TimeSpan | None = None) -> None:
        """Hash the frames.

        Args:
            path: the folder.
            fps: frames per second.
            span_s: first and last second of the clip (half open), or None for the whole folder.

        Raises:
            VideoError: the folder, or the clip, has no frame.
            OSError: a frame cannot be read.
        """
        self._path = path
        self._fps = exact_rate(fps)
        self._frames = frame_names(path)
        if span_s is not None:
            first, end = (math.ceil(Fraction(second) * self._fps) for second in span_s)
            self._frames = self._frames[first:end]
        if not self._frames:
            what = "it has no numbered pictures" if span_s is None else "the clip is empty"
            raise VideoError("zero-frames", path, what)
        self.sha256 = sha256_frames(path, self._frames)

    @cached_property
    def info(self) -> VideoInfo:
        """Size of the first frame that can be decoded, rate and number of frames.

        Raises:
            VideoError: no frame can be decoded.
        """
        height, width, _ = next(self._pictures()).shape
        num_frames, rate = len(self._frames), float(self._fps)
        return VideoInfo(
            num_frames, rate, width, height, num_frames / rate, os.path.splitext(self._frames[0])[1][1:].lower()
        )

    @property
    def _timeline(self) -> Timeline:
        return Timeline(range(len(self._frames)), 1 / self._fps, 1, 1)

    def frames(self, fps: float) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Decode the upright RGB frames on screen at a constant rate, one by one.

        Raises:
            VideoError: more than a few frames cannot be decoded, which is known at the end only.
        """
        shown = Counter(self._timeline.positions(range(self._timeline.num_frames(fps)), fps))
        for position, frame in enumerate(self._pictures()):
            yield from [frame] * shown[position]

    def count(self, fps: float, decode: bool) -> int:
        """Return the number of frames at a constant rate; decode all pictures for it, or, as ``info``, the first one.

        Raises:
            VideoError: more than a few frames cannot be decoded.
        """
        if decode:
            for _ in self._pictures():
                pass
        return self._timeline.num_frames(fps)

    def can_be_copied(self, form: object) -> bool:
        """Return False: pictures are no video in the normal form."""
        return False

    def _pictures(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Decode all frames; for each damaged one, repeat the one before it, or the first good one."""
        num_damaged = 0
        shown: UInt8[np.ndarray, "H W 3"] | None = None
        for name in self._frames:
            frame = _read_picture(f"{self._path}/{name}")
            num_damaged += frame is None
            if shown is None and frame is not None:
                for _ in range(num_damaged):
                    yield frame
            shown = shown if frame is None else frame
            if shown is not None:
                yield shown
        if shown is None:
            raise VideoError("undecodable", self._path, f"none of its {len(self._frames)} pictures can be decoded")
        if num_damaged > max(_NUM_FRAMES_TOLERANCE, _FRAMES_TOLERANCE * len(self._frames)):
            what = f"{num_damaged} of {len(self._frames)} pictures cannot be decoded"
            raise VideoError("truncated", self._path, what)


def _read_picture(path: str) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the upright RGB picture, or None if it is damaged."""
    with open(path, "rb", buffering=0) as file:
        data = file.readall()
    if data.startswith(_JPEG_START) and _JPEG_END not in data[len(data) // 2 :]:
        return None  # cut off: OpenCV would fill the rest with grey
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # of no bytes, or of too many pixels
        return None
    return None if picture is None else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
