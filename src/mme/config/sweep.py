"""The section ``sweep`` of ``params.yaml``: which parameters a search may change, and how long it may look."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from mme.config.base import Positive, PositiveFloat, Section

Scalar = bool | int | float | str


class Steps(Section):
    """``low``, ``low + step``, ... up to ``high``; integers if all three are."""

    steps: tuple[int | float, int | float, Annotated[int, Field(gt=0)] | PositiveFloat]

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """Smallest and largest value."""
        return self.steps[0], self.steps[1]

    @model_validator(mode="after")
    def _steps_ascend(self) -> Self:
        low, high, _ = self.steps
        if low >= high:
            raise ValueError(f"[{low}, {high}] must ascend")
        return self


class LogRange(Section):
    """Any value from ``low`` to ``high``, evenly on a logarithmic scale."""

    log: tuple[PositiveFloat, PositiveFloat]

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return self.log


class Choices(Section):
    """One of a few values."""

    choices: Annotated[tuple[Scalar, ...], Field(min_length=2)]


class SweepParams(Section):
    """The search over pretraining's parameters."""

    trials: Positive
    startup_trials: Annotated[int, Field(ge=0)]
    num_clips: Positive
    probe_epochs: Positive
    prune_after_epochs: Annotated[int, Field(ge=0)]
    fixed: dict[str, Scalar]
    first: tuple[dict[str, Scalar], ...]
    space: Annotated[dict[str, Steps | LogRange | Choices], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in {name for point in self.first for name in point} - set(self.space):
            raise ValueError(f"first: {name!r} is not in space")
        return self
