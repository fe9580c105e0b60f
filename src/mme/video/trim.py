"""Trim videos by seconds of the time that the whole video has.

Long files are read from the keyframe before the span to its last frame, if their index says that time goes on with the
file. (Matroska has an entry per keyframe: a step back that is made up for before the next one is not seen.) Where
timestamps do not tell the time, as in joined recordings, the pictures before the span are decoded as well.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mme.system.files import sha256_file
from mme.video.containers import VideoError, VideoSource, open_stream
from mme.video.decoding import PictureDecoder, check_missing, demux
from mme.video.metadata import (
    DEFAULT_RATE,
    ContainerMetadata,
    VideoInfo,
    read_container_metadata,
    stream_info,
    timed_info,
)
from mme.video.timeline import MAX_PAUSE_S, Clock, Timeline, median_interval

TimeSpan = tuple[float, float]
"""Start (inclusive) and end (exclusive) in seconds from the beginning of the video."""

_SEEK_BACK_S = (0.0, 2.0, 20.0, float("inf"))
"""Seconds to seek before the span, tried in turn: some indices lead to a keyframe that is too late.

Where there is no index, the first second after the place has wrong timestamps (MPEG program streams)."""

_INDEXED = frozenset({"avi", "matroska", "mov"})

MAX_SCANNED_BYTES = 16 * 2**20
"""Bytes of a file up to which all its packets are read to find a span: hundredths of a second of work."""

_MAX_REORDER_S = 2.0
"""Most seconds by which a frame of the span may follow its end in the file, if packets have no decoding timestamp."""


@dataclass(frozen=True)
class TrimMetadata:
    """Metadata of a trimmed span.

    Attributes:
        info: number, average rate and size of the pictures in the span.
        interval: usual ticks from one picture to the next.
        missing_s: seconds by which the file ends before the span does.
        sha256: digest of the coded pictures that were read, and of which of them are shown.
    """

    info: VideoInfo
    interval: int
    missing_s: float
    sha256: str


def read_trim_metadata(source: VideoSource, span_s: TimeSpan) -> TrimMetadata:
    """Read the packets of a span and decode one picture of it.

    Raises:
        VideoError: the span has no picture, or the file cannot be read or has no timestamps.
    """
    with open_stream(source) as (container, stream):
        return open_span(source, container, stream, span_s).metadata


def open_span(
    source: VideoSource, container: InputContainer, stream: VideoStream, span_s: TimeSpan
) -> TrimmedPictures | DecodedSpan:
    """Return the pictures of a span of an open file.

    The packets of all but long files with an index are read first, to see whether their timestamps tell the time.

    Raises:
        VideoError: as ``read_trim_metadata``.
    """
    whole: ContainerMetadata | None = None
    if not _is_long_with_index(source, container, stream):
        whole = read_container_metadata(source)
        # FFmpeg numbers the pictures of bare streams anew from each place that is sought.
        has_times = not container.format.flags & Flags.no_timestamps.value  # type: ignore[operator]
        if not has_times or not whole.pictures.tell_seconds:
            return DecodedSpan(source, span_s, whole)
    try:
        return TrimmedPictures(source, container, stream, span_s, whole.pictures.expected()[0] if whole else None)
    except _UntimedError:
        return DecodedSpan(source, span_s, whole or read_container_metadata(source))


def _is_long_with_index(source: VideoSource, container: InputContainer, stream: VideoStream) -> bool:
    """Return whether a file is so long that its packets are not all read, and has an index that tells the time."""
    formats = _INDEXED.intersection(container.format.name.split(","))
    # AVI has decoding timestamps only.
    if isinstance(source, bytes) or not formats or ("avi" in formats and stream.codec_context.has_b_frames):
        return False
    found = os.stat(source)
    return found.st_size > MAX_SCANNED_BYTES and _index_tells_seconds(source, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)  # a worker cuts many clips out of one file
def _index_tells_seconds(path: Path, num_bytes: int, _time: int) -> bool:
    """Return whether the index of a file reaches from its first picture to its end and never steps back."""
    with open_stream(path) as (container, stream):
        begin = stream.start_time or 0
        try:
            container.seek(begin, stream=stream)  # before it, the index of a Matroska file is not read
        except av.error.FFmpegError:  # AVI without an index
            return False
        places = [(entry.timestamp, entry.pos) for entry in stream.index_entries]
        first_key = next((entry.timestamp for entry in stream.index_entries if entry.is_keyframe), None)
    if first_key is None or first_key > begin:  # what comes before it does not decode
        return False
    ascends = all(earlier[0] <= later[0] and earlier[1] <= later[1] for earlier, later in itertools.pairwise(places))
    return ascends and num_bytes - places[-1][1] <= MAX_SCANNED_BYTES


class _UntimedError(Exception):
    """Timestamps do not find a span: they leap or step back within or beside it, or no place can be sought."""


class TrimmedPictures:
    """A pass over the pictures of a span that timestamps find, of which as many as can decode.

    Attributes:
        metadata: of the span.
        time_base: seconds per tick.
    """

    def __init__(
        self,
        source: VideoSource,
        container: InputContainer,
        stream: VideoStream,
        span_s: TimeSpan,
        origin: int | None = None,
    ) -> None:
        """Read the packets of the span.

        Args:
            source: the file, named in errors.
            container: the open file.
            stream: its video stream.
            span_s: the span.
            origin: timestamp of the first picture of the file; None is what its header says.

        Raises:
            VideoError: as ``read_trim_metadata``.
        """
        self._source, self._container, self._stream, self._span_s = source, container, stream, span_s
        self._origin = stream.start_time or 0 if origin is None else origin
        start, end = (_to_ticks(source, stream, second, self._origin) for second in span_s)
        self._scale = math.lcm(start.denominator, end.denominator)  # ticks of an AVI are as long as its pictures
        self._start, self._end = int(start * self._scale), int(end * self._scale)
        self.time_base = Fraction(stream.time_base or 1) / self._scale
        self._goes_on = False
        self._in_decoding_order = container.format.name == "avi" and not stream.codec_context.has_b_frames
        self.metadata = self._read_metadata()
        self._interval = self.metadata.interval
        self._decoder = PictureDecoder(stream)
        self._stamps: set[int | None] = set()
        self._late = 0
        self._last = 0

    def _read_metadata(self) -> TrimMetadata:
        source, stream, span_s = self._source, self._stream, self._span_s
        nominal = stream.average_rate or stream.guessed_rate
        digest = hashlib.sha256()
        timestamps: list[int] = []
        is_on_screen = False
        first: VideoFrame | None = None
        decoder = PictureDecoder(stream)
        for packet in self._packets():
            first = first or next(iter(decoder.decode(packet)), None)
            digest.update(bytes(packet))
            stamp = self._ticks(packet)
            is_on_screen = is_on_screen or (stamp is not None and stamp < self._start)
            if stamp is not None and self._start <= stamp < self._end:
                timestamps.append(stamp)
        first = first or next(iter(decoder.flush()), None)

        if not timestamps and is_on_screen and self._goes_on:  # a picture is held over the whole span
            timestamps = [self._start]
        if not timestamps:
            raise VideoError("truncated", source, f"no frame between {span_s[0]:g} and {span_s[1]:g} s")
        if first is None:
            raise decoder.no_picture(source)
        timestamps.sort()
        shown = [timestamp - timestamps[0] for timestamp in timestamps]
        digest.update(repr([time // self._scale for time in shown]).encode())
        interval = median_interval(shown, self.time_base)
        if interval is None:
            interval = max(1, round(1 / (Fraction(nominal or DEFAULT_RATE) * self.time_base)))
        timeline = Timeline(shown, self.time_base, interval)
        lacking = 0 if self._goes_on else max(0, self._end - timestamps[-1] - interval)
        info = stream_info(stream, first, timeline, nominal)
        return TrimMetadata(info, interval, float(lacking * self.time_base), digest.hexdigest())

    def pictures(self) -> Iterator[tuple[VideoFrame, int]]:
        """Decode pictures and yield them with their times in ticks; the one on screen at the start is at 0."""
        self._decoder.jump()
        clock = Clock(self.time_base, self._interval)
        for picture in self._decoder.pictures(self._packets()):
            self._stamps.add(picture.pts)
            stamp = self._ticks(picture)
            if stamp is not None and stamp >= self._end:
                return
            stamp = None if stamp is None else max(stamp, self._start)
            if len(self._stamps) == 1 and stamp is not None:
                self._late = stamp - self._start
            self._last = clock.time(stamp)
            yield picture, self._last

    def _ticks(self, item: Packet[VideoStream] | VideoFrame) -> int | None:
        """Return the time of a packet or picture. FFmpeg adds one picture to those of H.264 in AVI, which has none."""
        stamp = item.dts if self._in_decoding_order else item.pts
        return None if stamp is None else stamp * self._scale

    def num_frames(self, fps: Fraction) -> int:
        """Return the number of pictures of the span at a constant rate, once all were decoded.

        Raises:
            VideoError: no picture decodes, or too much of the span has none.
        """
        if not self._stamps:
            raise self._decoder.no_picture(self._source)
        length = self._end - self._start
        covered = length - self._late if self._goes_on else min(self._last + self._interval, length - self._late)
        num_missing = sum(stamp is None or stamp not in self._stamps for stamp in self._decoder.failed)
        missing = length - covered + num_missing * self._interval
        tick = float(self.time_base)
        check_missing(
            self._source, missing * tick, length * tick, self._interval * tick, self._decoder.fault, self._where
        )
        return max(1, math.floor(covered * self.time_base * fps + Fraction(1, 2)))

    def expected_frames(self, fps: Fraction) -> int:
        """Return the number of pictures of the span at a constant rate if all of them decode.

        Raises:
            VideoError: the file ends too early.
        """
        length_s, interval_s = self._span_s[1] - self._span_s[0], float(self._interval * self.time_base)
        missing_s = self.metadata.missing_s
        check_missing(self._source, missing_s, length_s, interval_s, None, self._where)
        return max(1, math.floor((length_s - missing_s) * fps + Fraction(1, 2)))

    @property
    def _where(self) -> str:
        return f" between {self._span_s[0]:g} and {self._span_s[1]:g} s"

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets from the last keyframe before the span to its last picture."""
        latest = decoded_at = None
        pause = MAX_PAUSE_S / (self.time_base * self._scale)
        for packet in _packets_from(self._source, self._container, self._stream, (self._span_s[0], self._origin)):
            if packet.dts is not None:
                if decoded_at is not None and packet.dts < decoded_at:
                    raise _UntimedError
                decoded_at = packet.dts
            if packet.pts is not None:
                if latest is not None and packet.pts - latest > pause:
                    raise _UntimedError
                latest = packet.pts if latest is None else max(latest, packet.pts)
            if _is_past(packet, self._end / self._scale, _MAX_REORDER_S / self.time_base / self._scale):
                self._goes_on = True
                return
            yield packet


class DecodedSpan:
    """As ``TrimmedPictures``, of a file whose timestamps do not tell the time: decoded from its beginning."""

    def __init__(self, source: VideoSource, span_s: TimeSpan, whole: ContainerMetadata) -> None:
        """Decode the file up to the end of the span.

        Args:
            source: the file.
            span_s: the span.
            whole: metadata of the file.

        Raises:
            VideoError: as ``read_trim_metadata``.
        """
        self._source, self._span_s, self._coded = source, span_s, whole.pictures
        start, end = (Fraction(second).limit_denominator(1000) / self._coded.time_base for second in span_s)
        self._scale = math.lcm(start.denominator, end.denominator)
        self._start, self._end = int(start * self._scale), int(end * self._scale)
        self.time_base = self._coded.time_base / self._scale
        self._interval = self._coded.interval * self._scale
        self._covered = self._num_failed = 0
        self._fault: str | None = None

        shown = [time for _, time in self.pictures() if time is not None]
        if self._covered <= 0:
            raise VideoError("truncated", source, f"no frame between {span_s[0]:g} and {span_s[1]:g} s")
        content = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_file(source)
        timeline = Timeline(shown, self.time_base, self._interval)
        self.metadata = TrimMetadata(
            timed_info(whole.info, timeline, whole.info.fps),
            self._interval,
            float((self._end - self._start - self._covered) * self.time_base),
            hashlib.sha256(f"{content} {self._start} {self._end} {self.time_base}".encode()).hexdigest(),
        )

    def pictures(self) -> Iterator[tuple[VideoFrame, int]]:
        """As ``TrimmedPictures.pictures``."""
        clock = Clock(self._coded.time_base, self._coded.interval)
        on_screen: VideoFrame | None = None
        num_failed_before = 0
        with open_stream(self._source) as (container, stream):
            decoder = PictureDecoder(stream)
            time = 0
            for picture in decoder.pictures(demux(container, stream)):
                time = clock.time(self._coded.timestamp(picture)) * self._scale
                if time <= self._start:
                    on_screen, num_failed_before = picture, len(decoder.failed)
                    continue
                if on_screen is not None:
                    yield on_screen, 0
                    on_screen = None
                if time >= self._end:
                    break
                yield picture, time - self._start
            if on_screen is not None:
                yield on_screen, 0
            self._covered = min(self._end, time + self._interval) - self._start
            self._num_failed, self._fault = len(decoder.failed) - num_failed_before, decoder.fault

    def num_frames(self, fps: Fraction) -> int:
        """As ``TrimmedPictures.num_frames``."""
        length, tick = self._end - self._start, float(self.time_base)
        missing = length - self._covered + self._num_failed * self._interval
        where = f" between {self._span_s[0]:g} and {self._span_s[1]:g} s"
        check_missing(self._source, missing * tick, length * tick, self._interval * tick, self._fault, where)
        return max(1, math.floor(self._covered * self.time_base * fps + Fraction(1, 2)))

    expected_frames = num_frames


def _packets_from(
    source: VideoSource, container: InputContainer, stream: VideoStream, place: tuple[float, int]
) -> Iterator[Packet[VideoStream]]:
    """Packets from the last keyframe before a place on: seconds, and the timestamp from which they are counted."""
    second, origin = place
    has_index = not _INDEXED.isdisjoint(container.format.name.split(","))
    for back_s in _SEEK_BACK_S if has_index else _SEEK_BACK_S[1:]:
        begin_s = max(second - back_s, 0.0)
        begin = math.floor(_to_ticks(source, stream, begin_s, origin))
        try:
            if begin_s == 0:
                _seek_to_beginning(container, stream, min(begin, stream.start_time or begin))
            else:
                container.seek(begin, stream=stream, backward=True)
        except av.error.FFmpegError as error:
            raise _UntimedError from error
        packets = demux(container, stream)
        first = next(packets, None)
        if first is None:
            continue
        if first.pts is None and first.dts is None:
            raise VideoError("undecodable", source, "its frames have no timestamps and cannot be trimmed")
        if begin_s == 0 or (first.pts is not None and first.pts <= _to_ticks(source, stream, second, origin)):
            yield first
            yield from packets
            return


def _seek_to_beginning(container: InputContainer, stream: VideoStream, begin: int) -> None:
    """Go to the first packet, which may be decoded before its time; some formats take no time before the first one."""
    earlier = begin - math.ceil(_MAX_REORDER_S / Fraction(stream.time_base or 1))
    try:
        container.seek(earlier, stream=stream, backward=True)
    except av.error.FFmpegError:
        container.seek(begin, stream=stream, backward=True)


def _is_past(packet: Packet[VideoStream], end: float, max_reorder: float) -> bool:
    """Return whether this packet and all later ones are shown at ``end`` or after: none is decoded after its time."""
    if packet.dts is not None:
        return packet.dts >= end
    return packet.pts is not None and packet.pts >= end + max_reorder


def _to_ticks(source: VideoSource, stream: VideoStream, second: float, origin: int) -> Fraction:
    if stream.time_base is None:
        raise VideoError("undecodable", source, "its frames have no timestamps and cannot be trimmed")
    return Fraction(second).limit_denominator(1000) / stream.time_base + origin
