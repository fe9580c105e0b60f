"""Metadata of video files: times of the coded pictures, rate, size and container details, with one decoded picture."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mme.video.containers import VideoError, VideoSource, open_stream
from mme.video.decoding import PictureDecoder, demux, is_shown
from mme.video.orientation import UPRIGHT, Orientation, stated_orientation
from mme.video.timeline import Clock, Timeline, fault_of_clock, median_interval

MAX_BUFFER_BYTES = 16 * 2**20
"""Most bytes of packets that a `PacketBuffer` keeps. A larger file is read a second time, so that memory does not grow
with its length."""

MAX_ASPECT = 64
"""Longest side over the shortest one, as shown. The normal form of a longer strip is wider than x264 takes, and no
square of it shows anything."""

PICTURE_FORMATS = frozenset({"apng", "gif", "mjpeg", "mpjpeg"})
"""Formats that hold a photo if they hold one picture."""

_PACKET_BYTES = 1024
"""Approximate memory of a packet beside its content: a hostile file may consist of empty packets."""

_RATE_TOLERANCE = 0.02
"""Relative difference below which two frame rates are equal: timestamps are rounded."""

DEFAULT_RATE = Fraction(25)
"""Frames per second of a file that has neither timestamps nor a rate, as FFmpeg assumes."""


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of the decoded video.

    Attributes:
        num_frames: pictures that decode; where not all were decoded, those that should.
        fps: frames per second; the average if the rate varies.
        width: pixels of the upright picture.
        height: pixels of the upright picture.
        duration_s: seconds from the first picture to the end of the last one, see ``Timeline``.
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
class CodedPictures:
    """The coded pictures of a file in its order, one per packet.

    Attributes:
        timestamps: time of each in ticks; None where the file does not say.
        shown: whether it is a picture that is shown.
        keyframes: whether decoding can begin with it.
        start: timestamp of the first picture that decodes; None if it is known only later than its packet.
        time_base: seconds per tick.
        interval: usual ticks from one picture to the next.
        timed: whether pictures have timestamps; those of other files come one per tick.
        in_decoding_order: whether timestamps are those of decoding: AVI has no others.
        last_duration: ticks for which the last picture is shown by its own account; 0 if unknown.
        starts_anew: whether the clock does, as where recordings were joined.
    """

    timestamps: list[int | None]
    shown: list[bool]
    keyframes: list[bool]
    start: int | None
    time_base: Fraction
    interval: int
    timed: bool
    in_decoding_order: bool
    last_duration: int
    starts_anew: bool = False

    def timestamp(self, frame: VideoFrame) -> int | None:
        """Return the timestamp of a decoded picture."""
        if not self.timed:
            return None
        return frame.dts if self.in_decoding_order else frame.pts

    def expected(self) -> list[int]:
        """Return the timestamps of the pictures from the first one that decodes on, ascending."""
        pairs = zip(self.timestamps, self.shown, strict=True)
        return sorted(
            stamp
            for stamp, shown in pairs
            if shown and stamp is not None and (self.start is None or stamp >= self.start)
        )

    def timeline(self) -> Timeline:
        """Return the times of the pictures from the first one that decodes on, if all of them do."""
        if not self.timed:
            return Timeline(range(max(1, len(self.timestamps))), self.time_base, 1)
        clock = Clock(self.time_base, self.interval)
        times = [clock.time(stamp) for stamp in self.expected()] or [0]
        return Timeline(times, self.time_base, self.interval, self.last_duration)

    @property
    def are_predictable(self) -> bool:
        """Return whether times are known without decoding: all are there, and the clock never starts anew."""
        if self.start is None or self.starts_anew or None in self.timestamps:
            return False
        stamps = [stamp for stamp in self.timestamps if stamp is not None]
        latest = itertools.accumulate(stamps, max)
        back = max((most - stamp for stamp, most in zip(stamps, latest, strict=True)), default=0)
        return back * self.time_base < 1

    @property
    def tell_seconds(self) -> bool:
        """Return whether timestamps are the times of pictures, but for a constant: the clock never leaps."""
        stamps, times = self.expected(), self.timeline().times
        return self.are_predictable and [stamp - stamps[0] for stamp in stamps] == list(times)


@dataclass(frozen=True)
class ContainerMetadata:
    """Metadata of the container and of the coded stream.

    Attributes:
        info: metadata of the decoded video.
        orientation: how decoded frames are turned and mirrored to be upright.
        pictures: the coded pictures.
        timeline: times of the pictures from the first one that decodes, if all others do.
        formats: FFmpeg's names of the container format.
        num_streams: number of streams: video, sound and others.
        pixel_format: FFmpeg's name of it.
        has_b_frames: whether frames are stored in another order than they are shown in.
        keyframe_interval: longest distance in frames from one keyframe to the next, or to the end.
        is_constant_rate: whether all frames have the same duration.
        missing_s: seconds by which the file ends earlier than its header says.
    """

    info: VideoInfo
    orientation: Orientation
    pictures: CodedPictures
    timeline: Timeline
    formats: frozenset[str]
    num_streams: int
    pixel_format: str | None
    has_b_frames: bool
    keyframe_interval: int
    is_constant_rate: bool
    missing_s: float


class PacketBuffer:
    """Packets read while scanning a file, kept for decoding them without reading the file again.

    Attributes:
        packets: the packets, up to ``MAX_BUFFER_BYTES``.
        complete: whether they are the whole stream.
    """

    def __init__(self) -> None:
        self.packets: list[Packet[VideoStream]] = []
        self.complete = True
        self._num_bytes = 0

    def add(self, packet: Packet[VideoStream]) -> None:
        """Keep one more packet, or drop all of them if they exceed the limit."""
        self._num_bytes += packet.size + _PACKET_BYTES
        if self._num_bytes > MAX_BUFFER_BYTES:
            self.complete = False
            self.packets = []
        if self.complete:
            self.packets.append(packet)


def read_container_metadata(source: VideoSource) -> ContainerMetadata:
    """Read the packets of a file, and decode its first picture.

    Args:
        source: a file, or the bytes of one.

    Raises:
        VideoError: with the reason, if no picture can be decoded.
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
        buffer: keeps the packets, for decoding them afterwards.

    Raises:
        VideoError: with the reason, if no picture can be decoded.
    """
    formats = frozenset(container.format.name.split(","))
    # Demuxing may change these fields, so they are read first.
    declared_s = _declared_seconds(source, container, stream, formats)
    nominal = stream.average_rate or stream.guessed_rate

    pictures, first = _scan_packets(source, container, stream, buffer)
    shown = [
        stamp
        for stamp, is_shown in zip(pictures.timestamps, pictures.shown, strict=True)
        if is_shown and stamp is not None
    ]
    steps = {later - earlier for earlier, later in itertools.pairwise(shown)}
    keys = [number for number, key in enumerate(pictures.keyframes) if key]
    covered_s = 0.0
    if shown:  # a header counts from the first picture or, in Matroska, from zero
        last = max(shown) + max(pictures.last_duration, pictures.interval)
        covered_s = float((last - min(0, *shown) if "matroska" in formats else last - min(shown)) * pictures.time_base)

    if len(pictures.timestamps) == 1 and not formats.isdisjoint(PICTURE_FORMATS):
        raise VideoError("not-a-video", source, "a still photo")
    timeline = pictures.timeline()
    info = stream_info(stream, first, timeline, nominal)
    shown_width = info.width * info.pixel_aspect
    if max(shown_width, info.height) > MAX_ASPECT * min(shown_width, info.height):
        stretched = "" if info.pixel_aspect == 1 else f" that are {info.pixel_aspect:g} times as wide as high"
        size = f"{info.width} x {info.height} pixels{stretched}"
        raise VideoError("too-large", source, f"{size}: one side is more than {MAX_ASPECT} times the other")
    return ContainerMetadata(
        info=info,
        orientation=stated_orientation(first) or UPRIGHT,
        pictures=pictures,
        timeline=timeline,
        formats=formats,
        num_streams=len(container.streams),
        pixel_format=stream.codec_context.pix_fmt,
        has_b_frames=bool(stream.codec_context.has_b_frames),
        keyframe_interval=max((end - key for key, end in itertools.pairwise([*keys, len(shown)])), default=0),
        is_constant_rate=all(pictures.shown) and None not in pictures.timestamps and len(steps) == 1 and min(steps) > 0,
        missing_s=max(0.0, declared_s - covered_s) if covered_s else 0.0,
    )


def _scan_packets(
    source: VideoSource, container: InputContainer, stream: VideoStream, buffer: PacketBuffer | None
) -> tuple[CodedPictures, VideoFrame]:
    """Read all packets, and decode the first picture."""
    avi = container.format.name == "avi"
    decoder = PictureDecoder(stream)
    first: VideoFrame | None = None
    timestamps: list[int | None] = []
    shown: list[bool] = []
    keyframes: list[bool] = []
    last, last_duration = None, 0
    decoded_at: int | None = None
    starts_anew = False
    for packet in demux(container, stream):
        first = first or next(iter(decoder.decode(packet)), None)
        if buffer is not None:
            buffer.add(packet)
        stamp = packet.dts if avi else packet.pts
        if packet.dts is not None:
            starts_anew = starts_anew or (decoded_at is not None and packet.dts < decoded_at)
            decoded_at = packet.dts
        timestamps.append(stamp)
        shown.append(is_shown(stream, packet))
        keyframes.append(packet.is_keyframe)
        if shown[-1] and stamp is not None and (last is None or stamp >= last):
            last, last_duration = stamp, packet.duration or 0
    first = first or next(iter(decoder.flush()), None)
    if first is None:
        raise decoder.no_picture(source)

    nominal = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
    time_base = Fraction(stream.time_base) if stream.time_base else 1 / nominal
    stamps = [stamp for stamp, is_one in zip(timestamps, shown, strict=True) if is_one and stamp is not None]
    if not stamps:  # a bare stream: the average rate is FFmpeg's assumption, the guessed one that of the codec's header
        nominal = Fraction(stream.guessed_rate or nominal)
        return CodedPictures(timestamps, shown, keyframes, None, 1 / nominal, 1, False, avi, 0), first
    fault = fault_of_clock(stamps, time_base)
    if fault is not None:
        raise VideoError("undecodable", source, fault)
    interval = median_interval(stamps, time_base) or max(1, round(1 / (nominal * time_base)))
    start = first.pts if not avi else None if stream.codec_context.has_b_frames else first.dts
    pictures = CodedPictures(
        timestamps, shown, keyframes, start, time_base, interval, True, avi, last_duration, starts_anew
    )
    return pictures, first


def stream_info(stream: VideoStream, first: VideoFrame, timeline: Timeline, nominal: Fraction | None) -> VideoInfo:
    """Metadata of a stream from its first picture, the times of all, and the rate that the header declares."""
    orientation = stated_orientation(first) or UPRIGHT
    width, height = (first.height, first.width) if orientation.transposed else (first.width, first.height)
    aspect = float(stream.sample_aspect_ratio or 1)
    info = VideoInfo(
        num_frames=0,
        fps=0.0,
        width=width,
        height=height,
        duration_s=0.0,
        codec=stream.codec_context.codec.canonical_name,
        pixel_aspect=1 / aspect if orientation.transposed else aspect,
    )
    return timed_info(info, timeline, nominal)


def timed_info(info: VideoInfo, timeline: Timeline, nominal: Fraction | float | None) -> VideoInfo:
    """Return metadata with the number, average rate and duration of these pictures.

    The rate is that of the header, unless the timestamps of the pictures contradict it.
    """
    fps = Fraction(nominal) if nominal else DEFAULT_RATE
    if timeline.times[-1]:
        measured = (len(timeline.times) - 1) / (timeline.times[-1] * timeline.time_base)
        fps = fps if nominal and abs(fps / measured - 1) < _RATE_TOLERANCE else measured
    return replace(info, num_frames=len(timeline.times), fps=float(fps), duration_s=float(timeline.duration_s))


def _declared_seconds(
    source: VideoSource, container: InputContainer, stream: VideoStream, formats: frozenset[str]
) -> float:
    """Return the duration in the header; 0 if it has none, or one that says nothing of what is missing.

    FFmpeg estimates that of other containers from their content. In Matroska, a last picture that is held makes the
    file longer than its blocks say, so only a file that lacks bytes as well is too short.
    """
    if formats.isdisjoint({"mov", "matroska", "avi", "asf", "flv"}) or (
        "matroska" in formats and not _lacks_bytes(source)
    ):
        return 0.0
    if "avi" in formats and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska stores the duration of a stream as a tag.
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if clock:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / 1_000_000
    return 0.0


def _lacks_bytes(source: VideoSource) -> bool:
    """Return whether the segment of a Matroska file is longer than the file."""
    if isinstance(source, bytes):
        head, size = source[:4096], len(source)
    else:
        with open(source, "rb") as file:
            head, size = file.read(4096), Path(source).stat().st_size
    position = 0
    for identifier in (b"\x1aE\xdf\xa3", b"\x18S\x80g"):  # EBML header, segment
        position = head.find(identifier, position)
        if position < 0 or position + 5 > len(head) or not head[position + 4]:
            return False
        width = 9 - head[position + 4].bit_length()
        coded = int.from_bytes(head[position + 4 : position + 4 + width], "big")
        length = coded & ((1 << 7 * width) - 1)
        position += 4 + width
        if identifier == b"\x18S\x80g":
            return length != (1 << 7 * width) - 1 and position + length > size  # all ones: unknown, written live
        position += length
    return False
