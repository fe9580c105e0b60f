"""Sections ``evaluate`` and ``registry``: measuring a model, and the gate in front of the registry."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mme.config.base import Positive, Ratio, Section
from mme.config.data import Split

Protocol = Literal["finetuned", "linear", "knn"]


class EvaluateParams(Section):
    """Multi-view evaluation."""

    split: Split
    segments: Positive
    crops: Literal[1, 3]
    pool: Literal["mean", "time"]
    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _finetuned_model_is_evaluated(self) -> Self:
        if "finetuned" not in self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise ValueError(f"protocols: {list(self.protocols)} must name 'finetuned', and each once")
        return self


class RegistryParams(Section):
    """The gate in front of the model registry."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/:'\"]+$")]
    metric: str
    minimum: Ratio
    tolerance: Ratio
