"""The report of a sweep: tables and pictures in a folder, and in MLflow with the sweep's run."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from mme.config import Params
from mme.experiments.sweep.pictures import Point, contour_figure, history_figure, importances_figure
from mme.experiments.sweep.run import load, manifest_file, repeats_name, values_text
from mme.experiments.sweep.study import RUN_ID, SURPLUS, open_storage
from mme.experiments.sweep.trial import METRIC, REPEAT_OF, SEED
from mme.manifest import Manifest
from mme.system.files import atomic_path, write_text
from mme.tracking import open_run
from mme.viz.plots import save_figure

OUTPUT = Path("reports/sweep")
NUM_BEST = 10


@dataclass(frozen=True)
class Repeats:
    """One trial with several seeds: its number and the probes, the trial's own first."""

    number: int
    probes: list[float]


def report(params: Params, output: Path = OUTPUT) -> Path:
    """Write ``report.md``, ``trials.csv`` and pictures, and record them with the sweep's run.

    Returns:
        The markdown file.

    Raises:
        ValueError: there is no study of these parameters, or no trial of it has been finished.
    """
    study = load(params)
    points = _points(study)
    if not any(not point.pruned for point in points):
        raise ValueError(f"{study.study_name}: no trial has been finished")
    repeats = _repeats(study, params)
    chance = 1 / len(Manifest.load(manifest_file(params)).labels)
    importances = _importances(study)
    output.mkdir(parents=True, exist_ok=True)
    save_figure(history_figure(points, chance, repeats.probes if repeats else []), output / "history.png")
    pictures = ["history.png"]
    if importances:
        save_figure(importances_figure(importances), output / "importances.png")
        pictures.append("importances.png")
    axes = _axes(params, points, importances)
    if len(axes) == 2:
        save_figure(contour_figure(points, *axes), output / "contour.png")
        pictures.append("contour.png")
    _write_trials(study, output / "trials.csv")
    text = _markdown(study, points, repeats, chance, pictures)
    write_text(output / "report.md", text)
    open_run(study.user_attrs[RUN_ID], params).log_artifact(output, "report")
    return output / "report.md"


def _points(study: optuna.Study) -> list[Point]:
    """Trials that were finished or stopped, with the last probe that each had."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        Point(trial.number, trial.params, trial.value, trial.state == TrialState.PRUNED)
        for trial in ended
        if trial.value is not None
    ]


def _repeats(study: optuna.Study, params: Params) -> Repeats | None:
    """The repetitions of the trial that was repeated most."""
    storage, name = open_storage(params.runtime), repeats_name(study.study_name)
    if name not in optuna.get_all_study_names(storage):
        return None
    runs: dict[int, dict[int, float]] = {}
    for trial in optuna.load_study(study_name=name, storage=storage).get_trials(states=(TrialState.COMPLETE,)):
        if trial.value is not None:
            runs.setdefault(trial.user_attrs[REPEAT_OF], {})[trial.user_attrs[SEED]] = trial.value
    if not runs:
        return None
    number = max(runs, key=lambda key: (len(runs[key]), -key))
    own = study.get_trials(deepcopy=False)[number].value
    assert own is not None
    return Repeats(number, [own, *(runs[number][seed] for seed in sorted(runs[number]))])


def _importances(study: optuna.Study) -> dict[str, float]:
    """By fANOVA, largest first; empty where there is nothing to tell apart."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in finished}) < 2 or len(finished) < 3:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _axes(params: Params, points: Sequence[Point], importances: dict[str, float]) -> list[str]:
    """The two numerical parameters that matter most."""
    names = [
        name
        for name in params.sweep.space
        if all(isinstance(point.values[name], int | float) for point in points)
        and len({point.values[name] for point in points}) > 1
    ]
    return sorted(sorted(names, key=lambda name: -importances.get(name, 0.0))[:2], reverse=True)


def _write_trials(study: optuna.Study, path: Path) -> None:
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *names, METRIC, "probes", "seconds", "run_id"])
        for trial in trials:
            values = [trial.params.get(name, "") for name in names]
            probes = " ".join(f"{epoch}:{value:.4f}" for epoch, value in sorted(trial.intermediate_values.items()))
            value = "" if trial.value is None else f"{trial.value:.4f}"
            row = [trial.number, trial.state.name.lower(), *values, value, probes]
            writer.writerow([*row, _seconds(trial), trial.user_attrs.get(RUN_ID, "")])


def _seconds(trial: FrozenTrial) -> str:
    return "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"


def _markdown(
    study: optuna.Study, points: Sequence[Point], repeats: Repeats | None, chance: float, pictures: Iterable[str]
) -> str:
    finished = sorted((point for point in points if not point.pruned), key=lambda point: -point.probe)
    best = finished[0]
    states = [trial.state for trial in study.get_trials(deepcopy=False) if SURPLUS not in trial.user_attrs]
    rows = [f"| {point.number} | {point.probe:.1%} | {values_text(point.values)} |" for point in finished[:NUM_BEST]]
    pruned, failed = states.count(TrialState.PRUNED), states.count(TrialState.FAIL)
    counts = f"{len(finished)} trials finished, {pruned} were stopped early, {failed} failed or were interrupted."
    table = "\n".join(["| trial | probe | values |", "| --- | --- | --- |", *rows])
    paragraphs = [
        f"# Sweep `{study.study_name}`",
        f"{counts} Chance is {chance:.1%}.",
        f"Best: trial {best.number}, {METRIC} {best.probe:.1%} with {values_text(best.values)}.",
        _spread(finished, repeats),
        table,
        *[f"![{name}]({name})" for name in pictures],
    ]
    return "\n\n".join(paragraphs) + "\n"


def _spread(finished: Sequence[Point], repeats: Repeats | None) -> str:
    """How far apart trials are, beside how far apart seeds are."""
    probes = [point.probe for point in finished]
    if len(probes) < 2:
        return "One trial tells nothing about a spread."
    trials = (
        f"Over trials the probe has a standard deviation of {100 * statistics.stdev(probes):.1f} points"
        f" ({min(probes):.1%} to {max(probes):.1%})."
    )
    if repeats is None or len(repeats.probes) < 2:
        return f"{trials} How much of that is chance: `mme sweep repeat`."
    return (
        f"{trials} Over {len(repeats.probes)} seeds of trial {repeats.number} it is"
        f" {100 * statistics.stdev(repeats.probes):.1f} points ({min(repeats.probes):.1%} to"
        f" {max(repeats.probes):.1%}): differences of that size are none."
    )
