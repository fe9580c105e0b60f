"""Video files as RGB frames and back: decord first, PyAV where decord is missing or gives up."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.files import atomic_path

try:
    import decord
except ImportError:  # PyAV alone reads everything, only slower
    decord = None

Source = Path | bytes
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
Frames = UInt8[np.ndarray, "T H W 3"]

# What is wrong with a file is told by exceptions; the libraries' own lines on stderr would only tear progress bars.
av.logging.set_level(None)
if decord is not None:
    decord.logging.set_level(decord.logging.QUIET)

_SIGNATURES: tuple[tuple[int, bytes], ...] = (
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),  # MP4, MOV, 3GP
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"FLV\x01"),
    (0, b"0&\xb2u\x8ef\xcf\x11"),  # ASF: WMV
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG-1/2 elementary stream
    (0, b"\x00\x00\x00\x01"),  # H.264, HEVC elementary stream
    (0, b"\x47"),  # MPEG transport stream
    (4, b"\x47"),  # the same with time codes: M2TS
    (0, b"OggS"),
    (0, b"GIF8"),
    (0, b"YUV4MPEG2"),
    (0, b"\x06\x0e+4"),  # MXF
    (0, b".RMF"),
)
"""Offset and bytes that a container starts with. FFmpeg alone would also follow playlists, that is, text files that
name other files, and read those."""


class VideoError(ValueError):
    """A file that is no usable video; ``reason`` says in one word why."""

    def __init__(self, reason: Reason, source: Source | str, detail: str) -> None:
        super().__init__(f"{_name(source)}: {reason}: {detail}")
        self.reason: Reason = reason
        self.source = _name(source)
        self.detail = detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[Reason, str, str]]:
        return VideoError, (self.reason, self.source, self.detail)  # survives the way back from a worker


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds.

    Attributes:
        num_frames: frames in presentation order that ``read_frames`` can be asked for.
        fps: frames a second; the average where the rate varies.
        width: pixels, after rotation.
        height: pixels, after rotation.
        duration_s: ``num_frames / fps``.
        codec: FFmpeg's name of the codec, such as ``h264``.
        pixel_aspect: width of a pixel over its height, after rotation; frames are not corrected for it.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    codec: str
    pixel_aspect: float = 1.0


def probe(source: Source) -> VideoInfo:
    """Count the packets and decode the first frame.

    Args:
        source: a file, or the bytes of one.

    Raises:
        VideoError: with the reason, if no frame can be decoded.
    """
    with open_stream(source) as (container, stream):
        first: VideoFrame | None = None
        times: list[int] = []
        num_frames = 0
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(_decode_packet(source, packet)), None)
            if packet.size and not packet.is_discard:
                num_frames += 1
                if packet.pts is not None:
                    times.append(packet.pts)
        if first is None:
            raise VideoError("zero-frames", source, "its video stream holds no frame")
        num_frames = max(num_frames, 1)
        fps = _average_rate(stream, times)
        turned = first.rotation % 180 != 0
        width, height = (first.height, first.width) if turned else (first.width, first.height)
        aspect = float(stream.sample_aspect_ratio or 1)
        return VideoInfo(
            num_frames=num_frames,
            fps=float(fps),
            width=width,
            height=height,
            duration_s=float(num_frames / fps),
            codec=stream.codec_context.codec.canonical_name,
            pixel_aspect=1 / aspect if turned else aspect,
        )


def read_frames(source: Source, indices: Sequence[int] | None = None) -> Frames:
    """Decode frames, chosen by their position in presentation order.

    Args:
        source: a file, or the bytes of one.
        indices: frames to decode, in any order, repeats allowed; all of them if None.

    Returns:
        RGB, uint8 ``[len(indices), H, W, 3]``, rotation metadata applied.

    Raises:
        VideoError: the file cannot be decoded.
        ValueError: an index is out of range.
    """
    check_signature(source)
    if decord is not None:
        try:
            return _read_decord(source, indices)
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError):
            pass  # PyAV reads more formats, and tells what is wrong with the file
    return _read_pyav(source, indices)


def write_video(path: Path | str, frames: Frames, fps: float | Fraction, crf: int, gop_frames: int) -> None:
    """Write an H.264 MP4 file atomically; equal arguments give equal bytes.

    Args:
        path: where to.
        frames: RGB, uint8 ``[T, H, W, 3]`` with even H and W.
        fps: frames a second.
        crf: x264's constant rate factor, 0 (lossless) to 51.
        gop_frames: a key frame at every multiple of this.

    Raises:
        ValueError: wrong dtype, shape, or an odd size; the message names the file.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"{path}: frames must be uint8 [T, H, W, 3] with T > 0, not {frames.dtype} {frames.shape}")
    with atomic_path(path) as temporary:
        height, width = frames.shape[1:3]
        with VideoWriter(temporary, (width, height), fps, crf, gop_frames) as writer:
            for frame in frames:
                writer.write(frame)


class VideoWriter:
    """Encodes frame by frame into the normal form: H.264 yuv420p, BT.709 limited range, no B-frames, one thread."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float | Fraction, crf: int, gop_frames: int) -> None:
        """Open ``path`` for frames of ``size`` = (width, height), both even."""
        width, height = size
        if width % 2 or height % 2:
            raise ValueError(f"{path}: {width} x {height} px: H.264 with yuv420p needs even sizes")
        rate = Fraction(fps).limit_denominator(65535)
        if rate <= 0:
            raise ValueError(f"{path}: {fps} frames a second is not a frame rate")
        self._container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        stream = self._container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.time_base = 1 / rate
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        x264 = f"keyint={gop_frames}:min-keyint={gop_frames}:scenecut=0:bframes=0:open-gop=0"
        stream.options = {"preset": "fast", "crf": str(crf), "x264-params": x264}
        self._stream = stream
        self._num_frames = 0

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Append one RGB frame."""
        picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        )
        picture.pts = self._num_frames
        picture.time_base = self._stream.codec_context.time_base
        self._num_frames += 1
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._num_frames:
            self._container.mux(self._stream.encode(None))
        self._container.close()


@contextmanager
def open_stream(source: Source) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its best video stream, decoding in one thread; closed at the end of the block.

    Raises:
        VideoError: there is none.
    """
    check_signature(source)
    try:
        container = av.open(_open_argument(source), "r")
    except av.error.FFmpegError as error:
        reason: Reason = "truncated" if _ends_early(source) else "undecodable"
        raise VideoError(reason, source, f"cannot be opened: {error.strerror}") from error
    with container:
        stream = container.streams.best("video") if container.streams.video else None
        if not isinstance(stream, VideoStream) or stream.disposition & stream.disposition.attached_pic:
            raise VideoError("no-video-stream", source, f"{len(container.streams)} streams, none of them video")
        if stream.codec_context is None:
            raise VideoError("undecodable", source, "no decoder for its codec")
        stream.codec_context.thread_count = 1
        yield container, stream


def decode_stream(source: Source, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All frames in presentation order, as decoded (not rotated).

    Raises:
        VideoError: the first packet that does not decode: ``undecodable`` if it is before the first frame,
            else ``truncated``.
    """
    num_frames = 0
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.error.FFmpegError as error:
            raise VideoError(
                "truncated" if num_frames else "undecodable", source, f"frame {num_frames}: {error.strerror}"
            ) from error
        num_frames += len(decoded)
        yield from decoded


def to_rgb(frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of a decoded frame, uint8 ``[H, W, 3]``, turned upright."""
    return upright(frame.to_ndarray(format="rgb24"), frame.rotation)


def upright(picture: UInt8[np.ndarray, "H W 3"], rotation_degrees: int) -> UInt8[np.ndarray, "H W 3"]:
    """Turn a picture counter-clockwise by what its metadata asks for, to the nearest quarter."""
    return np.ascontiguousarray(np.rot90(picture, round(rotation_degrees / 90)))


def check_signature(source: Source) -> None:
    """Whether a file starts like a video container, before any library gets to read it.

    Raises:
        VideoError: ``empty`` or ``not-a-video``.
    """
    if isinstance(source, bytes):
        head = source[:16]
    else:
        with open(source, "rb") as file:
            head = file.read(16)
    if not head:
        raise VideoError("empty", source, "0 bytes")
    if not any(head[offset : offset + len(mark)] == mark for offset, mark in _SIGNATURES):
        raise VideoError("not-a-video", source, f"starts with {head!r}, as no video container does")


def _read_decord(source: Source, indices: Sequence[int] | None) -> Frames:
    # A fault tolerance of almost zero: decord's own answer to a frame it cannot decode is to repeat another one.
    reader = decord.VideoReader(_open_argument(source), num_threads=1, fault_tol=1e-6)
    wanted = range(len(reader)) if indices is None else indices
    _check_indices(source, wanted, len(reader))
    if not len(wanted):
        raise ValueError(f"{_name(source)}: no frame asked for")
    frames: Frames = reader.get_batch(list(wanted)).asnumpy()
    return frames


def _read_pyav(source: Source, indices: Sequence[int] | None) -> Frames:
    last = None if indices is None else max(indices, default=0)
    wanted = None if indices is None else set(indices)
    decoded: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
    num_frames = 0
    with open_stream(source) as (container, stream):
        for index, frame in enumerate(decode_stream(source, container, stream)):
            num_frames = index + 1
            if wanted is None or index in wanted:
                decoded[index] = to_rgb(frame)
            if index == last:
                break
    if not num_frames:
        raise VideoError("zero-frames", source, "its video stream holds no frame")
    order = range(num_frames) if indices is None else indices
    _check_indices(source, order, num_frames)
    if not len(order):
        raise ValueError(f"{_name(source)}: no frame asked for")
    sizes = {picture.shape for picture in decoded.values()}
    if len(sizes) > 1:
        raise VideoError("undecodable", source, f"frames of different sizes: {sorted(sizes)}")
    return np.stack([decoded[index] for index in order])


def _check_indices(source: Source, indices: Sequence[int], num_frames: int) -> None:
    for index in indices:
        if not 0 <= index < num_frames:
            raise ValueError(f"{_name(source)}: frame {index} is out of range, the video has {num_frames} frames")


def _decode_packet(source: Source, packet: Any) -> list[VideoFrame]:
    try:
        frames: list[VideoFrame] = packet.decode()
    except av.error.FFmpegError as error:
        raise VideoError("undecodable", source, f"first frame: {error.strerror}") from error
    return frames


def _average_rate(stream: VideoStream, times: list[int]) -> Fraction:
    """Frames a second: what the header says, unless the frames' time stamps say something else."""
    nominal = stream.average_rate or stream.guessed_rate
    span = max(times) - min(times) if times else 0
    if not span or stream.time_base is None:
        return Fraction(nominal) if nominal else Fraction(1)
    measured = (len(times) - 1) / (span * Fraction(stream.time_base))
    if nominal and abs(nominal / measured - 1) < 0.02:
        return Fraction(nominal)
    return measured


def _ends_early(source: Source) -> bool:
    """Whether the boxes of an MP4 or MOV file reach beyond its end, or its index is missing."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        position, names = 0, set()
        while position + 8 <= size:
            file.seek(position)
            length, name = int.from_bytes(file.read(4), "big"), file.read(4)
            if position == 0 and name not in {mark for offset, mark in _SIGNATURES if offset == 4 and len(mark) == 4}:
                return False
            names.add(name)
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if length == 0:
                break
            position += max(length, 8)
        return position > size or b"moov" not in names


def _open_argument(source: Source) -> str | io.BytesIO:
    # "file:" keeps FFmpeg from reading a protocol, such as "http:" or "concat:", out of a file's name.
    return io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"


def _name(source: Source | str) -> str:
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
