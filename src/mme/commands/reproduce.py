"""`mme reproduce`: the commands that lead to a recorded run again, and whether they do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def reproduce(
    run_id: Annotated[str, typer.Argument(help="MLflow's id of a run of the pipeline.")],
    run: Annotated[bool, typer.Option("--run", help="Run them in a temporary clone and compare the metrics.")] = False,
) -> None:
    """Print the commands that rebuild a run: its commit, its parameters, its data. Status 1 if metrics differ."""
    from mme.experiments.reproduce import recipe, repeat, script

    found = recipe(run_id, Path.cwd())
    if not run:
        typer.echo(script(found, Path(f"../reproduced-{run_id[:8]}")))
        return
    compared = repeat(found, lambda line: typer.echo(line, err=True))
    table = Table("metric", "recorded", "again", "", box=None, pad_edge=False)
    for row in compared:
        table.add_row(*map(Text, (row.name, repr(row.recorded), repr(row.repeated), "" if row.is_equal else "differs")))
    Console().print(table)
    differing = [row.name for row in compared if not row.is_equal]
    if differing or not compared:
        raise ValueError(f"run {run_id}: not reproduced, {', '.join(differing) or 'it has no metrics'}")
    typer.echo(f"all {len(compared)} metrics are equal to the last digit")
