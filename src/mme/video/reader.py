"""A video that is opened once: what it holds is told before its frames are decoded, and both in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mme.video.backlog import Backlog
from mme.video.codec import Frames, pick_frames, read_frames, suits_decord, try_decord
from mme.video.containers import Source, VideoError, name_of, open_stream
from mme.video.metadata import VideoInfo, decode_packets, examine

CheckSize = Callable[[int, int], None]
"""Called with a width and a height; raises ``VideoError`` if they are too much."""


class OpenVideo:
    """A file that has been looked at and can be read.

    Attributes:
        source: the file, or its bytes.
        info: what it holds.
        opened_s: when it was opened, by ``time.perf_counter``.
    """

    def __init__(
        self,
        source: Source,
        opened: tuple[InputContainer, VideoStream],
        info: VideoInfo,
        backlog: Backlog,
        opened_s: float,
    ) -> None:
        self.source, self.info, self.opened_s = source, info, opened_s
        (self._container, self._stream), self._backlog = opened, backlog

    def read(self, indices: Sequence[int]) -> Frames:
        """Frames by their position, as ``read_frames`` returns them.

        The first call goes on where looking at the file has stopped; others open it again.

        Raises:
            VideoError: the file cannot be decoded, or has fewer frames than it promised.
        """
        with _faults_of(self.source):
            if suits_decord(self._container, self._stream, indices):
                frames = try_decord(self.source, indices)
                if frames is not None:
                    return frames
            if not self._backlog.complete:
                return read_frames(self.source, indices)
            return pick_frames(self.source, self._decode(), indices)

    def _decode(self) -> Iterator[VideoFrame]:
        frames, packets = self._backlog.frames, self._backlog.packets
        self._backlog.drop()
        yield from frames
        yield from decode_packets(self.source, packets, len(frames))


@contextmanager
def open_video(source: Source, check_size: CheckSize | None = None) -> Iterator[OpenVideo]:
    """Look at a file, and keep it open for reading until the end of the block.

    Args:
        source: a file, or the bytes of one.
        check_size: asked about the picture's size as the header claims it, before the first frame is allocated.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    opened_s, backlog = time.perf_counter(), Backlog()
    with ExitStack() as stack:
        with _faults_of(source):
            container, stream = stack.enter_context(open_stream(source))
            if check_size is not None:
                check_size(stream.codec_context.width, stream.codec_context.height)
            info = examine(source, container, stream, backlog).info
        yield OpenVideo(source, (container, stream), info, backlog, opened_s)


@contextmanager
def _faults_of(source: Source) -> Iterator[None]:
    """A damaged file may promise frames that it does not have, or hold bytes that are no text where tags stand."""
    try:
        yield
    except VideoError:
        raise
    except ValueError as error:
        # The name stands in the error already; as a detail it would tell a client where uploads are kept.
        named = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
        raise VideoError("undecodable", source, str(named).removeprefix(f"{name_of(source)}: ")) from error
