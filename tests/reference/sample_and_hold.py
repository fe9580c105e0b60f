"""Sample and hold, step by step: the pictures that a video of constant rate takes from all or part of another."""

from __future__ import annotations

from fractions import Fraction


def shown_pictures(seconds: list[Fraction], last_duration: Fraction, fps: Fraction) -> list[int]:
    """Return the number of the picture on screen at every instant.

    Args:
        seconds: when each picture appears; the first at 0, ascending.
        last_duration: seconds for which the last one is shown; 0 if unknown.
        fps: instants per second.
    """
    intervals = sorted(seconds[number + 1] - seconds[number] for number in range(len(seconds) - 1))
    median = intervals[(len(intervals) - 1) // 2]
    end = seconds[-1] + (min(last_duration, median) if last_duration else median)
    return _shown_between(seconds, Fraction(0), end, median, fps)


def shown_in_span(seconds: list[Fraction], begin: Fraction, end: Fraction, fps: Fraction) -> list[int]:
    """Return the number of the picture on screen at every instant from ``begin`` to ``end``, or to the video's end."""
    intervals = sorted(seconds[number + 1] - seconds[number] for number in range(len(seconds) - 1))
    median = intervals[(len(intervals) - 1) // 2]
    return _shown_between(seconds, begin, min(end, seconds[-1] + median), median, fps)


def _shown_between(
    seconds: list[Fraction], begin: Fraction, end: Fraction, median: Fraction, fps: Fraction
) -> list[int]:
    num_frames = 1
    while num_frames + 1 <= (end - begin) * fps + Fraction(1, 2):
        num_frames += 1

    shown = []
    for frame in range(num_frames):
        instant = begin + frame / fps + Fraction(35, 100) * min(median, 1 / fps)
        on_screen = 0
        for number, second in enumerate(seconds):
            if second <= instant:
                on_screen = number
        shown.append(on_screen)
    return shown
