from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import pytest

from mme.config import Params
from mme.config.ablation import Budget
from mme.experiments.ablation.plan import (
    AblationRun,
    RunResult,
    contestant_name,
    few_labels,
    final_runs,
    finetuned_depends_on,
    finetuned_runs,
    frozen_depends_on,
    of_fold,
    run_params,
    search_runs,
)
from mme.manifest import Manifest
from tests.factories import row
from tests.small_data import small_params

PARAMS = small_params()
BUDGET = Budget(
    objectives=("scratch", "pixel", "mme"),
    inits=("random",),
    folds=None,
    seeds=(4, 5),
    lrs=(0.001, 0.002),
    mask_ratios=(0.5, 0.75),
    search_epochs=2,
    epochs=5,
    probe_every_epochs=2,
    finetune_epochs=6,
    labels_per_class=3,
)


def depends_on(params: Params, budget: Budget, run: AblationRun) -> list[dict[str, Any]]:
    return [frozen_depends_on(params, budget, run), finetuned_depends_on(params, budget, run)]


def result(run: AblationRun, **val: float) -> RunResult:
    return {"run": dataclasses.asdict(run), "run_id": "", "curve": [], "val": val}


def test_every_objective_has_the_same_grid_with_the_first_seed() -> None:
    runs = search_runs(BUDGET)
    grids = {name: {(c.lr, c.mask_ratio) for c in runs if c.objective == name} for name in BUDGET.objectives}
    assert grids["pixel"] == grids["mme"] == {(0.001, 0.5), (0.001, 0.75), (0.002, 0.5), (0.002, 0.75)}
    assert grids["scratch"] == {(0.001, None), (0.002, None)}
    assert all(run.seed == 4 and run.search for run in runs)
    assert len(runs) == 10


def test_final_runs_use_the_best_point_of_the_validation_split() -> None:
    grid = search_runs(BUDGET)
    searched = [result(run, probe_top1=run.lr * 100 - (run.mask_ratio or 0) / 100, top1=-run.lr) for run in grid]
    runs = final_runs(BUDGET, searched)
    assert len(runs) == 6
    assert {run.seed for run in runs} == {4, 5}
    chosen = {run.objective: (run.lr, run.mask_ratio) for run in runs}
    assert chosen == {"scratch": (0.001, None), "pixel": (0.002, 0.5), "mme": (0.002, 0.5)}
    assert not any(run.search for run in runs)


def test_grid_of_one_point_is_not_searched() -> None:
    single = BUDGET.model_copy(update={"lrs": (0.001,), "mask_ratios": (0.6,)})
    assert search_runs(single) == []
    assert {(c.lr, c.mask_ratio) for c in final_runs(single, [])} == {(0.001, None), (0.001, 0.6)}


def test_run_changes_only_its_own_parameters() -> None:
    params = run_params(PARAMS, BUDGET, AblationRun("pixel", 5, 0.002, 0.75, False))
    pretrain = PARAMS.pretrain.model_copy(update={"objective": "pixel", "lr": 0.002, "mask_ratio": 0.75, "epochs": 5})
    assert params.pretrain == pretrain
    assert (params.seed, params.finetune.epochs, params.finetune.lr) == (5, 6, PARAMS.finetune.lr)
    assert params.model == PARAMS.model
    assert run_params(PARAMS, BUDGET, AblationRun("pixel", 5, 0.002, 0.75, True)).pretrain.epochs == 2
    scratch = run_params(PARAMS, BUDGET, AblationRun("scratch", 5, 0.002, None, False))
    assert (scratch.finetune.lr, scratch.finetune.init, scratch.pretrain) == (0.002, "random", PARAMS.pretrain)


def test_budget_shorter_than_the_warm_up_is_rejected() -> None:
    short = BUDGET.model_copy(update={"search_epochs": 1})
    with pytest.raises(ValueError, match="warmup_epochs"):
        run_params(PARAMS, short, AblationRun("mme", 0, 0.001, 0.5, True))


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
def test_result_is_kept_while_what_it_depends_on_is_unchanged(changes: dict[str, Any], same: bool) -> None:
    run = AblationRun("mme", 0, 0.001, 0.5, False)
    assert (depends_on(PARAMS, BUDGET, run) == depends_on(small_params(**changes), BUDGET, run)) is same
    more = BUDGET.model_copy(update={"seeds": (7,), "objectives": ("mme",), "lrs": (0.1,), "inits": ("primitives",)})
    assert depends_on(PARAMS, BUDGET, run) == depends_on(PARAMS, more, run)
    longer = BUDGET.model_copy(update={"epochs": 6})
    assert depends_on(PARAMS, BUDGET, run) != depends_on(PARAMS, longer, run)


def test_pretraining_is_kept_when_finetuning_changes() -> None:
    run = AblationRun("mme", 0, 0.001, 0.5, False)
    tuned = BUDGET.model_copy(update={"finetune_epochs": 9, "labels_per_class": 1})
    assert frozen_depends_on(PARAMS, BUDGET, run) == frozen_depends_on(PARAMS, tuned, run)
    assert finetuned_depends_on(PARAMS, BUDGET, run) != finetuned_depends_on(PARAMS, tuned, run)
    without = BUDGET.model_copy(update={"finetune_epochs": None})
    assert frozen_depends_on(PARAMS, BUDGET, run) == frozen_depends_on(PARAMS, without, run)


def test_every_objective_starts_from_every_weights_in_turn_on_each_fold() -> None:
    single = BUDGET.model_copy(
        update={"lrs": (0.001,), "mask_ratios": (0.5,), "inits": ("random", "primitives"), "folds": 2, "seeds": (4,)}
    )
    runs = final_runs(single, [])
    order = ["scratch", "pixel", "mme", "primitives only", "primitives, then pixel", "primitives, then mme"]
    assert [(run.fold, contestant_name(run.objective, run.init)) for run in runs] == list(product((0, 1), order))
    warm = run_params(PARAMS, single, runs[5])
    assert (warm.pretrain.init, warm.finetune.init) == ("primitives", "pretrain")
    assert run_params(PARAMS, single, runs[3]).finetune.init == "primitives"


def test_further_weights_are_measured_as_they_are_once_a_fold() -> None:
    budget = BUDGET.model_copy(
        update={
            "inits": ("random", "primitives"),
            "only": ("by-pixel", "by-hog"),
            "lrs": (0.001,),
            "mask_ratios": (0.5,),
            "folds": 2,
            "finetuned": ("primitives, then mme", "by-hog only"),
            "finetune_seeds": 1,
        }
    )
    runs = final_runs(budget, [])
    first = ["scratch", "pixel", "mme", "primitives only", "by-pixel only", "by-hog only"]
    first += ["primitives, then pixel", "primitives, then mme"]
    names = {
        seed: [contestant_name(r.objective, r.init) for r in runs if (r.seed, r.fold) == (seed, 1)] for seed in (4, 5)
    }
    assert names == {4: first, 5: [name for name in first if not name.endswith("only")]}
    tuned = finetuned_runs(budget, runs)
    assert {(contestant_name(r.objective, r.init), r.seed) for r in tuned} == {
        (name, 4) for name in budget.finetuned or ()
    }
    assert len(tuned) == 4
    both = budget.model_copy(update={"finetune_seeds": None})
    assert [r.seed for r in final_runs(both, []) if r.init == "by-hog"] == [4, 4, 5, 5]
    assert finetuned_runs(budget.model_copy(update={"finetune_epochs": None}), runs) == []
    assert [r.init for r in search_runs(budget.model_copy(update={"lrs": (0.1, 0.2)})) if r.objective == "scratch"] == [
        "by-hog",
        "by-hog",
    ]


def test_scratch_has_rates_of_finetuning_of_its_own() -> None:
    budget = BUDGET.model_copy(update={"lrs": (0.1, 0.2), "mask_ratios": (0.5,), "finetune_lrs": (0.01,)})
    assert {(run.objective, run.lr) for run in search_runs(budget)} == set(product(("pixel", "mme"), (0.1, 0.2)))
    rates = {run.lr for run in final_runs(budget, []) if run.objective == "scratch"}
    assert rates == {0.01}
    wide = budget.model_copy(update={"finetune_lrs": (0.01, 0.02)})
    assert [run.lr for run in search_runs(wide) if run.objective == "scratch"] == [0.01, 0.02]
    assert wide.quick(0.3, 0.6).finetune_lrs == (0.01,)
    assert budget.model_copy(update={"finetune_lrs": None}).quick(0.3, 0.6).finetune_lrs is None


def test_finetuned_must_name_contestants() -> None:
    wrong = BUDGET.model_copy(update={"finetuned": ("scratch", "hog")})
    with pytest.raises(ValueError, match=r"ablation\.finetuned: \['hog'\] are none .* scratch, pixel, mme"):
        search_runs(wrong)


@pytest.mark.parametrize("only", [("random",), ("primitives",)])
def test_weights_are_not_measured_as_they_are_twice(only: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="only"):
        Budget.model_validate(BUDGET.model_dump() | {"inits": ("random", "primitives"), "only": only})


def test_the_search_of_a_start_decides_its_own_final_runs() -> None:
    budget = BUDGET.model_copy(
        update={"inits": ("random", "primitives"), "objectives": ("mme",), "mask_ratios": (0.5,)}
    )
    grid = search_runs(budget)
    searched = [result(run, probe_top1=run.lr if run.init == "random" else -run.lr) for run in grid]
    assert {(run.init, run.lr) for run in final_runs(budget, searched)} == {("random", 0.002), ("primitives", 0.001)}


def test_frozen_encoders_alone_need_no_search_of_the_rate_of_finetuning() -> None:
    frozen = BUDGET.model_copy(update={"finetune_epochs": None})
    assert {run.objective for run in search_runs(frozen)} == {"pixel", "mme"}


def test_folds_test_each_labelled_video_once_and_keep_groups_apart() -> None:
    rows = [
        row(f"{label}-{group}-{i}", "train", label=label, group=f"scene{group}")
        for label in "ab"
        for group in range(8)
        for i in range(3)
    ]
    rows += [row(f"unlabelled-{i}", "pretrain", label=None, group="scene0") for i in range(3)]
    manifest = Manifest(rows, "data")
    tested: list[str] = []
    for fold in range(4):
        own = of_fold(manifest, 4, fold)
        test = own.videos("test")
        rest = own.videos(("train", "val"))
        assert not {video.group for video in test} & {video.group for video in rest}
        assert len(own.videos("val")) == 2 * round(len(rest) / 12)
        assert own.videos("pretrain") == manifest.videos("pretrain")
        assert len(own) == len(manifest)
        assert own.rows == of_fold(manifest, 4, fold).rows
        tested += [video.id for video in test]
    assert sorted(tested) == [video.id for video in manifest.videos("train")]
    with pytest.raises(ValueError, match="data: 8 groups of labelled videos, too few for 9 folds"):
        of_fold(manifest, 9, 0)


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


def test_budget_with_a_repeated_value_is_rejected() -> None:
    with pytest.raises(ValueError, match="lrs"):
        Budget.model_validate(BUDGET.model_dump() | {"lrs": (0.1, 0.1)})
