"""Which trainings an ablation consists of, and with which parameters each runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from mme.config import Params
from mme.config.ablation import Budget, Contestant
from mme.config.edit import with_values
from mme.manifest import Manifest

Result = dict[str, Any]
"""What a finished cell leaves: its ``cell``, figures by split, ``curve`` and seconds."""


@dataclass(frozen=True)
class Cell:
    """One training run of the ablation.

    Attributes:
        objective: what is predicted in pretraining, or ``scratch`` for none.
        seed: of weights, order, masks and of the choice of labelled videos.
        lr: learning rate of pretraining; of finetuning for ``scratch``.
        mask_ratio: share of hidden tokens; None for ``scratch``.
        search: a short run that helps to choose ``lr`` and ``mask_ratio``, judged on the validation split alone.
    """

    objective: Contestant
    seed: int
    lr: float
    mask_ratio: float | None
    search: bool

    @property
    def name(self) -> str:
        """For people, and the MLflow run."""
        mask = "" if self.mask_ratio is None else f", mask {self.mask_ratio:g}"
        return f"{self.objective}, seed {self.seed}, lr {self.lr:g}{mask}" + (", search" if self.search else "")


def search_cells(budget: Budget) -> list[Cell]:
    """The grid of each objective, under the first seed; empty where there is nothing to choose."""
    cells = []
    for objective in budget.objectives:
        ratios: Sequence[float | None] = [None] if objective == "scratch" else budget.mask_ratios
        points = list(product(budget.lrs, ratios))
        if len(points) > 1:
            cells += [Cell(objective, budget.seeds[0], lr, ratio, True) for lr, ratio in points]
    return cells


def score(result: Result) -> float:
    """What a search is judged by: the frozen probe on the validation split; for ``scratch`` the finetuned accuracy."""
    name = "top1" if result["cell"]["objective"] == "scratch" else "probe_top1"
    return float(result["val"][name])


def final_cells(budget: Budget, searched: Sequence[Result]) -> list[Cell]:
    """Every objective under every seed, with the best point of its grid; the first of equals."""
    cells = []
    for seed, objective in product(budget.seeds, budget.objectives):
        rivals = [result for result in searched if result["cell"]["objective"] == objective]
        if rivals:
            best = max(rivals, key=score)["cell"]
            lr, ratio = best["lr"], best["mask_ratio"]
        else:
            lr, ratio = budget.lrs[0], None if objective == "scratch" else budget.mask_ratios[0]
        cells.append(Cell(objective, seed, lr, ratio, False))
    return cells


def cell_params(params: Params, budget: Budget, cell: Cell) -> Params:
    """The parameters that a cell trains with.

    Raises:
        ValueError: they contradict each other, as where the warm-up is longer than the budget.
    """
    values: dict[str, Any] = {"seed": cell.seed, "finetune.epochs": budget.finetune_epochs}
    if cell.objective == "scratch":
        values |= {"finetune.init": "scratch", "finetune.lr": cell.lr}
    else:
        values |= {
            "finetune.init": "pretrained",
            "pretrain.objective": cell.objective,
            "pretrain.lr": cell.lr,
            "pretrain.mask_ratio": cell.mask_ratio,
            "pretrain.epochs": budget.search_epochs if cell.search else budget.epochs,
        }
    return with_values(params, values)


def few_labels(manifest: Manifest, labels_per_class: int | None, seed: int) -> Manifest:
    """The manifest with at most so many training videos a label, drawn by the seed; other splits stay whole."""
    if labels_per_class is None:
        return manifest
    left_out: set[str] = set()
    for index, label in enumerate(manifest.labels):
        videos = [video for video in manifest.videos("train") if video.label == label]
        order = np.random.default_rng((seed, index)).permutation(len(videos))
        left_out |= {videos[i].id for i in order[labels_per_class:]}
    return manifest.without(left_out)


def depends_on(params: Params, budget: Budget, cell: Cell) -> dict[str, Any]:
    """Everything in the parameters that a cell's result follows from."""
    own = cell_params(params, budget, cell).model_dump(mode="json", include={"seed", "clip", "model", "finetune"})
    if cell.objective != "scratch":
        own["pretrain"] = cell_params(params, budget, cell).pretrain.model_dump(mode="json")
    pace = {"labels_per_class": budget.labels_per_class, "probe_every_epochs": budget.probe_every_epochs}
    return {"cell": asdict(cell), **own, **pace}
