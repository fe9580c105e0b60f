"""Open a video once: its metadata first, then frames of it, in one pass over the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.video.codec import RgbFrames, iter_frames, read_frames, select_frames, suits_decord, try_decord
from mme.video.containers import VideoError, VideoSource, open_stream, source_name
from mme.video.metadata import ContainerMetadata, PacketBuffer, decode_packets, read_container_metadata, scan_container
from mme.video.timeline import Timeline
from mme.video.trim import TimeSpan, iter_trimmed_frames, read_trim_metadata

CheckSize = Callable[[int, int], None]
"""Callback that validates the declared width and height; raises ``VideoError`` if they are too large."""


class OpenVideo:
    """An open file whose metadata is known and whose frames can be read.

    Attributes:
        source: the file, or its bytes.
        info: its metadata.
        opened_s: time of opening, by ``time.perf_counter``.
    """

    def __init__(
        self,
        source: VideoSource,
        opened: tuple[InputContainer, VideoStream],
        metadata: ContainerMetadata,
        buffer: PacketBuffer,
        opened_s: float,
    ) -> None:
        self.source = source
        self.info = metadata.info
        self._timeline = metadata.timeline
        self.opened_s = opened_s
        self._container, self._stream = opened
        self._orientation = metadata.orientation
        self._buffer = buffer

    def num_frames(self, fps: float) -> int:
        """Return the number of pictures of this video at a constant rate."""
        return self._timeline.num_frames(fps)

    def read(self, indices: Sequence[int], fps: float) -> RgbFrames:
        """Read pictures by their position in this video at a constant rate; see ``mme.video.timeline``.

        The first call decodes the packets that were kept while counting frames; later calls open the file again.

        Raises:
            VideoError: the file cannot be decoded, or has fewer frames than its metadata says.
        """
        indices = self._timeline.positions(indices, fps)
        with _damage_as_video_error(self.source):
            if suits_decord(self._container, self._stream, self._orientation, indices):
                frames = try_decord(self.source, indices)
                if frames is not None:
                    return frames
            if not self._buffer.complete:
                return read_frames(self.source, indices)
            return select_frames(self.source, self._decode_buffer(), indices)

    def _decode_buffer(self) -> Iterator[VideoFrame]:
        frames = self._buffer.frames
        packets = self._buffer.packets
        self._buffer.clear()  # packets decode once
        yield from frames
        yield from decode_packets(self.source, packets, len(frames))


@contextmanager
def open_video(source: VideoSource, check_size: CheckSize | None = None) -> Iterator[OpenVideo]:
    """Read the metadata of a file, and keep it open for reading until the end of the block.

    Args:
        source: a file, or the bytes of one.
        check_size: validates the frame size declared in the header, before the first frame is allocated.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    opened_s = time.perf_counter()
    buffer = PacketBuffer()
    with ExitStack() as stack:
        with _damage_as_video_error(source):
            container, stream = stack.enter_context(open_stream(source))
            if check_size is not None:
                check_size(stream.codec_context.width, stream.codec_context.height)
            metadata = scan_container(source, container, stream, buffer)
        yield OpenVideo(source, (container, stream), metadata, buffer, opened_s)


@contextmanager
def _damage_as_video_error(source: VideoSource) -> Iterator[None]:
    """Convert errors from damaged files, such as missing frames or tags that are not text, into `VideoError`."""
    try:
        yield
    except VideoError:
        raise
    except ValueError as error:
        # The error names the file already; in the detail, the name would show a client the path of its upload.
        message = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
        detail = str(message).removeprefix(f"{source_name(source)}: ")
        raise VideoError("undecodable", source, detail) from error


def iter_resampled(
    source: VideoSource, fps: float, span_s: TimeSpan | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decode the upright RGB frames of a video, or of a span of it, at a constant rate, one by one.

    Raises:
        VideoError: the file cannot be decoded.
    """
    if span_s is None:
        timeline, frames = read_container_metadata(source).timeline, iter_frames(source)
    else:
        timeline, frames = read_trim_metadata(source, span_s).timeline, iter_trimmed_frames(source, span_s)
    yield from resampled(frames, timeline, fps)


def resampled(
    frames: Iterator[UInt8[np.ndarray, "H W 3"]], timeline: Timeline, fps: float
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frames on screen at a constant rate."""
    shown = timeline.positions(range(timeline.num_frames(fps)), fps)
    number = 0
    for position, frame in enumerate(frames):
        while number < len(shown) and shown[number] == position:
            yield frame
            number += 1
