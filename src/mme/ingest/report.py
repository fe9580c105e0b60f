"""Result of ingest or of a validation: counts by split, class and reason, and their printout."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.ingest.listing import Listing
from mme.ingest.rates import distribution, is_below, suggested_fps, varied_range
from mme.manifest import Manifest, Video
from mme.system.names import shown_name

_MAX_LISTED = 20

_SKIPPED_FILES = {
    "missing": "listed files that do not exist",
    "broken": "links that lead to nothing",
    "unused": "files that are not used",
    "ignored": "files that are not videos by their names",
}


@dataclass(frozen=True)
class IngestResult:
    """Manifest of a source and the details of its errors.

    Attributes:
        manifest: usable and quarantined videos.
        details: errors of the quarantined videos, by source path.
        listing: files of the source.
        num_copied: number of videos that were already in the normal form.
        fps: frame rate of the normal form.
    """

    manifest: Manifest
    details: dict[str, str]
    listing: Listing
    num_copied: int
    fps: float

    def report(self) -> dict[str, Any]:
        """Return counts by split, class and reason; equal for equal sources."""
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
            "rates": self._rates(good),
            "splits": splits,
            "quarantined": {"videos": len(bad), "reasons": dict(sorted(Counter(row.reason for row in bad).items()))},
            "ignored": _shortened(self.listing.ignored),
            "missing": _shortened(self.listing.missing),
            "broken": _shortened(self.listing.broken),
            "unused": _shortened(self.listing.unused),
            "duplicates": _duplicates(good),
            "warnings": [*self.listing.warnings, *_warnings(good), *_rate_warnings(good)],
        }

    def _rates(self, rows: list[Video]) -> dict[str, Any]:
        rates = [row.source_fps for row in rows]
        return {
            "fps": self.fps,
            "held": sum(is_below(rate, self.fps) for rate in rates),
            "source": {str(rate): count for rate, count in distribution(rates).items()},
            "suggested": suggested_fps(rates),
        }

    def quarantine(self) -> list[tuple[str, str, str]]:
        """Return path, reason and detail of every file that cannot be used."""
        return [(row.source_path, str(row.reason), self.details[row.source_path]) for row in self.manifest.quarantined]


def print_report(result: IngestResult, console: Console) -> None:
    """Print the videos by split, and the files that are unusable, duplicates or left out."""
    report, bad = result.report(), result.quarantine()
    table = Table("split", "videos", "classes", "groups", "frames", box=None, pad_edge=False)
    for name, split in report["splits"].items():
        numbers = (split["videos"], len(split["classes"]), split["groups"], split["frames"])
        table.add_row(name, *map(str, numbers))
    console.print(table)

    rates, duplicates = report["rates"], report["duplicates"]
    lines = [f"bad: {path}: {reason}: {detail}" for path, reason, detail in bad[:_MAX_LISTED]]
    if len(bad) > _MAX_LISTED:
        lines.append(f"bad: {len(bad) - _MAX_LISTED} more")
    if rates["held"]:
        lines.append(
            f"{rates['held']} of {report['videos']} videos have fewer than {rates['fps']:g} frames per second (fps):"
            " their pictures are repeated"
        )
    lines += [f"duplicates in different splits: {', '.join(paths)}" for paths in duplicates["first_across_splits"]]
    if duplicates["files"]:
        lines.append(f"duplicates of other files: {duplicates['files']}")
    for name, meaning in _SKIPPED_FILES.items():
        if report[name]["files"]:
            lines.append(f"{meaning}: {report[name]['files']}, such as {', '.join(report[name]['first'][:3])}")
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    for line in lines:
        console.print(Text(shown_name(line)), soft_wrap=True)  # `Text`: names may look like rich's markup


def print_rates(rates: dict[str, Any], console: Console) -> None:
    """Print the frame rates of the sources, the commonest ones first, and the one that suits them.

    Args:
        rates: member ``rates`` of `IngestResult.report`.
        console: where to print.
    """
    total = sum(rates["source"].values())
    commonest = sorted(rates["source"].items(), key=lambda item: -item[1])
    table = Table("frames per second", "videos", "share", box=None, pad_edge=False)
    for rate, count in commonest[:_MAX_LISTED]:
        table.add_row(rate, str(count), f"{count / total:.0%}")
    if len(commonest) > _MAX_LISTED:
        count = sum(count for _, count in commonest[_MAX_LISTED:])
        table.add_row("others", str(count), f"{count / total:.0%}")
    console.print(table)
    if rates["suggested"] is not None:
        verdict = "suits" if rates["suggested"] == rates["fps"] else f"is {rates['fps']:g}; what suits is"
        reason = "the highest standard rate that 90 % of the videos reach"
        console.print(Text(f"ingest.fps {verdict} {rates['suggested']}: {reason}"), soft_wrap=True)


def _shortened(names: list[str]) -> dict[str, Any]:
    return {"files": len(names), "first": names[:_MAX_LISTED]}


def _duplicates(rows: list[Video]) -> dict[str, Any]:
    """Count files with equal content; a duplicate in training and test makes the test too easy."""
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
    """Name the classes that a split lacks."""
    labels: set[str] = {row.label for row in rows if row.label is not None and row.split != "pretrain"}
    found = []
    for split in ("train", "val", "test") if labels else ():
        missing = labels - {row.label for row in rows if row.split == split}
        if missing == labels:
            found.append(f"{split} has no video")
        elif missing:
            found.append(f"{split} has no video of {', '.join(sorted(missing))}")
    return found


def _rate_warnings(rows: list[Video]) -> list[str]:
    """Say that frame rates vary much."""
    varied = varied_range([row.source_fps for row in rows])
    if varied is None:
        return []
    low, high = varied
    reason = "those below fps repeat pictures, and a rate that goes with a class would be learnt instead of motion"
    return [f"frame rates vary, mostly from {low:.3g} to {high:.3g} per second: {reason}"]
