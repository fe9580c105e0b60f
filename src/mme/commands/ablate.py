"""``mme ablate``: objectives against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mme.config import load_params


def ablate(
    quick: Annotated[bool, typer.Option("--quick", help="One seed, a third of the epochs, no search.")] = False,
    data_from: Annotated[
        Path, typer.Option(help="Folder of manifest.parquet, videos and trajectories; the pipeline's if not given.")
    ] = Path("data"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trainings side by side; runtime.num_workers if not given.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes, without a suffix.")] = None,
) -> None:
    """Train from scratch and with each objective, over several seeds, under one budget; write a report.

    Unfinished work is kept in .work/ablation: the same command goes on where it stopped.
    """
    params = load_params()
    for name in ("manifest.parquet", "trajectories"):
        if not (data_from / name).exists():
            raise typer.BadParameter(
                f"{data_from / name} is missing; run `dvc repro trajectories`", param_hint="--data-from"
            )
    from mme.experiments.ablation.run import run_ablation  # training libraries take seconds to import

    budget = params.ablation.quick(params.pretrain.lr, params.pretrain.mask_ratio) if quick else params.ablation
    target = report or Path("reports/ablation-quick" if quick else "reports/ablation")
    run_ablation(params, budget, data_from, target, workers or params.runtime.num_workers, typer.echo)
    typer.echo(target.with_suffix(".md").read_text(encoding="utf-8"))
