"""Parts of long videos, by seconds: read from the key frame before to the last frame, and nothing else of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.video.codec import to_rgb
from mme.video.containers import Source, VideoError, open_stream
from mme.video.metadata import VideoInfo, decode_packet, describe

Span = tuple[float, float]
"""Seconds from the video's beginning: of the first moment, and of the first that is not in the part any more."""

_STEPS_BACK_S = (0.0, 2.0, 20.0, float("inf"))
"""Some indices lead to a key frame that is too late; then one further back is tried."""

_REORDERED_S = 2.0
"""Where packets have no decoding time, frames of a part stand at most this far behind its end."""


@dataclass(frozen=True)
class Part:
    """What a span holds.

    Attributes:
        info: frames in the span, their average rate, and their size.
        sha256: of the coded pictures that were read, and of which of them are shown.
    """

    info: VideoInfo
    sha256: str


def scan_span(source: Source, span_s: Span) -> Part:
    """Read a part without decoding more than a picture of it.

    Raises:
        VideoError: it holds no frame, or the file cannot be read, or has no time stamps.
    """
    content, times, first = hashlib.sha256(), list[int](), None
    with open_stream(source) as (container, stream):
        for packet in _packets(source, container, stream, span_s):
            if first is None:
                first = next(iter(decode_packet(source, packet, 0)), None)
            content.update(bytes(packet))
            if packet.pts is not None and span_s[0] <= _seconds(stream, packet.pts) < span_s[1]:
                times.append(packet.pts)
        if not times:
            raise VideoError("truncated", source, f"no frame between {span_s[0]:g} and {span_s[1]:g} s")
        if first is None:
            raise VideoError("undecodable", source, f"no frame decodes at {span_s[0]:g} s")
        content.update(repr(sorted(time - min(times) for time in times)).encode())
        return Part(describe(stream, first, len(times), times), content.hexdigest())


def iter_span_frames(source: Source, span_s: Span) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """RGB frames ``[H, W, 3]`` of a part one by one, upright.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    converter = VideoReformatter()
    with open_stream(source) as (container, stream):
        for frame in _decoded(source, container, stream, span_s):
            second = _seconds(stream, frame.pts)
            if second >= span_s[1]:
                return
            if second >= span_s[0]:
                yield to_rgb(converter, frame)


def _decoded(source: Source, container: InputContainer, stream: VideoStream, span_s: Span) -> Iterator[VideoFrame]:
    num_frames = 0
    for packet in _packets(source, container, stream, span_s):
        decoded = decode_packet(source, packet, num_frames)
        num_frames += len(decoded)
        yield from decoded
    try:
        yield from stream.codec_context.decode(None)  # those that the decoder still holds
    except av.error.FFmpegError as error:
        raise VideoError("truncated", source, f"frame {num_frames}: {error.strerror}") from error


def _packets(
    source: Source, container: InputContainer, stream: VideoStream, span_s: Span
) -> Iterator[Packet[VideoStream]]:
    """Packets from the last key frame before the span to its last frame."""
    for back_s in _STEPS_BACK_S:
        begin_s = max(span_s[0] - back_s, 0.0)
        container.seek(_stamp(source, stream, begin_s), stream=stream, backward=True)
        packets = container.demux(stream)
        first = next(packets)
        if first.size and first.pts is None:
            raise VideoError("undecodable", source, "its frames have no time stamps: nothing can be cut from it")
        if begin_s == 0 or (first.pts is not None and _seconds(stream, first.pts) <= span_s[0]):
            break
    yield first
    for packet in packets:
        if not packet.size or _is_past(stream, packet, span_s[1]):
            return
        yield packet


def _is_past(stream: VideoStream, packet: Packet[VideoStream], end_s: float) -> bool:
    """Whether neither this packet nor a later one is shown before ``end_s``: none is decoded after it is shown."""
    if packet.dts is not None:
        return _seconds(stream, packet.dts) >= end_s
    return packet.pts is not None and _seconds(stream, packet.pts) >= end_s + _REORDERED_S


def _seconds(stream: VideoStream, stamp: int | None) -> float:
    assert stamp is not None
    assert stream.time_base is not None
    return float((stamp - (stream.start_time or 0)) * stream.time_base)


def _stamp(source: Source, stream: VideoStream, second: float) -> int:
    if stream.time_base is None:
        raise VideoError("undecodable", source, "its frames have no time stamps: nothing can be cut from it")
    return int(second / stream.time_base) + (stream.start_time or 0)
