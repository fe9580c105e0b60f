"""What runs in a decoding process: one video after another, under limits that the kernel enforces.

The parent never unpickles what a child says: an answer is a line of JSON, followed by pixels. A child that a crafted
file takes over can give wrong frames, but no code to the parent.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from mme.config import ClipParams
from mme.video.containers import VideoError
from mme.video.metadata import VideoInfo
from mme.video.reader import OpenVideo, open_video
from mme.video.sampling import Views, sample_open_video

MEBIBYTE = 2**20

Result_co = TypeVar("Result_co", covariant=True)

READY = b"ready"
TASK_SIZE = struct.Struct("!I")
SIZES = struct.Struct("!IQ")
"""Of an answer's header and payload."""

_BYTES_A_PIXEL = 3


@dataclass(frozen=True)
class VideoLimits:
    """What a video may ask for, checked before its frames are decoded."""

    max_seconds: float
    max_frames: int
    max_pixels: int
    max_cpu_s: float


class Task(Protocol[Result_co]):
    """What a decoding process can be asked for: sent to it pickled, answered with a line of JSON and bytes."""

    @property
    def path(self) -> Path:
        """The video."""

    @property
    def limits(self) -> VideoLimits:
        """What it may ask for."""

    @property
    def max_bytes(self) -> int:
        """Of the answer's payload."""

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], bytes | memoryview]:
        """In the process: a header for JSON, and the payload.

        Raises:
            VideoError: the video cannot be decoded.
        """

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> Result_co:
        """The inverse of ``work``, in the parent."""


@dataclass(frozen=True)
class Job:
    """One video and the views to take of it."""

    path: Path
    clip: ClipParams
    segments: int
    crops: int
    limits: VideoLimits

    @property
    def max_bytes(self) -> int:
        """Of all views."""
        return self.segments * self.crops * self.clip.num_frames * self.clip.size**2 * _BYTES_A_PIXEL

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], memoryview]:
        """Decode, resize and crop.

        Raises:
            VideoError: the video cannot be decoded.
        """
        views = sample_open_video(video, self.clip, self.segments, self.crops)
        header = {"shape": views.frames.shape, "info": dataclasses.asdict(video.info), "decode_ms": views.decode_ms}
        return header, views.frames.data.cast("B")

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> Views:
        """The views again."""
        frames = np.frombuffer(payload, dtype=np.uint8).reshape(header["shape"])
        return Views(frames, VideoInfo(**header["info"]), float(header["decode_ms"]))


def packed(task: Task[object]) -> bytes:
    """A task as it is sent to a process."""
    content = pickle.dumps(task)
    return TASK_SIZE.pack(len(content)) + content


def serve(connection: socket.socket, memory_mb: int) -> None:
    """Answer jobs until the parent hangs up: with the sizes of two parts, a header in JSON, and a payload.

    Signals that a terminal or a service manager sends to the whole group are the parent's business: it finishes its
    requests first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _silence()
    _limit_process(memory_mb)
    connection.sendall(READY)
    tasks = connection.makefile("rb")
    while size := tasks.read(TASK_SIZE.size):
        task: Task[object] = pickle.loads(tasks.read(*TASK_SIZE.unpack(size)))  # noqa: S301 - of our own parent
        header, payload = _answer(task)
        told = json.dumps(header).encode()
        try:
            connection.sendall(SIZES.pack(len(told), len(payload)) + told)
            connection.sendall(payload)
        except BrokenPipeError:
            return


@contextmanager
def admitted(task: Task[object]) -> Iterator[OpenVideo]:
    """A task's video, open and checked against the limits by what its header claims.

    Raises:
        VideoError: it is no video, or beyond a limit.
    """
    with open_video(task.path, partial(_check_size, task)) as video:
        info = video.info
        _check_size(task, info.width, info.height)
        if info.num_frames > task.limits.max_frames:
            raise _too_large(task, f"{info.num_frames} frames; at most {task.limits.max_frames} are allowed")
        if not info.duration_s <= task.limits.max_seconds:  # NaN is not below anything
            raise _too_large(task, f"{info.duration_s:g} s; at most {task.limits.max_seconds:g} s are allowed")
        yield video


def _check_size(task: Task[object], width: int, height: int) -> None:
    if width * height > task.limits.max_pixels:
        raise _too_large(task, f"{width} x {height} pixels; at most {task.limits.max_pixels} in all are allowed")


def _too_large(task: Task[object], detail: str) -> VideoError:
    return VideoError("too-large", task.path, detail)


def _answer(task: Task[object]) -> tuple[dict[str, Any], bytes | memoryview]:
    limit_cpu(task.limits.max_cpu_s)
    try:
        with admitted(task) as video:
            return task.work(video)
    except VideoError as error:
        return {"reason": error.reason, "detail": error.detail}, b""
    except MemoryError:
        return {"reason": "too-large", "detail": "decoding it needs more memory than is allowed", "spent": True}, b""
    except Exception as error:  # noqa: BLE001 - whatever a library makes of a hostile file is the file's fault
        cause = f"{type(error).__name__}: {error}"
        return {"reason": "undecodable", "detail": "a decoder gave up", "cause": cause}, b""


def _silence() -> None:
    """What libraries print about hostile files belongs nowhere, and the limit on files written would turn it down."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def _limit_process(memory_mb: int) -> None:
    """Address space beyond what is mapped already; no core dumps; no files written."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    mapped = Path("/proc/self/statm")
    if mapped.exists():
        pages = int(mapped.read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_mb * MEBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_cpu(seconds: float) -> None:
    """The kernel kills the process when this job has used so much processor time, rounded up to whole seconds."""
    spent = time.process_time()
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (max(1, math.ceil(spent + seconds)), hard))
