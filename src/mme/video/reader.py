"""Read videos by time: pictures at a constant rate from files of any rate, of what decodes in them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.video.codec import RgbConverter, RgbFrames
from mme.video.containers import VideoError, VideoSource, open_stream, out_of_memory, source_name
from mme.video.crop import resize
from mme.video.decoding import PictureDecoder, check_missing, demux
from mme.video.metadata import (
    CodedPictures,
    ContainerMetadata,
    PacketBuffer,
    VideoInfo,
    read_container_metadata,
    scan_container,
    timed_info,
)
from mme.video.timeline import Clock, Instants, Timeline, exact_rate
from mme.video.trim import TimeSpan, TrimmedPictures

CheckSize = Callable[[int, int], None]
"""Callback that validates the declared width and height; raises ``VideoError`` if they are too large."""

MAX_CHECKED_PIXELS = 64_000_000
"""Pixels up to which a file is decoded whole on opening, as ingest does, so that both find the same damage: half a
second of work. Of a longer file only what is asked for is decoded, unless that shows damage."""


class OpenVideo:
    """An open file whose metadata is known and whose pictures can be read.

    Attributes:
        source: the file, or its bytes.
        info: its metadata.
        opened_s: time of opening, by ``time.perf_counter``.
    """

    def __init__(
        self,
        source: VideoSource,
        stream: VideoStream,
        metadata: ContainerMetadata,
        buffer: PacketBuffer,
        opened_s: float,
    ) -> None:
        self.source = source
        self.info = metadata.info
        self.opened_s = opened_s
        self._stream = stream
        self._metadata = metadata
        self._buffer = buffer
        self._timeline = metadata.timeline
        self._kept: list[VideoFrame] | None = None
        self._is_whole = False
        if not metadata.pictures.are_predictable or self._num_pixels <= MAX_CHECKED_PIXELS:
            self._decode_whole()
        else:
            check_end(source, metadata)

    @property
    def _num_pixels(self) -> int:
        return self.info.width * self.info.height * len(self._metadata.pictures.timestamps)

    def num_frames(self, fps: float) -> int:
        """Return the number of pictures of this video at a constant rate."""
        return self._timeline.num_frames(fps)

    def read(self, indices: Sequence[int], fps: float) -> RgbFrames:
        """Read pictures by their position in this video at a constant rate; see ``mme.video.timeline``.

        Args:
            indices: positions in any order; beyond the end, the last picture stays on screen.
            fps: the rate.

        Returns:
            Upright RGB frames of the size of the first picture, one per index.

        Raises:
            VideoError: too much of the file does not decode.
        """
        with errors_of_file(self.source):
            if not self._is_whole:
                frames = self._read_sparse(self._timeline.positions(indices, fps))
                if frames is not None:
                    return frames
                self._decode_whole()
            positions = self._timeline.positions(indices, fps)
            wanted = set(positions)
            frame_of: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
            converter = RgbConverter(self._metadata.orientation)
            for position, picture in enumerate(self._all_pictures()):
                if position in wanted:
                    frame_of[position] = self._upright(converter, picture)
                    if len(frame_of) == len(wanted):
                        break
                else:
                    converter.skip(picture)
            return np.stack([frame_of[position] for position in positions])

    def frames(self, fps: float) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Decode the whole video at a constant rate, in order, one by one: memory does not grow with its length.

        Yields:
            Upright RGB frames of the size of the first picture.

        Raises:
            VideoError: too much of the file does not decode, which may be known at its end only.
        """
        instants = Instants(exact_rate(fps), self._timeline.time_base, self._timeline.interval)
        with errors_of_file(self.source):
            if self._kept is not None:
                kept = zip(self._kept, self._timeline.times, strict=True)
                yield from hold(kept, instants, lambda: self.num_frames(fps))
                return
            check = _Check(self.source, self._metadata)
            with self._packets() as (stream, packets):
                yield from hold(check.pictures(stream, packets), instants, lambda: check.num_frames(instants.fps))

    def _decode_whole(self) -> None:
        """Decode all pictures for their times, and keep them if they are few."""
        kept: list[VideoFrame] | None = [] if self._num_pixels <= MAX_CHECKED_PIXELS else None
        check = _Check(self.source, self._metadata)
        num_pixels = 0
        for picture in self._decode(check):
            num_pixels += picture.width * picture.height
            if kept is not None and num_pixels <= MAX_CHECKED_PIXELS:
                kept.append(picture)
            else:
                kept = None
        self._timeline = check.finish()
        self._kept = kept
        self._is_whole = True
        self.info = timed_info(self.info, self._timeline, self.info.fps)

    def _all_pictures(self) -> Iterable[VideoFrame]:
        return self._decode(_Check(self.source, self._metadata)) if self._kept is None else self._kept

    def _decode(self, check: _Check) -> Iterator[VideoFrame]:
        with self._packets() as (stream, packets):
            for picture, _ in check.pictures(stream, packets):
                yield picture

    @contextmanager
    def _packets(self) -> Iterator[tuple[VideoStream, Iterator[Packet[VideoStream]]]]:
        """Yield a stream that decodes from its beginning, and its packets: those kept, or read once more."""
        if self._buffer.complete:
            self._stream.codec_context.flush_buffers()
            yield self._stream, iter(self._buffer.packets)
        else:
            with open_stream(self.source) as (container, stream):
                yield stream, demux(container, stream)

    def _read_sparse(self, positions: Sequence[int]) -> RgbFrames | None:
        """Decode the pictures at some positions from the keyframe before each; None if one of them does not decode."""
        pictures = self._metadata.pictures
        expected = pictures.expected()
        keys = sorted(
            (stamp, number)
            for number, (stamp, key) in enumerate(zip(pictures.timestamps, pictures.keyframes, strict=True))
            if key and stamp is not None
        )
        frame_of: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
        converter = RgbConverter(self._metadata.orientation)
        with self._packets() as (stream, packets):
            reader = _SparseReader(pictures, stream, packets)
            for position in sorted(set(positions)):
                key = bisect_right(keys, (expected[position], len(pictures.timestamps)))
                picture = reader.picture_at(expected[position], keys[key - 1][1] if key else 0)
                if picture is None:
                    return None
                frame_of[position] = self._upright(converter, picture)
        return np.stack([frame_of[position] for position in positions])

    def _upright(self, converter: RgbConverter, picture: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        rgb = converter.to_rgb(picture)
        upright: UInt8[np.ndarray, "H W 3"] = resize(rgb[None], self.info.height, self.info.width)[0]
        return upright


class _SparseReader:
    """Reader of single pictures, by ascending times, that decodes no more than the groups that they are in."""

    def __init__(self, pictures: CodedPictures, stream: VideoStream, packets: Iterator[Packet[VideoStream]]) -> None:
        self._pictures = pictures
        self._decoder = PictureDecoder(stream)
        self._packets = packets
        self._num_read = 0
        self._decoded: deque[VideoFrame] = deque()
        self._on_screen: VideoFrame | None = None
        self._at_end = False

    def picture_at(self, timestamp: int, key: int) -> VideoFrame | None:
        """Return the picture on screen at a timestamp, decoding from packet ``key`` on; None if there is damage."""
        if key > self._num_read:
            for _ in range(key - self._num_read):
                next(self._packets, None)
            self._num_read = key
            self._decoder.jump()
            self._decoded.clear()
            self._on_screen = None
        while True:
            while self._decoded:
                stamp = self._pictures.timestamp(self._decoded[0])
                if stamp is None:
                    return None
                if stamp > timestamp:
                    return self._sound(self._on_screen)
                self._on_screen = self._decoded.popleft()
                if stamp == timestamp:
                    return self._sound(self._on_screen)
            if self._at_end:
                return self._sound(self._on_screen)
            packet = next(self._packets, None)
            self._num_read += 1
            self._at_end = packet is None
            self._decoded += self._decoder.flush() if packet is None else self._decoder.decode(packet)

    def _sound(self, picture: VideoFrame | None) -> VideoFrame | None:
        return picture if self._decoder.fault is None else None


class _Check:
    """A pass over all pictures of a file, which finds their times and what is missing."""

    def __init__(self, source: VideoSource, metadata: ContainerMetadata) -> None:
        self._source = source
        self._metadata = metadata
        self._pictures = metadata.pictures
        self._times: list[int] = []
        self._stamps: set[int | None] = set()
        self._last_duration = 0
        self._decoder: PictureDecoder | None = None

    def pictures(self, stream: VideoStream, packets: Iterable[Packet[VideoStream]]) -> Iterator[tuple[VideoFrame, int]]:
        """Decode pictures and yield them with their times in ticks."""
        decoder = self._decoder = PictureDecoder(stream)
        clock = Clock(self._pictures.time_base, self._pictures.interval)
        for picture in decoder.pictures(packets):
            stamp = self._pictures.timestamp(picture)
            self._stamps.add(stamp)
            self._times.append(clock.time(stamp))
            self._last_duration = picture.duration or 0 if self._pictures.timed else 0
            yield picture, self._times[-1]

    @property
    def is_flawless(self) -> bool:
        """Return whether every packet gave its picture."""
        return (
            self._decoder is not None
            and self._decoder.fault is None
            and len(self._times) == len(self._pictures.timestamps)
        )

    def num_frames(self, fps: Fraction) -> int:
        """Return the number of pictures of this video at a constant rate; as ``finish``."""
        return self.finish().num_frames(fps)

    def finish(self) -> Timeline:
        """Return the times of all pictures.

        Raises:
            VideoError: no picture decodes, or too many are missing.
        """
        assert self._decoder is not None
        if not self._times:
            raise self._decoder.no_picture(self._source)
        pictures = self._pictures
        timeline = Timeline(self._times, pictures.time_base, pictures.interval, self._last_duration)
        num_missing = sum(stamp is None or stamp not in self._stamps for stamp in self._decoder.failed)
        interval_s = float(pictures.interval * pictures.time_base)
        missing_s = self._metadata.missing_s + num_missing * interval_s
        total_s = max(float(timeline.duration_s), self._metadata.info.duration_s) + self._metadata.missing_s
        check_missing(self._source, missing_s, total_s, interval_s, self._decoder.fault)
        return timeline


def check_decodes(source: VideoSource, metadata: ContainerMetadata) -> tuple[Timeline, bool]:
    """Decode a whole file; return the times of its pictures, and whether every packet gave one.

    Raises:
        VideoError: too much of it does not decode.
    """
    with errors_of_file(source), open_stream(source) as (container, stream):
        check = _Check(source, metadata)
        for _ in check.pictures(stream, demux(container, stream)):
            pass
        return check.finish(), check.is_flawless


def check_end(source: VideoSource, metadata: ContainerMetadata) -> None:
    """Compare the end of a file with its header, without decoding.

    Raises:
        VideoError: it ends too early.
    """
    total_s = metadata.info.duration_s + metadata.missing_s
    interval_s = float(metadata.pictures.interval * metadata.pictures.time_base)
    check_missing(source, metadata.missing_s, total_s, interval_s, None)


def count_resampled(source: VideoSource, fps: float, span_s: TimeSpan | None, decode: bool) -> int:
    """Return the number of frames that ``iter_resampled`` yields.

    Args:
        source: a file, or the bytes of one.
        fps: the rate.
        span_s: seconds from the beginning of the file; None for the whole.
        decode: decode everything; otherwise trust the timestamps of what is not decoded.

    Raises:
        VideoError: too much of it does not decode, or the file ends too early.
    """
    with errors_of_file(source):
        if span_s is None:
            metadata = read_container_metadata(source)
            if decode:
                return check_decodes(source, metadata)[0].num_frames(fps)
            check_end(source, metadata)
            return metadata.timeline.num_frames(fps)
        with open_stream(source) as (container, stream):
            trimmed = TrimmedPictures(source, container, stream, span_s)
            if decode:
                for _ in trimmed.pictures():
                    pass
                return trimmed.num_frames(exact_rate(fps))
            return trimmed.expected_frames(exact_rate(fps))


@contextmanager
def open_video(source: VideoSource, check_size: CheckSize | None = None) -> Iterator[OpenVideo]:
    """Read the metadata of a file, and keep it open for reading until the end of the block.

    Args:
        source: a file, or the bytes of one.
        check_size: validates the frame size declared in the header, before the first frame is allocated.

    Raises:
        VideoError: with the reason, if too little of it decodes.
    """
    opened_s = time.perf_counter()
    buffer = PacketBuffer()
    with ExitStack() as stack:
        with errors_of_file(source):
            container, stream = stack.enter_context(open_stream(source))
            if check_size is not None:
                check_size(stream.codec_context.width, stream.codec_context.height)
            metadata = scan_container(source, container, stream, buffer)
            if check_size is not None:
                check_size(metadata.info.width, metadata.info.height)
            video = OpenVideo(source, stream, metadata, buffer, opened_s)
        yield video


def read_metadata(source: VideoSource) -> VideoInfo:
    """Return the metadata of a video; small files are decoded for it.

    Raises:
        VideoError: with the reason, if too little of it decodes.
    """
    with open_video(source) as video:
        return video.info


def iter_resampled(
    source: VideoSource, fps: float, span_s: TimeSpan | None = None, metadata: ContainerMetadata | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decode a video, or a span of it, at a constant rate, one by one: memory does not grow with its length.

    Args:
        source: a file, or the bytes of one.
        fps: the rate; see ``mme.video.timeline``.
        span_s: seconds from the beginning of the file; None for the whole.
        metadata: of the whole file, if it was read before.

    Yields:
        Upright RGB frames of the size of the first picture.

    Raises:
        VideoError: too much of it does not decode, which may be known at its end only.
    """
    with errors_of_file(source), ExitStack() as stack:
        video: _Check | TrimmedPictures
        if span_s is None:
            metadata = metadata or read_container_metadata(source)
            container, stream = stack.enter_context(open_stream(source))
            video = _Check(source, metadata)
            pictures = video.pictures(stream, demux(container, stream))
            instants = Instants(exact_rate(fps), metadata.pictures.time_base, metadata.pictures.interval)
        else:
            container, stream = stack.enter_context(open_stream(source))
            video = TrimmedPictures(source, container, stream, span_s)
            pictures = video.pictures()
            instants = Instants(exact_rate(fps), video.time_base, video.metadata.interval)
        yield from hold(pictures, instants, lambda: video.num_frames(instants.fps))


def hold(
    pictures: Iterable[tuple[VideoFrame, int]], instants: Instants, count: Callable[[], int]
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield what is on screen at every instant, as upright RGB.

    Args:
        pictures: pictures and their times in ticks, ascending.
        instants: when to look.
        count: called at the end for the number of pictures to yield. The last one waits for it: it may lie beyond
            the end if the last picture is short.
    """
    screen = _Screen()
    waiting: UInt8[np.ndarray, "H W 3"] | None = None
    number = 0
    for picture, time_ticks in pictures:
        while number < instants.num_before(time_ticks):
            if waiting is not None:
                yield waiting
            waiting = screen.rgb()
            number += 1
        screen.show(picture)
    total = count()
    if waiting is not None and number <= total:
        yield waiting
    for _ in range(total - number):
        yield screen.rgb()


class _Screen:
    """The picture on screen, converted only if something looks at it."""

    def __init__(self) -> None:
        self._converter = RgbConverter()
        self._picture: VideoFrame | None = None
        self._rgb: UInt8[np.ndarray, "H W 3"] | None = None
        self._size: tuple[int, int] | None = None

    def show(self, picture: VideoFrame) -> None:
        if self._picture is not None and self._rgb is None:
            self._converter.skip(self._picture)
        self._picture, self._rgb = picture, None
        if self._size is None:
            self._size = self.rgb().shape[:2]  # of all pictures

    def rgb(self) -> UInt8[np.ndarray, "H W 3"]:
        if self._rgb is None:
            assert self._picture is not None
            rgb = self._converter.to_rgb(self._picture)
            self._rgb = rgb if self._size is None else resize(rgb[None], *self._size)[0]
        return self._rgb


@contextmanager
def errors_of_file(source: VideoSource) -> Iterator[None]:
    """Convert whatever a library raises on a damaged file into `VideoError`, but for files that cannot be read.

    Raises:
        VideoError: of this file.
        OSError: the file is not there or cannot be read.
    """
    try:
        yield
    except VideoError:
        raise
    except MemoryError as error:
        raise out_of_memory(source) from error
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
            raise
        # The error may name the file; in the detail, the name would show a client the path of its upload.
        message = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
        detail = str(message).removeprefix(f"{source_name(source)}: ") or type(error).__name__
        raise VideoError("undecodable", source, detail) from error
