from __future__ import annotations

import pytest

from mme.ingest.rates import distribution, is_below, suggested_fps, usual_rate, varied_range


@pytest.mark.parametrize(
    ("rate", "usual"),
    [(30000 / 1001, 30), (24000 / 1001, 24), (25, 25), (24.5, 24), (15.9, 16), (14.3, 14), (240, 240), (0.2, 1)],
)
def test_usual_rates(rate: float, usual: int) -> None:
    assert usual_rate(rate) == usual


def test_distribution_ascends() -> None:
    assert distribution([30, 15, 29.97, 14.3]) == {14: 1, 15: 1, 30: 2}


@pytest.mark.parametrize(
    ("rates", "fps"),
    [
        ([30] * 19 + [10], 30),
        ([29.97] * 8 + [15] * 2, 15),  # two tenths do not reach 30
        ([25] * 6 + [30] * 4, 25),
        ([25] * 2 + [30] * 18, 30),
        ([25] * 4 + [30] * 36, 30),  # exactly nine tenths
        ([25] * 5 + [30] * 36, 25),  # fewer
        ([17.3] * 5, 16),
        ([10] * 20 + [15.4] * 18 + [30] * 200, 15),  # however few have it
        ([60, 120, 240], 60),
        ([0.5] * 3, None),
        ([], None),
    ],
)
def test_suggested_rate(rates: list[float], fps: int | None) -> None:
    assert suggested_fps(rates) == fps


def test_slower_sources_repeat_pictures() -> None:
    assert not is_below(30000 / 1001, 30)
    assert not is_below(60, 30)
    assert is_below(25, 30)


def test_rates_that_vary() -> None:
    assert varied_range([10] * 2 + [30] * 8) == (10, 30)
    assert varied_range([10] + [30] * 19) is None  # a single one
    assert varied_range([24, 25, 30]) is None
    assert varied_range([]) is None
