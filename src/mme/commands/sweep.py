"""`mme sweep`: search pretraining's parameters, report what was found, write it into params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mme.config import load_params

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

PARAMS = Path("params.yaml")

Workers = Annotated[int | None, typer.Option(min=1, help="Processes; runtime.num_workers if not given.")]
Trial = Annotated[int | None, typer.Option(help="Number of the trial; the best if not given.")]

app = typer.Typer(invoke_without_command=True, help="Search pretraining's parameters by short, probed trials.")


@app.callback()
def run(context: typer.Context, workers: Workers = None) -> None:
    """Run the trials that `sweep` in params.yaml asks for and that are still missing.

    Called again after an interruption it goes on; called on another host with the same database it helps.
    """
    if context.invoked_subcommand is not None:
        return
    from mme.experiments.sweep.run import sweep, values_text

    params = load_params(PARAMS)
    study = sweep(params, workers or params.runtime.num_workers, _show)
    best = study.best_trial
    _say(f"best is trial {best.number}, {best.value:.1%}: {values_text(best.params)}")
    _say("now `mme sweep repeat`, `mme sweep report`, `mme sweep apply`")


@app.command()
def repeat(
    trial: Trial = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many further seeds.")] = 3,
    workers: Workers = None,
) -> None:
    """Run a trial again with other seeds: differences between trials that are no larger are chance."""
    from mme.experiments.sweep.run import repeat as repeat_trial

    params = load_params(PARAMS)
    further = range(params.seed + 1, params.seed + 1 + seeds)
    repeat_trial(params, trial, further, workers or params.runtime.num_workers, _show)


@app.command()
def report() -> None:
    """Write tables and pictures to reports/sweep, and record them with the sweep's run in MLflow."""
    from mme.experiments.sweep.report import report as write_report

    _say(f"written: {write_report(load_params(PARAMS))}")


@app.command()
def apply(
    trial: Trial = None,
    dry_run: Annotated[bool, typer.Option(help="Show the difference, write nothing.")] = False,
) -> None:
    """Write a trial's values into params.yaml and show the difference; comments stay."""
    from mme.config.edit import write_values
    from mme.experiments.sweep.run import best_values

    params = load_params(PARAMS)
    difference = write_values(PARAMS, best_values(params, trial), write=not dry_run)
    typer.echo(difference or f"{PARAMS} has these values already", nl=not difference)
    if difference and not dry_run:
        _say("now `dvc repro register` trains with them")


def _show(trial: FrozenTrial) -> None:
    from mme.experiments.sweep.run import line

    _say(line(trial))


def _say(text: str) -> None:
    Console(stderr=True).print(Text(text), soft_wrap=True)
