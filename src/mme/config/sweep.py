"""The section ``sweep`` of ``params.yaml``: which parameters a search may change, and how long it may look."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from mme.config.base import Positive, PositiveFloat, Section

Scalar = bool | int | float | str

STEP_TOLERANCE = 1e-8
"""Distance from a step that rounding may cause: 0.3 + 4 x 0.1 is not exactly 0.7."""


class Steps(Section):
    """``low``, ``low + step``, ... up to ``high``; integers if all three are."""

    steps: tuple[int | float, int | float, Annotated[int, Field(gt=0)] | PositiveFloat]

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """Smallest and largest value."""
        return self.steps[0], self.steps[1]

    def contains(self, value: Scalar) -> bool:
        """Return True for a value on a step: Optuna would draw another in place of one beside it."""
        low, _, step = self.steps
        return _is_between(value, self.ends) and abs(math.remainder(float(value) - low, step)) < STEP_TOLERANCE

    @model_validator(mode="after")
    def _steps_ascend(self) -> Self:
        _check_ascending(self.ends)
        return self


class LogRange(Section):
    """Any value from ``low`` to ``high``, evenly on a logarithmic scale."""

    log: tuple[PositiveFloat, PositiveFloat]

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return self.log

    def contains(self, value: Scalar) -> bool:
        """Return True for a value between the ends."""
        return _is_between(value, self.ends)

    @model_validator(mode="after")
    def _range_ascends(self) -> Self:
        _check_ascending(self.ends)
        return self


class Choices(Section):
    """One of a few values."""

    choices: Annotated[tuple[Scalar, ...], Field(min_length=2)]

    def contains(self, value: Scalar) -> bool:
        """Return True for one of the values."""
        return value in self.choices

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        for number, choice in enumerate(self.choices):
            if choice in self.choices[:number]:
                raise ValueError(f"choices: {choice!r} is listed twice")
        return self


def _check_ascending(ends: tuple[float, float]) -> None:
    if ends[0] >= ends[1]:
        raise ValueError(f"[{ends[0]}, {ends[1]}] must ascend")


def _is_between(value: Scalar, ends: tuple[float, float]) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and ends[0] <= value <= ends[1]


class SweepParams(Section):
    """The search over pretraining's parameters."""

    trials: Positive
    startup_trials: Annotated[int, Field(ge=0)]
    num_clips: Positive
    probe_epochs: Positive
    prune_after_epochs: Positive
    reduction_factor: Annotated[int, Field(ge=2)]
    repeat_best: Annotated[int, Field(ge=0)]
    repeat_seeds: Positive
    fixed: dict[str, Scalar]
    first: tuple[dict[str, Scalar], ...]
    space: Annotated[dict[str, Steps | LogRange | Choices], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        both = sorted(set(self.space) & set(self.fixed))
        if both:
            raise ValueError(f"space and fixed: {', '.join(both)} cannot be in both; remove it from one of them")
        for number, point in enumerate(self.first):
            for name, value in point.items():
                if name not in self.space:
                    raise ValueError(f"first[{number}]: {name!r} is not in space, which has {', '.join(self.space)}")
                if not self.space[name].contains(value):
                    raise ValueError(f"first[{number}]: {name} {value!r} is outside {self.space[name]}")
        return self
