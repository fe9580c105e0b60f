"""What a video file holds, without decoding more of it than needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mme.video.backlog import Backlog
from mme.video.containers import Reason, Source, VideoError, open_stream

_SAME_RATE = 0.02
"""Rates that differ by less are one: time stamps are rounded."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds.

    Attributes:
        num_frames: frames in presentation order that ``read_frames`` can be asked for.
        fps: frames a second; the average where the rate varies.
        width: pixels, after rotation.
        height: pixels, after rotation.
        duration_s: ``num_frames / fps``.
        codec: FFmpeg's name of the codec, such as ``h264``.
        pixel_aspect: width of a pixel over its height, after rotation; frames are not corrected for it.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    codec: str
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class Facts:
    """How the file holds it.

    Attributes:
        info: what the file holds.
        rotation_degrees: by which decoded frames are to be turned, counter-clockwise.
        formats: names that FFmpeg has for the container.
        num_streams: video, sound and others.
        pixel_format: FFmpeg's name.
        has_b_frames: whether frames are stored in another order than they are shown in.
        key_gap_frames: the longest way from one key frame to the next, or to the end.
        is_steady: whether all frames last equally long.
        announced_frames: number of frames in the header, 0 if it has none.
        announced_s: length of the video in the header, 0 if it has none, or only one that a longer sound can have made.
    """

    info: VideoInfo
    rotation_degrees: int
    formats: frozenset[str]
    num_streams: int
    pixel_format: str | None
    has_b_frames: bool
    key_gap_frames: int
    is_steady: bool
    announced_frames: int
    announced_s: float


@dataclass(frozen=True)
class _Scan:
    """The first frame, the number of frames, and time stamps and positions of packets and key frames."""

    first: VideoFrame
    num_frames: int
    times: list[int]
    keys: list[int]


def probe(source: Source) -> VideoInfo:
    """Count the frames and decode the first one.

    In MP4 and Matroska a packet is a frame; elsewhere only decoding tells how many frames there are.

    Args:
        source: a file, or the bytes of one.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    return read_facts(source).info


def read_facts(source: Source) -> Facts:
    """``probe``, and everything else that can be told on the way.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    with open_stream(source) as (container, stream):
        return examine(source, container, stream)


def examine(source: Source, container: InputContainer, stream: VideoStream, backlog: Backlog | None = None) -> Facts:
    """``read_facts`` of a file that is open; it is read to its end.

    Args:
        source: the file, for errors to name.
        container: that it was opened as.
        stream: its video.
        backlog: where to keep what was read, if the frames are to be decoded next.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    announced_frames, announced_s = stream.frames, _announced_seconds(container, stream)
    scan = _scan(source, container, stream, backlog)
    ends = [*scan.keys[1:], len(scan.times)]
    steps = {later - earlier for earlier, later in zip(scan.times, scan.times[1:], strict=False)}
    return Facts(
        info=describe(stream, scan.first, scan.num_frames, scan.times),
        rotation_degrees=scan.first.rotation,
        formats=frozenset(container.format.name.split(",")),
        num_streams=len(container.streams),
        pixel_format=stream.codec_context.pix_fmt,
        has_b_frames=bool(stream.codec_context.has_b_frames),
        key_gap_frames=max((end - key for key, end in zip(scan.keys, ends, strict=False)), default=0),
        is_steady=len(steps) == 1 and min(steps) > 0,
        announced_frames=announced_frames,
        announced_s=announced_s,
    )


def has_times(container: InputContainer) -> bool:
    """Whether every packet is a frame with a time stamp."""
    return not {"mov", "matroska"}.isdisjoint(container.format.name.split(","))


def decode_stream(source: Source, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All frames in presentation order, as decoded (not rotated).

    Raises:
        VideoError: the first packet that does not decode: ``undecodable`` if it is before the first frame,
            else ``truncated``.
    """
    yield from decode_packets(source, container.demux(stream), 0)


def decode_packets(source: Source, packets: Iterable[Packet[VideoStream]], num_before: int) -> Iterator[VideoFrame]:
    """Frames of packets in the file's order; ``num_before`` came out of those before.

    Raises:
        VideoError: as ``decode_stream``.
    """
    for packet in packets:
        decoded = decode_packet(source, packet, num_before)
        num_before += len(decoded)
        yield from decoded


def decode_packet(source: Source, packet: Packet[VideoStream], num_before: int) -> list[VideoFrame]:
    """Frames that come out when a packet goes in.

    Raises:
        VideoError: it does not decode; ``truncated`` if frames came before it, else ``undecodable``.
    """
    try:
        return packet.decode()
    except av.error.FFmpegError as error:
        reason: Reason = "truncated" if num_before else "undecodable"
        raise VideoError(reason, source, f"frame {num_before}: {error.strerror}") from error


def _scan(source: Source, container: InputContainer, stream: VideoStream, backlog: Backlog | None) -> _Scan:
    first: VideoFrame | None = None
    count_packets = has_times(container)
    if backlog is not None and not count_packets:
        backlog.drop()  # every frame is decoded for counting, and there may be many
    num_frames = num_packets = 0
    times: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        if first is None or not count_packets:
            decoded = decode_packet(source, packet, num_frames)
            first = first or next(iter(decoded), None)
            num_frames += len(decoded)
            if backlog is not None and backlog.complete:
                backlog.frames += decoded
        elif backlog is not None:
            backlog.add(packet)
        if packet.size and not packet.is_discard:
            num_packets += 1
            if packet.pts is not None:
                if packet.is_keyframe:
                    keys.append(len(times))
                times.append(packet.pts)
    if first is None:
        raise VideoError("zero-frames", source, "its video stream holds no frame")
    return _Scan(first, max(num_packets, 1) if count_packets else num_frames, times, keys)


def describe(stream: VideoStream, first: VideoFrame, num_frames: int, times: list[int]) -> VideoInfo:
    """What a stream holds, from its first frame, the number of frames, and their time stamps in any order."""
    fps = _average_rate(stream, times)
    turned = round(first.rotation / 90) % 2 == 1
    width, height = (first.height, first.width) if turned else (first.width, first.height)
    aspect = float(stream.sample_aspect_ratio or 1)
    return VideoInfo(
        num_frames=num_frames,
        fps=float(fps),
        width=width,
        height=height,
        duration_s=float(num_frames / fps),
        codec=stream.codec_context.codec.canonical_name,
        pixel_aspect=1 / aspect if turned else aspect,
    )


def _average_rate(stream: VideoStream, times: list[int]) -> Fraction:
    """Frames a second: what the header says, unless the frames' time stamps say something else."""
    nominal = stream.average_rate or stream.guessed_rate
    span = max(times) - min(times) if times else 0
    if not span or stream.time_base is None:
        return Fraction(nominal) if nominal else Fraction(1)
    measured = (len(times) - 1) / (span * Fraction(stream.time_base))
    if nominal and abs(nominal / measured - 1) < _SAME_RATE:
        return Fraction(nominal)
    return measured


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / 1_000_000
    return 0.0
