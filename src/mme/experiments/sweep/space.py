"""Search space: parameters by their dotted names, such as ``pretrain.mask_ratio``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import optuna

from mme.config import Params
from mme.config.edit import with_values
from mme.config.sweep import Choices, LogRange, Scalar, Steps

STEP_DIGITS = 10
"""Decimal places of a value on a step: 0.3 + 4 x 0.1 becomes 0.7."""


def suggest(trial: optuna.Trial, space: Mapping[str, Steps | LogRange | Choices]) -> dict[str, Scalar]:
    """Draw the values of a trial."""
    return {name: _suggest(trial, name, choice) for name, choice in space.items()}


def _suggest(trial: optuna.Trial, name: str, choice: Steps | LogRange | Choices) -> Scalar:
    if isinstance(choice, Choices):
        return cast(Scalar, trial.suggest_categorical(name, choice.choices))
    if isinstance(choice, LogRange):
        return trial.suggest_float(name, *choice.log, log=True)
    low, high, step = choice.steps
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
        return trial.suggest_int(name, low, high, step=step)
    return round(trial.suggest_float(name, low, high, step=step), STEP_DIGITS)


def check_space(params: Params) -> None:
    """Check that both ends of every range, every choice and every point of ``first`` are valid parameters.

    Raises:
        ValueError: one is not valid; the message names it.
    """
    sweep = params.sweep
    for name, choice in sweep.space.items():
        ends = choice.choices if isinstance(choice, Choices) else choice.ends
        for end in ends:
            with_values(params, {**sweep.fixed, name: end})
    for point in sweep.first:
        with_values(params, {**sweep.fixed, **point})
