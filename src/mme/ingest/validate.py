"""Validation of a source before anything long starts: every file is opened and counted, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mme.config import IngestParams, RuntimeParams
from mme.ingest.listing import Listing
from mme.ingest.report import IngestResult
from mme.ingest.run import collect_result, draw_splits
from mme.ingest.transcode import Outcome, open_source, outcome_of, rejected
from mme.system.workers import run_with_deadline
from mme.video.containers import VideoError
from mme.video.trim import TimeSpan


@dataclass(frozen=True)
class ValidationJob:
    """A file, or the clip of it between two seconds.

    Attributes:
        name: of the file in the listing.
        source: its path.
        fps: frame rate of the normal form.
        decode: decode all frames instead of the first one.
        span_s: begin and end of the clip; None for the whole file.
        frames_fps: rate of a folder of frames; None for a file.
    """

    name: str
    source: Path
    fps: float
    decode: bool
    span_s: TimeSpan | None = None
    frames_fps: float | None = None


def validate_source(
    listing: Listing, params: IngestParams, runtime: RuntimeParams, seed: int, decode: bool, advance: Callable[[], None]
) -> IngestResult:
    """Validate every video of a listing.

    Args:
        listing: result of ``list_source``.
        params: root, and ratios of the splits.
        runtime: number of processes and their deadline.
        seed: of the splits.
        decode: decode all frames, as ingest does, instead of the first one; finds damage inside of files.
        advance: called once per file.

    Returns:
        the result that ingest would have, except that sizes are those of the source.
    """
    root, fps = params.root, params.fps
    jobs = [
        ValidationJob(file.name, root / file.path, fps, decode, file.span_s, file.frames_fps) for file in listing.files
    ]
    outcomes = {}
    for job, result in run_with_deadline(validate_file, jobs, runtime.num_workers, runtime.deadline_s):
        outcomes[job.name] = outcome_of(result)
        advance()
    return collect_result(listing, draw_splits(listing, params, seed), outcomes, root, fps)


def validate_file(job: ValidationJob) -> Outcome:
    """Read headers, count pictures, decode the first one or all, and hash the bytes that were read."""
    sha256 = ""
    try:
        video = open_source(job.source, job.span_s, job.frames_fps)
        sha256 = video.sha256
        info = video.info
        num_frames = video.count(job.fps, job.decode)
    except (VideoError, OSError, MemoryError) as error:
        return rejected(error, job.source, sha256)
    return Outcome(sha256, num_frames, job.fps, info.fps, info.width, info.height)
