"""Trim long videos by seconds: read from the keyframe before the span to its last frame, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.video.codec import RgbConverter
from mme.video.containers import VideoError, VideoSource, open_stream
from mme.video.metadata import VideoInfo, decode_packet, packet_timeline, stream_info
from mme.video.timeline import Timeline

TimeSpan = tuple[float, float]
"""Start (inclusive) and end (exclusive) in seconds from the beginning of the video."""

_SEEK_BACK_S = (0.0, 2.0, 20.0, float("inf"))
"""Seconds to seek before the span, tried in turn: some indices lead to a keyframe that is too late."""

_MAX_REORDER_S = 2.0
"""Most seconds by which a frame of the span may follow its end in the file, if packets have no decoding timestamp."""


@dataclass(frozen=True)
class TrimMetadata:
    """Metadata of a trimmed span.

    Attributes:
        info: number, average rate and size of the frames in the span.
        timeline: times of the frames in the span.
        sha256: digest of the coded pictures that were read, and of which of them are shown.
    """

    info: VideoInfo
    timeline: Timeline
    sha256: str


def read_trim_metadata(source: VideoSource, span_s: TimeSpan) -> TrimMetadata:
    """Read the packets of a span and decode one picture of it.

    Raises:
        VideoError: the span has no frame, or the file cannot be read or has no timestamps.
    """
    digest = hashlib.sha256()
    timestamps: list[int] = []
    first: VideoFrame | None = None
    with open_stream(source) as (container, stream):
        for packet in _span_packets(source, container, stream, span_s):
            if first is None:
                first = next(iter(decode_packet(source, packet, 0)), None)
            digest.update(bytes(packet))
            if packet.pts is not None and span_s[0] <= _to_seconds(stream, packet.pts) < span_s[1]:
                timestamps.append(packet.pts)

        if not timestamps:
            raise VideoError("truncated", source, f"no frame between {span_s[0]:g} and {span_s[1]:g} s")
        if first is None:
            raise VideoError("undecodable", source, f"no frame decodes at {span_s[0]:g} s")
        shown = sorted(timestamp - min(timestamps) for timestamp in timestamps)
        digest.update(repr(shown).encode())
        info = stream_info(stream, first, len(timestamps), timestamps)
        return TrimMetadata(info, packet_timeline(stream, info, timestamps), digest.hexdigest())


def iter_trimmed_frames(source: VideoSource, span_s: TimeSpan) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decode the upright RGB frames of a span one by one.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    converter = RgbConverter()
    with open_stream(source) as (container, stream):
        for frame in _decode_span(source, container, stream, span_s):
            second = _to_seconds(stream, frame.pts)
            if second >= span_s[1]:
                return
            if second >= span_s[0]:
                yield converter.to_rgb(frame)
            else:
                converter.skip(frame)


def _decode_span(
    source: VideoSource, container: InputContainer, stream: VideoStream, span_s: TimeSpan
) -> Iterator[VideoFrame]:
    num_frames = 0
    for packet in _span_packets(source, container, stream, span_s):
        decoded = decode_packet(source, packet, num_frames)
        num_frames += len(decoded)
        yield from decoded
    try:
        yield from stream.codec_context.decode(None)  # flush the frames that the decoder still holds
    except av.error.FFmpegError as error:
        raise VideoError("truncated", source, f"frame {num_frames}: {error.strerror}") from error


def _span_packets(
    source: VideoSource, container: InputContainer, stream: VideoStream, span_s: TimeSpan
) -> Iterator[Packet[VideoStream]]:
    """Packets from the last keyframe before the span to its last frame."""
    for back_s in _SEEK_BACK_S:
        begin_s = max(span_s[0] - back_s, 0.0)
        container.seek(_to_timestamp(source, stream, begin_s), stream=stream, backward=True)
        packets = container.demux(stream)
        first = next(packets)
        if first.size and first.pts is None:
            raise VideoError("undecodable", source, "its frames have no timestamps and cannot be trimmed")
        if begin_s == 0 or (first.pts is not None and _to_seconds(stream, first.pts) <= span_s[0]):
            break
    yield first
    for packet in packets:
        if not packet.size or _is_past(stream, packet, span_s[1]):
            return
        yield packet


def _is_past(stream: VideoStream, packet: Packet[VideoStream], end_s: float) -> bool:
    """Return whether this packet and all later ones are shown at ``end_s`` or after: none is decoded after its time."""
    if packet.dts is not None:
        return _to_seconds(stream, packet.dts) >= end_s
    return packet.pts is not None and _to_seconds(stream, packet.pts) >= end_s + _MAX_REORDER_S


def _to_seconds(stream: VideoStream, timestamp: int | None) -> float:
    assert timestamp is not None
    assert stream.time_base is not None
    return float((timestamp - (stream.start_time or 0)) * stream.time_base)


def _to_timestamp(source: VideoSource, stream: VideoStream, second: float) -> int:
    if stream.time_base is None:
        raise VideoError("undecodable", source, "its frames have no timestamps and cannot be trimmed")
    return int(second / stream.time_base) + (stream.start_time or 0)
