"""`mme data`: validate a source before anything long starts, list what callers of the service corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mme.config import IngestParams, Params, RuntimeParams, load_params
from mme.config.base import faults

app = typer.Typer(no_args_is_help=True, help="Validate data sets, list corrections.")


@app.callback()
def main() -> None:
    """Validate data sets, list corrections."""


@app.command("feedback")
def feedback_command(
    folder: Annotated[Path, typer.Argument(envvar="MME_FEEDBACK_DIR", help="Folder of the service's corrections.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
) -> None:
    """List the right labels that callers of the service sent, beside what the model had answered."""
    from mme.ingest.feedback import load_record, record_paths
    from mme.system.names import shown_name

    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; name that of MME_FEEDBACK_DIR")
    records = sorted(map(load_record, record_paths(folder)), key=lambda record: record.last.received)
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("time", "right label", "answered", "model", "note", "file"):
        table.add_column(title, overflow="fold")
    for record in records:
        last = record.last
        earlier = dict.fromkeys(one.label for one in record.corrections[:-1] if one.label != last.label)
        label = last.label + (f" (before: {', '.join(earlier)})" if earlier else "")
        version = last.model_digest if last.version is None else f"version {last.version}"
        answered = f"{last.answered} {last.probability:.0%}"
        columns = (f"{last.received:%Y-%m-%d %H:%M}", label, answered, version, last.note, record.clip_name)
        table.add_row(*(Text(shown_name(column)) for column in columns))
    console = Console()
    console.print(table)
    num_wrong = sum(record.last.label != record.last.answered for record in records)
    console.print(Text(f"{len(records)} clips, of which the model had named {num_wrong} otherwise"), soft_wrap=True)


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="motion-primitives, folder, csv, ucf101, hmdb51, ...: ingest.source.")],
    root: Annotated[Path, typer.Argument(help="Its folder.")],
    values: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", help="Another value: list_file=list.csv, runtime.deadline_s=300."),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw labels, lengths and frame rates into this file.")] = None,
    decode: Annotated[bool, typer.Option(help="Decode every frame: slower, finds damage inside of files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Count the videos of a source, list missing, unusable and duplicate ones, and show their frame rates.

    params.yaml says what a video must have (runtime.deadline_s) and how splits are drawn.
    Ends with status 1 if the lists of the source are wrong, more files are bad than runtime.max_bad_ratio allows,
    or the same content is in training and in validation or test.
    """
    from mme.ingest.sources import list_source

    params = load_params()
    ingest, runtime = _sections_for(params, {"source": source, "root": root, **_parse_values(values or [])})
    listing = list_source(ingest)
    from mme.ingest.report import print_rates, print_report
    from mme.ingest.validate import validate_source

    columns = (TextColumn("check"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(listing.files))
        result = validate_source(listing, ingest, runtime, params.seed, decode, lambda: progress.advance(task))
    report = {**result.report(), "bad": result.quarantine()}
    faults = _find_faults(report, runtime)
    if picture is not None:
        from mme.viz.data_figure import data_figure
        from mme.viz.plots import save_figure

        good = [row for row in result.manifest.rows if row.status == "ok"]
        save_figure(data_figure(good, f"{source}: {root}", ingest.fps), picture)
    if as_json:
        typer.echo(json.dumps({**report, "faults": faults}))
    else:
        console = Console()
        print_report(result, console)
        print_rates(report["rates"], console)
        for fault in faults:
            console.print(Text(f"fault: {fault}", style="red"), soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def _parse_values(values: list[str]) -> dict[str, Any]:
    """Return the values of ``--set``; options of the source in params.yaml are reset."""
    pairs = {"list_file": None, "group_pattern": None, "frames_fps": None}
    for value in values:
        name, mark, text = value.partition("=")
        if not mark:
            raise ValueError(f"--set {value!r}: not NAME=VALUE")
        pairs[name.removeprefix("ingest.")] = yaml.safe_load(text)
    return pairs


def _sections_for(params: Params, values: dict[str, Any]) -> tuple[IngestParams, RuntimeParams]:
    """Return the sections ``ingest`` and ``runtime`` for another source.

    Raises:
        ValueError: the source is unknown, or an option does not belong to it.
    """
    try:
        prefix = "runtime."
        runtime = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        ingest = {name: value for name, value in values.items() if not name.startswith(prefix)}
        return (
            IngestParams.model_validate({**params.ingest.model_dump(), **ingest}),
            RuntimeParams.model_validate({**params.runtime.model_dump(), **runtime}),
        )
    except ValidationError as error:
        raise ValueError(faults(error)) from error


def _find_faults(report: dict[str, Any], runtime: RuntimeParams) -> list[str]:
    """List what would make ingest fail or make a test meaningless."""
    num_bad, faults = len(report["bad"]), []
    total = report["videos"] + num_bad
    if num_bad > runtime.max_bad_ratio * total:
        limit = f"runtime.max_bad_ratio {runtime.max_bad_ratio:g}"
        faults.append(f"{num_bad} of {total} videos cannot be used, more than {limit} allows")
    if report["duplicates"]["across_splits"]:
        faults.append(f"{report['duplicates']['across_splits']} contents are in training and in validation or test")
    return faults
