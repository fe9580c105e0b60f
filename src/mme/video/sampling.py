"""Sample the views of a video that a classifier sees: the preprocessing of validation, evaluation and serving.

Needs NumPy and OpenCV only, so that a decoding process can run it without a model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from mme.config import ClipParams
from mme.video.crop import resize
from mme.video.metadata import VideoInfo
from mme.video.reader import OpenVideo, open_video

VideoInput: TypeAlias = Path | str | bytes | np.ndarray
"""A path, the bytes of a video file, or decoded RGB frames, uint8 ``[T, H, W, 3]``."""


@dataclass(frozen=True)
class Views:
    """Views of one video, before normalisation.

    Attributes:
        frames: RGB, ordered by segment, then by crop from left or top.
        info: metadata of the file; None if the source was decoded frames.
        decode_ms: milliseconds spent on decoding and resizing.
    """

    frames: UInt8[np.ndarray, "V T S S 3"]
    info: VideoInfo | None
    decode_ms: float


def sample_views(source: VideoInput, clip: ClipParams, fps: float, segments: int, crops: int) -> Views:
    """Decode the frames that the views need, resize and crop them.

    Args:
        source: a path, the bytes of a video file, or RGB frames uint8 ``[T, H, W, 3]``, which are at ``fps`` already.
        clip: frames, stride and size of a view.
        fps: frames per second in which the clip counts; of a file, those on screen at these times are taken.
        segments: number of clips along the video, see ``segment_starts``.
        crops: squares per frame, 1 or 3, see ``crop_offsets``.

    Raises:
        VideoError: the video cannot be decoded; ``reason`` says why.
        ValueError: ``segments`` or ``crops`` is out of range, or an array is not uint8 ``[T, H, W, 3]``.
    """
    started = time.perf_counter()
    if isinstance(source, np.ndarray):
        indices = view_indices(num_frames_of(source), clip, segments)
        needed, positions = np.unique(indices, return_inverse=True)
        views = cut_views(source[needed], positions.reshape(indices.shape), clip.size, crops)
        return Views(views, None, 1000 * (time.perf_counter() - started))
    with open_video(Path(source) if isinstance(source, str) else source) as video:
        return sample_open_video(video, clip, fps, segments, crops)


def sample_open_video(video: OpenVideo, clip: ClipParams, fps: float, segments: int, crops: int) -> Views:
    """Like ``sample_views`` for a file that is open.

    Raises:
        VideoError, ValueError: as ``sample_views``.
    """
    indices = view_indices(video.num_frames(fps), clip, segments)
    needed, positions = np.unique(indices, return_inverse=True)
    frames = video.read([int(index) for index in needed], fps)
    views = cut_views(frames, positions.reshape(indices.shape), clip.size, crops, video.info.pixel_aspect)
    return Views(views, video.info, 1000 * (time.perf_counter() - video.opened_s))


def cut_views(
    frames: UInt8[np.ndarray, "U H W 3"],
    positions: Int64[np.ndarray, "segments T"],
    size: int,
    crops: int,
    pixel_aspect: float = 1.0,
) -> UInt8[np.ndarray, "V T S S 3"]:
    """Cut views out of the frames at ``positions``, a row of them per segment."""
    squares = square_crops(frames, size, crops, pixel_aspect)  # (C, U, S, S, 3)
    views = squares[:, positions]  # (C, segments, T, S, S, 3)
    return np.ascontiguousarray(views.swapaxes(0, 1)).reshape(-1, *views.shape[2:])  # (V, T, S, S, 3)


def num_frames_of(frames: np.ndarray) -> int:
    """Return the number of decoded frames.

    Raises:
        ValueError: they are not RGB uint8 ``[T, H, W, 3]``.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames: expected RGB uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    return len(frames)


def segment_starts(num_frames: int, span_frames: int, segments: int) -> list[int]:
    """First frames of the clips, evenly spaced from start to end of the video; a single clip is in the middle.

    There are at most as many clips as possible start frames; a video shorter than a clip has one clip, from frame 0.

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


def view_indices(num_frames: int, clip: ClipParams, segments: int) -> Int64[np.ndarray, "segments T"]:
    """Frame numbers of every clip; the last frame is repeated beyond the end of the video.

    With ``clip.sampling: segments``, a clip has one frame from each of T equal parts of the whole video (Wang et al.
    2016, TSN), and with ``clip.snippets`` above 1 one snippet; clips differ in the position within the parts, and a
    single clip takes their middles.
    """
    if clip.sampling == "segments" or clip.snippets > 1:
        if segments < 1 or num_frames < 1:
            raise ValueError(f"segments: {segments} clips of {num_frames} frames; both must be at least 1")
        segments = min(segments, max(1, num_frames // _num_parts(clip)))
        return _part_frames(num_frames, clip, (np.arange(segments)[:, None] + 0.5) / segments)
    starts = np.array(segment_starts(num_frames, clip.span_frames, segments), dtype=np.int64)
    steps = np.arange(clip.num_frames, dtype=np.int64) * clip.stride_frames
    indices: Int64[np.ndarray, "segments T"] = np.minimum(starts[:, None] + steps, num_frames - 1)
    return indices


def draw_indices(rng: np.random.Generator, num_frames: int, clip: ClipParams) -> Int64[np.ndarray, " T"]:
    """Draw the frame numbers of a clip for training, ascending.

    ``clip.sampling: stride`` draws the start; ``segments`` draws one frame in each of T equal parts of the video, and
    ``clip.snippets`` above 1 one snippet.
    """
    if clip.sampling == "segments" or clip.snippets > 1:
        return _part_frames(num_frames, clip, rng.random(_num_parts(clip)))
    offset = int(rng.integers(0, max(1, num_frames - clip.span_frames + 1)))
    steps = np.arange(clip.num_frames, dtype=np.int64) * clip.stride_frames
    indices: Int64[np.ndarray, " T"] = np.minimum(offset + steps, num_frames - 1)
    return indices


def _num_parts(clip: ClipParams) -> int:
    """Number of equal parts of a video that give one frame each, or one snippet."""
    return clip.num_frames if clip.sampling == "segments" else clip.snippets


def _part_frames(
    num_frames: int, clip: ClipParams, position: Float64[np.ndarray, "*segments #P"]
) -> Int64[np.ndarray, "*segments T"]:
    """Frames at ``position`` (0 to 1, broadcast over the parts) within each of P equal parts of a video.

    A snippet has its middle there, and is moved into the video where it would begin before or end after it.
    """
    num_parts = _num_parts(clip)
    middles: Float64[np.ndarray, "*segments P"] = (np.arange(num_parts) + position) * (num_frames / num_parts)
    if clip.sampling == "segments":
        return np.asarray(np.minimum(np.floor(middles), num_frames - 1), dtype=np.int64)
    slack = max(0, num_frames - clip.span_frames)
    starts = np.clip(np.floor(middles - (clip.span_frames - 1) / 2).astype(np.int64), 0, slack)  # (*segments, P)
    snippets = starts[..., None] + np.arange(clip.num_frames) * clip.stride_frames  # (*segments, P, frames)
    return np.asarray(np.minimum(snippets, num_frames - 1)).reshape(*starts.shape[:-1], -1)


def crop_offsets(long_side: int, size: int, crops: int) -> list[int]:
    """Offsets of the squares along the long side: centre, or both ends and centre; equal offsets only once.

    Raises:
        ValueError: ``crops`` is neither 1 nor 3.
    """
    if crops not in (1, 3):
        raise ValueError(f"crops: {crops} must be 1 or 3")
    slack = long_side - size
    return [slack // 2] if crops == 1 else sorted({0, slack // 2, slack})


def square_crops(
    frames: UInt8[np.ndarray, "T H W 3"], size: int, crops: int, pixel_aspect: float = 1.0
) -> UInt8[np.ndarray, "C T {size} {size} 3"]:
    """Resize the short side to ``size`` and cut squares along the long side.

    Frames whose short side is ``size`` already are not resampled. Shrinking averages areas, growing is bicubic.

    Args:
        frames: RGB.
        size: side of the squares in pixels.
        crops: squares per frame, see ``crop_offsets``.
        pixel_aspect: width of a stored pixel over its height; pixels are square afterwards.
    """
    height, width = fitted_size(frames.shape[1], frames.shape[2], size, pixel_aspect)
    resized = resize(frames, height, width)
    squares = []
    for offset in crop_offsets(max(height, width), size, crops):
        top, left = (offset, 0) if height > width else (0, offset)
        squares.append(resized[:, top : top + size, left : left + size])
    return np.stack(squares)


def fitted_size(height: int, width: int, size: int, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """Height and width in square pixels of a frame whose short side becomes ``size``."""
    shown_width = width * pixel_aspect
    scale = size / min(height, shown_width)
    return max(size, round(height * scale)), max(size, round(shown_width * scale))
