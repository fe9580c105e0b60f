"""Decode all pictures of a video in order: their times, what is missing, and those at a constant rate."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.video.codec import RgbConverter
from mme.video.containers import VideoSource, errors_of_file, open_stream
from mme.video.crop import resize
from mme.video.decoding import PictureDecoder, check_missing, demux
from mme.video.metadata import ContainerMetadata, read_container_metadata
from mme.video.timeline import Clock, Instants, Timeline, exact_rate
from mme.video.trim import DecodedSpan, TimeSpan, TrimmedPictures, open_span


class TimedPictures:
    """A pass over all pictures of a file, which finds their times and what is missing."""

    def __init__(self, source: VideoSource, metadata: ContainerMetadata) -> None:
        self._source = source
        self._metadata = metadata
        self._pictures = metadata.pictures
        # Eight bytes per picture: an hour of video has a hundred thousand.
        self._times = array("q")
        self._stamps = array("q")
        self._last_duration = 0
        self._decoder: PictureDecoder | None = None

    def pictures(self, stream: VideoStream, packets: Iterable[Packet[VideoStream]]) -> Iterator[tuple[VideoFrame, int]]:
        """Decode pictures and yield them with their times in ticks."""
        decoder = self._decoder = PictureDecoder(stream)
        clock = Clock(self._pictures.time_base, self._pictures.interval)
        for picture in decoder.pictures(packets):
            stamp = self._pictures.timestamp(picture)
            if stamp is not None:
                self._stamps.append(stamp)
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
        shown = set(self._stamps) if self._decoder.failed else set()
        num_missing = sum(stamp is None or stamp not in shown for stamp in self._decoder.failed)
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
        check = TimedPictures(source, metadata)
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
            trimmed = open_span(source, container, stream, span_s)
            if decode:
                for _ in trimmed.pictures():
                    pass
                return trimmed.num_frames(exact_rate(fps))
            return trimmed.expected_frames(exact_rate(fps))


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
        video: TimedPictures | TrimmedPictures | DecodedSpan
        if span_s is None:
            metadata = metadata or read_container_metadata(source)
            container, stream = stack.enter_context(open_stream(source))
            video = TimedPictures(source, metadata)
            pictures = video.pictures(stream, demux(container, stream))
            instants = Instants(exact_rate(fps), metadata.pictures.time_base, metadata.pictures.interval)
        else:
            container, stream = stack.enter_context(open_stream(source))
            video = open_span(source, container, stream, span_s)
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
