"""Read videos by time: pictures at a constant rate from files of any rate, of what decodes in them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.video.codec import RgbConverter, RgbFrames
from mme.video.containers import VideoSource, errors_of_file, open_stream
from mme.video.crop import resize
from mme.video.decoding import PictureDecoder, demux
from mme.video.metadata import (
    CodedPictures,
    ContainerMetadata,
    PacketBuffer,
    VideoInfo,
    scan_container,
    timed_info,
)
from mme.video.resampling import TimedPictures, check_end, hold
from mme.video.timeline import Instants, exact_rate

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
            check = TimedPictures(self.source, self._metadata)
            with self._packets() as (stream, packets):
                yield from hold(check.pictures(stream, packets), instants, lambda: check.num_frames(instants.fps))

    def _decode_whole(self) -> None:
        """Decode all pictures for their times, and keep them if they are few."""
        kept: list[VideoFrame] | None = [] if self._num_pixels <= MAX_CHECKED_PIXELS else None
        check = TimedPictures(self.source, self._metadata)
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
        return self._decode(TimedPictures(self.source, self._metadata)) if self._kept is None else self._kept

    def _decode(self, check: TimedPictures) -> Iterator[VideoFrame]:
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
