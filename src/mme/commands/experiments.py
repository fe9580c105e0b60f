"""`mme ablate` and `mme reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.config import load_params


def ablate_command(
    quick: Annotated[bool, typer.Option("--quick", help="One seed, a third of the epochs, no search.")] = False,
    data_from: Annotated[Path, typer.Option(help="Folder of manifest.parquet, videos and trajectories.")] = Path(
        "data"
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Parallel trainings; default: runtime.num_workers.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Path of the report without a suffix.")] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing; report what earlier calls have finished.")
    ] = False,
) -> None:
    """Train from scratch and with each objective, with several seeds and one budget; write a report.

    Unfinished work is kept in .work/ablation: the same command continues it.
    """
    params = load_params()
    for name in ("manifest.parquet", "trajectories"):
        if not (data_from / name).exists():
            raise typer.BadParameter(
                f"{data_from / name} is missing; run `dvc repro trajectories`", param_hint="--data-from"
            )
    from mme.experiments.ablation.ablate import run_ablation  # training libraries take seconds to import

    budget = params.ablation.quick(params.pretrain.lr, params.pretrain.mask_ratio) if quick else params.ablation
    target = report or Path("reports/ablation-quick" if quick else "reports/ablation")
    run_ablation(
        params, budget, data_from, target, workers or params.runtime.num_workers, typer.echo, stored_only=finished
    )
    typer.echo(target.with_suffix(".md").read_text(encoding="utf-8"))


def reproduce_command(
    run_id: Annotated[str, typer.Argument(help="MLflow run id of a stage.")],
    run: Annotated[bool, typer.Option("--run", help="Run them in a temporary clone and compare the metrics.")] = False,
) -> None:
    """Print the commands that reproduce a run: its commit, parameters and data. Status 1 if metrics differ."""
    from mme.experiments.reproduce import find_recipe, rerun, shell_script

    found = find_recipe(run_id, Path.cwd())
    if not run:
        typer.echo(shell_script(found, found.repository.parent / f"reproduced-{run_id[:8]}"))
        return
    compared = rerun(found, lambda line: typer.echo(line, err=True))
    table = Table("metric", "recorded", "again", "", box=None, pad_edge=False)
    for row in compared:
        table.add_row(*map(Text, (row.name, repr(row.recorded), repr(row.repeated), "" if row.is_equal else "differs")))
    Console().print(table)
    differing = [row.name for row in compared if not row.is_equal]
    if differing or not compared:
        raise ValueError(f"run {run_id}: not reproduced, {', '.join(differing) or 'it has no metrics'}")
    typer.echo(f"all {len(compared)} metrics are equal to the last digit")
