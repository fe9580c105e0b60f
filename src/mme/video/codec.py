"""Decode video files to RGB frames, and encode frames to files.

PyAV reads whole files and decord single frames; PyAV replaces decord if it is missing or fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.system.files import atomic_path
from mme.video.containers import VideoError, VideoSource, ffmpeg_input, open_stream, source_name
from mme.video.decoding import decode_stream
from mme.video.orientation import UPRIGHT, Orientation, stated_orientation

try:
    import decord
except ImportError:  # PyAV alone reads everything, but slower
    decord = None


RgbFrames = UInt8[np.ndarray, "T H W 3"]

_SKIPPED_PER_FRAME = 6
"""Skipped frames per wanted frame from which decord is preferred. At 454 x 256 both are equally fast at 4 to 7. Files
of 64 px are decoded so fast by PyAV that decord gains only where a long beginning is skipped."""

if decord is not None:
    decord.logging.set_level(decord.logging.QUIET)

NORMAL_FORM_VERSION = 6
"""Increased when equal sources and parameters would give other videos; a manifest holds the version of its videos."""

QUICK_TO_DECODE = "partitions=none:no-8x8dct=1:subme=4:chroma-qp-offset=6"
"""What makes frames quicker to decode, and the search for motion that gives the tracks' accuracy back."""

GOP_FRAMES = 12
"""Distance of keyframes. A clip starts anywhere: 5.5 frames on average are decoded before its first one."""

MAX_SIDE = 16_384
"""Longest side in pixels that x264 takes."""


def read_frames(source: VideoSource, indices: Sequence[int] | None = None) -> RgbFrames:
    """Decode all frames, or those at given positions in presentation order.

    Args:
        source: a file, or the bytes of one.
        indices: positions of the frames to decode, in any order, repeats allowed; None for all frames.

    Returns:
        Upright RGB frames, one per index.

    Raises:
        VideoError: the file cannot be decoded.
        ValueError: an index is out of range.
    """
    if indices is not None and not len(indices):
        raise ValueError(f"{source_name(source)}: no frame asked for")

    if indices is not None and _skips_much(indices) and _suits_decord(source):
        frames = _try_decord(source, indices)
        if frames is not None:
            return frames
    return _read_pyav(source, indices)


def iter_frames(source: VideoSource) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decode upright RGB frames one by one, so that memory does not grow with the length of the video.

    Raises:
        VideoError: the file cannot be decoded.
    """
    converter = RgbConverter()
    with open_stream(source) as (container, stream):
        for frame in decode_stream(source, container, stream):
            yield converter.to_rgb(frame)


def write_video(path: Path | str, frames: np.ndarray, fps: float | Fraction, crf: int, gop_frames: int) -> None:
    """Write an H.264 MP4 file atomically; equal arguments give equal bytes.

    Args:
        path: the file to write.
        frames: RGB, uint8 ``[T, H, W, 3]``, with even H and W.
        fps: frames per second.
        crf: constant rate factor of x264, 0 (lossless) to 51.
        gop_frames: distance of keyframes.

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
    """Encoder of the normal form, frame by frame: H.264 yuv420p, BT.709 limited range, no B-frames, one thread.

    Quick to decode: neither arithmetic coding (CABAC) nor a deblocking filter nor weighted prediction, one size of
    blocks, and colour that is coded coarser than brightness, from which tracks are made.
    """

    def __init__(
        self, path: Path | BinaryIO, size: tuple[int, int], fps: float | Fraction, crf: int, gop_frames: int
    ) -> None:
        """Open a file, given by its path or open already, for frames of ``size`` = (width, height), both even."""
        width, height = size
        if width % 2 or height % 2:
            raise ValueError(f"{path}: {width} x {height} px: H.264 with yuv420p needs even sizes")
        rate = Fraction(fps).limit_denominator(65535)
        if rate <= 0:
            raise ValueError(f"{path}: {fps} frames per second is not a frame rate")
        target = str(path) if isinstance(path, Path) else path
        self._container = av.open(target, "w", format="mp4", options={"fflags": "+bitexact"})
        stream = self._container.add_stream("libx264", rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.time_base = 1 / rate
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        # Without cpu-independent, the AVX-512 look-ahead of x264 reads uninitialised memory: equal frames sometimes
        # give different bytes, and always do on another processor.
        keyframes = f"keyint={gop_frames}:min-keyint={gop_frames}:scenecut=0:bframes=0:open-gop=0"
        x264 = f"{keyframes}:cpu-independent=1:{QUICK_TO_DECODE}"
        stream.options = {"preset": "veryfast", "tune": "fastdecode", "crf": str(crf), "x264-params": x264}
        self._stream = stream
        self._converter = VideoReformatter()
        self._num_frames = 0

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Append one RGB frame."""
        picture = self._converter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
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

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._num_frames:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class RgbConverter:
    """Converter of the decoded frames of one video to upright RGB.

    One converter serves all frames: creating it takes longer than converting a small frame, and a frame that states no
    orientation has that of the one before it.
    """

    def __init__(self, orientation: Orientation = UPRIGHT) -> None:
        """Begin with the orientation of the video's first frame, unless that is the first one converted."""
        self._reformatter = VideoReformatter()
        self._orientation = orientation

    def skip(self, frame: VideoFrame) -> None:
        """Follow the orientation of a frame that is not converted."""
        self._orientation = stated_orientation(frame) or self._orientation

    def to_rgb(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        """Convert a frame."""
        self._orientation = stated_orientation(frame) or self._orientation
        rgb: UInt8[np.ndarray, "H W 3"] = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return self._orientation.apply(rgb)


def _skips_much(indices: Sequence[int]) -> bool:
    """Return whether so many frames are skipped that decord gains more than it loses by opening the file.

    For whole files PyAV is as fast as decord, for small ones twice as fast.
    """
    return decord is not None and max(indices) >= _SKIPPED_PER_FRAME * len(set(indices))


def _suits_decord(source: VideoSource) -> bool:
    with open_stream(source) as (container, stream):
        first = next(decode_stream(source, container, stream), None)
        return first is not None and _is_safe_for_decord(container, stream, stated_orientation(first) or UPRIGHT)


def _is_safe_for_decord(container: InputContainer, stream: VideoStream, orientation: Orientation) -> bool:
    """Return whether decord finds the same frames as PyAV, which decodes from the start and counts.

    Decord seeks by timestamps to the keyframe before. Without timestamps (AVI), and if frames are stored in another
    order than they are shown in, it can return another frame. It converts pixel formats other than these differently,
    turns pictures but does not mirror them, and may take a preview for the film.
    """
    context = stream.codec_context
    return (
        not {"mov", "matroska"}.isdisjoint(container.format.name.split(","))
        and stream is container.streams.best("video")
        and orientation == UPRIGHT
        and not context.has_b_frames
        and context.pix_fmt in {"yuv420p", "yuvj420p"}
    )


def _try_decord(source: VideoSource, indices: Sequence[int]) -> RgbFrames | None:
    """Read frames by decord; return None if it fails.

    PyAV then reads them: it has fewer bugs (such as row padding of small odd widths) and reports what is wrong.
    """
    try:
        return _read_decord(source, indices)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, IndexError):
        return None


def _read_decord(source: VideoSource, indices: Sequence[int]) -> RgbFrames:
    # Almost no fault tolerance: by default decord repeats another frame in place of one that it cannot decode.
    reader = decord.VideoReader(ffmpeg_input(source), num_threads=1, fault_tol=1e-6)
    if not 0 <= min(indices) <= max(indices) < len(reader):
        raise IndexError(
            f"{source_name(source)}: {len(reader)} frames"
        )  # PyAV then reports whether the file is truncated
    frames: RgbFrames = reader.get_batch(list(indices)).asnumpy()
    return frames


def _read_pyav(source: VideoSource, indices: Sequence[int] | None) -> RgbFrames:
    with open_stream(source) as (container, stream):
        return _select_frames(source, decode_stream(source, container, stream), indices)


def _select_frames(source: VideoSource, frames: Iterator[VideoFrame], indices: Sequence[int] | None) -> RgbFrames:
    """Convert the selected frames to RGB, decoding no further than the last of them.

    Args:
        source: the file, named in errors.
        frames: decoded frames of the whole file.
        indices: as in ``read_frames``.

    Raises:
        VideoError: there is no frame, or they differ in size.
        ValueError: an index is out of range.
    """
    wanted = None if indices is None else set(indices)
    last = max(wanted, default=-1) if wanted is not None else None
    decoded: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
    num_frames = 0
    converter = RgbConverter()
    for index, frame in enumerate(frames):
        num_frames = index + 1
        if wanted is None or index in wanted:
            decoded[index] = converter.to_rgb(frame)
        else:
            converter.skip(frame)
        if index == last:
            break

    if not num_frames:
        raise VideoError("zero-frames", source, "its video stream holds no frame")
    order = range(num_frames) if indices is None else indices
    for index in order:
        if not 0 <= index < num_frames:
            raise ValueError(f"{source_name(source)}: frame {index} is out of range, the video has {num_frames} frames")
    sizes = {frame.shape for frame in decoded.values()}
    if len(sizes) > 1:
        raise VideoError("undecodable", source, f"frames of different sizes: {sorted(sizes)}")
    return np.stack([decoded[index] for index in order])
