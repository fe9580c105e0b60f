from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mme.config.ablation import Budget
from mme.experiments.ablation.plan import Cell, Result, cell_params, depends_on, few_labels, final_cells, search_cells
from mme.manifest import Manifest
from tests.factories import row
from tests.small_data import small_params

PARAMS = small_params()
BUDGET = Budget(
    objectives=("scratch", "pixel", "mme"),
    seeds=(4, 5),
    lrs=(0.001, 0.002),
    mask_ratios=(0.5, 0.75),
    search_epochs=2,
    epochs=5,
    probe_every_epochs=2,
    finetune_epochs=6,
    labels_per_class=3,
)


def result(cell: Cell, **val: float) -> Result:
    return {"cell": dataclasses.asdict(cell), "val": val}


def test_every_objective_has_the_same_grid_under_the_first_seed() -> None:
    cells = search_cells(BUDGET)
    grids = {name: {(c.lr, c.mask_ratio) for c in cells if c.objective == name} for name in BUDGET.objectives}
    assert grids["pixel"] == grids["mme"] == {(0.001, 0.5), (0.001, 0.75), (0.002, 0.5), (0.002, 0.75)}
    assert grids["scratch"] == {(0.001, None), (0.002, None)}
    assert all(cell.seed == 4 and cell.search for cell in cells)
    assert len(cells) == 10


def test_each_objective_takes_its_best_point_of_the_validation_split() -> None:
    grid = search_cells(BUDGET)
    searched = [result(cell, probe_top1=cell.lr * 100 - (cell.mask_ratio or 0) / 100, top1=-cell.lr) for cell in grid]
    cells = final_cells(BUDGET, searched)
    assert len(cells) == 6
    assert {cell.seed for cell in cells} == {4, 5}
    chosen = {cell.objective: (cell.lr, cell.mask_ratio) for cell in cells}
    assert chosen == {"scratch": (0.001, None), "pixel": (0.002, 0.5), "mme": (0.002, 0.5)}
    assert not any(cell.search for cell in cells)


def test_a_grid_of_one_point_needs_no_search() -> None:
    single = BUDGET.model_copy(update={"lrs": (0.001,), "mask_ratios": (0.6,)})
    assert search_cells(single) == []
    assert {(c.lr, c.mask_ratio) for c in final_cells(single, [])} == {(0.001, None), (0.001, 0.6)}


def test_cells_differ_from_the_parameters_in_what_they_name_alone() -> None:
    params = cell_params(PARAMS, BUDGET, Cell("pixel", 5, 0.002, 0.75, False))
    pretrain = PARAMS.pretrain.model_copy(update={"objective": "pixel", "lr": 0.002, "mask_ratio": 0.75, "epochs": 5})
    assert params.pretrain == pretrain
    assert (params.seed, params.finetune.epochs, params.finetune.lr) == (5, 6, PARAMS.finetune.lr)
    assert params.model == PARAMS.model
    assert cell_params(PARAMS, BUDGET, Cell("pixel", 5, 0.002, 0.75, True)).pretrain.epochs == 2
    scratch = cell_params(PARAMS, BUDGET, Cell("scratch", 5, 0.002, None, False))
    assert (scratch.finetune.lr, scratch.finetune.init, scratch.pretrain) == (0.002, "scratch", PARAMS.pretrain)


def test_a_budget_below_the_warm_up_is_an_error() -> None:
    short = BUDGET.model_copy(update={"search_epochs": 1})
    with pytest.raises(ValueError, match="warmup_epochs"):
        cell_params(PARAMS, short, Cell("mme", 0, 0.001, 0.5, True))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"runtime": {"num_workers": 1, "eval_batch_size": 7}, "seed": 9, "registry": {"minimum": 0.1}}, True),
        ({"pretrain": {"epochs": 9, "lr": 0.5, "mask_ratio": 0.1}, "finetune": {"epochs": 9}}, True),
        ({"pretrain": {"weight_decay": 0.1}}, False),
        ({"finetune": {"lr": 0.1}}, False),
        ({"model": {"depth": 1}}, False),
        ({"clip": {"stride_frames": 1}}, False),
    ],
)
def test_a_result_is_kept_as_long_as_nothing_it_follows_from_changes(changes: dict[str, Any], same: bool) -> None:
    cell = Cell("mme", 0, 0.001, 0.5, False)
    assert (depends_on(PARAMS, BUDGET, cell) == depends_on(small_params(**changes), BUDGET, cell)) is same
    more = BUDGET.model_copy(update={"seeds": (7,), "objectives": ("mme",), "lrs": (0.1,)})
    assert depends_on(PARAMS, BUDGET, cell) == depends_on(PARAMS, more, cell)
    longer = BUDGET.model_copy(update={"epochs": 6})
    assert depends_on(PARAMS, BUDGET, cell) != depends_on(PARAMS, longer, cell)


def test_few_labels_are_drawn_by_the_seed_from_the_training_split() -> None:
    rows = [
        row(f"{split}-{label}-{i}", split, label=label)
        for split in ("train", "val")
        for label in "ab"
        for i in range(8)
    ]
    rows.append(row("unlabelled", "pretrain", label=None))
    manifest = Manifest(rows, "data")
    few = few_labels(manifest, 3, seed=0)
    assert [sum(video.label == label for video in few.videos("train")) for label in "ab"] == [3, 3]
    assert few.videos(("val", "pretrain")) == manifest.videos(("val", "pretrain"))
    assert few.rows == few_labels(manifest, 3, seed=0).rows
    assert few.rows != few_labels(manifest, 3, seed=1).rows
    assert few_labels(manifest, 100, seed=0).rows == manifest.rows
    assert few_labels(manifest, None, seed=0) is manifest


def test_a_budget_names_nothing_twice() -> None:
    with pytest.raises(ValueError, match="lrs"):
        Budget.model_validate(BUDGET.model_dump() | {"lrs": (0.1, 0.1)})
