"""Tracks of a video for the eye: runs in a decoding process, on a few windows of small frames."""

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
"""Steps of a track. Windows of them follow each other through a short video and are spread over a long one."""

NUM_PIXELS = 28_672
"""Of the frames that are tracked: 224 x 128, on which flow both ways takes some 10 ms."""

NUM_POINTS = 250
"""Points of a window, about."""

MAX_BYTES = 256 * 2**20
"""Decoded frames that are held at a time, as far as windows are small enough."""

_MAX_POINTS = 1024
_MAX_SIDE = 2048
_MEDIAN_PX = 3


@dataclass(frozen=True)
class VideoTracks:
    """Where points go, from several start frames of one video.

    Attributes:
        points: float32 ``[S, P, L + 1, 2]``, ``(x, y)`` as shares of the upright picture's width and height; after
            its last valid step a point stays where it is.
        num_valid: uint8 ``[S, P]``, steps for which the point could be followed.
        starts: start frames, ``[S]``.
        info: what the file says of itself.
        seconds: time spent on decoding and tracking.
    """

    points: Float32[np.ndarray, "S P L 2"]
    num_valid: UInt8[np.ndarray, "S P"]
    starts: tuple[int, ...]
    info: VideoInfo
    seconds: float


@dataclass(frozen=True)
class TrackJob:
    """One video to be tracked."""

    path: Path
    limits: VideoLimits

    @property
    def max_bytes(self) -> int:
        """Of the answer's payload."""
        return NUM_WINDOWS * _MAX_POINTS * (8 * (LENGTH + 1) + 1)

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], bytes]:
        """Track, in the decoding process: a line for JSON, and the numbers.

        Raises:
            VideoError: the video cannot be decoded, or has one frame only.
        """
        info = video.info
        if info.num_frames < 2:
            raise VideoError("too-short", self.path, "one frame has no motion")
        starts = window_starts(info.num_frames)
        tracked = [track(frames) for frames in _windows(video, starts)]
        points = np.stack([points for points, _ in tracked])
        num_valid = np.stack([num_valid for _, num_valid in tracked])
        header = {
            "shape": points.shape, "starts": starts, "info": dataclasses.asdict(info),
            "seconds": time.perf_counter() - video.opened_s,
        }  # fmt: skip
        return header, points.tobytes() + num_valid.tobytes()

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> VideoTracks:
        """The inverse of ``work``, in the parent."""
        shape = tuple(header["shape"])
        num_floats = math.prod(shape)
        points = np.frombuffer(payload, np.float32, num_floats).reshape(shape)
        num_valid = np.frombuffer(payload, np.uint8, offset=4 * num_floats).reshape(shape[:2])
        return VideoTracks(points, num_valid, tuple(header["starts"]), VideoInfo(**header["info"]), header["seconds"])


def window_starts(num_frames: int) -> list[int]:
    """Start frames, evenly spread; each but the last of a video has a frame after it.

    As many as cover the video, each from where the one before it ends, but at most ``NUM_WINDOWS``.
    """
    last = num_frames - 2  # a window needs two frames
    count = min(NUM_WINDOWS, math.ceil((num_frames - 1) / LENGTH))
    if count * LENGTH >= num_frames - 1:
        return [LENGTH * number for number in range(count)]
    return [round(number * (last - LENGTH + 1) / (count - 1)) for number in range(count)]


def tracked_size(height: int, width: int) -> tuple[int, int]:
    """Height and width on which flow is computed: not above ``NUM_PIXELS`` by much, and no side below its minimum."""
    scale = min(1.0, math.sqrt(NUM_PIXELS / (height * width)))
    return (min(max(MIN_SIDE, round(height * scale)), _MAX_SIDE), min(max(MIN_SIDE, round(width * scale)), _MAX_SIDE))


def track(frames: UInt8[np.ndarray, "T H W 3"]) -> tuple[Float32[np.ndarray, "P L 2"], UInt8[np.ndarray, " P"]]:
    """Points and valid steps of the first frame's grid, followed through all; as in `VideoTracks`."""
    height, width = frames.shape[1:3]
    cell = min(max(4, round(math.sqrt(height * width / NUM_POINTS))), height, width)
    dense, tracker = DenseFlow("medium", _MEDIAN_PX), GridTracker(height, width, cell, LENGTH)
    for first, second in itertools.pairwise(gray_frames(frames)):
        tracker.step(dense.pair(first, second), dense.pair(second, first))
    displacements, num_valid = tracker.pop()  # [h, w, L, 2], [h, w]
    points = np.zeros((num_valid.size, LENGTH + 1, 2), dtype=np.float32)
    points[:, 0] = cell_centres(height, width, cell).reshape(-1, 2)
    points[:, 1:] = displacements.reshape(num_valid.size, LENGTH, 2)
    points = np.cumsum(points, axis=1, dtype=np.float32)
    return (points + np.float32(0.5)) / np.array([width, height], dtype=np.float32), num_valid.reshape(-1)


def _windows(video: OpenVideo, starts: list[int]) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
    """Frames of each window at the size to be tracked, decoded in as few passes as memory allows."""
    info = video.info
    ends = [min(start + LENGTH + 1, info.num_frames) for start in starts]
    at_once = max(1, MAX_BYTES // (3 * info.height * info.width * (LENGTH + 1)))
    size = tracked_size(info.height, info.width)
    for part in range(0, len(starts), at_once):
        chosen = list(zip(starts[part : part + at_once], ends[part : part + at_once], strict=True))
        needed = sorted({index for start, end in chosen for index in range(start, end)})
        frames = video.read(needed)
        place = {index: number for number, index in enumerate(needed)}
        for start, end in chosen:
            yield resize(frames[place[start] : place[end - 1] + 1], *size)


def windows(tracks: VideoTracks) -> list[dict[str, Any]]:
    """The member ``windows`` of an answer; paths end with their last valid step."""
    rounded, fps = tracks.points.astype(np.float64).round(4), tracks.info.fps
    return [
        {
            "start_frame": start,
            "start_s": start / fps,
            "paths": [path[: steps + 1].tolist() for path, steps in zip(points, num_valid, strict=True)],
        }
        for start, points, num_valid in zip(tracks.starts, rounded, tracks.num_valid.tolist(), strict=True)
    ]
