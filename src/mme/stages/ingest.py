"""Stage ``ingest``: transcode the videos of any source and write their manifest."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mme.config import RuntimeParams, load_params
from mme.config.paths import DATA_FOLDER, REPORTS_FOLDER, WORK_FOLDER
from mme.ingest.report import IngestResult, print_report
from mme.ingest.run import Ingest
from mme.manifest import MANIFEST_FILE, Manifest
from mme.system.errors import one_line_errors
from mme.system.files import write_json


def main(name: str | None = None) -> None:
    """Run the stage in the current folder.

    Args:
        name: data set of ``datasets``, with a folder of its own; None for the section ``ingest``.

    Raises:
        ValueError: the source or its list is wrong, or the share of bad files is above ``runtime.max_bad_ratio``.
    """
    from mme.tracking import start_run  # not at the top: worker processes import this module and do not need it

    params = load_params()
    if name is not None and name not in params.datasets:
        raise ValueError(f"params.yaml: datasets has no {name!r}, only {sorted(params.datasets)}")
    section = params.ingest if name is None else params.datasets[name]
    output, stage = (DATA_FOLDER, "ingest") if name is None else (DATA_FOLDER / name, f"ingest-{name}")
    with start_run("ingest", params) as run:  # before the work: it fails within seconds if runs cannot be recorded
        begin = time.perf_counter()
        result = ingest_source(
            Ingest(section, params.seed, WORK_FOLDER / stage, params.runtime), params.runtime, output
        )
        write_json(REPORTS_FOLDER / f"{stage}.json", result.report())
        manifest = Manifest.load(output / MANIFEST_FILE)
        run.log_dataset(output / MANIFEST_FILE, manifest.digest, "ingest")
        run.log_metrics(
            {
                "ingest/videos": len(manifest) - len(manifest.quarantined),
                "ingest/quarantined": len(manifest.quarantined),
                "ingest/seconds": time.perf_counter() - begin,
            }
        )
        run.log_artifact(REPORTS_FOLDER / f"{stage}.json")


def ingest_source(ingest: Ingest, runtime: RuntimeParams, output: Path) -> IngestResult:
    """Transcode under a progress bar, print what came out, and move it to its place."""
    console = Console(stderr=True)
    columns = (
        TextColumn("ingest"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(ingest.listing.files), completed=ingest.num_done)
        result = ingest.run(runtime.num_workers, lambda: progress.advance(task))
    print_report(result, console)
    ingest.check(result)
    ingest.finish(result, output)
    return result


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
