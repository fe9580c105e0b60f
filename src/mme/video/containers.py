"""Open video containers safely: allowed formats, best video stream, reasons of failure."""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import av
from av.container import InputContainer
from av.stream import Disposition
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
    "too-many-windows",
    "undecodable",
    "timed-out",
]
"""Reasons why a file is no usable video."""

# Exceptions report what is wrong with a file; FFmpeg's own lines on stderr would only break progress bars.
av.logging.set_level(None)

_FORMATS = (
    "apng", "asf", "av1", "avi", "cavsvideo", "dhav", "dirac", "dv", "flv", "gif", "gxf", "h261", "h263", "h264",
    "hevc", "ivf", "live_flv", "m4v", "matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mpjpeg", "mxf",
    "nsv", "nut", "obu", "ogg", "rm", "swf", "vc1", "vvc", "wtv", "yuv4mpegpipe",
)  # fmt: skip
"""FFmpeg's names of the formats that are read: each holds its pictures itself.

FFmpeg alone also follows playlists (HLS, concat, SDP): texts that name other files, or addresses, which it then reads.
"""

_OPTIONS = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "fd"}

_MP4_BOXES = frozenset({
    b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx", b"ssix", b"uuid", b"emsg",
    b"prft", b"meta", b"pdin", b"mfra", b"junk", b"udta",
})  # fmt: skip
"""Names of the boxes with which MP4 and MOV files, and segments of them, begin."""

_MOVIES = frozenset({b"moov", b"moof"})
"""Boxes without which there is no timeline."""

_HEADS = re.compile(
    rb"\x1aE\xdf\xa3|RIFF....AVI |FLV|0&\xb2u\x8ef\xcf\x11|\x00{2,3}\x01|OggS|GIF8|YUV4MPEG2|\x06\x0e\+4|\.RMF|DKIF"
    rb"|nut/multimedia|\xb7\xd8\x00 7I\xda|[FC]WS|\x47.{187}\x47|\x47.{203}\x47|.{4}\x47.{191}\x47",
    re.DOTALL,
)
"""First bytes of files in other containers."""

_HEAD_BYTES = 256

_PHOTOS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM....\x00{4}|II\*\x00|MM\x00\*|\xff\x0a|\x00{3}\x0c(JXL|jP ) ", re.DOTALL
)
"""First bytes of photos."""

_SEVERAL_PHOTOS = re.compile(rb"\xff\xd8.{,65536}MPF\x00", re.DOTALL)
"""A JPEG with others behind it that are no later pictures: a thumbnail, a depth or gain map, the other eye's view."""


_PREVIEW_SHARE = 0.25
"""Share of the pictures of the longest stream below which a stream is a preview or a few photos beside the film, as
phones and cameras keep them. FFmpeg prefers them for their bit rate."""

_JOINED_PHOTOS = re.compile(rb"\xff\xd9[\x00\r\n]{,4096}\xff\xd8\xff")
"""End of a JPEG, padding, and the beginning of the next one; a thumbnail within one is followed by other things."""


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


def out_of_memory(source: VideoSource) -> VideoError:
    """Return the error for a file that needs more memory than there is, or whose damaged header says so."""
    return VideoError("too-large", source, "decoding needs more memory than there is")


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


@contextmanager
def open_stream(source: VideoSource, probe_pictures: bool = True) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its best video stream, decoding in one thread, until the end of the block.

    A file's bytes say what it is. Its name does not count: uploads have none.

    Args:
        source: a file, or the bytes of one.
        probe_pictures: decode the first picture to learn what the container does not say, such as the pixel format.
            It takes as long as all else. Files in the normal form are known.

    Raises:
        VideoError: there is no container or no video stream, or FFmpeg fails within the block.
        OSError: the file cannot be read.
    """
    with _opened(source) as file, _open_container(source, file, probe_pictures) as container:
        stream = _best_stream(source, container)
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except MemoryError as error:
            raise out_of_memory(source) from error
        except (av.error.FFmpegError, ArithmeticError, UnicodeError) as error:  # numbers and texts of a damaged header
            raise VideoError("undecodable", source, _cause(error)) from error


def _open_container(source: VideoSource, file: BinaryIO, probe_pictures: bool) -> InputContainer:
    try:
        # FFmpeg does not see by itself that pictures of more than a mebibyte follow each other.
        container = _av_open(source, file, "mjpeg" if _is_row_of_photos(source) else None, probe_pictures)
    except MemoryError as error:
        raise out_of_memory(source) from error
    except Exception as error:  # a damaged header raises many kinds
        raise _opening_error(source, error) from error
    if _is_photo(source, container):
        container.close()
        raise VideoError("not-a-video", source, "a still photo")
    return container


def _av_open(source: VideoSource, file: BinaryIO, container_format: str | None, probe_pictures: bool) -> InputContainer:
    # FFmpeg finds no rate where five pictures exceed the bytes that it looks at, by default 5 MB.
    options = _OPTIONS if container_format is None else _OPTIONS | {"probesize": str(2**28)}
    for_decoders = None if probe_pictures else {"skip_frame": "all"}
    # Old writers and phones leave tags that are not UTF-8; a tag says nothing of the pictures.
    if isinstance(source, bytes):
        return av.open(file, "r", container_format, for_decoders, options, metadata_errors="replace")
    options |= {"fd": str(file.fileno())}
    return av.open("fd:", "r", container_format, for_decoders, options, metadata_errors="replace")


def _is_row_of_photos(source: VideoSource) -> bool:
    """Return whether one JPEG ends where another begins, as in a stream of pictures."""
    if _head(source, 3) != b"\xff\xd8\xff":
        return False
    if isinstance(source, bytes):
        return _JOINED_PHOTOS.search(source) is not None
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _JOINED_PHOTOS.search(content) is not None


def _is_photo(source: VideoSource, container: InputContainer) -> bool:
    """Return whether a file in a container of videos is a photo."""
    formats = container.format.name.split(",")
    if "mov" in formats:  # HEIC, AVIF: pictures without a timeline
        return not any(name in _MOVIES for name, _ in _boxes(source))
    return "mjpeg" in formats and _SEVERAL_PHOTOS.match(_head(source, 2**17)) is not None


def _best_stream(source: VideoSource, container: InputContainer) -> VideoStream:
    """Return the stream that FFmpeg prefers, unless it is a cover picture, a preview or has no decoder."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("no-video-stream", source, f"{len(container.streams)} streams, none of them video")
    readable = [stream for stream in streams if stream.codec_context is not None]
    if not readable:
        raise VideoError("undecodable", source, "no decoder for its codec")
    most = max(stream.frames for stream in readable)  # 0 where the container does not say
    films = [stream for stream in readable if stream.frames >= _PREVIEW_SHARE * most]
    best = container.streams.best("video")
    return next((stream for stream in films if stream is best), films[0])


def _opening_error(source: VideoSource, error: Exception) -> VideoError:
    head = _head(source, _HEAD_BYTES)
    if not head:
        return VideoError("empty", source, "0 bytes")
    if head.startswith(b"RIFF") and b"ANIM" in head[8:48]:
        return VideoError(
            "not-a-video", source, "an animated WebP, which FFmpeg cannot decode: convert it to MP4 or GIF"
        )
    if _PHOTOS.match(head):
        return VideoError("not-a-video", source, "a still photo")
    if head.startswith(b"version https://git-lfs"):
        return VideoError("not-a-video", source, "a pointer of Git LFS: fetch what it stands for by `git lfs pull`")
    is_mp4 = head[4:8] in _MP4_BOXES
    if not is_mp4 and not _HEADS.match(head):
        return VideoError("not-a-video", source, f"starts with {head[:16]!r}, as no video container does")
    cause = _cause(error)
    early = isinstance(error, av.error.EOFError)
    if is_mp4:
        names, ends_early = _outermost(source)
        if b"moof" in names and b"moov" not in names:
            cause = "a segment of a stream, without the initialisation segment that belongs before it"
        else:
            early |= ends_early
    return VideoError("truncated" if early else "undecodable", source, f"cannot be opened: {cause}")


def _cause(error: Exception) -> str:
    return str(error.strerror if isinstance(error, av.error.FFmpegError) else error)


def ffmpeg_input(source: VideoSource) -> str | io.BytesIO:
    """Argument of FFmpeg that opens a source."""
    # "file:" prevents that the name of a file is taken for a protocol, such as "concat:" or "http:".
    return io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"


def source_name(source: VideoSource | str) -> str:
    """Name of a source in an error message."""
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


def _opened(source: VideoSource) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _head(source: VideoSource, num_bytes: int) -> bytes:
    with _opened(source) as file:
        return file.read(num_bytes)


def _boxes(source: VideoSource) -> Iterator[tuple[bytes, int]]:
    """Yield name and end of each outermost box of an MP4 or MOV file; the last one may end behind the file."""
    with _opened(source) as file:  # of its own: FFmpeg's descriptor shares the position of the open file
        size = file.seek(0, io.SEEK_END)
        position = 0
        while position + 8 <= size:
            file.seek(position)
            length = int.from_bytes(file.read(4), "big")
            name = file.read(4)
            if length == 1:  # 64-bit length follows
                length = int.from_bytes(file.read(8), "big")
            position = size if length == 0 else position + max(length, 8)  # 0: extends to the end of the file
            yield name, position


def _outermost(source: VideoSource) -> tuple[set[bytes], bool]:
    """Return the names of an MP4's outermost boxes, and whether they reach beyond its end or its index is missing."""
    boxes = list(_boxes(source))
    names = {name for name, _ in boxes}
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    return names, names.isdisjoint(_MOVIES) or boxes[-1][1] > size
