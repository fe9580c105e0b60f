"""Transcoding of one source file to the normal form: upright, square pixels, one length of the short side, H.264."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from mme.ingest.frame_video import FrameFolder
from mme.system.files import atomic_path, sha256_file
from mme.system.workers import WorkerFailure
from mme.video.codec import MAX_SIDE, VideoWriter
from mme.video.containers import Reason, VideoError, errors_of_file, out_of_memory
from mme.video.crop import resize
from mme.video.metadata import ContainerMetadata, VideoInfo, read_container_metadata
from mme.video.orientation import UPRIGHT
from mme.video.resampling import check_decodes, count_resampled, iter_resampled
from mme.video.timeline import exact_rate
from mme.video.trim import TimeSpan, read_trim_metadata

_TARGET_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
}
"""Errors of the folder that is written to; all others that the encoder raises are of the file that is read."""


@dataclass(frozen=True)
class NormalForm:
    """Format of every transcoded video; the fields are those of ``ingest`` in ``params.yaml``."""

    fps: float
    short_side: int
    crf: int
    gop_frames: int


@dataclass(frozen=True)
class TranscodeJob:
    """A file, a folder of frames with their rate, or the clip of one between two seconds, and the file to write."""

    source: Path
    target: Path
    form: NormalForm
    span_s: TimeSpan | None = None
    frames_fps: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Result for one source file; ``reason`` is None if it can be used.

    Attributes:
        sha256: of the source's bytes; of a clip, of the bytes that were read.
        num_frames: number of frames written.
        fps: frames per second of the transcoded file.
        source_fps: frames per second of the source, the average if its rate varies.
        width: pixels of the transcoded file.
        height: pixels of the transcoded file.
        copied: True if the source was already in the normal form.
        reason: reason why the file cannot be used.
        detail: the reason in a sentence.
    """

    sha256: str = ""
    num_frames: int = 0
    fps: float = 0.0
    source_fps: float = 0.0
    width: int = 0
    height: int = 0
    copied: bool = False
    reason: Reason | None = None
    detail: str = ""


class SourceVideo:
    """A file, or a clip of it: hash, metadata, frames, and checks of their number."""

    def __init__(self, path: Path, span_s: TimeSpan | None = None) -> None:
        """Hash the bytes: those of the file, or of the coded pictures of the clip.

        Raises:
            VideoError: the clip has no frame or cannot be read.
            OSError: the file cannot be read.
        """
        self._path = path
        self._span_s = span_s
        with errors_of_file(path):
            self._trim = None if span_s is None else read_trim_metadata(path, span_s)
        self.sha256 = sha256_file(path) if self._trim is None else self._trim.sha256

    @cached_property
    def _container(self) -> ContainerMetadata:
        with errors_of_file(self._path):
            return read_container_metadata(self._path)

    @property
    def info(self) -> VideoInfo:
        """Size, average rate and number of the pictures that should decode."""
        return self._container.info if self._trim is None else self._trim.info

    def frames(self, fps: float) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Decode upright RGB frames one by one at a constant rate.

        Raises:
            VideoError: too much of the video does not decode, which may be known at its end only.
        """
        return iter_resampled(self._path, fps, self._span_s, None if self._trim is not None else self._container)

    def count(self, fps: float, decode: bool) -> int:
        """Return the number of frames at a constant rate; decode all pictures for it, or the first one.

        Raises:
            VideoError: too much of the video does not decode, or it ends too early.
        """
        return count_resampled(self._path, fps, self._span_s, decode)

    def can_be_copied(self, form: NormalForm) -> bool:
        """Return whether a whole file is in the normal form already, at any quality, and every picture decodes.

        Raises:
            VideoError: too much of it does not decode.
        """
        return self.is_normal(form) and check_decodes(self._path, self._container)[1]

    def is_normal(self, form: NormalForm) -> bool:
        """Return whether a whole file is in the normal form already, at any quality."""
        if self._span_s is not None:
            return False
        metadata = self._container
        size = (metadata.info.width, metadata.info.height)
        return (
            "mp4" in metadata.formats
            and metadata.num_streams == 1
            and metadata.info.codec == "h264"
            and metadata.pixel_format == "yuv420p"
            and metadata.orientation == UPRIGHT
            and metadata.info.pixel_aspect == 1
            and metadata.is_constant_rate
            and exact_rate(metadata.info.fps) == exact_rate(form.fps)
            and not metadata.has_b_frames
            and metadata.keyframe_interval <= form.gop_frames
            and size == normal_size(*size, 1.0, form.short_side)
        )


def open_source(path: Path, span_s: TimeSpan | None, frames_fps: float | None) -> SourceVideo | FrameFolder:
    """Open a file, or a folder of frames if their rate is given, and hash its bytes.

    Raises:
        VideoError: it has no frame or cannot be read.
        OSError: it cannot be read.
    """
    return SourceVideo(path, span_s) if frames_fps is None else FrameFolder(path, frames_fps, span_s)


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
            video = open_source(job.source, job.span_s, job.frames_fps)
        except OSError as error:
            return rejected(error, job.source)
        sha256 = video.sha256
        return _write_normal(video, job)
    except (VideoError, MemoryError) as error:
        return rejected(error, job.source, sha256)


def _write_normal(video: SourceVideo | FrameFolder, job: TranscodeJob) -> Outcome:
    info, form = video.info, job.form
    width, height = normal_size(info.width, info.height, info.pixel_aspect, form.short_side)
    if max(width, height) > MAX_SIDE:
        raise VideoError("too-large", job.source, f"{info.width} x {info.height} pixels would be {width} x {height}")
    copied = video.can_be_copied(form)
    num_frames = 0
    with atomic_path(job.target) as temporary:
        if copied:
            num_frames = info.num_frames
            shutil.copyfile(job.source, temporary)
        else:
            with (
                _encoder_errors(job),
                VideoWriter(temporary, (width, height), form.fps, form.crf, form.gop_frames) as writer,
            ):
                previous: UInt8[np.ndarray, "H W 3"] | None = None
                resized: UInt8[np.ndarray, "H W 3"]
                for frame in video.frames(form.fps):
                    if frame is not previous:  # one that is held is resized once
                        previous, resized = frame, resize(frame[None], height, width)[0]
                    writer.write(resized)
                    num_frames += 1
    return Outcome(video.sha256, num_frames, float(exact_rate(form.fps)), info.fps, width, height, copied)


@contextmanager
def _encoder_errors(job: TranscodeJob) -> Iterator[None]:
    """Convert what is raised on a file into `VideoError`, but for a target that cannot be written."""
    try:
        yield
    except (VideoError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _TARGET_FAULTS:
            raise
        raise VideoError("undecodable", job.source, f"cannot be encoded: {type(error).__name__}: {error}") from error


def rejected(error: VideoError | OSError | MemoryError, source: Path, sha256: str = "") -> Outcome:
    """Return the outcome for a file that cannot be used because of an error."""
    if isinstance(error, MemoryError):
        error = out_of_memory(source)
    if isinstance(error, VideoError):
        return Outcome(sha256=sha256, reason=error.reason, detail=error.detail)
    return Outcome(sha256=sha256, reason="undecodable", detail=f"cannot be read: {error.strerror}")


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
