"""The gate in front of the registry: which alias a model's figure earns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mme.config import RegistryParams

Alias = Literal["champion", "challenger"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger")


@dataclass(frozen=True)
class Champion:
    """The current champion's figure on the data that the candidate was measured on.

    ``value`` is None if it was measured on other data, or by another metric.
    """

    version: int
    value: float | None


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a model.

    Attributes:
        alias: ``champion``, ``challenger``, or None below the minimum.
        reason: why, in one sentence.
    """

    alias: Alias | None
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the model may answer requests."""
        return self.alias == "champion"


def judge(params: RegistryParams, value: float, champion: Champion | None) -> Verdict:
    """Compare a model with the minimum and with the champion.

    Args:
        params: metric, minimum and tolerance.
        value: the model's figure.
        champion: the present champion; None if there is none, or if the model is itself the champion.
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
