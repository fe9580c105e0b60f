"""A source before anything long starts: every file is opened and counted, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mme.config import IngestParams, RuntimeParams
from mme.ingest.listing import Listing
from mme.ingest.run import Ingested, collect, splits_of
from mme.ingest.transcode import Outcome, check_complete, check_part
from mme.system.files import sha256_file
from mme.system.workers import WorkerFailure, run_with_deadline
from mme.video.codec import iter_frames
from mme.video.containers import Reason, VideoError
from mme.video.metadata import read_container_metadata
from mme.video.trim import TimeSpan, iter_trimmed_frames, read_trim_metadata


@dataclass(frozen=True)
class Look:
    """A file to look at, or the part of it between two seconds; ``decode`` is to decode all of it."""

    name: str
    source: Path
    min_frames: int
    decode: bool
    span_s: TimeSpan | None = None


def check_source(
    listing: Listing, params: IngestParams, runtime: RuntimeParams, seed: int, decode: bool, advance: Callable[[], None]
) -> Ingested:
    """Look at every video of a listing.

    Args:
        listing: from ``list_source``.
        params: ``min_frames`` and the shares of splits are used.
        runtime: processes at a time, and their deadline.
        seed: of the splits.
        decode: decode every frame, as ingest does, and not the first one only; finds damage inside of files.
        advance: called once a file.

    Returns:
        what ingest would say, sizes and rates being those of the source.
    """
    looks = [Look(file.name, params.root / file.path, params.min_frames, decode, file.span_s) for file in listing.files]
    outcomes = {}
    for look, result in run_with_deadline(examine, looks, runtime.num_workers, runtime.deadline_s):
        if isinstance(result, WorkerFailure):
            reason: Reason = "timed-out" if result.cause == "timed-out" else "undecodable"
            outcomes[look.name] = Outcome(reason=reason, detail=result.detail)
        else:
            outcomes[look.name] = result
        advance()
    return collect(listing, splits_of(listing, params, seed), outcomes, params.root)


def examine(look: Look) -> Outcome:
    """Read headers, count pictures, decode the first one or all, and hash the bytes that were read."""
    sha256 = ""
    try:
        if look.span_s is not None:
            part = read_trim_metadata(look.source, look.span_s)
            sha256, info = part.sha256, part.info
            check_part(look.source, part, look.span_s, look.min_frames)
            num_frames = (
                sum(1 for _ in iter_trimmed_frames(look.source, look.span_s)) if look.decode else info.num_frames
            )
        else:
            sha256 = sha256_file(look.source)
            facts = read_container_metadata(look.source)
            info = facts.info
            num_frames = sum(1 for _ in iter_frames(look.source)) if look.decode else info.num_frames
            check_complete(look.source, facts, num_frames, look.min_frames)
    except VideoError as error:
        return Outcome(sha256=sha256, reason=error.reason, detail=error.detail)
    except OSError as error:
        return Outcome(sha256=sha256, reason="undecodable", detail=f"cannot be read: {error.strerror}")
    except MemoryError:
        return Outcome(sha256=sha256, reason="undecodable", detail="its frames do not fit into memory")
    return Outcome(sha256, num_frames, info.fps, info.width, info.height)
