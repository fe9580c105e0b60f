"""Runs of an ablation and the parameters of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, NotRequired, TypedDict

import numpy as np

from mme.config import Params
from mme.config.ablation import AblationObjective, Budget
from mme.config.edit import with_values
from mme.config.paths import RANDOM
from mme.manifest import Manifest
from mme.targets.base import objective_targets


@dataclass(frozen=True)
class AblationRun:
    """One training run of the ablation.

    Attributes:
        objective: target of pretraining, or ``scratch`` for no pretraining.
        seed: seed of weights, order, masks and of the choice of labelled videos.
        lr: learning rate of pretraining; of finetuning for ``scratch``.
        mask_ratio: share of masked tokens; None for ``scratch``.
        search: True for a short run that chooses ``lr`` and ``mask_ratio`` by the validation split only.
    """

    objective: AblationObjective
    seed: int
    lr: float
    mask_ratio: float | None
    search: bool

    @property
    def name(self) -> str:
        """Name for messages and for the MLflow run."""
        mask = "" if self.mask_ratio is None else f", mask {self.mask_ratio:g}"
        return f"{self.objective}, seed {self.seed}, lr {self.lr:g}{mask}" + (", search" if self.search else "")


class RunResult(TypedDict):
    """Result of a run, as JSON.

    Keys:
        run: fields of the `AblationRun`.
        run_id: MLflow run.
        curve: one row per probe during pretraining: ``epoch``, ``seconds`` and the probe's metrics.
        val, test: metrics by name; a search run has no ``test``.
        pretrain_s, finetune_s: wall time without probes.
    """

    run: dict[str, Any]
    run_id: str
    curve: list[dict[str, float]]
    val: Mapping[str, float]
    test: NotRequired[Mapping[str, float]]
    pretrain_s: NotRequired[float]
    finetune_s: NotRequired[float]


def search_runs(budget: Budget) -> list[AblationRun]:
    """Return the grid of each objective with the first seed; an objective with a single point needs no search."""
    runs = []
    for objective in budget.objectives:
        if objective != "scratch":
            objective_targets(objective)  # an unknown one ends the ablation before it begins
        ratios: Sequence[float | None] = [None] if objective == "scratch" else budget.mask_ratios
        points = list(product(budget.lrs, ratios))
        if len(points) > 1:
            runs += [AblationRun(objective, budget.seeds[0], lr, ratio, True) for lr, ratio in points]
    return runs


def search_score(result: RunResult) -> float:
    """Return the validation metric that a search maximises: frozen probe; finetuned top-1 for ``scratch``."""
    return result["val"]["top1" if result["run"]["objective"] == "scratch" else "probe_top1"]


def final_runs(budget: Budget, searched: Sequence[RunResult]) -> list[AblationRun]:
    """Return every objective with every seed, at the best point of its grid (the first of equal ones)."""
    runs = []
    for seed, objective in product(budget.seeds, budget.objectives):
        grid = of_objective(searched, objective)
        if grid:
            best = max(grid, key=search_score)["run"]
            lr, ratio = best["lr"], best["mask_ratio"]
        else:
            lr, ratio = budget.lrs[0], None if objective == "scratch" else budget.mask_ratios[0]
        runs.append(AblationRun(objective, seed, lr, ratio, False))
    return runs


def of_objective(results: Sequence[RunResult], objective: str) -> list[RunResult]:
    """Return the results of one objective."""
    return [result for result in results if result["run"]["objective"] == objective]


def run_params(params: Params, budget: Budget, run: AblationRun) -> Params:
    """Return the parameters of a run.

    Raises:
        ValueError: they contradict each other, for example if the warm-up is longer than the budget.
    """
    values: dict[str, Any] = {"seed": run.seed, "finetune.epochs": budget.finetune_epochs}
    if run.objective == "scratch":
        values |= {"finetune.init": RANDOM, "finetune.lr": run.lr}
    else:
        values |= {
            "finetune.init": "pretrain",
            "pretrain.objective": run.objective,
            "pretrain.lr": run.lr,
            "pretrain.mask_ratio": run.mask_ratio,
            "pretrain.epochs": budget.search_epochs if run.search else budget.epochs,
        }
    return with_values(params, values)


def few_labels(manifest: Manifest, labels_per_class: int | None, seed: int) -> Manifest:
    """Keep at most ``labels_per_class`` training videos per label, drawn by the seed; other splits stay whole."""
    if labels_per_class is None:
        return manifest
    left_out: set[str] = set()
    for index, label in enumerate(manifest.labels):
        videos = [video for video in manifest.videos("train") if video.label == label]
        order = np.random.default_rng((seed, index)).permutation(len(videos))
        left_out |= {videos[i].id for i in order[labels_per_class:]}
    return manifest.without(left_out)


def result_depends_on(params: Params, budget: Budget, run: AblationRun) -> dict[str, Any]:
    """Return all parameters that decide the result of a run, JSON-able."""
    own = run_params(params, budget, run)
    values = own.model_dump(mode="json", include={"seed", "clip", "model", "finetune"})
    if run.objective != "scratch":
        values["pretrain"] = own.pretrain.model_dump(mode="json")
    pace = {"labels_per_class": budget.labels_per_class, "probe_every_epochs": budget.probe_every_epochs}
    return {"ablation": asdict(run), **values, **pace}
