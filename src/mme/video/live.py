"""Windows of a live stream: an RTSP camera, a stream over TCP, UDP or HTTP, a screen, or a device."""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.config import ClipParams
from mme.video.containers import VideoError
from mme.video.decoding import PictureDecoder
from mme.video.metadata import DEFAULT_RATE
from mme.video.resampling import hold
from mme.video.timeline import Clock, Instants, exact_rate
from mme.video.windows import Window, WindowPlan, cut_windows

MAX_WAITING = 8
"""Windows that wait for the model; of more, the oldest is left out: a live label is of now."""

_RATES = (1, 240)
"""Frames per second that a camera may claim; RTSP streams may state their clock's 90,000."""

_MAX_DELAY_S = 16.0

_FINAL = (
    av.error.FileNotFoundError, av.error.PermissionError, av.error.ProtocolNotFoundError, av.error.DemuxerNotFoundError,
    av.error.DecoderNotFoundError, av.error.OptionNotFoundError, av.error.HTTPClientError,
)  # fmt: skip
"""Errors of opening that the next attempt would meet again."""


@dataclass(frozen=True)
class LiveSource:
    """Source of a live stream.

    Attributes:
        address: an address that FFmpeg can open, such as ``rtsp://...``, or the name of a device.
        options: FFmpeg's options; ``format`` names the input format, which devices need.
        tries: attempts in a row to connect again after the connection was lost.
        timeout_s: seconds without data after which the connection counts as lost.
        first_delay_s: seconds before the first attempt; each further one waits twice as long.
    """

    address: str
    options: Mapping[str, str] = field(default_factory=dict)
    tries: int = 3
    timeout_s: float = 10.0
    first_delay_s: float = 1.0

    @property
    def has_natural_end(self) -> bool:
        """Return whether the end of the data is the end of the stream: for files and pipes."""
        return "://" not in self.address


@dataclass(frozen=True)
class LiveWindow:
    """A window, and the seconds from the first picture to the beginning of the connection that it came over."""

    window: Window
    since_s: float


_Waiting: TypeAlias = queue.Queue[LiveWindow | VideoError | None]


def live_windows(
    source: LiveSource, plan: WindowPlan, clip: ClipParams, segments: int, crops: int, report: Callable[[str], None]
) -> Iterator[LiveWindow]:
    """Yield windows of a live stream as they come; none contains a break of the connection.

    A thread reads the stream, so that an interrupt is noticed at once, and so that what a slow consumer leaves is
    dropped and does not pile up.

    Args:
        source: the stream.
        plan: the windows, in time of the stream.
        clip: frames, stride and size of a view.
        segments: clips along each window.
        crops: squares per frame, 1 or 3.
        report: called with a line about every lost connection and every window left out.

    Raises:
        VideoError: the stream cannot be opened, or is lost and all attempts to connect again failed. A stream that
            ended orderly is not an error.
    """
    waiting: _Waiting = queue.Queue(MAX_WAITING)
    stop = threading.Event()

    def read() -> None:
        last: VideoError | None = None
        try:
            for window in _connected_windows(source, plan, clip, (segments, crops), report, stop):
                if waiting.full() and not source.has_natural_end:  # a file or a device waits
                    _leave_out_oldest(waiting, report)
                if not _put(waiting, window, stop):
                    return
        except VideoError as error:
            last = error
        except Exception as error:  # noqa: BLE001 - whatever a library raises on a stream is the stream's fault
            last = VideoError("undecodable", source.address, str(error))
        _put(waiting, last, stop)

    threading.Thread(target=read, name="live", daemon=True).start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, VideoError):
                raise item
            yield item
    finally:
        stop.set()


def _put(waiting: _Waiting, item: LiveWindow | VideoError | None, stop: threading.Event) -> bool:
    """Put an item into the queue when there is room; return whether it is wanted still."""
    while not stop.is_set():
        try:
            waiting.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _leave_out_oldest(waiting: _Waiting, report: Callable[[str], None]) -> None:
    try:
        waiting.get_nowait()
    except queue.Empty:
        return
    report("a window was left out: the model is slower than the stream; ask for a longer hop")


def _connected_windows(
    source: LiveSource,
    plan: WindowPlan,
    clip: ClipParams,
    views: tuple[int, int],
    report: Callable[[str], None],
    stop: threading.Event,
) -> Iterator[LiveWindow]:
    """Yield windows over one connection after the other."""
    began_s: float | None = None
    failures, ended = 0, False
    while not stop.is_set():
        try:
            with _opened(source) as (container, stream):
                pictures = _pictures(container, stream, stop)
                first = next(pictures, None)
                if first is not None:
                    now_s = time.monotonic()
                    began_s = now_s if began_s is None else began_s
                    failures = 0
                    frames = _frames(stream, itertools.chain([first], pictures), plan.fps)
                    for window in cut_windows(frames, plan, clip, *views, float(stream.sample_aspect_ratio or 1)):
                        yield LiveWindow(window, now_s - began_s)
            ended, cause = True, "the stream has ended"
            if source.has_natural_end:
                return
        except av.error.FFmpegError as error:
            cause = _cause(source, error)
            if began_s is None and isinstance(error, _FINAL):
                raise VideoError("undecodable", source.address, f"cannot be opened: {cause}") from error
            ended = ended and failures > 0  # a stream that ended and is not there again
        failures += 1
        if failures > source.tries:
            break
        delay_s = min(source.first_delay_s * 2 ** (failures - 1), _MAX_DELAY_S)
        report(f"{source.address}: {cause}; attempt {failures} of {source.tries} in {delay_s:g} s")
        stop.wait(delay_s)
    if began_s is None and not stop.is_set():
        raise VideoError("undecodable", source.address, f"cannot be opened: {cause}, in {1 + source.tries} attempts")
    if not ended and not stop.is_set():
        raise VideoError("truncated", source.address, f"lost: {cause}, after {source.tries} attempts to connect again")


@contextmanager
def _opened(source: LiveSource) -> Iterator[tuple[InputContainer, VideoStream]]:
    options = dict(source.options)
    name = options.pop("format", None)
    if source.address.startswith("rtsp"):
        options.setdefault("rtsp_transport", "tcp")  # UDP loses packets, and firewalls stop it
    if name is not None and name not in av.formats_available:
        raise VideoError("undecodable", source.address, f"this build of FFmpeg has no input format {name}")
    container = av.open(
        source.address, "r", format=name, options=options, timeout=source.timeout_s, metadata_errors="replace"
    )
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise VideoError("no-video-stream", source.address, "the stream has no video")
        stream.codec_context.thread_count = 1
        yield container, stream


def _pictures(container: InputContainer, stream: VideoStream, stop: threading.Event) -> Iterator[VideoFrame]:
    """Decode the pictures of one connection, from its first keyframe on."""
    decoder = PictureDecoder(stream)
    started = False
    for packet in container.demux(stream):
        if stop.is_set():
            return
        started = started or packet.is_keyframe
        if started and packet.size:
            yield from decoder.decode(packet)
    yield from decoder.flush()


def _frames(stream: VideoStream, pictures: Iterator[VideoFrame], fps: float) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield what is on screen at a constant rate, by the timestamps of the stream."""
    stated = stream.guessed_rate or stream.average_rate or DEFAULT_RATE
    rate = Fraction(stated) if _RATES[0] <= stated <= _RATES[1] else DEFAULT_RATE
    time_base = Fraction(stream.time_base) if stream.time_base else 1 / rate
    interval = max(1, round(1 / (rate * time_base)))
    clock, last = Clock(time_base, interval), 0

    def timed() -> Iterator[tuple[VideoFrame, int]]:
        nonlocal last
        for picture in pictures:
            last = clock.time(picture.pts)
            yield picture, last

    def num_frames() -> int:
        return max(1, math.floor((last + interval) * time_base * exact_rate(fps) + Fraction(1, 2)))

    yield from hold(timed(), Instants(exact_rate(fps), time_base, interval), num_frames)


def _cause(source: LiveSource, error: av.error.FFmpegError) -> str:
    if isinstance(error, av.error.ExitError):
        return f"no data for {source.timeout_s:g} s"
    return str(error.strerror)
