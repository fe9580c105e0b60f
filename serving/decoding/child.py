"""Decoding process: one video after another, under limits that the kernel enforces.

The parent never unpickles what a child sends: an answer is a line of JSON, followed by raw bytes. A child that a
malicious file has taken over can send wrong frames, but cannot run code in the parent.
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
from typing import Any, Protocol, TypeAlias, TypeVar

import cv2
import numpy as np

from mme.config import ClipParams
from mme.video.containers import VideoError, out_of_memory
from mme.video.metadata import VideoInfo
from mme.video.reader import OpenVideo, open_video
from mme.video.sampling import Views, sample_open_video

MEBIBYTE = 2**20

READY = b"ready"
TASK_SIZE = struct.Struct("!I")
SIZES = struct.Struct("!IQ")
"""Sizes of an answer's header and payload."""

Answer: TypeAlias = tuple[dict[str, Any], bytes | memoryview]
"""Header for JSON, and payload. Another answer follows one whose header says ``more``."""

Parsed_co = TypeVar("Parsed_co", covariant=True)


@dataclass(frozen=True)
class VideoLimits:
    """Limits on a video, checked before its frames are decoded, and on the CPU time of its task."""

    max_seconds: float
    max_frames: int
    max_pixels: int
    max_cpu_s: float


class DecodeTask(Protocol[Parsed_co]):
    """Task of a decoding process: sent to it pickled, answered with a line of JSON and bytes."""

    @property
    def path(self) -> Path:
        """The video."""

    @property
    def limits(self) -> VideoLimits:
        """Limits on the video."""

    @property
    def max_bytes(self) -> int:
        """Largest payload that the parent accepts."""

    def work(self, video: OpenVideo) -> Answer | Iterator[Answer]:
        """Return the answer, or several one by one; runs in the decoding process.

        Raises:
            VideoError: the video cannot be decoded.
        """

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> Parsed_co:
        """Invert ``work``; runs in the parent."""


@dataclass(frozen=True)
class ViewsTask:
    """Decode the views of one video."""

    path: Path
    clip: ClipParams
    fps: float
    segments: int
    crops: int
    limits: VideoLimits

    @property
    def max_bytes(self) -> int:
        """Bytes of all views."""
        return self.segments * self.crops * self.clip.total_frames * self.clip.size**2 * 3

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], memoryview]:
        """Decode, resize and crop.

        Raises:
            VideoError: the video cannot be decoded.
        """
        return self.answer(sample_open_video(video, self.clip, self.fps, self.segments, self.crops))

    @staticmethod
    def answer(views: Views) -> tuple[dict[str, Any], memoryview]:
        """Return header and payload for views of a file."""
        assert views.info is not None
        header = {"shape": views.frames.shape, "info": dataclasses.asdict(views.info), "decode_ms": views.decode_ms}
        return header, views.frames.data.cast("B")

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> Views:
        """Return the views."""
        frames = np.frombuffer(payload, dtype=np.uint8).reshape(header["shape"])  # (V, T, S, S, 3)
        return Views(frames, VideoInfo(**header["info"]), float(header["decode_ms"]))


def packed(task: DecodeTask[object]) -> bytes:
    """Return the bytes that send a task to a process."""
    content = pickle.dumps(task)
    return TASK_SIZE.pack(len(content)) + content


def serve(connection: socket.socket, memory_mb: int) -> None:
    """Answer tasks until the parent closes the connection: sizes of two parts, a header in JSON, and a payload.

    A task with several answers waits while the parent does not read.

    Signals that a terminal or a service manager sends to the whole process group are ignored: the parent handles
    them, and finishes its requests first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _silence()
    _limit_process(memory_mb)
    connection.sendall(READY)

    tasks = connection.makefile("rb")
    while size := tasks.read(TASK_SIZE.size):
        task: DecodeTask[object] = pickle.loads(tasks.read(*TASK_SIZE.unpack(size)))  # noqa: S301 - from the parent
        for header, payload in _answers(task):
            header_bytes = json.dumps(header).encode()
            try:
                connection.sendall(SIZES.pack(len(header_bytes), len(payload)) + header_bytes)
                connection.sendall(payload)
            except BrokenPipeError:
                return


@contextmanager
def open_within_limits(task: DecodeTask[object]) -> Iterator[OpenVideo]:
    """Open a task's video and check its metadata against the limits.

    Raises:
        VideoError: it is not a video, or exceeds a limit.
    """
    limits = task.limits
    with open_video(task.path, partial(_check_size, task)) as video:
        info = video.info
        _check_size(task, info.width, info.height)
        if info.num_frames > limits.max_frames:
            raise _too_large(task, f"{info.num_frames} frames; at most {limits.max_frames} are allowed")
        if not info.duration_s <= limits.max_seconds:  # negated, so that NaN is refused
            raise _too_large(task, f"{info.duration_s:g} s; at most {limits.max_seconds:g} s are allowed")
        yield video


def _check_size(task: DecodeTask[object], width: int, height: int) -> None:
    if width * height > task.limits.max_pixels:
        raise _too_large(task, f"{width} x {height} pixels; at most {task.limits.max_pixels} in all are allowed")


def _too_large(task: DecodeTask[object], detail: str) -> VideoError:
    return VideoError("too-large", task.path, detail)


def _answers(task: DecodeTask[object]) -> Iterator[Answer]:
    limit_cpu(task.limits.max_cpu_s)
    try:
        with open_within_limits(task) as video:
            work = task.work(video)
            for answer in [work] if isinstance(work, tuple) else work:
                yield answer
                limit_cpu(task.limits.max_cpu_s)  # from one answer to the next
    except VideoError as error:
        spent = isinstance(error.__cause__, MemoryError)
        yield {"reason": error.reason, "detail": error.detail, "spent": spent}, b""
    except MemoryError:
        yield {"reason": "too-large", "detail": out_of_memory(task.path).detail, "spent": True}, b""
    except Exception as error:  # noqa: BLE001 - any error that a library raises on a bad file is the file's fault
        cause = f"{type(error).__name__}: {error}"
        yield {"reason": "undecodable", "detail": "the decoder failed", "cause": cause}, b""


def _silence() -> None:
    """Send the output of libraries to /dev/null: under RLIMIT_FSIZE, writing it to a file would fail."""
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 1)
        os.dup2(devnull.fileno(), 2)


def _limit_process(memory_mb: int) -> None:
    """Limit the address space beyond what is mapped already; forbid core dumps and writing files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    mapped = Path("/proc/self/statm")
    if mapped.exists():
        pages = int(mapped.read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_mb * MEBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_cpu(seconds: float) -> None:
    """Let the kernel kill the process after this much more processor time, rounded up to whole seconds."""
    spent = time.process_time()
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (max(1, math.ceil(spent + seconds)), hard))
