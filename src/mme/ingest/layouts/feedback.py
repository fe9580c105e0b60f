"""Corrections by callers of the service: clips in ``MME_FEEDBACK_DIR``, and records of their labels."""

from __future__ import annotations

from mme.config import IngestParams
from mme.ingest.feedback import load_record, record_paths
from mme.ingest.listing import Listing, SourceFile, scan


def list_feedback(params: IngestParams) -> Listing:
    """List the clips that have a record, each with its latest label.

    Raises:
        ValueError: a record is damaged; the message names it.
    """
    tree = scan(params.root)
    clips = {path.as_posix() for path in tree.videos}
    paths = list(record_paths(params.root))
    records = [load_record(path) for path in paths]
    listed = {record.clip_name for record in records}
    files = [SourceFile(record.clip_name, record.last.label) for record in records if record.clip_name in clips]
    others = [name for name in tree.others if name not in {path.name for path in paths}]
    return Listing(files, others, missing=sorted(listed - clips), unused=sorted(clips - listed), broken=tree.broken)
