"""Report of a sweep: Markdown page, CSV table and figures, in a folder and with the sweep's run in MLflow."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_contour, plot_optimization_history, plot_param_importances

from mme.config import Params
from mme.experiments.sweep.points import Point, compare, measured_points, seed_deviation, standard_error
from mme.experiments.sweep.run import format_values, load_study
from mme.experiments.sweep.study import REPEAT_OF, RUN_ID, SEED, is_queued, is_repeat
from mme.experiments.sweep.trial import METRIC, manifest_path
from mme.manifest import Manifest
from mme.system.files import atomic_path, write_text
from mme.system.markdown import markdown_table
from mme.tracking import open_run
from mme.viz.plots import save_figure

REPORT = Path("reports/sweep")
NUM_BEST = 10
PROBE_LABEL = "top-1 of the probe, cross-validated"


def write_sweep_report(params: Params, output: Path = REPORT) -> Path:
    """Write ``report.md``, ``trials.csv`` and figures, and record them with the sweep's run.

    Returns:
        Path of the Markdown file.

    Raises:
        ValueError: there is no study of these parameters, or none of its trials has finished.
    """
    study = load_study(params)
    run = open_run(study.user_attrs[RUN_ID], params)
    points = measured_points(study)
    if not points:
        raise ValueError(f"{study.study_name}: no trial has finished")
    chance = 1 / len(Manifest.load(manifest_path(params)).labels)

    output.mkdir(parents=True, exist_ok=True)
    names = []
    with _optuna_figures():
        for name, figure in _figures(study, points, params, chance):
            save_figure(figure, output / name)
            names.append(name)
    _write_trials(study, output / "trials.csv")
    write_text(output / "report.md", _page(study, points, chance, names))
    run.log_artifact(output, "report")
    return output / "report.md"


@contextmanager
def _optuna_figures() -> Iterator[None]:
    """Draw with Optuna: without a display, without its changes to matplotlib's settings, figures closed afterwards."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        plt.switch_backend("Agg")
        try:
            yield
        finally:
            plt.close("all")


def _figures(
    study: optuna.Study, points: Sequence[Point], params: Params, chance: float
) -> Iterator[tuple[str, Figure]]:
    """Yield file names and figures; those that too few trials allow are left out."""
    trials = _averaged(study, points)
    yield "history.png", _figure(_draw_history(trials, points, chance))

    importances = _importances(trials)
    if importances:
        axes = plot_param_importances(trials, evaluator=_evaluator(), target_name=PROBE_LABEL)
        axes.set_title("", loc="left")
        axes.set(xlabel="share of the variance explained", ylabel="")
        axes.legend().remove()
        yield "importances.png", _figure(axes)

    names = _contour_names(trials, params, importances)
    if names is not None:
        yield "contour.png", _figure(_draw_contour(trials, points, names))


def _averaged(study: optuna.Study, points: Sequence[Point]) -> optuna.Study:
    """Return a study in memory in which a repeated trial has its mean, and repetitions are failed trials: not drawn."""
    estimates = {point.trial.number: point.estimate for point in points}
    averaged = optuna.create_study(direction="maximize")
    for trial in study.get_trials():
        if trial.number in estimates:
            trial.value = estimates[trial.number]
        drawn = trial.state.is_finished() and not is_repeat(trial)
        averaged.add_trial(trial if drawn else optuna.create_trial(state=TrialState.FAIL))  # all keep their numbers
    return averaged


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.set_layout_engine("tight")
    return figure


def _draw_history(trials: optuna.Study, points: Sequence[Point], chance: float) -> Axes:
    """Draw the probe of each trial in order with its standard error, the best so far, pruned trials and chance."""
    axes = plot_optimization_history(trials, target_name="finished")
    pruned = {trial.number: trial.value or 0.0 for trial in _probed(trials, TrialState.PRUNED)}
    axes.plot(list(pruned), list(pruned.values()), "x", color="gray", label="pruned")
    errors = [(point.trial.number, point.estimate, standard_error(points, point)) for point in points]
    known = [(number, probe, error) for number, probe, error in errors if error is not None]
    if known:
        numbers, probes, bars = zip(*known, strict=True)
        axes.errorbar(numbers, probes, bars, fmt="none", color="tab:blue", capsize=3, label="standard error over seeds")
    axes.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(title="", xlabel="trial", ylabel=PROBE_LABEL, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return axes


def _draw_contour(trials: optuna.Study, points: Sequence[Point], names: Sequence[str]) -> Axes:
    """Draw the probe over two parameters.

    Finished trials are marked with number, probe and standard error, pruned ones with a cross and their number.
    """
    axes = plot_contour(trials, params=list(names), target_name=PROBE_LABEL)
    assert isinstance(axes, Axes)
    axes.set(title="")
    labels = {point.trial.number: f"{point.trial.number}: {_with_error(points, point)}" for point in points}
    for state, marker in ((TrialState.COMPLETE, "o"), (TrialState.PRUNED, "x")):
        for trial in _probed(trials, state):
            place = (trial.params[axes.get_xlabel()], trial.params[axes.get_ylabel()])
            axes.plot(*place, marker, color="black", markersize=5)
            text = labels.get(trial.number, str(trial.number))
            axes.annotate(text, place, xytext=(5, 5), textcoords="offset points", fontsize="small")
    return axes


def _probed(study: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    """Return the trials in a state that have been probed at least once."""
    return [trial for trial in study.get_trials(deepcopy=False, states=(state,)) if trial.value is not None]


def _evaluator() -> optuna.importance.FanovaImportanceEvaluator:
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of the probe's variance per parameter by fANOVA; empty if too few trials differ."""
    finished = _probed(study, TrialState.COMPLETE)
    if len(finished) < 3 or len({trial.value for trial in finished}) < 2:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=_evaluator())


def _contour_names(study: optuna.Study, params: Params, importances: dict[str, float]) -> list[str] | None:
    """Return the two most important numerical parameters; None if the finished trials differ in fewer."""
    finished = _probed(study, TrialState.COMPLETE)
    values = {name: {trial.params[name] for trial in finished} for name in params.sweep.space}
    names = [
        name for name, seen in values.items() if len(seen) > 1 and all(isinstance(value, int | float) for value in seen)
    ]
    names.sort(key=lambda name: -importances.get(name, 0.0))
    return sorted(names[:2], reverse=True) if len(names) > 1 else None


def _write_trials(study: optuna.Study, path: Path) -> None:
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", REPEAT_OF, SEED, *names, METRIC, "probes", "seconds", "run_id"])
        for trial in trials:
            values = [trial.user_attrs.get(name, "") for name in (REPEAT_OF, SEED)]
            values += [trial.params.get(name, "") for name in names]
            value = "" if trial.value is None else f"{trial.value:.4f}"
            probes = " ".join(f"{epoch}:{probe:.4f}" for epoch, probe in sorted(trial.intermediate_values.items()))
            seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"
            run_id = trial.user_attrs.get(RUN_ID, "")
            writer.writerow([trial.number, trial.state.name.lower(), *values, value, probes, seconds, run_id])


def _page(study: optuna.Study, points: Sequence[Point], chance: float, figures: list[str]) -> str:
    ranked = sorted(points, key=lambda point: (point.mean is None, -point.estimate))
    rows = [
        (
            point.trial.number,
            f"{point.probe:.1%}",
            _with_error(points, point) if point.repeats else "",
            len(point.repeats) or "",
            format_values(point.trial.params),
        )
        for point in ranked
    ]
    trials = [trial for trial in study.get_trials(deepcopy=False) if is_queued(trial)]
    states = [trial.state for trial in trials if not is_repeat(trial)]
    finished, pruned, failed = (
        states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    counts = f"{finished} trials finished, {pruned} were pruned, {failed} failed or were interrupted."
    repeats = sum(is_repeat(trial) and trial.state == TrialState.COMPLETE for trial in trials)
    best = ranked[0]
    values = format_values(best.trial.params)
    paragraphs = [
        f"# Sweep `{study.study_name}`",
        f"{counts} {repeats} repeated some of them with other seeds. Chance is {chance:.1%}.",
        f"Best: trial {best.trial.number}, {METRIC} {_with_error(points, best)} with {values}.",
        _significance_text(points, best),
        markdown_table(["trial", "probe", "other seeds, %", "seeds", "values"], rows[:NUM_BEST]),
        *[f"![{name}]({name})" for name in figures],
    ]
    return "\n\n".join(paragraphs) + "\n"


def _significance_text(points: Sequence[Point], best: Point) -> str:
    """Say how much of the differences is due to seeds, and whether the best point is better than the median one."""
    deviation, comparison = seed_deviation(points), compare(points, best)
    if deviation is None or comparison is None:
        return "Too little was repeated to tell how much is due to seeds: `mme sweep` repeats the best points."
    verdict = "more" if comparison.is_significant else "not more"
    return (
        f"Seeds cause a standard deviation of {100 * deviation:.1f} points in the probe of a point."
        f" {str(comparison).capitalize()}: {verdict} than two of them."
    )


def _with_error(points: Sequence[Point], point: Point) -> str:
    """Return the probe in percent, with its standard error if that is known."""
    error = standard_error(points, point)
    return f"{100 * point.estimate:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
