"""What the seeds of a sweep's points tell. Nothing is trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mme.experiments.sweep.points import (
    best_point,
    compare,
    measured_points,
    median_points,
    points_to_repeat,
    seed_deviation,
    standard_error,
)
from mme.experiments.sweep.run import check_significance, finished_point
from mme.experiments.sweep.study import REPEAT_OF, SEED

LENGTH = "pretrain.length"


def finished_study(probes: Sequence[float], repeats: Mapping[int, Mapping[int, float]] | None = None) -> optuna.Study:
    """Trials with these probes, of lengths 1, 2, ..., and repetitions by trial and seed."""
    study = optuna.create_study(direction="maximize")
    for number, probe in enumerate(probes):
        add(study, number + 1, probe)
    for number, by_seed in (repeats or {}).items():
        for seed, probe in by_seed.items():
            add(study, number + 1, probe, {REPEAT_OF: number, SEED: seed})
    return study


def add(study: optuna.Study, length: int, probe: float, attributes: Mapping[str, int] | None = None) -> None:
    study.add_trial(
        optuna.create_trial(
            state=TrialState.COMPLETE, value=probe, params={LENGTH: length},
            distributions={LENGTH: IntDistribution(1, 9)}, user_attrs=dict(attributes or {}),
        )
    )  # fmt: skip


def table(rows: Mapping[int, Sequence[float]]) -> dict[int, dict[int, float]]:
    return {number: dict(enumerate(row, start=1)) for number, row in rows.items()}


def test_points_are_in_the_order_of_their_trials_and_equal_values_are_one_point() -> None:
    study = finished_study([0.5, 0.7, 0.6])
    add(study, 2, 0.9)  # the values of trial 1 again
    assert [point.trial.number for point in measured_points(study)] == [1, 2, 0]


def test_values_that_differ_in_their_last_digits_are_one_point() -> None:
    study = optuna.create_study(direction="maximize")
    for ratio in (0.6, 0.3 + 3 * 0.1, 0.7):
        study.add_trial(
            optuna.create_trial(
                state=TrialState.COMPLETE, value=ratio, params={"pretrain.mask_ratio": ratio},
                distributions={"pretrain.mask_ratio": FloatDistribution(0.0, 1.0)},
            )
        )  # fmt: skip
    assert study.trials[0].params != study.trials[1].params
    assert [point.trial.number for point in measured_points(study)] == [2, 0]


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 1]), (3, [1]), (4, [1, 2]), (7, [3])])
def test_the_median_point_is_repeated_beside_the_best(count: int, expected: list[int]) -> None:
    points = measured_points(finished_study([0.9 - 0.1 * number for number in range(count)]))
    assert [point.trial.number for point in median_points(points)] == expected
    chosen = {point.trial.number for point in points_to_repeat(points, 1)}
    assert chosen == {0, *expected}
    assert points_to_repeat(points, 0) == []


def test_the_probe_that_a_trial_was_chosen_for_does_not_count_once_it_was_repeated() -> None:
    points = measured_points(finished_study([0.9, 0.7, 0.8], table({0: [0.5, 0.6], 1: [0.6, 0.8]})))
    best = best_point(points)
    assert (best.trial.number, best.probe) == (1, 0.7)
    assert best.mean == pytest.approx(0.7)
    assert [point.mean for point in points if point.trial.number == 2] == [None]


def test_seed_deviation_is_that_of_the_differences() -> None:
    """Simulated: what a seed adds to all points is not counted, what it adds to one of them is."""
    rng = np.random.default_rng(0)
    common, own = rng.normal(0, 0.2, 2000), rng.normal(0, 0.03, (4, 2000))
    rows = {number: list(0.5 + 0.1 * number + common + own[number]) for number in range(4)}
    points = measured_points(finished_study([0.1, 0.2, 0.3, 0.4], table(rows)))
    assert seed_deviation(points) == pytest.approx(0.03, rel=0.03)


def test_standard_error_of_the_comparison_is_the_deviation_of_repeated_experiments() -> None:
    rng = np.random.default_rng(1)
    differences, errors = [], []
    for _ in range(300):
        drawn = rng.normal(0, 0.05, 3) + rng.normal(0, 0.03, (4, 3))
        study = finished_study([0.9, 0.8, 0.7, 0.6], table({number: list(drawn[number]) for number in range(4)}))
        points = measured_points(study)
        compared = compare(points, points[0])
        assert compared is not None
        differences.append(compared.probe - compared.median_probe)
        errors.append(compared.error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(differences), rel=0.1)


def test_one_repeated_point_has_the_deviation_of_its_seeds() -> None:
    points = measured_points(finished_study([0.5], table({0: [0.5, 0.6, 0.7]})))
    assert seed_deviation(points) == pytest.approx(0.1)
    assert standard_error(points, points[0]) == pytest.approx(0.1 / np.sqrt(3))
    assert seed_deviation(measured_points(finished_study([0.5, 0.6]))) is None


def test_apply_accepts_only_a_point_that_is_better_than_the_median_one() -> None:
    noise = [0.01, -0.02, 0.01]
    for gap, refused in ((0.2, False), (0.01, True)):
        rows = {0: [0.8 + x for x in noise], 1: [0.8 - gap, 0.8 - gap + 0.02, 0.8 - gap], 2: [0.3, 0.31, 0.33]}
        study = finished_study([0.9, 0.8, 0.7], table(rows))
        point = finished_point(study, None)
        assert point.trial.number == 0
        if refused:
            message = r"^trial 0: 80.0% over 3 further seeds; median finished trial \(1\): 79.7%.*--force$"
            with pytest.raises(ValueError, match=message):
                check_significance(study, point)
        else:
            check_significance(study, point)


def test_apply_needs_repetitions_of_both() -> None:
    for repeated in itertools.chain.from_iterable(itertools.combinations(range(3), count) for count in range(3)):
        if {0, 1} <= set(repeated):
            continue
        study = finished_study([0.9, 0.8, 0.7], table({number: [0.8, 0.7] for number in repeated}))
        with pytest.raises(ValueError, match=r"trial 0 and the median finished one were not repeated.*--force"):
            check_significance(study, finished_point(study, 0))
