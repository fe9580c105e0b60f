"""Registry gate: decide the alias of a model from its metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mme.config import RegistryParams

Alias = Literal["champion", "challenger"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger")


@dataclass(frozen=True)
class Champion:
    """The current champion.

    Attributes:
        version: its number.
        value: its metric on the candidate's evaluation data; None if it was measured on other data, or by another
            metric.
    """

    version: int
    value: float | None


@dataclass(frozen=True)
class Verdict:
    """Decision of the gate.

    Attributes:
        alias: ``champion``, ``challenger``, or None below the minimum.
        reason: one sentence.
    """

    alias: Alias | None
    reason: str

    @property
    def passed(self) -> bool:
        """True if the model becomes the one that is served."""
        return self.alias == "champion"


def judge(params: RegistryParams, value: float, champion: Champion | None) -> Verdict:
    """Compare a model with the minimum and with the champion.

    Args:
        params: metric, minimum and tolerance.
        value: the model's metric.
        champion: the current champion; None if there is none, or if the model is itself the champion.
    """
    shown = f"{params.metric} {value:.4g}"
    if value < params.minimum:
        return Verdict(None, f"{shown} is below the minimum {params.minimum:.4g}")
    if champion is None:
        return Verdict("champion", f"{shown} reaches the minimum {params.minimum:.4g}")
    rival = f"champion version {champion.version}"
    if champion.value is None:
        return Verdict("champion", f"{shown} reaches the minimum; {rival} was measured on other data")
    if value < champion.value - params.tolerance:
        return Verdict(
            "challenger", f"{shown} is below {rival}'s {champion.value:.4g} by more than {params.tolerance:g}"
        )
    return Verdict("champion", f"{shown} holds against {rival}'s {champion.value:.4g}")
