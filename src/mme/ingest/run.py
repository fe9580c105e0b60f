"""Every file of a source into the normal form, a manifest, and a list of what cannot be used.

Work in progress lives in a folder of its own, named after what the result depends on: one video a good file, and a
journal with one line a finished file. A run that was killed goes on where it stopped; the output takes its place as a
whole, at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from mme.config import DEFAULT_RUNTIME, IngestParams, RuntimeParams, Split
from mme.ingest.listing import Listing, SourceFile
from mme.ingest.sources import list_source
from mme.ingest.splits import assign_splits
from mme.ingest.transcode import Job, NormalForm, Outcome, normalise
from mme.manifest import MANIFEST_FILE, VIDEOS_FOLDER, Manifest, Video, write_quarantine
from mme.system.files import atomic_path, digest, write_text
from mme.system.workers import WorkerFailure, run_with_deadline
from mme.video.containers import Reason

FORMAT = 2
"""Counts up when the same source and parameters would give other videos."""

QUARANTINE_FILE = "quarantine.csv"

_MAX_SLUG = 64
_MAX_LISTED = 20


@dataclass(frozen=True)
class Ingested:
    """What became of a source.

    Attributes:
        manifest: good videos and bad ones.
        details: of the bad ones, by source path.
        listing: what the source held.
        num_copied: videos that were in the normal form already.
    """

    manifest: Manifest
    details: dict[str, str]
    listing: Listing
    num_copied: int

    def report(self) -> dict[str, Any]:
        """Counts by split, class and reason; the same for the same source, however long it took."""
        rows = self.manifest.rows
        good = [row for row in rows if row.status == "ok"]
        bad = self.manifest.quarantined
        splits = {}
        for split in sorted({row.split for row in good}):
            part = [row for row in good if row.split == split]
            splits[split] = {
                "videos": len(part),
                "frames": sum(row.num_frames for row in part),
                "groups": len({row.group for row in part if row.group is not None}),
                "classes": dict(sorted(Counter(row.label for row in part if row.label is not None).items())),
            }
        return {
            "videos": len(good),
            "classes": len(self.manifest.labels),
            "copied": self.num_copied,
            "splits": splits,
            "quarantined": {"videos": len(bad), "reasons": dict(sorted(Counter(row.reason for row in bad).items()))},
            "ignored": _counted(self.listing.ignored),
            "missing": _counted(self.listing.missing),
            "unused": _counted(self.listing.unused),
            "duplicates": _duplicates(good),
            "warnings": _warnings(good),
        }

    def quarantine(self) -> list[tuple[str, str, str]]:
        """Path, reason and detail of every bad file."""
        return [(row.source_path, str(row.reason), self.details[row.source_path]) for row in self.manifest.quarantined]


class Ingest:
    """One pass over a source."""

    def __init__(
        self, params: IngestParams, seed: int, work: Path | str, runtime: RuntimeParams = DEFAULT_RUNTIME
    ) -> None:
        """List the source and see what is done already.

        Args:
            params: source and normal form.
            seed: of the splits.
            work: folder for work in progress.
            runtime: executor, deadline and share of bad files.

        Raises:
            ValueError: the source is missing, empty, or its list is wrong.
        """
        self._params = params
        self._runtime = runtime
        self.listing: Listing = list_source(params)
        self._splits = splits_of(self.listing, params, seed)
        self._form = NormalForm(params.short_side, params.crf, params.gop_frames, params.min_frames)
        self._work = Path(work)
        folder = digest([FORMAT, str(params.root.resolve()), asdict(self._form)])
        self._folder = (self._work / folder).absolute()  # workers of a cluster have another working directory
        self._outcomes = self._read_journal()

    @property
    def num_done(self) -> int:
        """Files that an interrupted run has left done."""
        return len(self._outcomes)

    def run(self, num_workers: int, advance: Callable[[], None]) -> Ingested:
        """Bring every file that is not done yet into the normal form.

        Args:
            num_workers: processes of this machine at a time; a Ray cluster uses all that it has.
            advance: called once a file.

        Raises:
            OSError: the folder for work cannot be written.
            ValueError: ``runtime.executor`` is ``ray``, which is not installed.
            RuntimeError: a video cannot be written; the reason stands on stderr.
        """
        files = {self._target(file.name): file for file in self.listing.files if file.name not in self._outcomes}
        root = self._params.root.absolute()
        todo = [Job(root / file.path, target, self._form, file.span_s) for target, file in files.items()]
        engine = self._runtime.executor if todo else "local"
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._journal().open("a", encoding="utf-8") as journal:
            for job, result in run_with_deadline(normalise, todo, num_workers, self._runtime.deadline_s, engine):
                file = files[job.target]
                if isinstance(result, WorkerFailure):
                    reason: Reason = "timed-out" if result.cause == "timed-out" else "undecodable"
                    self._outcomes[file.name] = Outcome(reason=reason, detail=result.detail)  # tried again next time
                else:
                    self._outcomes[file.name] = result
                    self._write_journal(journal, file, result)
                advance()
        return collect(self.listing, self._splits, self._outcomes, self._work)

    def check(self, result: Ingested) -> None:
        """Refuse a source of which too much is bad.

        Raises:
            ValueError: the share of bad files is above ``max_bad_ratio``; their list is in the folder for work.
        """
        bad, total = result.quarantine(), len(result.manifest)
        if len(bad) <= self._runtime.max_bad_ratio * total:
            return
        path = self._work / QUARANTINE_FILE
        write_quarantine(path, bad)
        lines = [f"  {name}: {reason}: {detail}" for name, reason, detail in bad[:_MAX_LISTED]]
        raise ValueError(
            f"{len(bad)} of {total} files cannot be used, more than runtime.max_bad_ratio"
            f" {self._runtime.max_bad_ratio:g} allows; all of them are listed in {path}:\n" + "\n".join(lines)
        )

    def finish(self, result: Ingested, output: Path | str) -> None:
        """Move videos, quarantine list and manifest to their places in ``output``, and remove the work in progress."""
        output = Path(output)
        with atomic_path(output / VIDEOS_FOLDER) as folder:
            folder.mkdir()
            for row in result.manifest.rows:
                if row.status == "ok":
                    _link(self._target(row.source_path), folder / row.path)
        write_quarantine(output / QUARANTINE_FILE, result.quarantine())
        result.manifest.save(output / MANIFEST_FILE)
        shutil.rmtree(self._work)

    def _target(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.mp4"

    def _journal(self) -> Path:
        return self._folder / "journal.jsonl"

    def _stamp(self, path: str) -> list[int]:
        """What changes when the file does."""
        stat = os.stat(self._params.root / path)
        return [stat.st_size, stat.st_mtime_ns]

    def _write_journal(self, journal: TextIO, file: SourceFile, outcome: Outcome) -> None:
        if outcome.reason is not None and not outcome.sha256:
            return  # it could not even be read: worth another try
        line = {"name": file.name, "stamp": self._stamp(file.path), "outcome": asdict(outcome)}
        journal.write(json.dumps(line) + "\n")
        journal.flush()

    def _read_journal(self) -> dict[str, Outcome]:
        """Outcomes that still hold: the source file is as it was, and its video is there."""
        paths = {file.name: file.path for file in self.listing.files}
        outcomes = {}
        for line in _json_lines(self._journal()):
            name, outcome = line["name"], Outcome(**line["outcome"])
            if name not in paths or line["stamp"] != self._stamp(paths[name]):
                continue
            if outcome.reason is not None or self._target(name).exists():
                outcomes[name] = outcome
        return outcomes


def splits_of(listing: Listing, params: IngestParams, seed: int) -> list[Split]:
    """A split for every file of a listing."""
    test_ratio = 0.0 if listing.splits_training else params.test_ratio
    return assign_splits(listing.files, params.val_ratio, test_ratio, seed)


def collect(listing: Listing, splits: Sequence[Split], outcomes: Mapping[str, Outcome], folder: Path) -> Ingested:
    """Rows of a manifest from what became of each file, by name."""
    pairs = zip(listing.files, splits, strict=True)
    return Ingested(
        manifest=Manifest((_row(file, split, outcomes[file.name]) for file, split in pairs), folder),
        details={name: outcome.detail for name, outcome in outcomes.items() if outcome.reason},
        listing=listing,
        num_copied=sum(outcome.copied for outcome in outcomes.values()),
    )


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a journal; the last one may be torn where its writer was killed."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        write_text(path, text)
    for line in text.splitlines():
        yield json.loads(line)


def _row(file: SourceFile, split: str, outcome: Outcome) -> Video:
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
    )


def video_id_of(name: str, sha256: str) -> str:
    """A readable part of the name and eight digits that name and content decide; safe as a file name anywhere."""
    path, mark, seconds = name.rpartition("#t=")
    stem = f"{path.rpartition('.')[0]} {seconds}" if mark else name.rpartition(".")[0] or name
    ascii_only = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_only).strip("-")[-_MAX_SLUG:].strip("-") or "video"
    return f"{slug}-{digest([name, sha256])[:8]}"


def _counted(names: list[str]) -> dict[str, Any]:
    return {"files": len(names), "first": names[:_MAX_LISTED]}


def _duplicates(rows: list[Video]) -> dict[str, Any]:
    """Files of equal content; one that is in training and in a test makes the test too easy."""
    same: defaultdict[str, list[Video]] = defaultdict(list)
    for row in rows:
        same[row.sha256].append(row)
    sets = [videos for videos in same.values() if len(videos) > 1]
    sides = {"pretrain": "train"}
    crossing = [videos for videos in sets if len({sides.get(video.split, video.split) for video in videos}) > 1]
    listed = sorted(sorted(video.source_path for video in videos) for videos in crossing)
    return {
        "files": sum(len(videos) - 1 for videos in sets),
        "across_splits": len(listed),
        "first_across_splits": listed[:_MAX_LISTED],
    }


def _warnings(rows: list[Video]) -> list[str]:
    """Classes that a split lacks."""
    labels: set[str] = {row.label for row in rows if row.label is not None and row.split != "pretrain"}
    found = []
    for split in ("train", "val", "test") if labels else ():
        missing = labels - {row.label for row in rows if row.split == split}
        if missing == labels:
            found.append(f"{split} has no video")
        elif missing:
            found.append(f"{split} has no video of {', '.join(sorted(missing))}")
    return found


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none to give."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
