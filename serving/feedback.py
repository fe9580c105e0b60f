"""Corrections by callers: a folder of clips in the normal form and their records, with limits on bytes and age."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from mme.ingest.feedback import Correction, FeedbackRecord, load_record, record_path, record_paths
from mme.system.files import atomic_path, write_json
from serving.http.metrics import Metrics
from serving.problems import Problem, storage_problems
from serving.settings import Settings

log = logging.getLogger(__name__)

MAX_SHOWN = 10
"""Labels in the answer to one that is unknown."""

SECONDS_PER_DAY = 86_400.0


def check_label(label: str, labels: Sequence[str]) -> None:
    """Check that the model has a label.

    Raises:
        Problem: it has not; the problem names those that are most like it.
    """
    if label in labels:
        return
    known = difflib.get_close_matches(label, labels, MAX_SHOWN, cutoff=0.0)
    detail = f"{label!r:.100} is not one of the {len(labels)} labels, such as {', '.join(known)}"
    raise Problem("unknown-label", detail, labels=known)


class FeedbackStore:
    """The folder. Methods block, and may be called from several threads.

    A clip is written before its record and removed after it, so that a record always has its clip. Names are digests
    of contents: nothing that a client sent is part of a path.
    """

    def __init__(self, folder: Path, max_bytes: int, max_days: float, metrics: Metrics) -> None:
        """Take a folder that exists, and remove what is too old."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_s = max_days * SECONDS_PER_DAY
        self._metrics = metrics
        self._lock = threading.Lock()
        self.expire()

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> Self | None:
        """Return the store of the settings; None if they have no folder."""
        if settings.feedback_dir is None:
            return None
        return cls(settings.feedback_dir, settings.feedback_max_bytes, settings.feedback_max_days, metrics)

    def find(self, sha256: str) -> FeedbackRecord | None:
        """Return the record of an upload, if its clip is kept; a damaged record counts as none."""
        path = record_path(self._folder, sha256)
        if not path.exists() or not (self._folder / f"{sha256}.mp4").exists():
            return None
        try:
            return load_record(path)
        except ValueError as error:
            log.warning("record of feedback is replaced", extra={"cause": str(error)})
            return None

    def keep(self, sha256: str, duration_s: float, correction: Correction, clip: bytes | None) -> Correction | None:
        """Add a correction and, unless it is kept already, its clip; return the correction that counted before.

        Raises:
            Problem: the folder or the disk is full, or the clip that was there has just expired.
        """
        with self._lock:
            known = self.find(sha256)
            if known is None and clip is None:
                raise Problem("overloaded", "the clip was removed meanwhile; send it again", retry_after_s=1)
            sizes = self._sizes()
            self._check_space(sizes, 0 if clip is None or known is not None else len(clip))
            record = (
                FeedbackRecord(sha256=sha256, duration_s=duration_s, corrections=(correction,))
                if known is None
                else known.with_correction(correction)
            )
            with storage_problems("keep the clip"):
                if known is None and clip is not None:
                    with atomic_path(self._folder / record.clip_name) as temporary:
                        temporary.write_bytes(clip)
                    sizes[record.clip_name] = len(clip)
                path = record_path(self._folder, sha256)
                write_json(path, record.model_dump(mode="json"))
                sizes[path.name] = path.stat().st_size
            self._show(sizes)
            return None if known is None else known.last

    def expire(self) -> None:
        """Remove what was last said too long ago, and what a crash has left without a record."""
        with self._lock:
            oldest = time.time() - self._max_s
            for path in record_paths(self._folder):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    path.with_suffix(".mp4").unlink(missing_ok=True)
                    log.info("feedback expired", extra={"clip": path.stem})
            for clip in self._folder.glob("*.mp4"):
                if not clip.with_suffix(".json").exists() and clip.stat().st_mtime < time.time() - SECONDS_PER_DAY:
                    clip.unlink(missing_ok=True)
            for unfinished in self._folder.glob(".*.mp4.*"):
                if unfinished.stat().st_mtime < time.time() - SECONDS_PER_DAY:
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._show(self._sizes())

    def _check_space(self, sizes: Mapping[str, int], num_bytes: int) -> None:
        used = sum(sizes.values())
        if used + num_bytes > self._max_bytes:
            detail = f"{used} of {self._max_bytes} bytes are taken, {num_bytes} are needed"
            raise Problem("feedback-full", detail, max_bytes=self._max_bytes)

    def _sizes(self) -> dict[str, int]:
        """Return the bytes of each file of the folder."""
        return {entry.name: entry.stat().st_size for entry in os.scandir(self._folder) if entry.is_file()}

    def _show(self, sizes: Mapping[str, int]) -> None:
        """Set the gauges."""
        self._metrics.feedback_bytes.set(sum(sizes.values()))
        self._metrics.feedback_clips.set(sum(name.endswith(".json") for name in sizes))
