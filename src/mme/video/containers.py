"""Open video containers safely: signature check, best video stream, reasons of failure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.video.stream import VideoStream

VideoSource = Path | bytes
"""A video file, or the bytes of one."""

Reason = Literal[
    "empty",
    "not-a-video",
    "no-video-stream",
    "zero-frames",
    "truncated",
    "too-short",
    "too-large",
    "undecodable",
    "timed-out",
]
"""Reasons why a file is no usable video."""

# Exceptions report what is wrong with a file; FFmpeg's own lines on stderr would only break progress bars.
av.logging.set_level(None)

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_SIGNATURES: tuple[tuple[tuple[int, bytes], ...], ...] = (
    *(((4, box),) for box in _MP4_BOXES),  # MP4, MOV, 3GP
    ((0, b"\x1aE\xdf\xa3"),),  # Matroska, WebM
    ((0, b"RIFF"), (8, b"AVI ")),
    ((0, b"FLV\x01"),),
    ((0, b"0&\xb2u\x8ef\xcf\x11"),),  # ASF: WMV
    ((0, b"\x00\x00\x01\xba"),),  # MPEG program stream
    ((0, b"\x00\x00\x01\xb3"),),  # MPEG-1/2 elementary stream
    ((0, b"\x00\x00\x00\x01"),),  # H.264, HEVC elementary stream
    ((0, b"\x47"), (188, b"\x47")),  # MPEG transport stream
    ((4, b"\x47"), (196, b"\x47")),  # the same with time codes: M2TS
    ((0, b"OggS"),),
    ((0, b"GIF8"),),
    ((0, b"YUV4MPEG2"),),
    ((0, b"\x06\x0e+4"),),  # MXF
    ((0, b".RMF"),),
)
"""Signatures of containers: offsets and the bytes that must be there."""


class VideoError(ValueError):
    """Error for a file that is no usable video.

    Attributes:
        reason: the cause as a keyword.
        source: name of the file.
        detail: the cause as a sentence.
    """

    def __init__(self, reason: Reason, source: VideoSource | str, detail: str) -> None:
        super().__init__(f"{source_name(source)}: {reason}: {detail}")
        self.reason: Reason = reason
        self.source = source_name(source)
        self.detail = detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[Reason, str, str]]:
        return VideoError, (self.reason, self.source, self.detail)  # picklable, because workers raise it


def check_signature(source: VideoSource) -> None:
    """Refuse files that do not start like a video container.

    FFmpeg alone also follows playlists: text files that name other files, or addresses, which it then reads.

    Raises:
        VideoError: ``empty`` or ``not-a-video``.
    """
    with _opened(source) as file:
        head = file.read(200)
    if not head:
        raise VideoError("empty", source, "0 bytes")
    if not any(all(head.startswith(mark, offset) for offset, mark in signature) for signature in _SIGNATURES):
        raise VideoError("not-a-video", source, f"starts with {head[:16]!r}, as no video container does")


@contextmanager
def open_stream(source: VideoSource) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its best video stream, decoding in one thread, until the end of the block.

    Raises:
        VideoError: there is no container or no video stream.
    """
    check_signature(source)
    try:
        # Old writers and phones leave tags that are not UTF-8; a tag says nothing of the pictures.
        container = av.open(ffmpeg_input(source), "r", metadata_errors="replace")
    except av.error.FFmpegError as error:
        early = isinstance(error, av.error.EOFError) or _ends_early(source)
        raise VideoError(
            "truncated" if early else "undecodable", source, f"cannot be opened: {error.strerror}"
        ) from error
    with container:
        stream = container.streams.best("video") if container.streams.video else None
        if not isinstance(stream, VideoStream) or stream.disposition & stream.disposition.attached_pic:
            raise VideoError("no-video-stream", source, f"{len(container.streams)} streams, none of them video")
        if stream.codec_context is None:
            raise VideoError("undecodable", source, "no decoder for its codec")
        stream.codec_context.thread_count = 1
        yield container, stream


def ffmpeg_input(source: VideoSource) -> str | io.BytesIO:
    """Argument of FFmpeg that opens a source."""
    # "file:" prevents that the name of a file is taken for a protocol, such as "concat:" or "http:".
    return io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"


def source_name(source: VideoSource | str) -> str:
    """Name of a source in an error message."""
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


def _opened(source: VideoSource) -> io.BufferedIOBase:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _ends_early(source: VideoSource) -> bool:
    """Return whether the boxes of an MP4 or MOV file reach beyond its end, or its index is missing."""
    names: set[bytes] = set()
    position = 0
    with _opened(source) as file:
        size = file.seek(0, io.SEEK_END)
        while position + 8 <= size:
            file.seek(position)
            length = int.from_bytes(file.read(4), "big")
            name = file.read(4)
            if not names and name not in _MP4_BOXES:
                return False
            names.add(name)
            if length == 1:  # 64-bit length follows
                length = int.from_bytes(file.read(8), "big")
            if length == 0:  # box extends to the end of the file
                break
            position += max(length, 8)
    return position > size or b"moov" not in names
