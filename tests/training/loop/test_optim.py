"""Parameter groups and schedule, which timm computes, against a literal reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mme.training.finetune import FinetuneModule
from mme.training.loop.module import warmup_cosine
from mme.training.pretrain import PretrainModule
from tests.small_data import small_params
from tests.training.noise import STATISTICS, params_with


def reference_rate(step: int, warmup_steps: float, total_steps: int, min_ratio: float) -> float:
    """Linear from 0 to 1, then half a cosine from 1 to ``min_ratio``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def reference_layer(name: str, depth: int) -> int:
    """Embedding 0, block ``i`` is ``i + 1``, norm and head ``depth + 1``."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith("encoder.") else depth + 1


def optimizer_with(lr: float, *scales: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(2))], "lr_scale": scale} for scale in scales], lr=lr)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@given(st.floats(0, 50), st.integers(60, 200), st.floats(0, 1), st.floats(1e-5, 1))
def test_schedule_agrees_with_reference_at_every_step(warmup: float, total: int, floor: float, lr: float) -> None:
    optimizer = optimizer_with(lr, 1.0, 0.75, 0.1)
    scheduler = warmup_cosine(optimizer, lr, warmup, total, floor)
    for step in range(total + 1):
        expected = lr * reference_rate(step, warmup, total, floor)
        assert rates(optimizer) == pytest.approx([expected, 0.75 * expected, 0.1 * expected], rel=1e-9, abs=1e-15)
        scheduler.step_update(step + 1)


@given(st.integers(0, 50), st.integers(60, 500), st.floats(0, 1))
def test_rate_rises_to_lr_and_falls_to_its_minimum(warmup: int, total: int, floor: float) -> None:
    optimizer = optimizer_with(1.0, 1.0)
    scheduler = warmup_cosine(optimizer, 1.0, warmup, total, floor)
    seen = []
    for step in range(total + 1):
        seen += rates(optimizer)
        scheduler.step_update(step + 1)
    assert all(0 < rate <= 1 for rate in seen[:-1])
    assert seen[warmup] == 1
    assert sorted(seen[: warmup + 1]) == seen[: warmup + 1]
    assert sorted(seen[warmup:], reverse=True) == seen[warmup:]
    assert math.isclose(seen[-1], floor, abs_tol=1e-12)


def group_of(module: PretrainModule | FinetuneModule) -> dict[int, dict[str, Any]]:
    """Group of each parameter by its id; every parameter is in exactly one."""
    groups = module.parameter_groups()
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(module.model.parameters()))
    return found


@pytest.mark.parametrize("depth", [1, 4])
def test_layer_decay_agrees_with_reference_and_vectors_have_no_weight_decay(depth: int) -> None:
    params = small_params(
        model={"depth": depth}, finetune={"layer_decay": 0.5, "weight_decay": 0.05, "init": "pretrain"}
    )
    module = FinetuneModule(params, 3, 1)
    group = group_of(module)
    for name, parameter in module.model.named_parameters():
        assert group[id(parameter)]["lr_scale"] == 0.5 ** (depth + 1 - reference_layer(name, depth)), name
        assert group[id(parameter)]["weight_decay"] == (0.05 if parameter.ndim > 1 else 0), name


def test_from_scratch_all_layers_learn_at_one_rate() -> None:
    module = FinetuneModule(small_params(finetune={"layer_decay": 0.5, "init": "random"}), 3, 1)
    assert {group["lr_scale"] for group in module.parameter_groups()} == {1.0}


def test_pretraining_has_one_rate_and_no_weight_decay_on_vectors() -> None:
    module = PretrainModule(params_with(weight_decay=0.1), STATISTICS, 1)
    group = group_of(module)
    for name, parameter in module.model.named_parameters():
        assert group[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0), name
        assert "lr_scale" not in group[id(parameter)]
