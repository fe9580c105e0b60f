"""Time of the pictures of a video, and which of them a video of a constant rate shows: sample and hold.

Times are whole ticks of the file's time base and instants exact fractions, so that no rounding error chooses a picture.
What is computed for every picture is written with whole numbers, of which `Fraction` needs ten times the time.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

MAX_PAUSE_S = 3600
"""A longer time between two pictures is no pause but another clock, such as that of the wall after a first zero."""

MAX_LEAP_S = 60 * 86_400
"""A longer time between two pictures of a file is no clock at all, but a zero before the time of day, or damage.
Restarted recorders, joined files and counters that wrap (FLV after 49.7 days) leap less."""

_YEAR_S, _DAY_S = 365.25 * 86_400, 86_400

_STEP_BACK = 4
"""A picture that is more intervals than this earlier than the one before begins another clock, as where recordings were
joined."""

_LOOK_AFTER = Fraction(35, 100)
"""Share of an interval by which an instant lies after the beginning of its picture.

Containers round timestamps (Matroska to 1 ms, GIF to 10 ms), so an instant at the beginning of a picture would see the
picture or the one before it by chance. With 0.35, no two usual rates tie, as they would with a half.
"""

_MAX_DENOMINATOR = 65_535


def exact_rate(fps: float | Fraction) -> Fraction:
    """Return frames per second as the fraction that a container stores: 29.97002997 is 30000 / 1001.

    Raises:
        ValueError: it is not above 0.
    """
    rate = Fraction(fps).limit_denominator(_MAX_DENOMINATOR)
    if rate <= 0:
        raise ValueError(f"{fps} frames per second is not a frame rate")
    return rate


def _ticks(seconds: int, time_base: Fraction) -> int:
    """Return the whole ticks in a time."""
    return seconds * time_base.denominator // time_base.numerator


def median_interval(timestamps: Iterable[int], time_base: Fraction) -> int | None:
    """Return the median distance in ticks of timestamps in any order; None if no two differ.

    Pauses beyond ``MAX_PAUSE_S`` do not count.
    """
    ordered = sorted(timestamps)
    longest = _ticks(MAX_PAUSE_S, time_base)
    intervals = [later - earlier for earlier, later in itertools.pairwise(ordered) if later > earlier]
    usual = sorted(interval for interval in intervals if interval <= longest)
    return usual[(len(usual) - 1) // 2] if usual else None


def fault_of_clock(timestamps: Iterable[int], time_base: Fraction) -> str | None:
    """Return words for a leap of timestamps, in the order of the file, that no clock takes; None if there is none."""
    leap = max((abs(later - earlier) for earlier, later in itertools.pairwise(timestamps)), default=0)
    leap_s = float(leap * time_base)
    if leap_s <= MAX_LEAP_S:
        return None
    length = f"{leap_s / _YEAR_S:.1f} years" if leap_s >= _YEAR_S else f"{leap_s / _DAY_S:.0f} days"
    return f"timestamps leap by {length} between two pictures; write them anew (ffmpeg -i FILE -vf setpts=N/25/TB NEW)"


class Clock:
    """Time of each decoded picture in ticks after the first one, from the timestamps that a file gives them.

    A picture without a timestamp comes one interval after its predecessor; so does one that is more than four
    intervals earlier than its predecessor or more than ``MAX_PAUSE_S`` later, and the clock goes on from there. One
    that is a little earlier takes the place of its predecessor.
    """

    def __init__(self, time_base: Fraction, interval: int) -> None:
        """Start a clock that counts in ``time_base`` seconds; ``interval`` ticks are usual between two pictures."""
        self._interval = interval
        self._longest = _ticks(MAX_PAUSE_S, time_base)
        self._back = -_STEP_BACK * interval
        self._shift: int | None = None
        self._time = -interval

    def time(self, timestamp: int | None) -> int:
        """Return the time of the next picture: 0 for the first one, never less than that of its predecessor."""
        following = self._time + self._interval
        if timestamp is None:
            self._time = following
            return self._time
        if self._shift is None:
            self._shift = following - timestamp
        step = timestamp + self._shift - self._time
        if not self._back <= step <= self._longest:
            self._shift = following - timestamp
            step = self._interval
        self._time += max(step, 0)
        return self._time


@dataclass(frozen=True)
class Instants:
    """The instants at which a video of constant rate looks at its source: ``k / fps`` and a part of an interval.

    Attributes:
        fps: pictures per second.
        time_base: seconds per tick of the source.
        interval: usual ticks from one picture of the source to the next.
    """

    fps: Fraction
    time_base: Fraction
    interval: int

    def tick(self, index: int) -> int:
        """Return the last tick of the source that instant ``index`` has reached."""
        step, after, divisor = self._terms
        return (index * step + after) // divisor

    def num_before(self, time: int) -> int:
        """Return the number of instants before a time of the source in ticks."""
        step, after, divisor = self._terms
        return max(0, -((after - time * divisor) // step))

    @cached_property
    def _terms(self) -> tuple[int, int, int]:
        """Whole numbers s, a, d: instant k is at tick (k s + a) / d."""
        after_s = _LOOK_AFTER * min(self.interval * self.time_base, 1 / self.fps)
        step, after = 1 / self.fps / self.time_base, after_s / self.time_base
        divisor = math.lcm(step.denominator, after.denominator)
        return int(step * divisor), int(after * divisor), divisor


@dataclass(frozen=True)
class Timeline:
    """Times of all pictures of a video.

    Attributes:
        times: ticks after the first picture, ascending; of equal ones, the last is shown.
        time_base: seconds per tick.
        interval: usual ticks from one picture to the next.
        last_duration: ticks for which the last picture is shown by its own account; 0 if unknown.
    """

    times: Sequence[int]
    time_base: Fraction
    interval: int
    last_duration: int = 0

    @property
    def duration_s(self) -> Fraction:
        """Seconds from the first picture to the end of the last one, which is held for one interval at most."""
        held = min(self.last_duration, self.interval) if self.last_duration > 0 else self.interval
        return (self.times[-1] + held) * self.time_base

    def num_frames(self, fps: float | Fraction) -> int:
        """Return the number of pictures of this video at a constant rate, at least 1."""
        return max(1, math.floor(self.duration_s * exact_rate(fps) + Fraction(1, 2)))

    def positions(self, indices: Iterable[int], fps: float | Fraction) -> list[int]:
        """Return for every picture at a constant rate the position of the picture that is on screen.

        Beyond the end, the last picture stays on screen.
        """
        instants = self._instants(fps)
        return [max(0, bisect_right(self.times, instants.tick(index)) - 1) for index in indices]

    def _instants(self, fps: float | Fraction) -> Instants:
        return Instants(exact_rate(fps), self.time_base, self.interval)
