"""Whether an accuracy is more than chance."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest

_ADVICE = (
    "Try a warm start (`mme preset apply own-videos`), more clips per class or fewer classes, published weights"
    " (`mme convert`), and look with `mme inspect VIDEO --model models/pretrain` whether the tracks follow what moves."
)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``count`` independent trials (Wilson 1927)."""
    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def chance_accuracy(class_counts: Sequence[int]) -> float:
    """Return the accuracy of the best answer that ignores the video: one of K labels, or always the most frequent one.

    Args:
        class_counts: videos of each of the model's labels.
    """
    return max(1 / len(class_counts), max(class_counts) / sum(class_counts))


def unlearned(split: str, top1: float, class_counts: Sequence[int]) -> str | None:
    """Say that an accuracy is no better than chance, and what to try; None if it is better.

    Args:
        split: name of the split that it was measured on.
        top1: share of videos with the right answer.
        class_counts: videos of each of the model's labels.
    """
    low, high = wilson_interval(top1, sum(class_counts))
    chance = chance_accuracy(class_counts)
    if low > chance:
        return None
    return (
        f"{split} top-1 {top1:.1%} of {sum(class_counts)} videos (95 % interval {low:.1%} to {high:.1%}) is no better"
        f" than chance, {chance:.1%}: the model has learned nothing that these videos show. {_ADVICE}"
    )
