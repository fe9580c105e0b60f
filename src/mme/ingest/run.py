"""The run of ingest: every file transcoded, a manifest, and a list of the files that cannot be used.

Work in progress is in a folder named by a digest of what the result depends on: one video per good file, and a journal
with one line per finished file. An interrupted run resumes there; the output is moved to its place as a whole, at the
end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from mme.config import DEFAULT_RUNTIME, IngestParams, RuntimeParams, Split
from mme.ingest.frame_folder import source_stamp
from mme.ingest.listing import Listing, SourceFile
from mme.ingest.report import IngestResult
from mme.ingest.sources import list_source
from mme.ingest.splits import assign_splits
from mme.ingest.transcode import NormalForm, Outcome, TranscodeJob, outcome_of, transcode
from mme.manifest import MANIFEST_FILE, VIDEOS_FOLDER, Manifest, Video, write_quarantine
from mme.system.files import atomic_path, digest, write_text
from mme.system.names import shown_name
from mme.system.workers import run_with_deadline
from mme.video.codec import GOP_FRAMES, NORMAL_FORM_VERSION

QUARANTINE_FILE = "quarantine.csv"

_MAX_SLUG = 64
_MAX_FILES_IN_ERROR = 20


class Ingest:
    """One pass over a source, which can be interrupted and resumed."""

    def __init__(
        self, params: IngestParams, seed: int, work: Path | str, runtime: RuntimeParams = DEFAULT_RUNTIME
    ) -> None:
        """List the source and read the journal of an interrupted run.

        Args:
            params: section ``ingest`` or one of ``datasets``.
            seed: of the splits.
            work: folder for work in progress.
            runtime: executor, deadline and share of bad files.

        Raises:
            ValueError: the source is missing or empty, or its list is wrong.
        """
        self._params = params
        self._runtime = runtime
        self.listing: Listing = list_source(params)
        self._splits = draw_splits(self.listing, params, seed)
        self._form = NormalForm(params.fps, params.short_side, params.crf, GOP_FRAMES)
        self._work = Path(work)
        folder = digest([NORMAL_FORM_VERSION, str(params.root.resolve()), asdict(self._form)])
        self._folder = (self._work / folder).absolute()  # workers of a cluster have another working directory
        self._outcomes = self._read_journal()

    @property
    def num_done(self) -> int:
        """Number of files that an interrupted run has finished."""
        return len(self._outcomes)

    def run(self, num_workers: int, advance: Callable[[], None]) -> IngestResult:
        """Transcode every file that is not done yet.

        Args:
            num_workers: number of processes on this machine; a Ray cluster uses all of its cores.
            advance: called once per file.

        Raises:
            OSError: the folder for work in progress cannot be written.
            ValueError: ``runtime.executor`` is ``ray``, which is not installed.
            RuntimeError: a video cannot be written; the reason is on stderr.
        """
        files = {self._target(file.name): file for file in self.listing.files if file.name not in self._outcomes}
        root = self._params.root.absolute()
        todo = [
            TranscodeJob(root / file.path, target, self._form, file.span_s, file.frames_fps)
            for target, file in files.items()
        ]
        executor = self._runtime.executor if todo else "local"
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._journal().open("a", encoding="utf-8") as journal:
            for job, result in run_with_deadline(transcode, todo, num_workers, self._runtime.deadline_s, executor):
                file = files[job.target]
                outcome = outcome_of(result)
                self._outcomes[file.name] = outcome
                self._write_journal(journal, file, outcome)
                advance()
        return collect_result(self.listing, self._splits, self._outcomes, self._work, self._params.fps)

    def check(self, result: IngestResult) -> None:
        """Check the share of files that cannot be used.

        Raises:
            ValueError: the share is above ``max_bad_ratio``; the files are listed in the folder for work in progress.
        """
        bad, total = result.quarantine(), len(result.manifest)
        if len(bad) <= self._runtime.max_bad_ratio * total:
            return
        path = self._work / QUARANTINE_FILE
        write_quarantine(path, bad)
        lines = [f"  {shown_name(name)}: {reason}: {detail}" for name, reason, detail in bad[:_MAX_FILES_IN_ERROR]]
        raise ValueError(
            f"{len(bad)} of {total} files cannot be used, more than runtime.max_bad_ratio"
            f" {self._runtime.max_bad_ratio:g} allows; all of them are listed in {path}:\n" + "\n".join(lines)
        )

    def finish(self, result: IngestResult, output: Path | str) -> None:
        """Move videos, quarantine list and manifest to ``output``, and remove the work in progress."""
        output = Path(output)
        with atomic_path(output / VIDEOS_FOLDER) as folder:
            folder.mkdir()
            for row in result.manifest.rows:
                if row.status == "ok":
                    _link_or_copy(self._target(row.source_path), folder / row.path)
        write_quarantine(output / QUARANTINE_FILE, result.quarantine())
        result.manifest.save(output / MANIFEST_FILE)
        shutil.rmtree(self._work)

    def _target(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.mp4"

    def _journal(self) -> Path:
        return self._folder / "journal.jsonl"

    def _stamp(self, file: SourceFile) -> list[int | float | str | None] | None:
        """Return sizes, times and rate, to detect modified files; None is one that cannot be read."""
        try:
            return [*source_stamp(self._params.root / file.path), file.frames_fps]
        except OSError:
            return None

    def _write_journal(self, journal: TextIO, file: SourceFile, outcome: Outcome) -> None:
        if outcome.reason is not None and not outcome.sha256:
            return  # unreadable, or its worker failed: tried again by the next run
        line = {"name": file.name, "stamp": self._stamp(file), "outcome": asdict(outcome)}
        journal.write(json.dumps(line) + "\n")
        journal.flush()

    def _read_journal(self) -> dict[str, Outcome]:
        """Return the outcomes that are still valid: the source is unmodified and the transcoded video exists."""
        files = {file.name: file for file in self.listing.files}
        outcomes = {}
        for line in _json_lines(self._journal()):
            name, outcome = line["name"], Outcome(**line["outcome"])
            if name not in files or line["stamp"] != self._stamp(files[name]):
                continue
            if outcome.reason is not None or self._target(name).exists():
                outcomes[name] = outcome
        return outcomes


def draw_splits(listing: Listing, params: IngestParams, seed: int) -> list[Split]:
    """Return the split of every file of a listing."""
    test_ratio = 0.0 if listing.splits_training else params.test_ratio
    return assign_splits(listing.files, params.val_ratio, test_ratio, seed)


def collect_result(
    listing: Listing, splits: Sequence[Split], outcomes: Mapping[str, Outcome], folder: Path, fps: float
) -> IngestResult:
    """Build the manifest from the outcome of each file, by name; ``fps`` is the rate of the normal form."""
    pairs = zip(listing.files, splits, strict=True)
    return IngestResult(
        manifest=Manifest((_manifest_row(file, split, outcomes[file.name]) for file, split in pairs), folder),
        details={name: outcome.detail for name, outcome in outcomes.items() if outcome.reason},
        listing=listing,
        num_copied=sum(outcome.copied for outcome in outcomes.values()),
        fps=fps,
    )


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a journal; the last one may be incomplete if its writer was killed."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        write_text(path, text)
    for line in text.splitlines():
        yield json.loads(line)


def _manifest_row(file: SourceFile, split: str, outcome: Outcome) -> Video:
    video_id = video_id_of(file.name, outcome.sha256)
    return Video(
        id=video_id,
        path=f"{video_id}.mp4" if outcome.reason is None else "",
        sha256=outcome.sha256,
        label=file.label,
        split=split,
        group=file.group,
        num_frames=outcome.num_frames,
        fps=outcome.fps,
        width=outcome.width,
        height=outcome.height,
        status="ok" if outcome.reason is None else "quarantined",
        reason=outcome.reason,
        source_path=file.name,
        source_fps=outcome.source_fps,
    )


def video_id_of(name: str, sha256: str) -> str:
    """Return a readable part of the name and eight digits of a digest of name and content; safe as a file name."""
    path, mark, seconds = name.rpartition("#t=")
    stem = f"{path.rpartition('.')[0]} {seconds}" if mark else name.rpartition(".")[0] or name
    ascii_only = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_only).strip("-")[-_MAX_SLUG:].strip("-") or "video"
    return f"{slug}-{digest([name, sha256])[:8]}"


def _link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
