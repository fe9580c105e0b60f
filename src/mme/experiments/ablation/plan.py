"""Runs of an ablation and the parameters of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, NotRequired, TypedDict

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from mme.config import Params
from mme.config.ablation import SCRATCH, AblationObjective, Budget
from mme.config.edit import with_values
from mme.config.paths import RANDOM
from mme.manifest import Manifest
from mme.targets.base import objective_targets

VALIDATION_PARTS = 6
"""Of the training videos of a fold, one in so many is for validation."""


@dataclass(frozen=True)
class AblationRun:
    """One training run of the ablation.

    Attributes:
        objective: target of pretraining, or ``scratch`` for no pretraining beyond ``init``.
        seed: seed of weights, order, masks and of the choice of labelled videos.
        lr: learning rate of pretraining; of finetuning for ``scratch``.
        mask_ratio: share of masked tokens; None for ``scratch``.
        search: True for a short run that chooses ``lr`` and ``mask_ratio`` by the validation split only.
        init: weights to start from, ``random`` or a folder below ``models``.
        fold: part of the labelled videos that is tested; None = the test split.
    """

    objective: AblationObjective
    seed: int
    lr: float
    mask_ratio: float | None
    search: bool
    init: str = RANDOM
    fold: int | None = None

    @property
    def name(self) -> str:
        """Name for messages and for the MLflow run."""
        mask = "" if self.mask_ratio is None else f", mask {self.mask_ratio:g}"
        fold = "" if self.fold is None else f", fold {self.fold}"
        contestant = contestant_name(self.objective, self.init)
        return f"{contestant}, seed {self.seed}{fold}, lr {self.lr:g}{mask}" + (", search" if self.search else "")


def contestant_name(objective: str, init: str) -> str:
    """Return the name of an objective that starts from some weights, such as ``primitives, then mme``."""
    if init == RANDOM:
        return objective
    return f"{init} only" if objective == SCRATCH else f"{init}, then {objective}"


class RunResult(TypedDict):
    """Result of a run, as JSON.

    Keys:
        run: fields of the `AblationRun`.
        run_id: MLflow run.
        curve: one row per probe during pretraining: ``epoch``, ``seconds`` and the probe's metrics.
        val, test: metrics by name; a search run has no ``test``, and ``top1`` is there once it is finetuned.
        pretrain_s, finetune_s: wall time without probes.
    """

    run: dict[str, Any]
    run_id: str
    curve: list[dict[str, float]]
    val: Mapping[str, float]
    test: NotRequired[Mapping[str, float]]
    pretrain_s: NotRequired[float]
    finetune_s: NotRequired[float]


def contestants(budget: Budget) -> list[tuple[str, AblationObjective]]:
    """Return start and objective of each contestant, by `contestant_group`."""
    pairs = [*product(budget.inits, budget.objectives), *((init, SCRATCH) for init in budget.only)]
    return sorted(pairs, key=lambda pair: contestant_group(*pair))


def contestant_group(init: str, objective: str) -> int:
    """Return 0 for random weights, 1 for other weights as they are, 2 for pretraining from these."""
    return 0 if init == RANDOM else 1 if objective == SCRATCH else 2


def is_finetuned(budget: Budget, name: str, seed: int) -> bool:
    """Return whether the training of a contestant with a seed is finetuned."""
    return (
        budget.finetune_epochs is not None
        and (budget.finetuned is None or name in budget.finetuned)
        and seed in budget.seeds[: budget.finetune_seeds]
    )


def search_runs(budget: Budget) -> list[AblationRun]:
    """Return the grid of each contestant with the first seed; a grid of a single point needs no search.

    Raises:
        ValueError: an objective is unknown, or ``finetuned`` names no contestant.
    """
    runs = []
    names = [contestant_name(objective, init) for init, objective in contestants(budget)]
    if unknown := set(budget.finetuned or ()) - set(names):
        raise ValueError(f"ablation.finetuned: {sorted(unknown)} are none of the contestants: {', '.join(names)}")
    fold = None if budget.folds is None else 0
    for init, objective in contestants(budget):
        if objective != SCRATCH:
            objective_targets(objective)  # an unknown one ends the ablation before it begins
        elif not is_finetuned(budget, contestant_name(objective, init), budget.seeds[0]):
            continue  # nothing is trained
        points = search_grid(budget, objective)
        if len(points) > 1:
            runs += [AblationRun(objective, budget.seeds[0], lr, ratio, True, init, fold) for lr, ratio in points]
    return runs


def search_grid(budget: Budget, objective: str) -> list[tuple[float, float | None]]:
    """Return the learning rates and mask ratios that an objective may have; ``scratch`` has rates of finetuning."""
    if objective == SCRATCH:
        return [(lr, None) for lr in budget.finetune_lrs or budget.lrs]
    return list(product(budget.lrs, budget.mask_ratios))


def search_score(result: RunResult) -> float:
    """Return the validation metric that a search maximises: frozen probe; finetuned top-1 for ``scratch``."""
    return result["val"]["top1" if result["run"]["objective"] == SCRATCH else "probe_top1"]


def final_runs(budget: Budget, searched: Sequence[RunResult]) -> list[AblationRun]:
    """Return every contestant with every seed and fold, at the best point of its grid.

    Of equal points the first is the best. Contestants take turns, so that those of an unfinished ablation have been
    measured on the same seeds and folds. Weights as they are differ between seeds only when they are finetuned.
    """
    runs = []
    folds = [None] if budget.folds is None else range(budget.folds)
    for seed, fold, (init, objective) in product(budget.seeds, folds, contestants(budget)):
        name = contestant_name(objective, init)
        if contestant_group(init, objective) == 1 and seed != budget.seeds[0] and not is_finetuned(budget, name, seed):
            continue
        grid = of_contestant(searched, name)
        if grid:
            best = max(grid, key=search_score)["run"]
            lr, ratio = best["lr"], best["mask_ratio"]
        else:
            lr, ratio = search_grid(budget, objective)[0]
        runs.append(AblationRun(objective, seed, lr, ratio, False, init, fold))
    return runs


def finetuned_runs(budget: Budget, finals: Sequence[AblationRun]) -> list[AblationRun]:
    """Return those of the final runs that are finetuned."""
    return [run for run in finals if is_finetuned(budget, contestant_name(run.objective, run.init), run.seed)]


def of_contestant(results: Sequence[RunResult], name: str) -> list[RunResult]:
    """Return the results of one contestant, by the name that `contestant_name` gives it."""
    return [r for r in results if contestant_name(r["run"]["objective"], r["run"]["init"]) == name]


def of_fold(manifest: Manifest, num_folds: int, fold: int) -> Manifest:
    """Divide the labelled videos anew: one part is the test split, the others are training and validation.

    Groups are kept apart between the parts, and labels are alike in them as far as groups allow. Of each
    label a sixth of the videos that are not tested, at least one of three, are for validation, whatever their group.
    Videos without labels keep their split.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    videos = manifest.labelled(("train", "val", "test"))
    labels = np.array([video.label for video in videos])
    groups = np.array([video.group or video.id for video in videos])
    num_groups = len(set(groups))
    if num_groups < num_folds:
        raise ValueError(f"{manifest.folder}: {num_groups} groups of labelled videos, too few for {num_folds} folds")
    rest, test = list(StratifiedGroupKFold(num_folds).split(videos, labels, groups))[fold]
    split = dict.fromkeys((video.id for video in videos), "train") | {videos[i].id: "test" for i in test}
    for index, label in enumerate(manifest.labels):
        own = rest[labels[rest] == label]
        order = np.random.default_rng((fold, index)).permutation(own)
        split |= {videos[i].id: "val" for i in order[: max(round(len(own) / VALIDATION_PARTS), min(1, len(own) // 3))]}
    return Manifest((replace(row, split=split.get(row.id, row.split)) for row in manifest.rows), manifest.folder)


def run_params(params: Params, budget: Budget, run: AblationRun) -> Params:
    """Return the parameters of a run.

    Raises:
        ValueError: they contradict each other, for example if the warm-up is longer than the budget.
    """
    values: dict[str, Any] = {"seed": run.seed}
    if budget.finetune_epochs is not None:
        values["finetune.epochs"] = budget.finetune_epochs
    if run.objective == SCRATCH:
        values |= {"finetune.init": run.init, "finetune.lr": run.lr}
    else:
        values |= {
            "finetune.init": "pretrain",
            "pretrain.init": run.init,
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


def frozen_depends_on(params: Params, budget: Budget, run: AblationRun) -> dict[str, Any]:
    """Return all parameters that decide the frozen encoder of a run and its metrics, JSON-able."""
    own = run_params(params, budget, run)
    values = own.model_dump(mode="json", include={"seed", "clip", "model"})
    if run.objective != SCRATCH:
        values["pretrain"] = own.pretrain.model_dump(mode="json")
    pace = {"pool": own.evaluate.pool, "folds": budget.folds, "probe_every_epochs": budget.probe_every_epochs}
    return {"ablation": asdict(run), **values, **pace}


def finetuned_depends_on(params: Params, budget: Budget, run: AblationRun) -> dict[str, Any]:
    """Return all parameters that decide what finetuning makes of the encoder, JSON-able."""
    finetune = run_params(params, budget, run).finetune
    return {"finetune": finetune.model_dump(mode="json"), "labels_per_class": budget.labels_per_class}
