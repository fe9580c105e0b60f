"""Series of the answers: labels, confidence, entropy, and their drift from the evaluation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32

from mme.evaluation.answers import bin_of, drift, facts, softmax
from serving.http.metrics import Metrics
from serving.inference.model_reloader import LoadedModel

Kind: TypeAlias = Literal["video", "window", "view"]
"""What an answer is to: a whole video, a window along one, or a view that a client cut by itself."""

WINDOW_PER_LABEL = 10
"""Answers per label that the window holds at least: with fewer, chance hides a drift."""


class AnswerMonitor:
    """Counts answers of the current model, and compares the last ones with those of its evaluation."""

    def __init__(self, metrics: Metrics, window: int) -> None:
        """Begin without answers; ``window`` is the number of answers that the drift is computed from."""
        self._metrics = metrics
        self._min_window = window
        self._digest: str | None = None
        self._recent: deque[tuple[int, int, int]] = deque()  # label, bin of confidence, bin of entropy

    def observe(
        self, model: LoadedModel, logits: Float32[np.ndarray, " K"], kind: Kind, *, comparable: bool = False
    ) -> None:
        """Count one answer of the current model.

        Args:
            model: the model.
            logits: its answer.
            kind: what it was given.
            comparable: whether that was as in the evaluation: a whole video, in the model's own views. The drift is
                that of such answers alone. One view of a video is less certain than the mean of many, and the windows
                of a long video are alike: their distribution would be that of a few videos.
        """
        if model.digest != self._digest:
            self._begin(model)
        best, confidence, entropy = facts(softmax(logits)[None])
        self._metrics.predictions.labels(kind, model.classifier.labels[best[0]]).inc()
        self._metrics.confidence.labels(kind).observe(confidence[0])
        self._metrics.entropy.labels(kind).observe(entropy[0])
        if comparable:
            self._recent.append((int(best[0]), int(bin_of(confidence)[0]), int(bin_of(entropy)[0])))

    def _begin(self, model: LoadedModel) -> None:
        """Forget the answers of another model, whose labels may be others."""
        self._digest = model.digest
        num_labels = len(model.classifier.labels)
        self._recent = deque(maxlen=max(self._min_window, WINDOW_PER_LABEL * num_labels))
        self._metrics.predictions.clear()
        self._metrics.drift.clear()
        if model.answers is None:
            return
        expected = {
            "label": list(model.answers.labels.values()),
            "confidence": model.answers.confidence,
            "entropy": model.answers.entropy,
        }
        for position, (name, counts) in enumerate(expected.items()):
            # Computed when Prometheus asks, not with every answer.
            self._metrics.drift.labels(name).set_function(partial(_drift_of, self._recent, position, counts))


def _drift_of(recent: deque[tuple[int, int, int]], position: int, expected: Sequence[int]) -> float:
    """Return the drift of the recent answers; NaN, which raises no alert, until the window is half full."""
    if recent.maxlen is None or 2 * len(recent) < recent.maxlen:
        return math.nan
    values = list(map(itemgetter(position), recent))
    return drift(expected, np.bincount(values, minlength=len(expected)).tolist())
