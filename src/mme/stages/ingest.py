"""Stage ``ingest``: any source into videos of the normal form and a manifest."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mme.config import load_params
from mme.config.paths import DATA_FOLDER, REPORTS_FOLDER, WORK_FOLDER
from mme.ingest.run import Ingest, IngestResult
from mme.manifest import MANIFEST_FILE, Manifest
from mme.system.errors import one_line_errors
from mme.system.files import write_json


def main(name: str | None = None) -> None:
    """Ingest as ``params.yaml`` says.

    Args:
        name: of a data set in ``datasets``, which goes into a folder of its own; None is that of ``ingest``.

    Raises:
        ValueError: the source or its list is wrong, or the share of bad files is above ``runtime.max_bad_ratio``.
    """
    from mme.tracking import start_run  # not at the top: worker processes import this module, and have no use for it

    params = load_params()
    if name is not None and name not in params.datasets:
        raise ValueError(f"params.yaml: datasets has no {name!r}, only {sorted(params.datasets)}")
    section = params.ingest if name is None else params.datasets[name]
    output, stage = (DATA_FOLDER, "ingest") if name is None else (DATA_FOLDER / name, f"ingest-{name}")
    console = Console(stderr=True)
    begin = time.perf_counter()
    ingest = Ingest(section, params.seed, WORK_FOLDER / stage, params.runtime)
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
        result = ingest.run(params.runtime.num_workers, lambda: progress.advance(task))
    show(result, console)
    ingest.check(result)
    ingest.finish(result, output)
    write_json(REPORTS_FOLDER / f"{stage}.json", result.report())
    with start_run("ingest", params) as run:
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


def show(result: IngestResult, console: Console) -> None:
    """Print videos by split, and bad ones by reason."""
    report = result.report()
    table = Table("split", "videos", "classes", "groups", "frames", title="ingested")
    for name, split in report["splits"].items():
        table.add_row(
            name, *(str(value) for value in (split["videos"], len(split["classes"]), split["groups"], split["frames"]))
        )
    console.print(table)
    bad = result.quarantine()
    if bad:
        table = Table("file", "reason", "detail", title=f"quarantined: {len(bad)}")
        for row in bad[:50]:
            table.add_row(*(Text(value) for value in row))  # names may look like rich's markup
        console.print(table)
        if len(bad) > 50:
            console.print(f"and {len(bad) - 50} more, see quarantine.csv")
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    if report["duplicates"]["files"]:
        console.print(
            f"{report['duplicates']['files']} files have the content of another one,"
            f" {report['duplicates']['across_splits']} of them in another split"
        )


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
