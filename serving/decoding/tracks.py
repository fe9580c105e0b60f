"""Tracks of a video for display: computed in a decoding process, on a few windows of small frames."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from mme.motion.flow import MIN_SIDE, DenseFlow, gray_frames
from mme.motion.tracking import GridTracker, cell_centres
from mme.video.containers import VideoError
from mme.video.crop import resize
from mme.video.metadata import VideoInfo
from mme.video.reader import OpenVideo
from serving.decoding.child import VideoLimits

NUM_WINDOWS = 8
LENGTH = 12
"""Steps of a track. Windows of them cover a short video one after the other, and are spread over a long one."""

NUM_PIXELS = 28_672
"""Pixels of the tracked frames: 224 x 128, for which flow in both directions takes some 10 ms."""

POINTS_PER_WINDOW = 250
"""Approximate number of points."""

MAX_FRAME_BYTES = 256 * 2**20
"""Decoded frames held at a time, unless one window needs more."""

_MAX_POINTS = 1024
_MAX_SIDE = 2048
_MEDIAN_PX = 3


@dataclass(frozen=True)
class VideoTracks:
    """Tracks of points from several start frames of one video.

    Attributes:
        points: float32 ``[S, P, L + 1, 2]``, ``(x, y)`` as fractions of the upright frame's width and height; after
            its last valid step a point stays where it is.
        num_valid: uint8 ``[S, P]``, steps for which the point was tracked.
        starts: start frames, ``[S]``, of the video at ``fps``.
        fps: frames per second, one for each step.
        info: the file's metadata.
        seconds: time of decoding and tracking.
    """

    points: Float32[np.ndarray, "S P L 2"]
    num_valid: UInt8[np.ndarray, "S P"]
    starts: tuple[int, ...]
    fps: float
    info: VideoInfo
    seconds: float


@dataclass(frozen=True)
class TracksTask:
    """Track the points of one video, sampled by time at ``fps``: throughout, or in the stretch from ``start_s`` on."""

    path: Path
    fps: float
    limits: VideoLimits
    start_s: float | None = None

    @property
    def max_bytes(self) -> int:
        """Largest payload of an answer."""
        return NUM_WINDOWS * _MAX_POINTS * (8 * (LENGTH + 1) + 1)

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], bytes]:
        """Track; return a header for JSON and the arrays' bytes.

        Raises:
            VideoError: the video cannot be decoded, or has one frame only, from the start of the stretch on.
        """
        info = video.info
        num_frames = video.num_frames(self.fps)
        if min(num_frames, info.num_frames) < 2:
            raise VideoError("too-short", self.path, f"one frame, at {self.fps:g} per second, has no motion")

        first = round((self.start_s or 0.0) * self.fps)
        if first > num_frames - 2:
            raise VideoError("too-short", self.path, f"it ends at {num_frames / self.fps:g} s: no motion from there on")
        starts = window_starts(num_frames) if self.start_s is None else stretch_starts(num_frames, first)
        tracked = [track(frames) for frames in _windows(video, self.fps, starts)]
        points = np.stack([points for points, _ in tracked])  # (S, P, L + 1, 2)
        num_valid = np.stack([num_valid for _, num_valid in tracked])  # (S, P)
        header = {
            "shape": points.shape, "starts": starts, "fps": self.fps, "info": dataclasses.asdict(info),
            "seconds": time.perf_counter() - video.opened_s,
        }  # fmt: skip
        return header, points.tobytes() + num_valid.tobytes()

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> VideoTracks:
        """Invert ``work``, in the parent."""
        shape = tuple(header["shape"])
        num_floats = math.prod(shape)
        points = np.frombuffer(payload, np.float32, num_floats).reshape(shape)
        num_valid = np.frombuffer(payload, np.uint8, offset=4 * num_floats).reshape(shape[:2])
        info = VideoInfo(**header["info"])
        return VideoTracks(points, num_valid, tuple(header["starts"]), header["fps"], info, header["seconds"])


def window_starts(num_frames: int) -> list[int]:
    """Return start frames of at most ``NUM_WINDOWS`` windows, evenly spread and without overlap.

    Windows that cover the whole video follow each other without gaps. Each has at least two frames.
    """
    last = num_frames - 2
    count = min(NUM_WINDOWS, math.ceil((num_frames - 1) / LENGTH))
    if count * LENGTH >= num_frames - 1:
        return [LENGTH * number for number in range(count)]
    return [round(number * (last - LENGTH + 1) / (count - 1)) for number in range(count)]


def stretch_starts(num_frames: int, first: int) -> list[int]:
    """Return start frames of up to ``NUM_WINDOWS`` windows that follow each other from frame ``first`` on."""
    return list(range(first, min(first + NUM_WINDOWS * LENGTH, num_frames - 1), LENGTH))


def tracked_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width for flow: about ``NUM_PIXELS`` at most, and no side below the flow's minimum."""
    scale = min(1.0, math.sqrt(NUM_PIXELS / (height * width)))
    return (min(max(MIN_SIDE, round(height * scale)), _MAX_SIDE), min(max(MIN_SIDE, round(width * scale)), _MAX_SIDE))


def track(frames: UInt8[np.ndarray, "T H W 3"]) -> tuple[Float32[np.ndarray, "P L 2"], UInt8[np.ndarray, " P"]]:
    """Track the first frame's grid through all frames; return points and valid steps as in `VideoTracks`."""
    height, width = frames.shape[1:3]
    cell = min(max(4, round(math.sqrt(height * width / POINTS_PER_WINDOW))), height, width)
    flow = DenseFlow("medium", _MEDIAN_PX)
    tracker = GridTracker(height, width, cell, LENGTH)

    # Flow in both directions: steps that are not consistent forward and backward are invalid.
    for first, second in itertools.pairwise(gray_frames(frames)):
        tracker.step(flow.pair(first, second), flow.pair(second, first))
    displacements, num_valid = tracker.pop()  # (h, w, L, 2), (h, w)

    # Positions: the cell centre, then the running sum of the displacements.
    points = np.zeros((num_valid.size, LENGTH + 1, 2), dtype=np.float32)  # (P, L + 1, 2)
    points[:, 0] = cell_centres(height, width, cell).reshape(-1, 2)
    points[:, 1:] = displacements.reshape(num_valid.size, LENGTH, 2)
    points = np.cumsum(points, axis=1, dtype=np.float32)

    # Pixel centres are at integers, so fractions of the frame start half a pixel before the first.
    return (points + np.float32(0.5)) / np.array([width, height], dtype=np.float32), num_valid.reshape(-1)


def _windows(video: OpenVideo, fps: float, starts: list[int]) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Yield the frames of each window at the tracked size, decoded in as few passes as memory allows."""
    info = video.info
    size = tracked_size(info.height, info.width)
    ends = [min(start + LENGTH + 1, video.num_frames(fps)) for start in starts]
    windows_per_pass = max(1, MAX_FRAME_BYTES // (3 * info.height * info.width * (LENGTH + 1)))

    for part in range(0, len(starts), windows_per_pass):
        chosen = list(zip(starts, ends, strict=True))[part : part + windows_per_pass]
        needed = sorted({index for start, end in chosen for index in range(start, end)})
        frames = video.read(needed, fps)
        place = {index: number for number, index in enumerate(needed)}
        for start, end in chosen:
            yield resize(frames[place[start] : place[end - 1] + 1], *size)


def windows(tracks: VideoTracks) -> list[dict[str, Any]]:
    """Return the member ``windows`` of an answer; paths end with their last valid step."""
    rounded = tracks.points.astype(np.float64).round(4)
    return [
        {
            "start_frame": start,
            "start_s": start / tracks.fps,
            "paths": [path[: steps + 1].tolist() for path, steps in zip(points, num_valid, strict=True)],
        }
        for start, points, num_valid in zip(tracks.starts, rounded, tracks.num_valid.tolist(), strict=True)
    ]
