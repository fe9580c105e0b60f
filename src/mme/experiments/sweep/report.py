"""Report of a sweep: Markdown page, CSV table and figures, in a folder and with the sweep's run in MLflow."""

from __future__ import annotations

import csv
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from mme.experiments.sweep.run import REPEATS, format_values, load_study
from mme.experiments.sweep.study import RUN_ID, is_queued, open_storage
from mme.experiments.sweep.trial import METRIC, REPEAT_OF, SEED, manifest_path
from mme.manifest import Manifest
from mme.system.files import atomic_path, write_text
from mme.system.markdown import markdown_table
from mme.tracking import open_run
from mme.viz.plots import save_figure

REPORT = Path("reports/sweep")
NUM_BEST = 10
PROBE_LABEL = "top-1 of the probe, validation"


@dataclass(frozen=True)
class SeedSpread:
    """Probes of one trial with several seeds, that of the trial itself first."""

    number: int
    probes: list[float]


def write_sweep_report(params: Params, output: Path = REPORT) -> Path:
    """Write ``report.md``, ``trials.csv`` and figures, and record them with the sweep's run.

    Returns:
        Path of the Markdown file.

    Raises:
        ValueError: there is no study of these parameters, or none of its trials has finished.
    """
    study = load_study(params)
    run = open_run(study.user_attrs[RUN_ID], params)
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not finished:
        raise ValueError(f"{study.study_name}: no trial has finished")
    spread = _seed_spread(study, params)
    chance = 1 / len(Manifest.load(manifest_path(params)).labels)

    output.mkdir(parents=True, exist_ok=True)
    names = []
    with _optuna_figures():
        for name, figure in _figures(study, params, chance, spread):
            save_figure(figure, output / name)
            names.append(name)
    _write_trials(study, output / "trials.csv")
    write_text(output / "report.md", _page(study, finished, spread, chance, names))
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
    study: optuna.Study, params: Params, chance: float, spread: SeedSpread | None
) -> Iterator[tuple[str, Figure]]:
    """Yield file names and figures; those that too few trials allow are left out."""
    yield "history.png", _figure(_draw_history(study, chance, spread))

    importances = _importances(study)
    if importances:
        axes = plot_param_importances(study, evaluator=_evaluator(), target_name=PROBE_LABEL)
        axes.set_title("", loc="left")
        axes.set(xlabel="share of the variance explained", ylabel="")
        axes.legend().remove()
        yield "importances.png", _figure(axes)

    names = _contour_names(study, params, importances)
    if names is not None:
        yield "contour.png", _figure(_draw_contour(study, names))


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.set_layout_engine("tight")
    return figure


def _draw_history(study: optuna.Study, chance: float, spread: SeedSpread | None) -> Axes:
    """Draw the probe of each trial in order, the best so far, pruned trials, chance, and the range over seeds."""
    axes = plot_optimization_history(study, target_name="finished")
    pruned = {trial.number: trial.value or 0.0 for trial in _probed(study, TrialState.PRUNED)}
    axes.plot(list(pruned), list(pruned.values()), "x", color="gray", label="pruned")
    axes.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    if spread is not None:
        label = f"trial {spread.number} with {len(spread.probes)} seeds"
        axes.axhspan(min(spread.probes), max(spread.probes), color="tab:orange", alpha=0.2, linewidth=0, label=label)
    axes.set(title="", xlabel="trial", ylabel=PROBE_LABEL, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return axes


def _draw_contour(study: optuna.Study, names: Sequence[str]) -> Axes:
    """Draw the probe over two parameters; each trial is marked with its number, pruned ones with a cross."""
    axes = plot_contour(study, params=list(names), target_name=PROBE_LABEL)
    assert isinstance(axes, Axes)
    axes.set(title="")
    for state, marker in ((TrialState.COMPLETE, "o"), (TrialState.PRUNED, "x")):
        for trial in _probed(study, state):
            place = (trial.params[axes.get_xlabel()], trial.params[axes.get_ylabel()])
            axes.plot(*place, marker, color="black", markersize=5)
            axes.annotate(str(trial.number), place, xytext=(5, 5), textcoords="offset points", fontsize="small")
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


def _seed_spread(study: optuna.Study, params: Params) -> SeedSpread | None:
    """Return the probes of the trial that was repeated most often; None if no trial was repeated."""
    storage, name = open_storage(params), study.study_name + REPEATS
    if name not in optuna.get_all_study_names(storage):
        return None
    probes: dict[int, dict[int, float]] = {}
    for trial in _probed(optuna.load_study(study_name=name, storage=storage), TrialState.COMPLETE):
        assert trial.value is not None
        probes.setdefault(trial.user_attrs[REPEAT_OF], {})[trial.user_attrs[SEED]] = trial.value
    if not probes:
        return None
    number = max(probes, key=lambda key: (len(probes[key]), -key))
    own = study.get_trials(deepcopy=False)[number].value
    assert own is not None
    return SeedSpread(number, [own, *(probes[number][seed] for seed in sorted(probes[number]))])


def _write_trials(study: optuna.Study, path: Path) -> None:
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *names, METRIC, "probes", "seconds", "run_id"])
        for trial in trials:
            values = [trial.params.get(name, "") for name in names]
            value = "" if trial.value is None else f"{trial.value:.4f}"
            probes = " ".join(f"{epoch}:{probe:.4f}" for epoch, probe in sorted(trial.intermediate_values.items()))
            seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"
            run_id = trial.user_attrs.get(RUN_ID, "")
            writer.writerow([trial.number, trial.state.name.lower(), *values, value, probes, seconds, run_id])


def _page(
    study: optuna.Study, finished: Sequence[FrozenTrial], spread: SeedSpread | None, chance: float, figures: list[str]
) -> str:
    ranked = [
        (trial.number, f"{trial.value:.1%}", format_values(trial.params))
        for trial in sorted(finished, key=lambda trial: -(trial.value or 0.0))
    ]
    states = [trial.state for trial in study.get_trials(deepcopy=False) if is_queued(trial)]
    pruned, failed = states.count(TrialState.PRUNED), states.count(TrialState.FAIL)
    counts = f"{len(finished)} trials finished, {pruned} were pruned, {failed} failed or were interrupted."
    best, probe, values = ranked[0]
    paragraphs = [
        f"# Sweep `{study.study_name}`",
        f"{counts} Chance is {chance:.1%}.",
        f"Best: trial {best}, {METRIC} {probe} with {values}.",
        _spread_text([trial.value for trial in finished if trial.value is not None], spread),
        markdown_table(["trial", "probe", "values"], ranked[:NUM_BEST]),
        *[f"![{name}]({name})" for name in figures],
    ]
    return "\n\n".join(paragraphs) + "\n"


def _spread_text(probes: list[float], spread: SeedSpread | None) -> str:
    """Compare the spread over trials with the spread over seeds."""
    if len(probes) < 2:
        return "One trial has no spread."
    trials = f"Over trials the probe has a standard deviation of {_deviation(probes)}."
    if spread is None:
        return f"{trials} `mme sweep repeat` measures how much of it is due to the seed."
    return (
        f"{trials} Over {len(spread.probes)} seeds of trial {spread.number} it is {_deviation(spread.probes)}:"
        " smaller differences between trials are not significant."
    )


def _deviation(probes: list[float]) -> str:
    return f"{100 * statistics.stdev(probes):.1f} points ({min(probes):.1%} to {max(probes):.1%})"
