from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mme.evaluation.answers import ANSWERS_FILE, EDGES, count_answers, drift, load_answers, softmax
from mme.system.files import write_json

LABELS = tuple("abcd")


def test_answers_are_counted_by_label_confidence_and_entropy() -> None:
    probabilities = np.array(
        [[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.5, 0.0], [0.05, 0.05, 0.9, 0.0]]
    )
    answers = count_answers(probabilities, LABELS)
    assert answers.labels == {"a": 2, "b": 1, "c": 1, "d": 0}
    by_edge = dict(zip(EDGES, answers.confidence, strict=True))
    assert {edge: count for edge, count in by_edge.items() if count} == {0.3: 1, 0.5: 1, 0.9: 1, 1.0: 1}
    last = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05)) / math.log(4)  # 0.28
    by_edge = dict(zip(EDGES, answers.entropy, strict=True))
    assert 0.2 < last < 0.3
    assert {edge: count for edge, count in by_edge.items() if count} == {0.1: 1, 0.3: 1, 0.5: 1, 1.0: 1}


def test_drift_is_the_stability_index_less_its_mean_by_chance() -> None:
    q, p = [(n + 0.5) / 1001.5 for n in (500, 300, 200)], [(n + 0.5) / 401.5 for n in (100, 100, 200)]
    index = sum((b - a) * math.log(b / a) for a, b in zip(q, p, strict=True))
    assert drift([500, 300, 200], [100, 100, 200]) == pytest.approx(index - 2 * (1 / 1000 + 1 / 400))
    assert drift([500, 300, 200, 0], [100, 100, 200, 0]) == drift([500, 300, 200], [100, 100, 200])
    assert drift([5, 5], [5, 5]) == 0.0


@pytest.mark.parametrize("num_labels", [2, 12, 174])
def test_chance_alone_is_no_drift_and_one_label_is(num_labels: int) -> None:
    """For any number of labels, with as many answers as the service keeps."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(num_labels, 5.0))
    number = max(500, 10 * num_labels)
    figures = [
        drift(rng.multinomial(number, shares).tolist(), rng.multinomial(number, shares).tolist()) for _ in range(200)
    ]
    assert max(figures) < 0.25
    assert np.median(figures) < 0.05
    alone = np.zeros(num_labels, int)
    alone[0] = number
    assert drift(rng.multinomial(number, shares).tolist(), alone.tolist()) > 1.0


def test_folder_has_answers_or_none(tmp_path: Path) -> None:
    assert load_answers(tmp_path, LABELS) is None
    answers = count_answers(softmax(np.random.default_rng(0).normal(size=(50, 4))), LABELS)
    path = tmp_path / ANSWERS_FILE
    write_json(path, answers.model_dump(mode="json"))
    assert load_answers(tmp_path, LABELS) == answers
    with pytest.raises(ValueError, match=rf"{ANSWERS_FILE}: its labels"):
        load_answers(tmp_path, tuple("abdc"))
    write_json(path, {**answers.model_dump(mode="json"), "entropy": [1]})
    with pytest.raises(ValueError, match=rf"{ANSWERS_FILE}: entropy"):
        load_answers(tmp_path, LABELS)
