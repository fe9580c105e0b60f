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
    """Run the missing trials of the section `sweep` of params.yaml, and the best ones again with other seeds.

    An interrupted sweep is continued. Other hosts that use the same database run a share of the trials.
    """
    if context.invoked_subcommand is not None:
        return
    from mme.experiments.sweep.points import compare, measured_points
    from mme.experiments.sweep.run import finished_point, format_values, run_sweep

    params = load_params(PARAMS_YAML)
    study = run_sweep(params, workers or params.runtime.num_workers, _show_trial)
    best = finished_point(study, None)
    _say(f"best is trial {best.trial.number}, {best.estimate:.1%}: {format_values(best.trial.params)}")
    _say(str(compare(measured_points(study), best) or "too little was repeated to tell it from the median one"))
    _say("now `mme sweep report`, `mme sweep apply`")


@sweep_app.command("repeat")
def repeat_command(
    trial: TrialOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds after that of the trial.")] = 3,
    workers: WorkersOption = None,
) -> None:
    """Run a trial again with other seeds, beyond those that the sweep has repeated."""
    from mme.experiments.sweep.run import repeat_trial

    params = load_params(PARAMS_YAML)
    repeat_trial(params, trial, seeds, workers or params.runtime.num_workers, _show_trial)


@sweep_app.command("report")
def report_command() -> None:
    """Write tables and figures to reports/sweep, and record them with the sweep's run in MLflow."""
    from mme.experiments.sweep.report import write_sweep_report

    _say(f"written: {write_sweep_report(load_params(PARAMS_YAML))}")


@sweep_app.command("apply")
def apply_command(
    trial: TrialOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show the difference, write nothing.")] = False,
    force: Annotated[bool, typer.Option(help="Apply values that are not better by two standard errors.")] = False,
) -> None:
    """Write a trial's values into params.yaml and show the difference; comments are kept.

    They must be better than the median finished ones by two standard errors.
    """
    from mme.config.edit import write_values
    from mme.experiments.sweep.run import check_significance, finished_point, load_study, trial_values

    study = load_study(load_params(PARAMS_YAML))
    point = finished_point(study, trial)
    values = trial_values(point)
    difference = write_values(PARAMS_YAML, values, write=False)
    if difference and not dry_run:
        if not force:
            check_significance(study, point)
        write_values(PARAMS_YAML, values, write=True)
    typer.echo(difference or f"{PARAMS_YAML} has these values already", nl=not difference)
    if difference and not dry_run:
        _say("now `dvc repro register` trains with them")


def _show_trial(trial: FrozenTrial) -> None:
    from mme.experiments.sweep.run import describe_trial

    _say(describe_trial(trial))


def _say(text: str) -> None:
    Console(stderr=True).print(Text(text), soft_wrap=True)
