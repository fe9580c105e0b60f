"""Metadata of video files: frame count, rate, size and container details, with one decoded frame."""

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

from mme.video.containers import Reason, VideoError, VideoSource, open_stream
from mme.video.orientation import UPRIGHT, Orientation, stated_orientation
from mme.video.timeline import Clock, Timeline, exact_rate, median_interval

MAX_BUFFER_BYTES = 16 * 2**20
"""Most bytes of packets that a `PacketBuffer` keeps. A larger file is read a second time, so that memory does not grow
with its length."""

_PACKET_BYTES = 1024
"""Approximate memory of a packet beside its content: a hostile file may consist of empty packets."""

_RATE_TOLERANCE = 0.02
"""Relative difference below which two frame rates are equal: timestamps are rounded."""


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of the decoded video.

    Attributes:
        num_frames: frames in presentation order that ``read_frames`` can return.
        fps: frames per second; the average if the rate varies.
        width: pixels of the upright picture.
        height: pixels of the upright picture.
        duration_s: ``num_frames / fps``.
        codec: FFmpeg's name of the codec, such as ``h264``.
        pixel_aspect: width of a pixel of the upright picture over its height; frames are not corrected for it.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    codec: str
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class ContainerMetadata:
    """Metadata of the container and of the coded stream.

    Attributes:
        info: metadata of the decoded video.
        orientation: how decoded frames are turned and mirrored to be upright.
        formats: FFmpeg's names of the container format.
        num_streams: number of streams: video, sound and others.
        pixel_format: FFmpeg's name of it.
        has_b_frames: whether frames are stored in another order than they are shown in.
        keyframe_interval: longest distance in frames from one keyframe to the next, or to the end.
        is_constant_rate: whether all frames have the same duration.
        declared_frames: number of frames in the header, 0 if it has none.
        declared_s: seconds in the header; 0 if it has none, or only one that a longer sound may have set.
        timeline: times of the pictures.
    """

    info: VideoInfo
    orientation: Orientation
    timeline: Timeline
    formats: frozenset[str]
    num_streams: int
    pixel_format: str | None
    has_b_frames: bool
    keyframe_interval: int
    is_constant_rate: bool
    declared_frames: int
    declared_s: float


class PacketBuffer:
    """Packets read while counting frames, kept for decoding them without reading the file again.

    Attributes:
        frames: the first frames of the stream, decoded.
        packets: the packets after them, up to ``MAX_BUFFER_BYTES``.
        complete: whether frames and packets together are the whole stream.
    """

    def __init__(self) -> None:
        self.frames: list[VideoFrame] = []
        self.packets: list[Packet[VideoStream]] = []
        self.complete = True
        self._num_bytes = 0

    def add(self, packet: Packet[VideoStream]) -> None:
        """Keep one more packet, or drop all of them if they exceed the limit."""
        self._num_bytes += packet.size + _PACKET_BYTES
        if self._num_bytes > MAX_BUFFER_BYTES:
            self.clear()
        if self.complete:
            self.packets.append(packet)

    def clear(self) -> None:
        """Drop everything and stop buffering."""
        self.complete = False
        self.frames = []
        self.packets = []


@dataclass(frozen=True)
class _Scan:
    """First frame, number of frames, timestamps of packets, and positions of keyframes among these."""

    first: VideoFrame
    num_frames: int
    timestamps: list[int]
    keyframes: list[int]


def read_metadata(source: VideoSource) -> VideoInfo:
    """Count the frames and decode the first one.

    In MP4 and Matroska every packet is a frame; frames of other containers are counted by decoding them all.

    Args:
        source: a file, or the bytes of one.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    return read_container_metadata(source).info


def read_container_metadata(source: VideoSource) -> ContainerMetadata:
    """Like ``read_metadata``, plus container details from the same pass.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    with open_stream(source) as (container, stream):
        return scan_container(source, container, stream)


def scan_container(
    source: VideoSource, container: InputContainer, stream: VideoStream, buffer: PacketBuffer | None = None
) -> ContainerMetadata:
    """Like ``read_container_metadata`` for a file that is open, which is read to its end.

    Args:
        source: the file, named in errors.
        container: the open file.
        stream: its video stream.
        buffer: keeps the packets, for decoding the frames afterwards.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    # Demuxing may change these fields, so they are read first.
    declared_frames = stream.frames
    declared_s = _declared_seconds(container, stream)

    scan = _scan_packets(source, container, stream, buffer)
    intervals = [
        end - key for key, end in zip(scan.keyframes, [*scan.keyframes[1:], len(scan.timestamps)], strict=False)
    ]
    durations = {later - earlier for earlier, later in zip(scan.timestamps, scan.timestamps[1:], strict=False)}

    info = stream_info(stream, scan.first, scan.num_frames, scan.timestamps)
    return ContainerMetadata(
        info=info,
        timeline=packet_timeline(stream, info, scan.timestamps),
        orientation=stated_orientation(scan.first) or UPRIGHT,
        formats=frozenset(container.format.name.split(",")),
        num_streams=len(container.streams),
        pixel_format=stream.codec_context.pix_fmt,
        has_b_frames=bool(stream.codec_context.has_b_frames),
        keyframe_interval=max(intervals, default=0),
        is_constant_rate=len(durations) == 1 and min(durations) > 0,
        declared_frames=declared_frames,
        declared_s=declared_s,
    )


def has_timestamps(container: InputContainer) -> bool:
    """Return whether every packet of this container format is a frame with a timestamp."""
    return not {"mov", "matroska"}.isdisjoint(container.format.name.split(","))


def decode_stream(source: VideoSource, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode all frames in presentation order, as they are stored.

    Raises:
        VideoError: at the first packet that does not decode: ``undecodable`` before the first frame, else
            ``truncated``.
    """
    yield from decode_packets(source, container.demux(stream), 0)


def decode_packets(
    source: VideoSource, packets: Iterable[Packet[VideoStream]], num_before: int
) -> Iterator[VideoFrame]:
    """Decode packets in the file's order; ``num_before`` frames were decoded before them.

    Raises:
        VideoError: as ``decode_stream``.
    """
    for packet in packets:
        decoded = decode_packet(source, packet, num_before)
        num_before += len(decoded)
        yield from decoded


def decode_packet(source: VideoSource, packet: Packet[VideoStream], num_before: int) -> list[VideoFrame]:
    """Send one packet to the decoder and return the frames that it completes.

    Raises:
        VideoError: it does not decode; ``truncated`` if frames were decoded before it, else ``undecodable``.
    """
    try:
        return packet.decode()
    except av.error.FFmpegError as error:
        reason: Reason = "truncated" if num_before else "undecodable"
        raise VideoError(reason, source, f"frame {num_before}: {error.strerror}") from error


def _scan_packets(
    source: VideoSource, container: InputContainer, stream: VideoStream, buffer: PacketBuffer | None
) -> _Scan:
    """Read all packets; decode the first frame, or all frames if packets do not say how many there are."""
    count_packets = has_timestamps(container)
    if buffer is not None and not count_packets:
        buffer.clear()  # every frame is decoded for counting, which may be too many to keep

    first: VideoFrame | None = None
    num_frames = 0
    num_packets = 0
    timestamps: list[int] = []
    keyframes: list[int] = []
    for packet in container.demux(stream):
        if first is None or not count_packets:
            decoded = decode_packet(source, packet, num_frames)
            first = first or next(iter(decoded), None)
            num_frames += len(decoded)
            if buffer is not None and buffer.complete:
                buffer.frames += decoded
        elif buffer is not None:
            buffer.add(packet)

        if packet.size and not packet.is_discard:
            num_packets += 1
            if packet.pts is not None:
                if packet.is_keyframe:
                    keyframes.append(len(timestamps))
                timestamps.append(packet.pts)

    if first is None:
        raise VideoError("zero-frames", source, "its video stream holds no frame")
    return _Scan(first, max(num_packets, 1) if count_packets else num_frames, timestamps, keyframes)


def stream_info(stream: VideoStream, first: VideoFrame, num_frames: int, timestamps: list[int]) -> VideoInfo:
    """Metadata of a stream from its first frame, the number of frames, and their timestamps in any order."""
    fps = _average_rate(stream, timestamps)
    orientation = stated_orientation(first) or UPRIGHT
    width, height = (first.height, first.width) if orientation.transposed else (first.width, first.height)
    aspect = float(stream.sample_aspect_ratio or 1)
    return VideoInfo(
        num_frames=num_frames,
        fps=float(fps),
        width=width,
        height=height,
        duration_s=float(num_frames / fps),
        codec=stream.codec_context.codec.canonical_name,
        pixel_aspect=1 / aspect if orientation.transposed else aspect,
    )


def _average_rate(stream: VideoStream, timestamps: list[int]) -> Fraction:
    """Frames per second of the header, unless the timestamps of the frames contradict it."""
    nominal = stream.average_rate or stream.guessed_rate
    span = max(timestamps) - min(timestamps) if timestamps else 0
    if not span or stream.time_base is None:
        return Fraction(nominal) if nominal else Fraction(1)
    measured = (len(timestamps) - 1) / (span * Fraction(stream.time_base))
    if nominal and abs(nominal / measured - 1) < _RATE_TOLERANCE:
        return Fraction(nominal)
    return measured


def packet_timeline(stream: VideoStream, info: VideoInfo, timestamps: list[int]) -> Timeline:
    """Return the times of pictures whose timestamps are known in any order."""
    interval = median_interval(timestamps, stream.time_base) if stream.time_base else None
    if interval is None or stream.time_base is None:
        return Timeline(range(info.num_frames), 1 / exact_rate(info.fps), 1)
    clock = Clock(stream.time_base, interval)
    return Timeline([clock.time(timestamp) for timestamp in sorted(timestamps)], stream.time_base, interval)


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska stores the duration of a stream as a tag.
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / 1_000_000
    return 0.0
