"""Frozen-feature evaluation: linear probe and k nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mme.config import ClipParams, Params
from mme.config.paths import start_weights
from mme.evaluation.classifier import choose_device
from mme.evaluation.multiview import METRIC_DIGITS
from mme.manifest import Manifest, Video
from mme.models.checkpoints import load_state
from mme.models.classifier import encode_snippets, time_steps
from mme.models.encoder import VideoEncoder, model_input
from mme.video.sampling import sample_views

Features: TypeAlias = tuple[Float32[np.ndarray, "_ F"], Int64[np.ndarray, "_"]]
"""Features, one row per video, and the index of its label in ``Manifest.labels``."""

Fold: TypeAlias = tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]
"""Indices of the videos that a probe is fitted to, and of those that it is tested on."""

Batch: TypeAlias = tuple[UInt8[np.ndarray, "B T S S 3"], Int64[np.ndarray, " B"]]
"""Centre views and their labels."""

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
NUM_FOLDS = 5
MAX_ITERATIONS = 2000
NUM_NEIGHBOURS = 20


def frozen_features(encoder: VideoEncoder, manifest: Manifest, split: str, params: Params) -> Features:
    """Compute `encode` over `centre_views` of a split; raises as the latter."""
    return encode(encoder, centre_views(manifest, split, params), params.clip, params.evaluate.pool)


def centre_views(manifest: Manifest, split: str | Sequence[str], params: Params) -> Iterator[Batch]:
    """Yield the centre views of the labelled videos of a split and their labels, in batches, in order of their ids.

    Args:
        manifest: names the videos and their labels.
        split: split of the videos, or several.
        params: the clip, and of ``runtime`` batch size and number of decoding threads.

    Raises:
        ValueError: the split has no labelled videos.
        VideoError: a video cannot be decoded.
    """
    videos = manifest.labelled(split)
    if not videos:
        names = ", ".join(f"'{name}'" for name in ([split] if isinstance(split, str) else split))
        raise ValueError(f"{manifest.folder}: no labelled videos in split {names}")

    def view(video: Video) -> UInt8[np.ndarray, "T S S 3"]:
        centre: UInt8[np.ndarray, "T S S 3"] = sample_views(
            manifest.path_of(video), params.clip, video.fps, 1, 1
        ).frames[0]
        return centre

    size = params.runtime.eval_batch_size
    with ThreadPoolExecutor(params.runtime.num_workers) as pool:
        for start in range(0, len(videos), size):
            group = videos[start : start + size]
            labels = [manifest.labels.index(video.label) for video in group if video.label is not None]
            yield np.stack(list(pool.map(view, group))), np.array(labels, dtype=np.int64)


@torch.inference_mode()
def encode(
    encoder: VideoEncoder, batches: Iterable[Batch], clip: ClipParams, pool: Literal["mean", "time"]
) -> Features:
    """Compute pooled tokens of views without gradients, as float32, on the encoder's device.

    ``mean`` pools over all tokens, F = D; ``time`` over those of each time step of each snippet, F = s * t * D.
    """
    was_training = encoder.training
    device = encoder.positions.device
    encoder.eval()
    features = []
    labels = []
    for frames, targets in batches:
        pixels = model_input(torch.from_numpy(frames).to(device), clip)  # (B, 3, T, S, S)
        tokens = encode_snippets(encoder, pixels)  # (B, s, N, D)
        pooled = time_steps(tokens, encoder)  # (B, S, D)
        pooled = pooled.mean(dim=1) if pool == "mean" else pooled.flatten(1)  # (B, F)
        features.append(pooled.float().cpu().numpy())
        labels.append(targets)
    encoder.train(was_training)
    return np.concatenate(features), np.concatenate(labels)


def linear_probe(train: Features) -> GridSearchCV:
    """Fit multinomial logistic regression on standardised features; ``.score(*test)`` is its top-1.

    The penalty is the best of ``INVERSE_PENALTIES`` by cross-validation within ``train``. Folds are shuffled with a
    fixed seed and stratified: ``NUM_FOLDS``, or as many as the most frequent label has videos if those are fewer.

    Raises:
        ValueError: ``train`` has one label only, or no label with two videos.
    """
    largest = _check_labels(train[1])
    search = _penalty_search(StratifiedKFold(min(NUM_FOLDS, largest), shuffle=True, random_state=0))
    with _allow_rare_labels():
        return search.fit(*train)


def cross_validated_metrics(features: Features, groups: Sequence[str]) -> dict[str, float]:
    """Return ``probe_top1`` and ``knn_top1``: the mean over folds, each of which is tested on the fit to the others.

    Every video is tested once, so the figures have less noise than those of one small split. The penalty of the
    probe is the best over all folds, for which the figure is a little too high, for one encoder as for another.

    Args:
        features: of the labelled videos.
        groups: group of each video, such as its scene; those of a group are in one fold.

    Raises:
        ValueError: the labels or the groups are too few for two folds.
    """
    largest, num_groups = _check_labels(features[1]), len(set(groups))
    if num_groups < 2:
        raise ValueError(f"{num_groups} groups of labelled videos, too few for folds that keep groups apart")
    folds = StratifiedGroupKFold(min(NUM_FOLDS, largest, num_groups))
    with _allow_rare_labels():
        parts = list(folds.split(*features, groups))
        search = _penalty_search(parts).fit(*features)
        neighbours = _neighbours(min(NUM_NEIGHBOURS, *(len(rest) for rest, _ in parts)))
        scores = {"probe_top1": search.best_score_, "knn_top1": cross_val_score(neighbours, *features, cv=parts).mean()}
    return {name: round(float(score), METRIC_DIGITS) for name, score in scores.items()}


def _check_labels(labels: Int64[np.ndarray, _]) -> int:
    """Return the videos of the most frequent label."""
    counts = np.bincount(labels)
    if (counts > 0).sum() < 2 or counts.max() < 2:
        raise ValueError(f"a linear probe needs two labels and two videos of one of them, got {counts.tolist()}")
    return int(counts.max())


def _penalty_search(folds: StratifiedKFold | list[Fold]) -> GridSearchCV:
    # A rotation changes no prediction, and leaves no more axes than videos: snippets have thousands of features.
    model = make_pipeline(StandardScaler(), PCA(), LogisticRegression(max_iter=MAX_ITERATIONS))
    return GridSearchCV(model, {"logisticregression__C": INVERSE_PENALTIES}, cv=folds)


@contextmanager
def _allow_rare_labels() -> Iterator[None]:
    """Silence the warning about a label that is missing from some folds: it counts as wrong there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class in y has only", UserWarning)
        yield


def knn(train: Features, k: int = NUM_NEIGHBOURS) -> KNeighborsClassifier:
    """Fit a majority vote among the ``k`` nearest by cosine (of all of ``train`` if it has fewer)."""
    return _neighbours(min(k, len(train[1]))).fit(*train)


def _neighbours(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric="cosine", algorithm="brute")


PROTOCOLS = {"linear": ("probe_top1", linear_probe), "knn": ("knn_top1", knn)}
"""Metric and classifier of each protocol of ``evaluate.protocols`` on frozen features."""


def probe_metrics(
    train: Features, tests: Mapping[str, Features], protocols: Sequence[str] = tuple(PROTOCOLS)
) -> dict[str, dict[str, float]]:
    """Return ``probe_top1`` and ``knn_top1`` on each of ``tests``, fitted on ``train``; rounded as metrics in files.

    Raises:
        ValueError: as `linear_probe`.
    """
    metrics: dict[str, dict[str, float]] = {split: {} for split in tests}
    for name, fit in (PROTOCOLS[protocol] for protocol in protocols):
        fitted = fit(train)
        for split, test in tests.items():
            metrics[split][name] = round(float(fitted.score(*test)), METRIC_DIGITS)
    return metrics


def frozen_metrics(params: Params, manifest: Manifest) -> dict[str, float]:
    """Return the metrics of `probe_metrics` on ``evaluate.split``, of the protocols in ``evaluate.protocols``.

    The encoder is that of ``finetune.init``, before finetuning.

    Raises:
        ValueError, VideoError: as `start_encoder`, `frozen_features` and `linear_probe`.
    """
    protocols = [name for name in params.evaluate.protocols if name in PROTOCOLS]
    if not protocols:
        return {}
    encoder = start_encoder(params)
    train = frozen_features(encoder, manifest, "train", params)
    test = frozen_features(encoder, manifest, params.evaluate.split, params)
    return probe_metrics(train, {params.evaluate.split: test}, protocols)[params.evaluate.split]


def start_encoder(params: Params) -> VideoEncoder:
    """Load the encoder that ``finetune.init`` names to the device of ``runtime.device``.

    Random weights follow the seed.

    Raises:
        ValueError: the file cannot be read, or its encoder is not that of ``model`` and ``clip``; the message names
            file and keys.
    """
    torch.manual_seed(params.seed)
    encoder = VideoEncoder(params.model, params.clip)
    start = start_weights(params.finetune.init)
    if start is not None:
        load_state(start, encoder, prefix="encoder.")
    return encoder.to(choose_device(params.runtime.device))
