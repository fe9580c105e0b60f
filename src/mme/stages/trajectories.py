"""Stage ``trajectories``: flow, camera motion and tracks of every video, into shards."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mme.config import load_params
from mme.data.extraction import Extraction, Extractor
from mme.data.manifest import Manifest
from mme.files import write_json

MANIFEST = Path("data/manifest.parquet")
OUTPUT = Path("data/trajectories")
REPORTS = Path("reports/trajectories")
WORK = Path(".work/trajectories")


def main() -> None:
    """Extract tracks as ``params.yaml`` says.

    Raises:
        ValueError: no videos, or the share of bad ones is above ``trajectories.max_bad_ratio``.
    """
    params = load_params()
    extractor = Extractor(Manifest.load(MANIFEST), params.trajectories, WORK)
    console = Console(stderr=True)
    begin = time.perf_counter()
    columns = (
        TextColumn("trajectories"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(extractor.videos))
        result = extractor.run(params.run.num_workers, lambda count: progress.advance(task, count))
    for video_id, reason in result.failures.items():
        console.print(f"bad video {video_id}: {reason}", markup=False, highlight=False)
    bad_ratio = len(result.failures) / len(extractor.videos)
    if bad_ratio > params.trajectories.max_bad_ratio:
        raise ValueError(
            f"{len(result.failures)} of {len(extractor.videos)} videos are bad, {bad_ratio:.1%} is above"
            f" trajectories.max_bad_ratio {params.trajectories.max_bad_ratio:g}"
        )
    extractor.finish(OUTPUT, result)
    write_json(REPORTS / "summary.json", summarise(result, OUTPUT, time.perf_counter() - begin))


def summarise(result: Extraction, folder: Path, seconds: float) -> dict[str, float]:
    """Figures of the extraction, for the metrics of the stage."""
    total = {
        name: sum(entry[name] for entry in result.entries.values())
        for name in ("num_starts", "num_trusted", "num_points", "num_whole")
    }
    return {
        "videos": len(result.entries),
        "bad_videos": len(result.failures),
        "frames": total["num_starts"] + len(result.entries),
        "valid_share": total["num_whole"] / max(total["num_points"], 1),
        "trusted_share": total["num_trusted"] / max(total["num_starts"], 1),
        "seconds": seconds,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }


if __name__ == "__main__":
    main()
