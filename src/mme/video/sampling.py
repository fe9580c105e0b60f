"""From a video to the views that a classifier sees: the one preprocessing of validation, evaluation and serving.

It needs numpy and OpenCV only, so that a decoding process can run it without a model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from mme.config import ClipParams
from mme.video.crop import resize
from mme.video.metadata import VideoInfo
from mme.video.reader import OpenVideo, open_video

Source: TypeAlias = Path | str | bytes | np.ndarray
"""A video: a path, the bytes of a file, or decoded RGB frames, uint8 ``[T, H, W, 3]``."""


@dataclass(frozen=True)
class Views:
    """Views of one video, before normalisation.

    Attributes:
        frames: RGB, uint8 ``[V, T, S, S, 3]``, segment by segment, each with its crops from left or top on.
        info: what the file says of itself; None where the source was decoded frames.
        decode_ms: time spent on decoding and resizing.
    """

    frames: UInt8[np.ndarray, "V T S S 3"]
    info: VideoInfo | None
    decode_ms: float


def prepare(source: Source, clip: ClipParams, segments: int, crops: int) -> Views:
    """Decode the frames that the views need, resize and crop them.

    Args:
        source: a path, the bytes of a video file, or RGB frames uint8 ``[T, H, W, 3]``.
        clip: frames, stride and size of a view.
        segments: clips along the video, see ``segment_starts``.
        crops: 1 or 3 squares a frame, see ``crop_offsets``.

    Raises:
        VideoError: the video cannot be decoded; ``reason`` tells why.
        ValueError: ``segments`` or ``crops`` is out of range, or an array is not uint8 ``[T, H, W, 3]``.
    """
    started = time.perf_counter()
    if isinstance(source, np.ndarray):
        indices = view_indices(_num_frames(source), clip, segments)
        needed, positions = np.unique(indices, return_inverse=True)
        views = _cut(source[needed], positions.reshape(indices.shape), clip.size, crops)
        return Views(views, None, 1000 * (time.perf_counter() - started))
    with open_video(Path(source) if isinstance(source, str) else source) as video:
        return prepare_open(video, clip, segments, crops)


def prepare_open(video: OpenVideo, clip: ClipParams, segments: int, crops: int) -> Views:
    """``prepare`` for a file that is open.

    Raises:
        VideoError, ValueError: as ``prepare``.
    """
    indices = view_indices(video.info.num_frames, clip, segments)
    needed, positions = np.unique(indices, return_inverse=True)
    frames = video.read([int(index) for index in needed])
    views = _cut(frames, positions.reshape(indices.shape), clip.size, crops, video.info.pixel_aspect)
    return Views(views, video.info, 1000 * (time.perf_counter() - video.opened_s))


def _cut(
    frames: UInt8[np.ndarray, "U H W 3"],
    positions: NDArray[np.int64],
    size: int,
    crops: int,
    pixel_aspect: float = 1.0,
) -> UInt8[np.ndarray, "V T S S 3"]:
    """Views of frames that stand at ``positions``, ``[segments, T]``."""
    squares = square_crops(frames, size, crops, pixel_aspect)  # (C, U, S, S, 3)
    views = squares[:, positions]  # (C, segments, T, S, S, 3)
    return np.ascontiguousarray(views.swapaxes(0, 1)).reshape(-1, *views.shape[2:])


def _num_frames(frames: np.ndarray) -> int:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames: expected RGB uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    return len(frames)


def segment_starts(num_frames: int, span_frames: int, segments: int) -> list[int]:
    """First frames of the clips: evenly spaced from the video's start to its end, one alone in the middle.

    A video has no more clips than there are frames to start one at; one shorter than a clip has one, from frame 0.

    Raises:
        ValueError: ``segments`` or ``num_frames`` is below 1.
    """
    if segments < 1 or num_frames < 1:
        raise ValueError(f"segments: {segments} clips of {num_frames} frames; both must be at least 1")
    slack = max(0, num_frames - span_frames)
    segments = min(segments, slack + 1)
    if segments == 1:
        return [slack // 2]
    gaps = segments - 1
    return [(2 * slack * i + gaps) // (2 * gaps) for i in range(segments)]  # halves round up


def view_indices(num_frames: int, clip: ClipParams, segments: int) -> NDArray[np.int64]:
    """Frame numbers of every clip, int64 ``[segments, T]``; beyond the video's end its last frame is repeated.

    With ``clip.sampling`` as ``segments`` a clip holds a frame of each of T equal parts of the whole video (Wang et al.
    2016, TSN), and clips differ in where within the parts they look: one alone at their middles.
    """
    if clip.sampling == "segments":
        if segments < 1 or num_frames < 1:
            raise ValueError(f"segments: {segments} clips of {num_frames} frames; both must be at least 1")
        segments = min(segments, max(1, num_frames // clip.num_frames))
        return _part_frames(num_frames, clip, (np.arange(segments)[:, None] + 0.5) / segments)
    starts = np.array(segment_starts(num_frames, clip.span_frames, segments), dtype=np.int64)
    steps = np.arange(clip.num_frames, dtype=np.int64) * clip.stride_frames
    indices: NDArray[np.int64] = np.minimum(starts[:, None] + steps, num_frames - 1)
    return indices


def draw_indices(rng: np.random.Generator, num_frames: int, clip: ClipParams) -> NDArray[np.int64]:
    """Frame numbers of a clip drawn for training, int64 ``[T]``, ascending.

    ``stride``: it starts anywhere; ``segments``: a frame from anywhere in each of T equal parts.
    """
    if clip.sampling == "segments":
        return _part_frames(num_frames, clip, rng.random(clip.num_frames))
    offset = int(rng.integers(0, max(1, num_frames - clip.span_frames + 1)))
    return np.minimum(offset + np.arange(clip.num_frames, dtype=np.int64) * clip.stride_frames, num_frames - 1)


def _part_frames(num_frames: int, clip: ClipParams, place: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames at ``place`` (0 to 1, broadcast over the parts) within each of T equal parts of a video."""
    parts = np.arange(clip.num_frames)
    frames: NDArray[np.int64] = np.floor((parts + place) * (num_frames / clip.num_frames)).astype(np.int64)
    return np.minimum(frames, num_frames - 1)


def crop_offsets(long_side: int, size: int, crops: int) -> list[int]:
    """Where the squares begin along the long side: centre, or both ends and the centre; those that coincide once.

    Raises:
        ValueError: ``crops`` is neither 1 nor 3.
    """
    if crops not in (1, 3):
        raise ValueError(f"crops: {crops} must be 1 or 3")
    slack = long_side - size
    return [slack // 2] if crops == 1 else sorted({0, slack // 2, slack})


def square_crops(
    frames: UInt8[np.ndarray, "T H W 3"], size: int, crops: int, pixel_aspect: float = 1.0
) -> UInt8[np.ndarray, "C T size size 3"]:
    """Resize the short side to ``size`` and cut squares along the long side.

    Frames whose short side is ``size`` already are not resampled. Shrinking averages areas, growing is bicubic.

    Args:
        frames: RGB.
        size: side of the squares in pixels.
        crops: squares a frame, see ``crop_offsets``.
        pixel_aspect: width of a stored pixel over its height; pixels are square afterwards.
    """
    height, width = fitted_size(frames.shape[1], frames.shape[2], size, pixel_aspect)
    squares = []
    resized = resize(frames, height, width)
    for offset in crop_offsets(max(height, width), size, crops):
        top, left = (offset, 0) if height > width else (0, offset)
        squares.append(resized[:, top : top + size, left : left + size])
    return np.stack(squares)


def fitted_size(height: int, width: int, size: int, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """Height and width, in square pixels, of a frame whose short side becomes ``size``."""
    shown_width = width * pixel_aspect
    scale = size / min(height, shown_width)
    return max(size, round(height * scale)), max(size, round(shown_width * scale))
