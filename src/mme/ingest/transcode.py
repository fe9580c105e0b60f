"""One source file into the normal form: decoded in full, upright, square pixels, one size of the short side, H.264."""

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
from mme.video.codec import VideoWriter, iter_frames
from mme.video.containers import Reason, VideoError
from mme.video.crop import resize
from mme.video.metadata import ContainerMetadata, read_container_metadata
from mme.video.trim import TimeSpan, TrimMetadata, iter_trimmed_frames, read_trim_metadata

_FRAMES_TOLERANCE = 0.05
_DURATION_TOLERANCE = 0.10
_FEW_FRAMES = 2
"""Fewer frames than announced are no damage if they are at most these shares, or this many: edit lists hide frames,
headers round, and some muxers count an empty last packet."""


@dataclass(frozen=True)
class NormalForm:
    """What every ingested video looks like; the fields are those of ``ingest`` in ``params.yaml``."""

    short_side: int
    crf: int
    gop_frames: int
    min_frames: int


@dataclass(frozen=True)
class Job:
    """One file to bring into the normal form, or the part of it between two seconds."""

    source: Path
    target: Path
    form: NormalForm
    span_s: TimeSpan | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a file; ``reason`` is None if ``target`` was written.

    Attributes:
        sha256: of the source's bytes; of a part, of those that were read.
        num_frames: frames written.
        fps: frames a second.
        width: pixels of the normal form.
        height: pixels of the normal form.
        copied: whether the source was in the normal form already.
        reason: why the file cannot be used.
        detail: the same in a sentence.
    """

    sha256: str = ""
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    copied: bool = False
    reason: Reason | None = None
    detail: str = ""


def normalise(job: Job) -> Outcome:
    """Decode a file in full and write it in the normal form.

    A source that is in the normal form already, apart from its quality, is copied byte for byte: that loses nothing.

    Raises:
        OSError: the target cannot be written.
    """
    cv2.setNumThreads(1)
    sha256 = ""
    try:
        try:
            part = None if job.span_s is None else read_trim_metadata(job.source, job.span_s)
            sha256 = sha256_file(job.source) if part is None else part.sha256
        except OSError as error:
            raise VideoError("undecodable", job.source, f"cannot be read: {error.strerror}") from error
        return _normalise(job, sha256) if part is None else _cut(job, part)
    except VideoError as error:
        return Outcome(sha256=sha256, reason=error.reason, detail=error.detail)
    except MemoryError:
        return Outcome(sha256=sha256, reason="undecodable", detail="its frames do not fit into memory")


def normal_size(width: int, height: int, pixel_aspect: float, short_side: int) -> tuple[int, int]:
    """Width and height in square pixels, the shorter one ``short_side``, the longer one rounded to an even number."""
    shown_width = width * pixel_aspect
    scale = short_side / min(shown_width, height)
    return _even(shown_width * scale, short_side), _even(height * scale, short_side)


def _even(value: float, least: int) -> int:
    return max(2 * round(value / 2), least)


def _normalise(job: Job, sha256: str) -> Outcome:
    facts = read_container_metadata(job.source)
    info = facts.info
    width, height = normal_size(info.width, info.height, info.pixel_aspect, job.form.short_side)
    rate = Fraction(info.fps).limit_denominator(65535)
    copied = _is_normal(facts, job.form)
    with atomic_path(job.target) as temporary:
        frames = (resize(frame[None], height, width)[0] for frame in iter_frames(job.source))
        if copied:
            num_frames = sum(1 for _ in frames)
            shutil.copyfile(job.source, temporary)
        else:
            num_frames = _write(temporary, frames, (width, height), rate, job.form)
        check_complete(job.source, facts, num_frames, job.form.min_frames)
    return Outcome(sha256, num_frames, float(rate), width, height, copied)


def _cut(job: Job, part: TrimMetadata) -> Outcome:
    assert job.span_s is not None
    info, span_s = part.info, job.span_s
    check_part(job.source, part, span_s, job.form.min_frames)
    width, height = normal_size(info.width, info.height, info.pixel_aspect, job.form.short_side)
    rate = Fraction(info.fps).limit_denominator(65535)
    with atomic_path(job.target) as temporary:
        frames = (resize(frame[None], height, width)[0] for frame in iter_trimmed_frames(job.source, span_s))
        num_frames = _write(temporary, frames, (width, height), rate, job.form)
        if num_frames + max(_FEW_FRAMES, _FRAMES_TOLERANCE * info.num_frames) < info.num_frames:
            raise VideoError("truncated", job.source, f"{num_frames} frames decode of {info.num_frames}")
    return Outcome(part.sha256, num_frames, float(rate), width, height)


def check_part(source: Path, part: TrimMetadata, span_s: TimeSpan, min_frames: int) -> None:
    """Compare the frames of a part with its length, and with what is needed.

    Raises:
        VideoError: ``truncated`` or ``too-short``.
    """
    num_frames, expected = part.info.num_frames, (span_s[1] - span_s[0]) * part.info.fps
    if num_frames + max(_FEW_FRAMES, _DURATION_TOLERANCE * expected) < expected:
        what = f"{num_frames} frames between {span_s[0]:g} and {span_s[1]:g} s, {expected:.0f} expected"
        raise VideoError("truncated", source, what)
    if num_frames < min_frames:
        raise VideoError("too-short", source, f"{num_frames} frames, fewer than {min_frames}")


def _write(
    path: Path, frames: Iterator[UInt8[np.ndarray, "H W 3"]], size: tuple[int, int], rate: Fraction, form: NormalForm
) -> int:
    num_frames = 0
    with VideoWriter(path, size, rate, form.crf, form.gop_frames) as writer:
        for frame in frames:
            writer.write(frame)
            num_frames += 1
    return num_frames


def check_complete(source: Path, facts: ContainerMetadata, num_frames: int, min_frames: int) -> None:
    """Compare what was found with what the header announced, and with what is needed.

    Raises:
        VideoError: ``truncated`` or ``too-short``.
    """
    if facts.declared_frames:
        expected, tolerance = float(facts.declared_frames), _FRAMES_TOLERANCE
    else:
        rate = facts.info.fps if num_frames > 1 else 0.0  # one frame has no rate
        expected, tolerance = facts.declared_s * rate, _DURATION_TOLERANCE
    if num_frames + max(_FEW_FRAMES, tolerance * expected) < expected:
        raise VideoError("truncated", source, f"{num_frames} frames, its header announces {expected:.0f}")
    if num_frames < min_frames:
        raise VideoError("too-short", source, f"{num_frames} frames, fewer than {min_frames}")


def _is_normal(facts: ContainerMetadata, form: NormalForm) -> bool:
    """Whether a file need not be encoded again."""
    size = (facts.info.width, facts.info.height)
    return (
        "mp4" in facts.formats
        and facts.num_streams == 1
        and facts.info.codec == "h264"
        and facts.pixel_format == "yuv420p"
        and facts.rotation_degrees == 0
        and facts.info.pixel_aspect == 1
        and facts.is_constant_rate
        and not facts.has_b_frames
        and facts.keyframe_interval <= form.gop_frames
        and size == normal_size(*size, 1.0, form.short_side)
    )
