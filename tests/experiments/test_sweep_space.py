from __future__ import annotations

from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from mme.config import Params
from mme.config.edit import with_values
from mme.experiments.sweep.space import check_space, suggest
from tests.small_data import DEFAULTS, small_params


def params_with(**sweep: Any) -> Params:
    return small_params(sweep={"fixed": {}, "first": (), "space": {"pretrain.lr": {"choices": (0.1, 0.2)}}, **sweep})


def test_committed_space_is_valid_and_starts_with_the_papers_point() -> None:
    check_space(DEFAULTS)
    assert DEFAULTS.sweep.first[0] == {"pretrain.mask_ratio": 0.7, "pretrain.length": 6}
    assert set(DEFAULTS.sweep.space) >= {"pretrain.mask_ratio", "pretrain.length"}


def test_values_have_the_types_and_steps_of_their_ranges() -> None:
    space = params_with(
        space={
            "pretrain.mask_ratio": {"steps": (0.3, 0.9, 0.1)},
            "pretrain.length": {"steps": (1, 4, 1)},
            "pretrain.lr": {"log": (1e-4, 1e-2)},
            "pretrain.hog_steps": {"choices": ("all", "first")},
        }
    ).sweep.space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for values in (suggest(study.ask(), space) for _ in range(30)):
        assert round(10 * float(values["pretrain.mask_ratio"])) / 10 == values["pretrain.mask_ratio"]
        assert isinstance(values["pretrain.length"], int)
        assert 1e-4 <= float(values["pretrain.lr"]) <= 1e-2
        assert values["pretrain.hog_steps"] in ("all", "first")


def test_with_values_replaces_and_validates_parameters() -> None:
    changed = with_values(DEFAULTS, {"pretrain.mask_ratio": 0.8, "seed": 3})
    assert (changed.pretrain.mask_ratio, changed.seed) == (0.8, 3)
    assert DEFAULTS.pretrain.mask_ratio != 0.8
    with pytest.raises(ValueError, match=r"'pretrain.length': 99.*max_length"):
        with_values(DEFAULTS, {"pretrain.length": 99})


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"space": {"pretrain.length": {"steps": (1, 5, 1)}}}, "max_length"),
        ({"space": {"pretrain.mask_ratio": {"steps": (0.5, 1.5, 0.1)}}}, "mask_ratio"),
        ({"space": {"pretrain.hog_steps": {"choices": ("all", "sideways")}}}, "sideways"),
        ({"fixed": {"pretrain.epochs": 1, "pretrain.warmup_epochs": 1}}, "warmup_epochs"),
        (
            {"space": {"pretrain.length": {"steps": (1, 2, 1)}}, "first": ({"pretrain.length": 3},)},
            "outside",
        ),
    ],
)
def test_space_with_invalid_parameters_is_rejected(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_space(params_with(**sweep))


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"space": {"trajectories.flow": {"choices": ("fast", "medium")}}}, "trajectories.flow"),
        ({"space": {"pretrain.mask_ration": {"choices": (0.1, 0.2)}}}, "mask_ration"),
        ({"fixed": {"finetune.epochs": 3}}, "finetune.epochs"),
        ({"space": {"pretrain.length": {"steps": (3, 3, 1)}}}, "must ascend"),
        ({"space": {"pretrain.length": {"steps": (1, 3)}}}, "step"),
        ({"first": ({"pretrain.length": 3},)}, "not in space"),
        (
            {"space": {"pretrain.length": {"steps": (1, 2, 1)}}, "first": ({"pretrain.length": True},)},
            r"first\[0\]: pretrain.length True is outside",
        ),
        (
            {"space": {"pretrain.epochs": {"steps": (6, 24, 6)}}, "fixed": {"pretrain.epochs": 12}},
            "space and fixed: pretrain.epochs cannot be in both",
        ),
        ({"fixed": {"pretrain.epohcs": 3}}, "pretrain.epohcs"),
        ({"fixed": {"epochs": 3}}, "'epochs'"),
        (
            {"first": ({"pretrain.epochs": 3},), "fixed": {"pretrain.epochs": 3}},
            r"first\[0\]: 'pretrain.epochs' is not in",
        ),
        ({"first": ({"pretrain.lr": 0.3},)}, r"first\[0\]: pretrain.lr 0.3 is outside"),
        ({"space": {"pretrain.lr": {"log": (0.1, 0.01)}}}, r"\[0.1, 0.01\] must ascend"),
        ({"space": {"pretrain.lr": {"log": (0.1, 0.1)}}}, r"\[0.1, 0.1\] must ascend"),
        ({"space": {"pretrain.lr": {"choices": (0.1, 0.1)}}}, "0.1 is listed twice"),
        (
            {
                "space": {"pretrain.mask_ratio": {"steps": (0.3, 0.9, 0.1)}},
                "first": ({"pretrain.mask_ratio": 0.7}, {"pretrain.mask_ratio": 0.75}),
            },
            r"first\[1\]: pretrain.mask_ratio 0.75 is outside",
        ),
        (
            {"space": {"pretrain.length": {"steps": (1, 3, 1)}}, "first": ({"pretrain.length": 2.5},)},
            r"first\[0\]: pretrain.length 2.5 is outside",
        ),
    ],
)
def test_invalid_sweep_section_is_rejected(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params_with(**sweep)
