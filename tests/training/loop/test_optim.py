from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mme.config import load_params
from mme.models.classifier import MotionClassifier
from mme.training.loop.optim import encoder_layer, parameter_groups, schedule, warmup_cosine

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml")


@given(st.integers(0, 50), st.integers(60, 500), st.floats(0, 1))
def test_the_rate_rises_to_one_and_falls_to_its_floor(warmup: int, total: int, floor: float) -> None:
    rates = [warmup_cosine(step, warmup, total, floor) for step in range(total + 1)]
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert rates[warmup] == 1
    assert sorted(rates[: warmup + 1]) == rates[: warmup + 1]
    assert sorted(rates[warmup:], reverse=True) == rates[warmup:]
    assert math.isclose(rates[-1], floor, abs_tol=1e-12)


def test_layer_decay_gives_each_layer_its_rate_and_vectors_no_weight_decay() -> None:
    model = MotionClassifier(PARAMS.model, PARAMS.clip, 3)
    depth = PARAMS.model.depth
    groups = parameter_groups(
        model.named_parameters(), 0.05, lambda name: encoder_layer(name, depth), depth + 1, layer_decay=0.5
    )
    rate_of = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        scale, decay = rate_of[id(parameter)]
        assert decay == (0.05 if parameter.ndim > 1 else 0)
        expected = {"embed": 0.5 ** (depth + 1), "blocks": None, "norm": 1.0, "head": 1.0}
        part = name.split(".")[1] if name.startswith("encoder.") else name.split(".")[0]
        if part == "blocks":
            assert scale == 0.5 ** (depth - int(name.split(".")[2]))
        else:
            assert scale == expected[part]


def test_the_schedule_scales_every_group() -> None:
    parameters = [("a", torch.nn.Parameter(torch.zeros(2, 2))), ("b", torch.nn.Parameter(torch.zeros(2)))]
    groups = parameter_groups(parameters, 0.1, lambda name: int(name == "a"), 1, layer_decay=0.1)
    optimizer = torch.optim.AdamW(groups)
    scheduler = schedule(optimizer, lr=1.0, warmup_steps=1, total_steps=10, min_ratio=0.0)
    seen = []
    for _ in range(3):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen[0] == pytest.approx([0.5, 0.05])
    assert seen[1] == pytest.approx([1.0, 0.1])
    assert seen[2][0] == pytest.approx(10 * seen[2][1])
