"""Video files as RGB frames and back.

Whole files are read by PyAV, single frames by decord, with PyAV where decord is missing or gives up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from mme.system.files import atomic_path
from mme.video.containers import Reason, Source, VideoError, name_of, open_argument, open_stream
from mme.video.metadata import VideoInfo, decode_stream, has_times, probe

try:
    import decord
except ImportError:  # PyAV alone reads everything, only slower
    decord = None

__all__ = [
    "Reason",
    "Source",
    "VideoError",
    "VideoInfo",
    "VideoWriter",
    "decode_stream",
    "iter_frames",
    "open_stream",
    "pick_frames",
    "probe",
    "read_frames",
    "suits_decord",
    "to_rgb",
    "try_decord",
    "upright",
    "write_video",
]

Frames = UInt8[np.ndarray, "T H W 3"]

_SKIPPED_PER_FRAME = 4
"""Both decoders are equally fast where 6 to 16 frames are passed over for each that is wanted, by size and codec."""

if decord is not None:
    decord.logging.set_level(decord.logging.QUIET)


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
    if indices is not None and not len(indices):
        raise ValueError(f"{name_of(source)}: no frame asked for")
    if indices is not None and _skips_much(indices) and _suits_decord(source):
        frames = try_decord(source, indices)
        if frames is not None:
            return frames
    return _read_pyav(source, indices)


def iter_frames(source: Source) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """RGB frames ``[H, W, 3]`` one by one, upright, so that memory does not grow with the video's length.

    Raises:
        VideoError: the file cannot be decoded.
    """
    converter = VideoReformatter()
    with open_stream(source) as (container, stream):
        for frame in decode_stream(source, container, stream):
            yield to_rgb(converter, frame)


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
        # Without cpu-independent, x264's AVX-512 code for its look-ahead reads memory that nobody has written: now and
        # then the same frames give other bytes, and another processor always does.
        x264 = f"keyint={gop_frames}:min-keyint={gop_frames}:scenecut=0:bframes=0:open-gop=0:cpu-independent=1"
        stream.options = {"preset": "veryfast", "crf": str(crf), "x264-params": x264}
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._num_frames:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def upright(picture: UInt8[np.ndarray, "H W 3"], rotation_degrees: int) -> UInt8[np.ndarray, "H W 3"]:
    """Turn a picture counter-clockwise by what its metadata asks for, to the nearest quarter."""
    return np.ascontiguousarray(np.rot90(picture, round(rotation_degrees / 90)))


def suits_decord(container: InputContainer, stream: VideoStream, indices: Sequence[int]) -> bool:
    """Whether decord is the faster reader of these frames, and finds the same as PyAV."""
    return _skips_much(indices) and _is_safe_for_decord(container, stream)


def _skips_much(indices: Sequence[int]) -> bool:
    """Whether most frames up to the last are not asked for: below that, decord loses more by opening than it gains.

    For whole files PyAV is as fast as decord, for small ones twice as fast.
    """
    return decord is not None and max(indices) >= _SKIPPED_PER_FRAME * len(set(indices))


def _suits_decord(source: Source) -> bool:
    with open_stream(source) as (container, stream):
        return _is_safe_for_decord(container, stream)


def _is_safe_for_decord(container: InputContainer, stream: VideoStream) -> bool:
    """Whether decord finds the same frames as PyAV, which decodes from the start and counts.

    It seeks by time stamps to the key frame before: in containers without them (AVI), and where frames are stored in
    another order than they are shown in, it can return another frame. It converts pixel formats other than these in
    its own way, and writes to stderr when a file cannot be opened.
    """
    context = stream.codec_context
    return has_times(container) and not context.has_b_frames and context.pix_fmt in {"yuv420p", "yuvj420p"}


def try_decord(source: Source, indices: Sequence[int]) -> Frames | None:
    """Frames by decord, or None if it gives up.

    PyAV has fewer bugs (row padding of small odd widths, for one) and tells what is wrong with a file.
    """
    try:
        return _read_decord(source, indices)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, IndexError):
        return None


def _read_decord(source: Source, indices: Sequence[int]) -> Frames:
    # A fault tolerance of almost zero: decord's own answer to a frame it cannot decode is to repeat another one.
    reader = decord.VideoReader(open_argument(source), num_threads=1, fault_tol=1e-6)
    if not 0 <= min(indices) <= max(indices) < len(reader):
        raise IndexError(f"{name_of(source)}: {len(reader)} frames")  # PyAV then tells whether the file is cut off
    frames: Frames = reader.get_batch(list(indices)).asnumpy()
    return frames


def _read_pyav(source: Source, indices: Sequence[int] | None) -> Frames:
    with open_stream(source) as (container, stream):
        return pick_frames(source, decode_stream(source, container, stream), indices)


def pick_frames(source: Source, frames: Iterator[VideoFrame], indices: Sequence[int] | None) -> Frames:
    """Decode as far as the last frame that is asked for.

    Args:
        source: the file, for errors to name.
        frames: of the whole file, as decoded.
        indices: as of ``read_frames``.

    Raises:
        VideoError: there is no frame, or they differ in size.
        ValueError: an index is out of range.
    """
    wanted = None if indices is None else set(indices)
    last = max(wanted, default=-1) if wanted is not None else None
    decoded: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
    num_frames = 0
    converter = VideoReformatter()
    for index, frame in enumerate(frames):
        num_frames = index + 1
        if wanted is None or index in wanted:
            decoded[index] = to_rgb(converter, frame)
        if index == last:
            break
    if not num_frames:
        raise VideoError("zero-frames", source, "its video stream holds no frame")
    order = range(num_frames) if indices is None else indices
    for index in order:
        if not 0 <= index < num_frames:
            raise ValueError(f"{name_of(source)}: frame {index} is out of range, the video has {num_frames} frames")
    sizes = {frame.shape for frame in decoded.values()}
    if len(sizes) > 1:
        raise VideoError("undecodable", source, f"frames of different sizes: {sorted(sizes)}")
    return np.stack([decoded[index] for index in order])


def to_rgb(converter: VideoReformatter, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame as RGB ``[H, W, 3]``, upright."""
    # The converter is one for all frames: setting it up takes longer than converting a small frame.
    rgb: UInt8[np.ndarray, "H W 3"] = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return upright(rgb, frame.rotation)
