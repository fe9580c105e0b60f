"""Transcoding of one source file to the normal form: upright, square pixels, one length of the short side, H.264."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from mme.system.files import atomic_path, sha256_file
from mme.system.workers import WorkerFailure
from mme.video.codec import VideoWriter, iter_frames
from mme.video.containers import Reason, VideoError
from mme.video.crop import resize
from mme.video.metadata import ContainerMetadata, read_container_metadata
from mme.video.trim import TimeSpan, TrimMetadata, iter_trimmed_frames, read_trim_metadata

# A file is truncated if it lacks more frames than declared by one of these shares and by this number: edit lists hide
# frames, headers round, and some muxers count an empty last packet.
_FRAMES_TOLERANCE = 0.05
_DURATION_TOLERANCE = 0.10
_NUM_FRAMES_TOLERANCE = 2


@dataclass(frozen=True)
class NormalForm:
    """Format of every transcoded video; the fields are those of ``ingest`` in ``params.yaml``."""

    short_side: int
    crf: int
    gop_frames: int
    min_frames: int


@dataclass(frozen=True)
class TranscodeJob:
    """A file, or the clip of it between two seconds, and the file to write."""

    source: Path
    target: Path
    form: NormalForm
    span_s: TimeSpan | None = None


@dataclass(frozen=True)
class Outcome:
    """Result for one source file; ``reason`` is None if it can be used.

    Attributes:
        sha256: of the source's bytes; of a clip, of the bytes that were read.
        num_frames: number of frames written.
        fps: frames per second.
        width: pixels of the transcoded file.
        height: pixels of the transcoded file.
        copied: True if the source was already in the normal form.
        reason: reason why the file cannot be used.
        detail: the reason in a sentence.
    """

    sha256: str = ""
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    copied: bool = False
    reason: Reason | None = None
    detail: str = ""


def transcode(job: TranscodeJob) -> Outcome:
    """Decode a file in full and write it in the normal form.

    A source that is already in the normal form, at any quality, is copied byte for byte: no generation loss.

    Raises:
        OSError: the target cannot be written.
    """
    cv2.setNumThreads(1)
    sha256 = ""
    try:
        try:
            trim = None if job.span_s is None else read_trim_metadata(job.source, job.span_s)
            sha256 = sha256_file(job.source) if trim is None else trim.sha256
        except OSError as error:
            return rejected(error)
        return _transcode_file(job, sha256) if trim is None else _transcode_clip(job, trim)
    except (VideoError, MemoryError) as error:
        return rejected(error, sha256)


def rejected(error: VideoError | OSError | MemoryError, sha256: str = "") -> Outcome:
    """Return the outcome for a file that cannot be used because of an error."""
    if isinstance(error, VideoError):
        return Outcome(sha256=sha256, reason=error.reason, detail=error.detail)
    detail = "its frames do not fit into memory"
    if isinstance(error, OSError):
        detail = f"cannot be read: {error.strerror}"
    return Outcome(sha256=sha256, reason="undecodable", detail=detail)


def outcome_of(result: Outcome | WorkerFailure) -> Outcome:
    """Return the outcome for a file whose worker may have been killed or have crashed."""
    if isinstance(result, Outcome):
        return result
    return Outcome(reason="timed-out" if result.cause == "timed-out" else "undecodable", detail=result.detail)


def normal_size(width: int, height: int, pixel_aspect: float, short_side: int) -> tuple[int, int]:
    """Return width and height in square pixels: the shorter one ``short_side``, the longer one rounded to even."""
    shown_width = width * pixel_aspect
    scale = short_side / min(shown_width, height)
    return _even(shown_width * scale, short_side), _even(height * scale, short_side)


def _even(value: float, minimum: int) -> int:
    return max(2 * round(value / 2), minimum)


def _transcode_file(job: TranscodeJob, sha256: str) -> Outcome:
    metadata = read_container_metadata(job.source)
    info = metadata.info
    width, height = normal_size(info.width, info.height, info.pixel_aspect, job.form.short_side)
    rate = Fraction(info.fps).limit_denominator(65535)
    copied = _is_normal(metadata, job.form)
    with atomic_path(job.target) as temporary:
        frames = (resize(frame[None], height, width)[0] for frame in iter_frames(job.source))
        if copied:
            num_frames = sum(1 for _ in frames)  # decoded all the same: damage may be anywhere
            shutil.copyfile(job.source, temporary)
        else:
            num_frames = _write_frames(temporary, frames, (width, height), rate, job.form)
        check_complete(job.source, metadata, num_frames, job.form.min_frames)
    return Outcome(sha256, num_frames, float(rate), width, height, copied)


def _transcode_clip(job: TranscodeJob, trim: TrimMetadata) -> Outcome:
    assert job.span_s is not None
    info, span_s = trim.info, job.span_s
    check_clip(job.source, trim, span_s, job.form.min_frames)
    width, height = normal_size(info.width, info.height, info.pixel_aspect, job.form.short_side)
    rate = Fraction(info.fps).limit_denominator(65535)
    with atomic_path(job.target) as temporary:
        frames = (resize(frame[None], height, width)[0] for frame in iter_trimmed_frames(job.source, span_s))
        num_frames = _write_frames(temporary, frames, (width, height), rate, job.form)
        if _is_truncated(num_frames, info.num_frames, _FRAMES_TOLERANCE):
            raise VideoError("truncated", job.source, f"{num_frames} frames decode of {info.num_frames}")
    return Outcome(trim.sha256, num_frames, float(rate), width, height)


def _write_frames(
    path: Path, frames: Iterator[UInt8[np.ndarray, "H W 3"]], size: tuple[int, int], rate: Fraction, form: NormalForm
) -> int:
    num_frames = 0
    with VideoWriter(path, size, rate, form.crf, form.gop_frames) as writer:
        for frame in frames:
            writer.write(frame)
            num_frames += 1
    return num_frames


def check_clip(source: Path, trim: TrimMetadata, span_s: TimeSpan, min_frames: int) -> None:
    """Compare the number of frames of a clip with its duration and with the minimum.

    Raises:
        VideoError: ``truncated`` or ``too-short``.
    """
    num_frames = trim.info.num_frames
    expected = (span_s[1] - span_s[0]) * trim.info.fps
    if _is_truncated(num_frames, expected, _DURATION_TOLERANCE):
        found = f"{num_frames} frames between {span_s[0]:g} and {span_s[1]:g} s"
        raise VideoError("truncated", source, f"{found}, {expected:.0f} expected")
    _check_length(source, num_frames, min_frames)


def check_complete(source: Path, metadata: ContainerMetadata, num_frames: int, min_frames: int) -> None:
    """Compare the number of frames decoded with the header and with the minimum.

    Raises:
        VideoError: ``truncated`` or ``too-short``.
    """
    if metadata.declared_frames:
        expected = float(metadata.declared_frames)
        tolerance = _FRAMES_TOLERANCE
    else:
        rate = metadata.info.fps if num_frames > 1 else 0.0  # one frame has no rate
        expected = metadata.declared_s * rate
        tolerance = _DURATION_TOLERANCE
    if _is_truncated(num_frames, expected, tolerance):
        raise VideoError("truncated", source, f"{num_frames} frames, its header announces {expected:.0f}")
    _check_length(source, num_frames, min_frames)


def _is_truncated(num_frames: int, expected: float, tolerance: float) -> bool:
    return num_frames + max(_NUM_FRAMES_TOLERANCE, tolerance * expected) < expected


def _check_length(source: Path, num_frames: int, min_frames: int) -> None:
    if num_frames < min_frames:
        raise VideoError("too-short", source, f"{num_frames} frames, fewer than {min_frames}")


def _is_normal(metadata: ContainerMetadata, form: NormalForm) -> bool:
    """Return whether a file is in the normal form already, at any quality."""
    size = (metadata.info.width, metadata.info.height)
    return (
        "mp4" in metadata.formats
        and metadata.num_streams == 1
        and metadata.info.codec == "h264"
        and metadata.pixel_format == "yuv420p"
        and metadata.rotation_degrees == 0
        and metadata.info.pixel_aspect == 1
        and metadata.is_constant_rate
        and not metadata.has_b_frames
        and metadata.keyframe_interval <= form.gop_frames
        and size == normal_size(*size, 1.0, form.short_side)
    )
