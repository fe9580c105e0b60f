from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.config import RegistryParams
from mme.registry.gate import Champion, judge


def params(minimum: float = 0.5, tolerance: float = 0.0) -> RegistryParams:
    return RegistryParams(name="m", metric="test/top1", minimum=minimum, tolerance=tolerance)


@pytest.mark.parametrize(
    ("value", "champion", "alias", "reason"),
    [
        (0.49, None, None, "below the minimum 0.5"),
        (0.5, None, "champion", "reaches the minimum 0.5"),
        (0.8, Champion(3, 0.8), "champion", "holds against champion version 3's 0.8"),
        (0.8, Champion(3, 0.9), "challenger", "below champion version 3's 0.9"),
        (0.6, Champion(3, None), "champion", "version 3 was measured on other data"),
        (0.4, Champion(3, 0.3), None, "below the minimum"),
    ],
)
def test_alias_and_reason(value: float, champion: Champion | None, alias: str | None, reason: str) -> None:
    verdict = judge(params(), value, champion)
    assert verdict.alias == alias
    assert verdict.passed == (alias == "champion")
    assert reason in verdict.reason
    assert f"test/top1 {value:.4g}" in verdict.reason


def test_tolerance_allows_values_below_the_champion() -> None:
    assert judge(params(tolerance=0.02), 0.88, Champion(1, 0.9)).alias == "champion"
    assert judge(params(tolerance=0.02), 0.87, Champion(1, 0.9)).alias == "challenger"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_alias_is_monotonic_in_the_metric(worse: float, better: float, minimum: float, rival: float) -> None:
    worse, better = sorted((worse, better))
    order = {None: 0, "challenger": 1, "champion": 2}
    ranks = [order[judge(params(minimum), value, Champion(1, rival)).alias] for value in (worse, better)]
    assert ranks == sorted(ranks)
