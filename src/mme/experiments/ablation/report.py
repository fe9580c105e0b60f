"""Report of an ablation: Markdown page, JSON and figure."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mme.config.ablation import Budget
from mme.experiments.ablation.plan import RunResult, of_objective, search_score
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

The same encoder, decoder, data, masking scheme, number of steps and seeds; only the target and its head differ, and
each objective has its own learning rate and mask ratio, chosen from one grid.

**A miniature, not the paper's benchmark**: a small network, a small budget, the data named below. It shows what the
objectives do here, and says nothing of the accuracy that any of them reaches on real actions.

{results}

Test split, mean and standard deviation over the seeds ({num_seeds}); chance is {chance:.1%}. *Frozen probe*: logistic
regression on the mean-pooled tokens of the frozen encoder, with all labelled training videos. *k-NN*: 20 neighbours
by cosine on the same features. *Finetuned*: the whole network, on {labels} labelled videos per class, drawn by the
seed, the epoch chosen on the validation split. All on the centre view. `scratch` has no pretraining: its frozen
features are those of random weights. Pretraining seconds are wall time without probing, trainings running side by
side.

![Probe accuracy over pretraining time, and accuracy by objective]({picture})

## How far `mme` is ahead

{gaps}

## How learning rate and mask ratio were chosen

Pretraining of {search_epochs} epochs under seed {search_seed}, each objective on each point of the grid, judged by
the frozen probe on the validation split; for `scratch`, whose learning rate is that of finetuning, by its accuracy
there. The test split was not used. The best is bold.

{search}

## Settings

Pretraining {epochs} epochs, finetuning {finetune_epochs}; {videos} videos of {num_classes} classes (data digest
`{digest}`); {cores} cores; commit `{commit}`. All else is in `params.yaml`. The JSON file beside this
page contains every number, also of each seed.
"""


def write_ablation_report(
    searched: Sequence[RunResult], finished: Sequence[RunResult], budget: Budget, manifest: Manifest, path: Path
) -> dict[str, float]:
    """Write ``path`` with the suffixes ``.json``, ``.md`` and ``.png``.

    Returns:
        Means over the seeds by ``OBJECTIVE/MEASURE``.
    """
    summary: dict[str, dict[str, dict[str, float]]] = {
        objective: summarise(of_objective(finished, objective)) for objective in budget.objectives
    }
    about = {
        "budget": budget.model_dump(mode="json"),
        "commit": git_commit(),
        "cores": os.cpu_count(),
        "data": {
            "digest": manifest.digest,
            "labels": manifest.labels,
            "videos": {split: len(manifest.videos(split)) for split in SPLITS},
        },
    }
    write_json(path.with_suffix(".json"), {**about, "summary": summary, "search": searched, "final": finished})
    save_figure(curve_figure(finished, budget), path.with_suffix(".png"))
    write_text(path.with_suffix(".md"), report_page(summary, searched, about, path.with_suffix(".png").name))
    return {f"{objective}/{name}": entry["mean"] for objective, row in summary.items() for name, entry in row.items()}


def summarise(results: Sequence[RunResult]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation (n - 1; 0 for one seed), lowest and highest of each measure on the test split."""
    columns: dict[str, list[float]] = {name: [result["test"][name] for result in results] for name in MEASURES}
    columns["pretrain_s"] = [result.get("pretrain_s", 0.0) for result in results]
    return {name: spread(values) for name, values in columns.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation, lowest and highest value, rounded to six places."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    statistic = {"mean": statistics.mean(values), "std": deviation, "min": min(values), "max": max(values)}
    return {name: round(value, 6) for name, value in statistic.items()}


def report_page(summary: Summary, searched: Sequence[RunResult], about: Mapping[str, Any], picture: str) -> str:
    """Return the report as a Markdown page."""
    budget, data = about["budget"], about["data"]
    return PAGE.format(
        results=results_table(summary),
        num_seeds=len(budget["seeds"]),
        chance=1 / len(data["labels"]),
        labels=budget["labels_per_class"] or "all",
        picture=picture,
        gaps=gaps_table(summary),
        search_epochs=budget["search_epochs"],
        search_seed=budget["seeds"][0],
        search=search_table(searched),
        epochs=budget["epochs"],
        finetune_epochs=budget["finetune_epochs"],
        videos=", ".join(f"{count} {split}" for split, count in data["videos"].items()),
        num_classes=len(data["labels"]),
        digest=data["digest"],
        cores=about["cores"],
        commit=about["commit"],
    )


def results_table(summary: Summary) -> str:
    """Return the table of results, one row per objective."""
    header = ["objective", *MEASURES.values(), "pretraining, s"]
    rows = []
    for objective, row in summary.items():
        shares = [f"{100 * row[name]['mean']:.1f} ± {100 * row[name]['std']:.1f} %" for name in MEASURES]
        rows.append([f"`{objective}`", *shares, f"{row['pretrain_s']['mean']:.0f}"])
    return markdown_table(header, rows)


def gaps_table(summary: Summary) -> str:
    """Return the table of differences between the mean of `mme` and the other means."""
    if "mme" not in summary:
        return "`mme` is not among the objectives."
    own, rows = summary["mme"], []
    for objective, row in summary.items():
        if objective != "mme":
            gaps = [f"{100 * (own[name]['mean'] - row[name]['mean']):+.1f}" for name in MEASURES]
            rows.append([f"above `{objective}`, points", *gaps])
    return markdown_table(["", *MEASURES.values()], rows)


def search_table(searched: Sequence[RunResult]) -> str:
    """Return the table of the search: one row per point of the grid, one column per objective, the best in bold."""
    if not searched:
        return "No search: the grid has one point."
    objectives = list(dict.fromkeys(result["run"]["objective"] for result in searched))
    points = list(dict.fromkeys((r["run"]["lr"], r["run"]["mask_ratio"]) for r in searched))
    best = [max(of_objective(searched, objective), key=search_score) for objective in objectives]
    found = {(r["run"]["objective"], r["run"]["lr"], r["run"]["mask_ratio"]): r for r in searched}
    rows = []
    for lr, ratio in points:
        row = [f"{lr:g}", "" if ratio is None else f"{ratio:g}"]
        for objective in objectives:
            result = found.get((objective, lr, ratio))
            mark = "**" if result in best else ""
            row.append("" if result is None else f"{mark}{search_score(result):.1%}{mark}")
        rows.append(row)
    return markdown_table(["learning rate", "mask ratio", *(f"`{name}`" for name in objectives)], rows)


def curve_figure(finished: Sequence[RunResult], budget: Budget) -> Figure:
    """Draw probe accuracy over pretraining time (band: lowest to highest seed), and accuracies by measure."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for objective in budget.objectives:
        curves = [result["curve"] for result in of_objective(finished, objective) if result["curve"]]
        if not curves:
            continue
        points = list(zip(*curves, strict=True))  # one entry per probed epoch, over the seeds
        seconds = [statistics.mean(row["seconds"] for row in point) for point in points]
        shares = [[100 * row["test/probe_top1"] for row in point] for point in points]
        left.plot(seconds, [statistics.mean(s) for s in shares], "o-", color=COLOURS[objective])
        left.fill_between(
            seconds, [min(s) for s in shares], [max(s) for s in shares], color=COLOURS[objective], alpha=0.2
        )
    left.set(xlabel="pretraining, s", ylabel="frozen probe, %", ylim=(0, 100), title="over pretraining time")
    for index, objective in enumerate(budget.objectives):
        results = of_objective(finished, objective)
        for place, name in enumerate(MEASURES):
            seeds = [100 * result["test"][name] for result in results]
            x = place + (index - len(budget.objectives) / 2 + 0.5) * 0.16
            right.bar(
                x, statistics.mean(seeds), 0.14, color=COLOURS[objective], label=objective if place == 0 else None
            )
            right.plot([x] * len(seeds), seeds, ".", color="black", markersize=4)
    right.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    right.set(ylabel="test top-1, %", ylim=(0, 100), title="after training; one dot per seed")
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=len(budget.objectives))
    return figure
