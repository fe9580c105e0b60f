from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.video.timeline import Clock, Instants, Timeline, exact_rate, fault_of_clock, median_interval
from tests.reference.sample_and_hold import shown_pictures

RATES = [Fraction(rate) for rate in (8, 12, 16, 24, 25, 30, 60)] + [Fraction(24000, 1001), Fraction(30000, 1001)]
BASES = [Fraction(1, 1000), Fraction(1, 100), Fraction(1, 90000), Fraction(1, 12800)]
rates = st.sampled_from(RATES)


@given(
    steps=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    base=st.sampled_from(BASES),
    fps=rates,
    last=st.integers(0, 2000),
)
def test_pictures_equal_those_of_the_slow_rule(steps: list[int], base: Fraction, fps: Fraction, last: int) -> None:
    times = [sum(steps[:number]) for number in range(len(steps) + 1)]
    interval = median_interval(times, base)
    assert interval == sorted(steps)[(len(steps) - 1) // 2]
    timeline = Timeline(times, base, interval, last)
    seconds = [time * base for time in times]
    expected = shown_pictures(seconds, last * base, fps)
    assert timeline.positions(range(timeline.num_frames(fps)), fps) == expected


@given(rate=st.sampled_from(RATES[:6]), fps=st.sampled_from(RATES[:6]), num=st.integers(2, 100))
def test_timestamps_in_milliseconds_choose_the_same_pictures(rate: Fraction, fps: Fraction, num: int) -> None:
    exact = Timeline(range(num), 1 / rate, 1)
    times = [round(number / rate * 1000) for number in range(num)]
    rounded = Timeline(times, BASES[0], median_interval(times, BASES[0]) or 1)
    indices = range(exact.num_frames(fps))
    assert rounded.positions(indices, fps) == exact.positions(indices, fps)


@given(fps=rates, num=st.integers(1, 60), times=st.sampled_from([2, 3, 4]))
def test_repeated_pictures_at_a_higher_rate_are_the_same_video(fps: Fraction, num: int, times: int) -> None:
    plain = Timeline(range(num), 1 / fps, 1)
    repeated = Timeline(range(num * times), 1 / (fps * times), 1)
    assert plain.num_frames(fps) == repeated.num_frames(fps) == num
    assert plain.positions(range(num), fps) == list(range(num))
    assert [position // times for position in repeated.positions(range(num), fps)] == list(range(num))


@given(steps=st.lists(st.integers(1, 90), min_size=1, max_size=30), fps=rates)
def test_instants_count_as_the_timeline_does(steps: list[int], fps: Fraction) -> None:
    times = [sum(steps[:number]) for number in range(len(steps) + 1)]
    timeline = Timeline(times, Fraction(1, 1000), median_interval(times, Fraction(1, 1000)) or 1)
    instants = Instants(fps, Fraction(1, 1000), timeline.interval)
    shown = timeline.positions(range(instants.num_before(times[-1])), fps)
    assert all(position < len(steps) for position in shown)
    assert timeline.positions([len(shown)], fps) == [len(steps)]


def test_held_last_picture_counts_once_and_a_pause_is_time() -> None:
    held = Timeline([*range(0, 2000, 40)], Fraction(1, 1000), 40, last_duration=8000)
    assert held.num_frames(25) == 50
    assert held.duration_s == 2
    paused = Timeline([0, 40, 80, 1080, 1120], Fraction(1, 1000), 40)
    assert paused.positions(range(paused.num_frames(25)), 25) == [0, 1, *[2] * 25, 3, 4]


def test_clock_mends_timestamps() -> None:
    def times(*stamps: int | None) -> list[int]:
        clock = Clock(Fraction(1, 1000), 40)
        return [clock.time(stamp) for stamp in stamps]

    assert times(-80, -40, 0, 40) == [0, 40, 80, 120]
    assert times(5, None, None, 125) == [0, 40, 80, 120]
    assert times(0, 40, 39, 120) == [0, 40, 40, 120]  # a little back: takes the place of its predecessor
    assert times(0, 1_700_000_000_040, 1_700_000_000_080) == [0, 40, 80]  # the clock of the wall
    assert times(9000, 9040, 0, 40) == [0, 40, 80, 120]  # recordings that were joined
    assert times(0, 60_000, 60_040) == [0, 60_000, 60_040]  # a pause


def test_rates_are_the_fractions_of_containers() -> None:
    assert exact_rate(30000 / 1001) == Fraction(30000, 1001)
    assert exact_rate(12.5) == Fraction(25, 2)
    with pytest.raises(ValueError, match="0 frames per second"):
        exact_rate(0)


def test_another_clock_begins_beyond_its_limits_not_at_them() -> None:
    """Of a step back of four intervals, a pause of an hour, and a leap of 60 days."""

    def times(*stamps: int) -> list[int]:
        clock = Clock(Fraction(1, 10), 2)
        return [clock.time(stamp) for stamp in stamps]

    assert times(0, 20, 12, 24) == [0, 20, 20, 24]
    assert times(0, 20, 11, 24) == [0, 20, 22, 35]
    assert times(0, 36_000, 36_002) == [0, 36_000, 36_002]
    assert times(0, 36_001, 36_003) == [0, 2, 4]
    assert fault_of_clock([0, 600 * 86_400], Fraction(1, 10)) is None
    assert fault_of_clock([0, 600 * 86_400 + 1], Fraction(1, 10)) is not None
