"""Points of a sweep: what the seeds of each measured, and whether the best is better than the median one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mme.experiments.sweep.study import REPEAT_OF, SEED, is_repeat

SIGNIFICANT_ERRORS = 2.0
"""Standard errors by which the best point must be above the median one."""


@dataclass(frozen=True)
class Point:
    """A finished trial and its repetitions with other seeds.

    Attributes:
        trial: the trial, whose values are the point.
        repeats: probe by seed; that of the trial itself is left out: it is high in part because the trial was chosen
            for it.
    """

    trial: FrozenTrial
    repeats: Mapping[int, float]

    @property
    def probe(self) -> float:
        """Probe of the trial itself."""
        assert self.trial.value is not None
        return self.trial.value

    @property
    def mean(self) -> float | None:
        """Mean over the repetitions; None if there are none."""
        return statistics.fmean(self.repeats.values()) if self.repeats else None

    @property
    def estimate(self) -> float:
        """Mean over the repetitions, or the probe of the trial if there are none."""
        return self.probe if self.mean is None else self.mean


@dataclass(frozen=True)
class Comparison:
    """A point against the median finished one.

    Attributes:
        point: the point.
        median: the finished point with the median probe, or the two beside the median.
        seeds: seeds that all of them were repeated with.
        probe: mean of the point over these seeds.
        median_probe: mean of ``median`` over these seeds.
        error: standard error of the difference.
    """

    point: Point
    median: list[Point]
    seeds: list[int]
    probe: float
    median_probe: float
    error: float

    @property
    def is_significant(self) -> bool:
        """Return True if the point is above the median one by more than two standard errors."""
        return self.probe - self.median_probe > SIGNIFICANT_ERRORS * self.error

    def __str__(self) -> str:
        """Return the two figures in words."""
        numbers = " and ".join(str(point.trial.number) for point in self.median)
        return (
            f"trial {self.point.trial.number}: {self.probe:.1%} over {len(self.seeds)} further seeds; median finished"
            f" trial ({numbers}): {self.median_probe:.1%}; the difference of"
            f" {100 * (self.probe - self.median_probe):.1f} points has a standard error of {100 * self.error:.1f}"
        )


def measured_points(study: optuna.Study) -> list[Point]:
    """Return the finished points by the probes of their trials, the best first; trials with equal values are one."""
    repeats: dict[int, dict[int, float]] = {}
    points: dict[str, Point] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        assert trial.value is not None
        if is_repeat(trial):
            repeats.setdefault(trial.user_attrs[REPEAT_OF], {})[trial.user_attrs[SEED]] = trial.value
        else:
            point = Point(trial, repeats.setdefault(trial.number, {}))
            points.setdefault(_rounded(trial), point)
    return sorted(points.values(), key=lambda point: -point.probe)


def _rounded(trial: FrozenTrial) -> str:
    """Return the values of a trial without the last digits: 0.6 in steps of 0.1 from 0.3 is 0.6000000000000001."""
    values = {name: round(value, 12) if isinstance(value, float) else value for name, value in trial.params.items()}
    return repr(sorted(values.items()))


def best_point(points: Sequence[Point]) -> Point:
    """Return the best point by the repetitions, or by the trials themselves where none was repeated."""
    return max(points, key=lambda point: (point.mean is not None, point.estimate))


def median_points(points: Sequence[Point]) -> list[Point]:
    """Return the point with the median probe, or the two beside the median, of points in order."""
    return list(points[(len(points) - 1) // 2 : len(points) // 2 + 1])


def points_to_repeat(points: Sequence[Point], num_best: int) -> list[Point]:
    """Return the best points, and the median one, which the best is compared with."""
    chosen = list(points[:num_best])
    return chosen + [point for point in median_points(points) if num_best and point not in chosen]


def seed_deviation(points: Sequence[Point]) -> float | None:
    """Return the standard deviation that seeds cause in the differences between points; None if it cannot be told.

    All points are repeated with the same seeds, so what a seed adds to all of them cancels when they are compared. The
    rest is estimated over all points together (two-way layout, points by seeds, without interaction); of one
    repeated point it is its deviation over seeds.
    """
    repeated = [point for point in points if len(point.repeats) > 1]
    seeds = _common_seeds(repeated)
    if len(seeds) < 2:
        return None
    table = np.array([[point.repeats[seed] for seed in seeds] for point in repeated])  # (points, seeds)
    rest = table - table.mean(axis=1, keepdims=True)
    if len(repeated) > 1:
        rest -= rest.mean(axis=0)
    freedom = max(1, len(repeated) - 1) * (len(seeds) - 1)
    return float(np.sqrt(np.square(rest).sum() / freedom))


def standard_error(points: Sequence[Point], point: Point) -> float | None:
    """Return the standard error of a point's estimate in comparisons with others; None if it cannot be told."""
    deviation = seed_deviation(points)
    return None if deviation is None else deviation / math.sqrt(max(1, len(point.repeats)))


def compare(points: Sequence[Point], point: Point) -> Comparison | None:
    """Compare a point with the median one; None if they were not repeated with two common seeds."""
    median = median_points(points)
    seeds, deviation = _common_seeds([point, *median]), seed_deviation(points)
    if len(seeds) < 2 or deviation is None:
        return None
    own, *others = (np.array([each.repeats[seed] for seed in seeds]) for each in (point, *median))
    weights = [(each.trial.number == point.trial.number) - 1 / len(median) for each in median]
    if point.trial.number not in {each.trial.number for each in median}:
        weights.append(1.0)  # of the point itself
    error = deviation * float(np.linalg.norm(weights)) / math.sqrt(len(seeds))
    return Comparison(point, median, seeds, float(own.mean()), float(np.mean(others)), error)


def _common_seeds(points: Sequence[Point]) -> list[int]:
    return sorted(set.intersection(*(set(point.repeats) for point in points))) if points else []
