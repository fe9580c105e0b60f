"""Whether an accuracy is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL_95 = 1.96
"""Standard deviations of a normal distribution that hold 95 % of it on both sides."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``count`` independent trials (Wilson 1927).

    It stays within 0 and 1 and has a width at both ends, which the normal approximation has not.
    """
    spread = NORMAL_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = NORMAL_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def chance_accuracy(class_counts: Sequence[int]) -> float:
    """Return the accuracy of the best answer that ignores the video: one of K labels, or always the most frequent one.

    Args:
        class_counts: videos of each of the model's labels.
    """
    return max(1 / len(class_counts), max(class_counts) / sum(class_counts))
