"""Distribution of a classifier's answers, and how far another one has drifted from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float, Float64, Int64
from pydantic import Field, ValidationError

from mme.config.base import Section, faults
from mme.system.files import read_json

ANSWERS_FILE = "answers.json"
"""Optional file of a model folder: ``Answers`` on the videos of the evaluation."""

EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper edges, inclusive, of the bins of confidence and of entropy."""

_SMOOTHING = 0.5
"""Added to every count, so that an empty bin has a logarithm (Jeffreys' prior)."""

Count = Annotated[int, Field(ge=0)]


class Answers(Section):
    """Numbers of videos by their answer.

    Attributes:
        labels: by the most probable label, in the order of the model's labels.
        confidence: by the probability of that label, one bin per edge of ``EDGES``.
        entropy: by the entropy of the probabilities, as a share of its largest value log K, one bin per edge.
    """

    labels: dict[str, Count]
    confidence: Annotated[tuple[Count, ...], Field(min_length=len(EDGES), max_length=len(EDGES))]
    entropy: Annotated[tuple[Count, ...], Field(min_length=len(EDGES), max_length=len(EDGES))]


def softmax(logits: Float[np.ndarray, "*batch K"]) -> Float[np.ndarray, "*batch K"]:
    """Return probabilities over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: Float[np.ndarray, "*batch K"] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def count_answers(probabilities: Float[np.ndarray, "N K"], labels: Sequence[str]) -> Answers:
    """Count the answers to N videos."""
    best, confidence, entropy = facts(probabilities)
    by_label = np.bincount(best, minlength=len(labels)).tolist()
    return Answers(
        labels=dict(zip(labels, by_label, strict=True)),
        confidence=tuple(np.bincount(bin_of(confidence), minlength=len(EDGES)).tolist()),
        entropy=tuple(np.bincount(bin_of(entropy), minlength=len(EDGES)).tolist()),
    )


def facts(
    probabilities: Float[np.ndarray, "N K"],
) -> tuple[Int64[np.ndarray, " N"], Float[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Return the index of the most probable label, its probability, and the entropy as a share of log K."""
    positive = np.where(probabilities > 0, probabilities, 1.0)
    entropy = -(probabilities * np.log(positive)).sum(axis=1) / np.log(probabilities.shape[1])
    return probabilities.argmax(axis=1), probabilities.max(axis=1), entropy


def bin_of(values: Float[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Return the bin of each value; rounding above 1 counts as 1."""
    return np.minimum(np.searchsorted(EDGES, values), len(EDGES) - 1)


def drift(expected: Sequence[int], observed: Sequence[int]) -> float:
    """Return the population stability index of two distributions, less what chance alone gives.

    The index is sum (p - q) log(p / q). Of two samples of one distribution over B bins, of n and m values, its mean is
    (B - 1) (1/n + 1/m): that is subtracted, so that the figure means the same for any number of labels and videos.
    0 is no drift; from 0.25 on, by convention, a shift that needs attention.

    Args:
        expected: counts per bin; bins that are empty in both are left out.
        observed: as many counts.
    """
    counts = np.array([expected, observed], dtype=np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    by_chance = (counts.shape[1] - 1) * (1 / counts.sum(axis=1)).sum()
    smoothed = counts + _SMOOTHING
    q, p = smoothed / smoothed.sum(axis=1, keepdims=True)
    return max(0.0, float(((p - q) * np.log(p / q)).sum() - by_chance))


def load_answers(folder: Path, labels: Sequence[str]) -> Answers | None:
    """Read a model folder's distribution; None if it has none.

    Raises:
        ValueError: the file is damaged, or of other labels.
    """
    path = folder / ANSWERS_FILE
    if not path.exists():
        return None
    try:
        answers = Answers.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {faults(error)}") from error
    if tuple(answers.labels) != tuple(labels):
        raise ValueError(f"{path}: its labels {list(answers.labels)[:5]} are not those of the model {list(labels)[:5]}")
    return answers
