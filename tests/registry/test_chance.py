from __future__ import annotations

import pytest
from scipy.stats import binomtest

from mme.registry.chance import chance_accuracy, wilson_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 12), (1, 1), (12, 12), (5, 55), (93, 600), (300, 600)])
def test_the_interval_is_wilsons(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_chance_is_the_better_of_guessing_and_the_most_frequent_label() -> None:
    assert chance_accuracy([5, 5, 5, 5]) == 0.25
    assert chance_accuracy([8, 1, 1, 0]) == 0.8
    assert chance_accuracy([0, 3, 3]) == 0.5
