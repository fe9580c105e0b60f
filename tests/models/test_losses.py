from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mme.models.masked_motion import masked_mse


def literal(predicted: NDArray[Any], target: NDArray[Any], valid: NDArray[Any]) -> float:
    """The definition as loops."""
    errors: list[float] = []
    for index in np.ndindex(*valid.shape):
        if valid[index]:
            errors.extend(((predicted[index] - target[index]) ** 2).ravel().tolist())
    return sum(errors) / max(len(errors), 1)


@given(st.integers(0, 10_000))
def test_agrees_with_the_literal_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, target = rng.normal(size=(2, 2, 3, 4, 5, 2))
    valid = rng.random((2, 3, 4)) < rng.random()
    loss = masked_mse(torch.from_numpy(predicted), torch.from_numpy(target), torch.from_numpy(valid))
    assert abs(loss.item() - literal(predicted, target, valid)) < 1e-12


def test_invalid_points_change_neither_the_loss_nor_its_scale_nor_the_gradient() -> None:
    predicted = torch.randn(2, 3, 4, 5, requires_grad=True)
    target, valid = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4) < 0.5
    poisoned = target.clone()
    poisoned[~valid] = float("nan")
    loss, same = masked_mse(predicted, target, valid), masked_mse(predicted, poisoned, valid)
    assert loss == same
    (gradient,) = torch.autograd.grad(same, predicted)
    assert gradient[~valid].abs().max() == 0
    assert gradient[valid].abs().min() > 0
    torch.testing.assert_close(loss, (predicted - target)[valid].square().mean())


def test_nothing_valid_is_zero_with_zero_gradient() -> None:
    predicted = torch.randn(1, 2, 3, requires_grad=True)
    loss = masked_mse(predicted, torch.full((1, 2, 3), float("nan")), torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert predicted.grad is not None
    assert loss == 0
    assert predicted.grad.abs().max() == 0
