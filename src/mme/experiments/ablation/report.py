"""Report of an ablation: Markdown page, JSON and figure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mme.config import Params
from mme.config.ablation import Budget
from mme.config.paths import RANDOM
from mme.experiments.ablation.plan import (
    VALIDATION_PARTS,
    RunResult,
    contestant_group,
    contestant_name,
    contestants,
    final_runs,
    finetuned_runs,
    of_contestant,
    search_score,
)
from mme.manifest import SPLITS, Manifest
from mme.system.files import write_json, write_text
from mme.system.markdown import markdown_table
from mme.targets.base import OBJECTIVES
from mme.tracking import git_commit
from mme.viz.plots import save_figure

MEASURES = {"probe_top1": "frozen probe", "knn_top1": "k-NN", "top1": "finetuned"}
COLOURS = {"scratch": "tab:gray"} | {objective: f"C{place}" for place, objective in enumerate(OBJECTIVES)}

Summary = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Mean, deviation, lowest and highest value by objective and measure."""

PAGE = """\
# Ablation: what is predicted

The same encoder, decoder, data, masking scheme, number of steps and seeds; only the target and its head differ{own}.

**A miniature, not the paper's benchmark**: a small network, a small budget, the data named below. It shows what the
objectives do here, and says nothing of the accuracy that any of them reaches on real actions.

{results}

Test split, mean and standard deviation over the {trainings}; chance is {chance:.1%}. *Frozen probe*: logistic
regression on the tokens of the frozen encoder ({pool}), with all labelled training videos. *k-NN*: 20 neighbours
by cosine on the same features. {tuned}All on the centre view. `scratch` has no pretraining: its frozen features are
those of random weights. Pretraining seconds are wall time without probing, trainings running side by side.
{folds}{starts}{missing}

![Accuracy by objective]({picture})

## How far `mme` is ahead

{gaps}

## How learning rate and mask ratio were chosen

{search}

## Settings

Pretraining {epochs} epochs of batches of {batch_size}, {finetuning}; {videos} videos of {num_classes}
classes (data digest `{digest}`); {cores} cores; commit `{commit}`. All else is in `params.yaml`. The JSON file
beside this page contains every number, also of each seed.
"""


OWN_POINTS = """, and
each objective has its own learning rate and mask ratio, chosen from one grid"""
TUNED = """*Finetuned*: the whole network, on {labels} labelled videos per class, drawn by the
seed, the epoch chosen on the validation split. """
SEARCH = """
Pretraining of {search_epochs} epochs under seed {search_seed}, each objective on each point of the grid, judged by
the frozen probe on the validation split; for `scratch`, whose learning rate is that of finetuning, by its accuracy
there. The test split was not used. The best is bold.

{table}
"""
FOLDS = """
Each of {num_folds} parts of the labelled videos is tested once, groups apart. Of the others {part} in {parts} are for
validation; neither these nor the tested videos are pretrained on.
"""
STARTS = """
*A, then B* continues pretraining from the weights `models/A` with objective B, *A only* is `models/A` as it is, the
same for every seed until it is finetuned.
"""
GROUPS = ("(a) from random weights", "(b) other weights as they are", "(c) from other weights")
"""Of `mme.experiments.ablation.plan.contestant_group`."""
MISSING = """
**Unfinished:** {missing}. Compare only contestants with equal numbers of trainings.
"""


def write_ablation_report(
    params: Params,
    searched: Sequence[RunResult],
    finished: Sequence[RunResult],
    budget: Budget,
    manifest: Manifest,
    path: Path,
) -> dict[str, float]:
    """Write ``path`` with the suffixes ``.json``, ``.md`` and ``.png``.

    Returns:
        Means over the trainings by ``CONTESTANT/MEASURE``.
    """
    groups = {
        contestant_name(objective, init): contestant_group(init, objective) for init, objective in contestants(budget)
    }
    summary: dict[str, dict[str, dict[str, float]]] = {
        name: summarise(results) for name in groups if (results := of_contestant(finished, name))
    }
    about = {
        "budget": budget.model_dump(mode="json"),
        "pool": params.evaluate.pool,
        "batch_size": params.pretrain.batch_size,
        "missing": missing_runs(budget, searched, finished),
        "commit": git_commit(),
        "cores": joblib.cpu_count(),
        "data": {
            "digest": manifest.digest,
            "labels": manifest.labels,
            "videos": {split: len(manifest.videos(split)) for split in SPLITS},
        },
    }
    write_json(path.with_suffix(".json"), {**about, "summary": summary, "search": searched, "final": finished})
    save_figure(curve_figure(finished, list(summary)), path.with_suffix(".png"))
    write_text(path.with_suffix(".md"), report_page(summary, groups, searched, about, path.with_suffix(".png").name))
    return {f"{contestant}/{name}": entry["mean"] for contestant, row in summary.items() for name, entry in row.items()}


def missing_runs(budget: Budget, searched: Sequence[RunResult], finished: Sequence[RunResult]) -> str:
    """Return how many trainings of each contestant are missing, frozen and finetuned; empty if none is."""
    finals = final_runs(budget, searched)
    counts = Counter(contestant_name(run.objective, run.init) for run in finals)
    tuned_counts = Counter(contestant_name(run.objective, run.init) for run in finetuned_runs(budget, finals))
    parts = []
    for name, planned in counts.items():
        results = of_contestant(finished, name)
        tuned = sum("top1" in result["test"] for result in results)
        lacks = [] if len(results) == planned else [f"{planned - len(results)} of {planned} trainings"]
        if tuned < tuned_counts[name]:
            lacks.append(f"{tuned_counts[name] - tuned} of {tuned_counts[name]} finetunings")
        if lacks:
            parts.append(f"`{name}` lacks {' and '.join(lacks)}")
    return "; ".join(parts)


def summarise(results: Sequence[RunResult]) -> dict[str, dict[str, float]]:
    """Return `spread` of each measure on the test split; measures that no result has are left out."""
    columns = {name: [r["test"][name] for r in results if name in r["test"]] for name in MEASURES}
    columns["pretrain_s"] = [result.get("pretrain_s", 0.0) for result in results]
    return {name: spread(values) for name, values in columns.items() if values}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation (n - 1; 0 for one value), lowest and highest value, rounded to six places."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    statistic = {"mean": statistics.mean(values), "std": deviation, "min": min(values), "max": max(values)}
    return {name: round(value, 6) for name, value in statistic.items()} | {"trainings": len(values)}


def report_page(
    summary: Summary, groups: Mapping[str, int], searched: Sequence[RunResult], about: Mapping[str, Any], picture: str
) -> str:
    """Return the report as a Markdown page."""
    budget, data = about["budget"], about["data"]
    return PAGE.format(
        own=OWN_POINTS if searched else "",
        results=results_table(summary, groups),
        trainings=trainings_text(budget),
        pool="mean-pooled" if about["pool"] == "mean" else "time steps kept apart",
        folds=FOLDS.format(num_folds=budget["folds"], part=1, parts=VALIDATION_PARTS) if budget["folds"] else "",
        starts=STARTS if any(groups.values()) else "",
        missing=MISSING.format(missing=about["missing"]) if about["missing"] else "",
        chance=1 / len(data["labels"]),
        tuned=TUNED.format(labels=budget["labels_per_class"] or "all") if budget["finetune_epochs"] else "",
        picture=picture,
        gaps=gaps_table(summary),
        search=search_text(searched, budget),
        epochs=budget["epochs"],
        batch_size=about["batch_size"],
        finetuning=f"finetuning {budget['finetune_epochs']}" if budget["finetune_epochs"] else "no finetuning",
        videos=", ".join(f"{count} {split}" for split, count in data["videos"].items()),
        num_classes=len(data["labels"]),
        digest=data["digest"],
        cores=about["cores"],
        commit=about["commit"],
    )


def trainings_text(budget: Mapping[str, Any]) -> str:
    """Say which trainings a mean is over."""
    seeds = f"seeds ({len(budget['seeds'])})"
    return f"{seeds} and folds ({budget['folds']})" if budget["folds"] else seeds


def results_table(summary: Summary, groups: Mapping[str, int]) -> str:
    """Return the table of results, one row per contestant, those of a group together if there are several groups."""
    header = ["objective", *MEASURES.values(), "pretraining, s", "trainings"]
    grouped = any(groups.values())
    rows = []
    previous = None
    for contestant, row in summary.items():
        if grouped and groups[contestant] != previous:
            previous = groups[contestant]
            rows.append([f"**{GROUPS[previous]}**", *[""] * (len(header) - 1)])
        shares = [
            f"{100 * row[name]['mean']:.1f} ± {100 * row[name]['std']:.1f} %" if name in row else ""
            for name in MEASURES
        ]
        trainings = [f"{row[name]['trainings']}" for name in ("probe_top1", "top1") if name in row]
        seconds = f"{row['pretrain_s']['mean']:.0f}"
        rows.append([f"`{contestant}`", *shares, seconds, ", finetuned ".join(dict.fromkeys(trainings))])
    return markdown_table(header, rows)


def gaps_table(summary: Summary) -> str:
    """Return the table of differences between the mean of `mme`, from the last start, and the other means."""
    ahead = [contestant for contestant in summary if contestant.split(", then ")[-1] == "mme"]
    if not ahead:
        return "`mme` is not among the objectives."
    own, rows = summary[ahead[-1]], []
    for contestant, row in summary.items():
        if contestant != ahead[-1]:
            gaps = [
                f"{100 * (own[name]['mean'] - row[name]['mean']):+.1f}" if name in own and name in row else ""
                for name in MEASURES
            ]
            rows.append([f"above `{contestant}`, points", *gaps])
    return markdown_table([f"`{ahead[-1]}`", *MEASURES.values()], rows)


def search_text(searched: Sequence[RunResult], budget: Mapping[str, Any]) -> str:
    """Say how learning rate and mask ratio were found."""
    if not searched:
        return f"No search: all pretrain at the rate {budget['lrs'][0]:g} and hide {budget['mask_ratios'][0]:.0%}."
    text = SEARCH.format(
        search_epochs=budget["search_epochs"], search_seed=budget["seeds"][0], table=search_table(searched)
    )
    return text.strip()


def search_table(searched: Sequence[RunResult]) -> str:
    """Return the table of the search: one row per point of the grid, one column per contestant, the best in bold."""
    found: dict[tuple[str, float, float | None], RunResult] = {}
    for point in searched:
        run = point["run"]
        found[contestant_name(run["objective"], run["init"]), run["lr"], run["mask_ratio"]] = point
    contestants = list(dict.fromkeys(name for name, _, _ in found))
    points = list(dict.fromkeys((r["run"]["lr"], r["run"]["mask_ratio"]) for r in searched))
    best = [max(of_contestant(searched, name), key=search_score) for name in contestants]
    rows = []
    for lr, ratio in points:
        row = [f"{lr:g}", "" if ratio is None else f"{ratio:g}"]
        for name in contestants:
            result = found.get((name, lr, ratio))
            mark = "**" if result in best else ""
            row.append("" if result is None else f"{mark}{search_score(result):.1%}{mark}")
        rows.append(row)
    return markdown_table(["learning rate", "mask ratio", *(f"`{name}`" for name in contestants)], rows)


def curve_figure(finished: Sequence[RunResult], contestants: Sequence[str]) -> Figure:
    """Draw probe accuracy over pretraining time (band: lowest to highest training), and accuracies by measure.

    Contestants of one objective have one colour; those that do not start from random weights are hatched and dashed.
    Measures without a value are left out, and so is the time if nothing was probed before the end.
    """
    found = {name for result in finished for name in result["test"]}
    measures = [name for name in MEASURES if name in found]
    timed = any(len(result["curve"]) > 1 for result in finished)
    height = max(4.5, 1.2 + 0.3 * len(contestants))
    figure = Figure(figsize=(2 + 3 * len(measures) + 5 * timed, height), layout="constrained")
    grid = figure.add_gridspec(1, timed + len(measures), width_ratios=[5] * timed + [3] * len(measures))
    left = figure.add_subplot(grid[0]) if timed else None
    bars: dict[str, Axes] = {}
    for index, name in enumerate(measures, start=timed):
        bars[name] = figure.add_subplot(grid[index], sharey=next(iter(bars.values()), None))
        bars[name].tick_params(labelleft=not bars.keys() - {name})
    for place, contestant in enumerate(contestants):
        results = of_contestant(finished, contestant)
        run = results[0]["run"]
        colour, warm = COLOURS[run["objective"]], run["init"] != RANDOM
        curves = [result["curve"] for result in results if result["curve"]]
        if left is not None and curves:
            points = list(zip(*curves, strict=True))  # one entry per probed epoch, over the trainings
            seconds = [statistics.mean(row["seconds"] for row in point) for point in points]
            shares = [[100 * row["test/probe_top1"] for row in point] for point in points]
            left.plot(seconds, [statistics.mean(s) for s in shares], "o--" if warm else "o-", color=colour)
            left.fill_between(seconds, [min(s) for s in shares], [max(s) for s in shares], color=colour, alpha=0.2)
        for name, axes in bars.items():
            values = [100 * result["test"][name] for result in results if name in result["test"]]
            if values:
                hatch = "//" if warm else None
                axes.barh(place, statistics.mean(values), color=colour, hatch=hatch, edgecolor="white")
                axes.plot(values, [place] * len(values), ".", color="black", markersize=4)
    for name, axes in bars.items():
        axes.set(xlabel="test top-1, %", xlim=(0, 100), title=MEASURES[name])
    first = bars[measures[0]]
    first.set_yticks(range(len(contestants)), list(contestants))
    first.invert_yaxis()
    if left is not None:
        left.set(xlabel="pretraining, s", ylabel="frozen probe, %", ylim=(0, 100), title="over pretraining time")
    return figure
