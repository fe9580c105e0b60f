"""Frame rates of a source: their distribution, and which rate of the normal form suits them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

STANDARD_RATES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 50, 60)
"""Rates that cameras, programs and data sets use. Above 60 per second an action is no clearer, only longer."""

_TOLERANCE = 0.02
"""Relative difference below which two rates are equal: 29.97 is 30."""

_REACHED_BY = 0.9
"""Share of the videos that must have a rate, or more, for it to be suggested."""

_VARIED = 1.5
"""Rates vary much if the 90th percentile is this many times the 10th."""


def is_below(rate: float, fps: float) -> bool:
    """Return whether a video of this rate must repeat pictures to have ``fps``."""
    return rate < fps * (1 - _TOLERANCE)


def usual_rate(rate: float) -> int:
    """Return the standard rate that equals a rate within 2 %, or the nearest whole number, at least 1."""
    near = [standard for standard in STANDARD_RATES if abs(rate / standard - 1) < _TOLERANCE]
    return min(near, key=lambda standard: abs(standard - rate)) if near else max(1, round(rate))


def distribution(rates: Sequence[float]) -> dict[int, int]:
    """Return the number of videos by `usual_rate`, ascending."""
    return dict(sorted(Counter(map(usual_rate, rates)).items()))


def suggested_fps(rates: Sequence[float]) -> int | None:
    """Return the highest standard rate that at least 90 % of the videos reach.

    None where rates are below one frame per second, or there are none.
    """
    needed = _REACHED_BY * len(rates)
    reached = [fps for fps in STANDARD_RATES if rates and sum(not is_below(rate, fps) for rate in rates) >= needed]
    return max(reached, default=None)


def varied_range(rates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 10th and the 90th percentile of rates that vary much; None if they do not."""
    if not rates:
        return None
    ordered = sorted(rates)
    low, high = ordered[math.floor(0.1 * len(ordered))], ordered[math.ceil(0.9 * len(ordered)) - 1]
    return (low, high) if high >= _VARIED * low else None
