"""`mme sweep`: search pretraining's parameters, report the trials, write the best values into params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mme.config import load_params

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

PARAMS_YAML = Path("params.yaml")

WorkersOption = Annotated[int | None, typer.Option(min=1, help="Processes; default: runtime.num_workers.")]
TrialOption = Annotated[int | None, typer.Option(help="Number of the trial; default: the best.")]

sweep_app = typer.Typer(invoke_without_command=True, help="Search pretraining's parameters by short, probed trials.")


@sweep_app.callback()
def sweep_command(context: typer.Context, workers: WorkersOption = None) -> None:
    """Run the missing trials of the section `sweep` of params.yaml.

    An interrupted sweep is continued. Other hosts that use the same database run a share of the trials.
    """
    if context.invoked_subcommand is not None:
        return
    from mme.experiments.sweep.run import format_values, run_sweep

    params = load_params(PARAMS_YAML)
    study = run_sweep(params, workers or params.runtime.num_workers, _show_trial)
    best = study.best_trial
    _say(f"best is trial {best.number}, {best.value:.1%}: {format_values(best.params)}")
    _say("now `mme sweep repeat`, `mme sweep report`, `mme sweep apply`")


@sweep_app.command("repeat")
def repeat_command(
    trial: TrialOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of further seeds.")] = 3,
    workers: WorkersOption = None,
) -> None:
    """Run a trial again with other seeds: smaller differences between trials are not significant."""
    from mme.experiments.sweep.run import repeat_trial

    params = load_params(PARAMS_YAML)
    further = range(params.seed + 1, params.seed + 1 + seeds)
    repeat_trial(params, trial, further, workers or params.runtime.num_workers, _show_trial)


@sweep_app.command("report")
def report_command() -> None:
    """Write tables and figures to reports/sweep, and record them with the sweep's run in MLflow."""
    from mme.experiments.sweep.report import write_sweep_report

    _say(f"written: {write_sweep_report(load_params(PARAMS_YAML))}")


@sweep_app.command("apply")
def apply_command(
    trial: TrialOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show the difference, write nothing.")] = False,
) -> None:
    """Write a trial's values into params.yaml and show the difference; comments are kept."""
    from mme.config.edit import write_values
    from mme.experiments.sweep.run import trial_values

    difference = write_values(PARAMS_YAML, trial_values(load_params(PARAMS_YAML), trial), write=not dry_run)
    typer.echo(difference or f"{PARAMS_YAML} has these values already", nl=not difference)
    if difference and not dry_run:
        _say("now `dvc repro register` trains with them")


def _show_trial(trial: FrozenTrial) -> None:
    from mme.experiments.sweep.run import describe_trial

    _say(describe_trial(trial))


def _say(text: str) -> None:
    Console(stderr=True).print(Text(text), soft_wrap=True)
