from __future__ import annotations

import math

import pytest

from mme.evaluation.chance import chance_accuracy, unlearned, wilson_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 12), (1, 1), (12, 12), (5, 55), (93, 600), (300, 600)])
def test_the_interval_is_wilsons(hits: int, count: int) -> None:
    """Its ends are where a normal test of ``hits`` is just significant: the equation that Wilson solved."""
    for end in wilson_interval(hits / count, count):
        deviation = abs(hits - count * end)
        assert deviation == pytest.approx(1.959964 * math.sqrt(count * end * (1 - end)), abs=1e-4)


def test_only_what_may_be_chance_is_called_unlearned() -> None:
    counts = [10] * 10
    assert unlearned("test", 0.3, counts) is None
    said = unlearned("test", 0.12, counts)
    assert said is not None
    assert said.startswith(
        "test top-1 12.0% of 100 videos (95 % interval 7.0% to 19.8%) is no better than chance, 10.0%"
    )
    assert unlearned("val", 0.5, [1, 1]) is not None


def test_chance_is_the_better_of_guessing_and_the_most_frequent_label() -> None:
    assert chance_accuracy([5, 5, 5, 5]) == 0.25
    assert chance_accuracy([8, 1, 1, 0]) == 0.8
    assert chance_accuracy([0, 3, 3]) == 0.5
