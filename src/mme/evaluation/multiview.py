"""Multi-view evaluation of a classifier on a split of the manifest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import SupportsFloat

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Float64, Int64
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from mme.config import EvaluateParams, RuntimeParams
from mme.evaluation.answers import softmax
from mme.evaluation.classifier import Classifier
from mme.manifest import Manifest, Video
from mme.video.containers import VideoError
from mme.video.sampling import Views

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the calibration error (Guo et al. 2017)."""

METRIC_DIGITS = 6
"""Decimal places of metrics in files."""


@dataclass(frozen=True)
class Unreadable:
    """A video of the split that could not be decoded."""

    id: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """Logits of a classifier on a split; one row per video, in the order of ``ids``.

    Attributes:
        labels: the classifier's labels, in the order of the logits.
        ids: readable videos, sorted.
        targets: int64 ``[N]``, index of each video's own label.
        logits: float32 ``[N, K]``, mean over each video's views.
        unreadable: videos that could not be decoded; excluded from all metrics.
        num_quarantined: videos of the split that ingest had quarantined.
    """

    labels: tuple[str, ...]
    ids: tuple[str, ...]
    targets: Int64[np.ndarray, " N"]
    logits: Float32[np.ndarray, "N K"]
    unreadable: tuple[Unreadable, ...]
    num_quarantined: int

    @cached_property
    def predicted(self) -> Int64[np.ndarray, " N"]:
        """Index of the most probable label, the first of equals."""
        best: Int64[np.ndarray, " N"] = self.logits.argmax(axis=1)
        return best

    @cached_property
    def probabilities(self) -> Float64[np.ndarray, "N K"]:
        """Softmax of the logits."""
        return softmax(self.logits)

    @cached_property
    def confusion(self) -> Int64[np.ndarray, "K K"]:
        """Videos by ``[actual, predicted]`` label."""
        predicted, targets = torch.from_numpy(self.predicted), torch.from_numpy(self.targets)
        counts: Int64[np.ndarray, "K K"] = multiclass_confusion_matrix(predicted, targets, len(self.labels)).numpy()
        return counts


def evaluate(
    classifier: Classifier, manifest: Manifest, params: EvaluateParams, runtime: RuntimeParams, progress: bool = True
) -> Evaluation:
    """Classify every video of ``params.split``; the views of a video are merged by its id.

    Args:
        classifier: the model.
        manifest: videos of the split, their labels and files.
        params: split and views.
        runtime: threads that decode, and views per forward pass.
        progress: draw a progress bar.

    Raises:
        ValueError: the split is empty, a video has no label or one that the classifier does not know, or no video can
            be decoded. A single unreadable video is no error here: it is listed in the result.
    """
    videos = sorted(manifest.videos(params.split), key=lambda video: video.id)
    targets = _targets(videos, params.split, classifier.labels)

    def views_of(video: Video) -> Views | Unreadable:
        try:
            return classifier.prepare(manifest.path_of(video), params.segments, params.crops)
        except VideoError as error:
            return Unreadable(video.id, error.reason)
        except OSError as error:
            return Unreadable(video.id, f"{type(error).__name__}: {error.strerror}")

    logits: dict[str, Float32[np.ndarray, " K"]] = {}
    unreadable: list[Unreadable] = []
    groups = [videos[i : i + runtime.eval_batch_size] for i in range(0, len(videos), runtime.eval_batch_size)]
    with ThreadPoolExecutor(runtime.num_workers) as pool:
        for group in track(groups, f"evaluate {params.split}", disable=not progress):
            views: dict[str, Views] = {}
            for video, answer in zip(group, pool.map(views_of, group), strict=True):
                if isinstance(answer, Unreadable):
                    unreadable.append(answer)
                else:
                    views[video.id] = answer
            answers = classifier.predict(list(views.values()), max_clips=runtime.eval_batch_size)
            logits.update(zip(views, answers, strict=True))
    if not logits:
        raise ValueError(f"split {params.split}: none of its {len(videos)} videos can be decoded: {unreadable[:5]}")
    ids = tuple(logits)
    return Evaluation(
        labels=classifier.labels,
        ids=ids,
        targets=np.array([targets[video_id] for video_id in ids], dtype=np.int64),
        logits=np.stack([logits[video_id] for video_id in ids]),
        unreadable=tuple(unreadable),
        num_quarantined=sum(video.split == params.split for video in manifest.quarantined),
    )


def _targets(videos: list[Video], split: str, labels: tuple[str, ...]) -> dict[str, int]:
    if not videos:
        raise ValueError(f"split {split}: the manifest has no videos in it")
    index = {label: i for i, label in enumerate(labels)}
    targets: dict[str, int] = {}
    for video in videos:
        if video.label is None or video.label not in index:
            raise ValueError(f"split {split}: {video.id} has the label {video.label!r}, the model knows {list(labels)}")
        targets[video.id] = index[video.label]
    return targets


def metrics(evaluation: Evaluation) -> dict[str, float | int]:
    """Return accuracy, calibration and counts, rounded to ``METRIC_DIGITS`` places.

    ``top1`` and ``top5`` are shares of the videos (``top5``: of all labels if there are fewer);
    ``mean_class_accuracy`` averages the accuracies of the labels that have videos; ``nll`` is the mean negative log
    likelihood in nats; ``calibration_error`` the expected gap of confidence and accuracy (``CALIBRATION_BINS`` bins).
    """
    probabilities, targets = torch.from_numpy(evaluation.probabilities), torch.from_numpy(evaluation.targets)
    num_labels = len(evaluation.labels)

    def top(k: int) -> Tensor:
        return multiclass_accuracy(probabilities, targets, num_labels, average="micro", top_k=min(k, num_labels))

    values: dict[str, SupportsFloat] = {
        "top1": top(1),
        "top5": top(5),
        "mean_class_accuracy": per_class(evaluation)["top1"].mean(),
        "nll": cross_entropy(torch.from_numpy(evaluation.logits).double(), targets),
        "calibration_error": multiclass_calibration_error(probabilities, targets, num_labels, CALIBRATION_BINS, "l1"),
    }
    return {
        **{name: round(float(value), METRIC_DIGITS) for name, value in values.items()},
        "num_videos": len(evaluation.ids),
        "num_unreadable": len(evaluation.unreadable),
        "num_quarantined": evaluation.num_quarantined,
    }


def per_class(evaluation: Evaluation) -> pd.DataFrame:
    """Return one row per label: videos, correct ones, ``top1`` (recall), ``precision``, most frequent wrong label.

    Undefined values, such as the recall of a label without videos, are left empty.
    """
    counts = evaluation.confusion
    correct, actual, claimed = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    mistakes = counts - np.diag(correct)
    worst = [evaluation.labels[row.argmax()] if row.any() else "" for row in mistakes]
    table = pd.DataFrame({"label": evaluation.labels, "num_videos": actual, "num_correct": correct})
    table["top1"] = (table["num_correct"] / table["num_videos"].where(actual > 0)).round(METRIC_DIGITS)
    table["precision"] = (table["num_correct"] / pd.Series(claimed).where(claimed > 0)).round(METRIC_DIGITS)
    table["most_confused_with"] = worst
    return table


def predictions(evaluation: Evaluation) -> pd.DataFrame:
    """Return one row per video: id, label, predicted label, its probability, and every logit as ``logit/LABEL``."""
    labels = np.array(evaluation.labels)
    table = pd.DataFrame(
        {
            "id": evaluation.ids,
            "label": labels[evaluation.targets],
            "predicted": labels[evaluation.predicted],
            "confidence": evaluation.probabilities.max(axis=1).round(METRIC_DIGITS),
        }
    )
    logits = pd.DataFrame(
        evaluation.logits.astype(np.float64).round(METRIC_DIGITS),
        columns=[f"logit/{label}" for label in evaluation.labels],
    )
    return pd.concat([table, logits], axis=1)


def confusion_pairs(evaluation: Evaluation) -> pd.DataFrame:
    """Return ``actual`` and ``predicted`` label of each video, for DVC's confusion template."""
    table = predictions(evaluation)
    return pd.DataFrame({"actual": table["label"], "predicted": table["predicted"]})


def calibration(evaluation: Evaluation) -> pd.DataFrame:
    """Return one row per confidence bin: its edges, videos, mean confidence and accuracy (empty without videos)."""
    confidence = evaluation.probabilities.max(axis=1)
    hit = evaluation.predicted == evaluation.targets
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    grouped = pd.DataFrame({"confidence": confidence, "accuracy": hit.astype(float)}).groupby(bins)
    means = grouped.mean().reindex(range(CALIBRATION_BINS))
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "num_videos": grouped.size().reindex(range(CALIBRATION_BINS), fill_value=0),
            "confidence": means["confidence"],
            "accuracy": means["accuracy"],
        }
    )
