"""The masked loss: mean squared error over hidden and valid points."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mse(
    predicted: Float[Tensor, "B M *S"], target: Float[Tensor, "B M *S"], valid: Bool[Tensor, "B M *V"]
) -> Float[Tensor, ""]:
    """Mean squared error over valid entries.

    Args:
        predicted: predictions for the hidden tokens.
        target: their targets; invalid entries may hold any value, not-a-number included.
        valid: mask whose axes are the first ones of ``predicted``.

    Returns:
        The sum of squared errors over valid entries divided by their number: invalid entries leave numerator and
        denominator alike. Zero (with a gradient of zero) where nothing is valid.
    """
    weights = valid.reshape(valid.shape + (1,) * (predicted.ndim - valid.ndim)).expand_as(predicted)
    errors = (predicted - target).where(weights, predicted.new_zeros(()))  # where() stops the gradient of NaN targets
    return errors.square().sum() / weights.sum().clamp(min=1)
