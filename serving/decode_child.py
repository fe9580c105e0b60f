"""What runs in a decoding process: one video after another, under limits that the kernel enforces.

The parent never unpickles what a child says: an answer is a line of JSON, followed by pixels. A child that a crafted
file takes over can give wrong frames, but no code to the parent.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mme.config import ClipParams
from mme.data.containers import VideoError, open_stream
from mme.data.facts import VideoInfo, probe
from mme.data.views import Views, prepare

MEBIBYTE = 2**20


@dataclass(frozen=True)
class VideoLimits:
    """What a video may ask for, checked before its frames are decoded."""

    max_seconds: float
    max_frames: int
    max_pixels: int
    max_cpu_s: float


@dataclass(frozen=True)
class Job:
    """One video and the views to take of it."""

    path: Path
    clip: ClipParams
    segments: int
    crops: int
    limits: VideoLimits


def serve(connection: Connection, memory_mb: int) -> None:
    """Answer jobs until the parent hangs up.

    Signals that a terminal or a service manager sends to the whole group are the parent's business: it finishes its
    requests first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _silence()
    _limit_process(memory_mb)
    connection.send_bytes(b"ready")
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        header, pixels = _answer(job)
        try:
            connection.send_bytes(json.dumps(header).encode())
            if pixels is not None:
                connection.send_bytes(pixels)
        except BrokenPipeError:
            return


def read_header(job: Job) -> VideoInfo:
    """What a file says of itself, after checking it against the limits.

    Raises:
        VideoError: it is no video, or beyond a limit.
    """
    with open_stream(job.path) as (_, stream):  # before the first frame is allocated, sizes are as the header claims
        _check_size(job, stream.codec_context.width, stream.codec_context.height)
    info = probe(job.path)
    _check_size(job, info.width, info.height)
    if info.num_frames > job.limits.max_frames:
        raise _too_large(job, f"{info.num_frames} frames; at most {job.limits.max_frames} are allowed")
    if not info.duration_s <= job.limits.max_seconds:  # NaN is not below anything
        raise _too_large(job, f"{info.duration_s:g} s; at most {job.limits.max_seconds:g} s are allowed")
    return info


def _check_size(job: Job, width: int, height: int) -> None:
    if width * height > job.limits.max_pixels:
        raise _too_large(job, f"{width} x {height} pixels; at most {job.limits.max_pixels} in all are allowed")


def _too_large(job: Job, detail: str) -> VideoError:
    return VideoError("too-large", job.path, detail)


def _answer(job: Job) -> tuple[dict[str, Any], memoryview | None]:
    limit_cpu(job.limits.max_cpu_s)
    try:
        info = read_header(job)
        views = prepare(job.path, job.clip, job.segments, job.crops)
    except VideoError as error:
        return {"reason": error.reason, "detail": error.detail}, None
    except MemoryError:
        return {"reason": "too-large", "detail": "decoding it needs more memory than is allowed", "spent": True}, None
    except Exception as error:  # noqa: BLE001 - whatever a library makes of a hostile file is the file's fault
        cause = f"{type(error).__name__}: {error}"
        return {"reason": "undecodable", "detail": "a decoder gave up", "cause": cause}, None
    return describe(views, info), views.frames.data.cast("B")


def describe(views: Views, info: VideoInfo) -> dict[str, Any]:
    """The JSON line of a decoded video."""
    return {"shape": views.frames.shape, "info": dataclasses.asdict(info), "decode_ms": views.decode_ms}


def parse(header: dict[str, Any], pixels: bytes) -> Views:
    """The inverse of ``describe``, in the parent."""
    frames = np.frombuffer(pixels, dtype=np.uint8).reshape(header["shape"])
    return Views(frames, VideoInfo(**header["info"]), float(header["decode_ms"]))


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
