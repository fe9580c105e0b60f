"""What a frozen encoder's features tell: a linear probe and k nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mme.config import ClipParams, Params
from mme.evaluation.classifier import choose_device
from mme.manifest import Manifest, Video
from mme.models.encoder import VideoEncoder, model_input
from mme.video.sampling import sample_views

Features: TypeAlias = tuple[Float32[np.ndarray, "_ D"], Int64[np.ndarray, "_"]]
"""One row a video, and the index of its label in ``Manifest.labels``."""

Batch: TypeAlias = tuple[UInt8[np.ndarray, "B T S S 3"], Int64[np.ndarray, " B"]]

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
NUM_FOLDS = 5
MAX_ITERATIONS = 2000
DIGITS = 6
"""Decimal places of figures that are written."""


def frozen_features(encoder: VideoEncoder, manifest: Manifest, split: str, params: Params) -> Features:
    """Mean-pooled tokens of each labelled video's centre view, videos in order of their ids.

    Args:
        encoder: as it is; it runs in evaluation mode, on the device it is on, and without gradients.
        manifest: names the videos and their labels.
        split: which videos.
        params: the clip, and of ``runtime`` batch size and number of decoding threads.

    Raises:
        ValueError: the split has no labelled videos.
        VideoError: a video cannot be decoded.
    """
    return encode(encoder, centre_views(manifest, split, params), params.clip)


def centre_views(manifest: Manifest, split: str, params: Params) -> Iterator[Batch]:
    """Centre views of the labelled videos of a split and their labels, in batches; raises as `frozen_features`."""
    videos = [video for video in manifest.videos(split) if video.label is not None]
    if not videos:
        raise ValueError(f"{manifest.folder}: no labelled videos in split '{split}'")

    def view(video: Video) -> UInt8[np.ndarray, "T S S 3"]:
        centre: UInt8[np.ndarray, "T S S 3"] = sample_views(manifest.path_of(video), params.clip, 1, 1).frames[0]
        return centre

    size = params.runtime.eval_batch_size
    with ThreadPoolExecutor(params.runtime.num_workers) as pool:
        for start in range(0, len(videos), size):
            group = videos[start : start + size]
            labels = [manifest.labels.index(video.label) for video in group if video.label is not None]
            yield np.stack(list(pool.map(view, group))), np.array(labels, dtype=np.int64)


@torch.inference_mode()
def encode(encoder: VideoEncoder, batches: Iterable[Batch], clip: ClipParams) -> Features:
    """Mean-pooled tokens of views, float32 whatever the encoder computes in."""
    was_training, device = encoder.training, encoder.positions.device
    encoder.eval()
    features, labels = [], []
    for frames, targets in batches:
        pixels = model_input(torch.from_numpy(frames).to(device), clip)  # (B, 3, T, S, S)
        tokens = encoder(pixels)  # (B, N, D)
        features.append(tokens.mean(dim=1).float().cpu().numpy())
        labels.append(targets)
    encoder.train(was_training)
    return np.concatenate(features), np.concatenate(labels)


def linear_probe(train: Features, test: Features) -> float:
    """Top-1 of multinomial logistic regression on standardised features.

    The penalty is the best of ``INVERSE_PENALTIES`` by cross-validation within ``train``: folds are shuffled by a
    fixed seed and stratified, at most ``NUM_FOLDS`` and no more than the largest label has videos.

    Raises:
        ValueError: ``train`` has one label only, or no label with two videos.
    """
    counts = np.bincount(train[1])
    if (counts > 0).sum() < 2 or counts.max() < 2:
        raise ValueError(f"a linear probe needs two labels and two videos of one of them, got {counts.tolist()}")
    folds = StratifiedKFold(min(NUM_FOLDS, int(counts.max())), shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    search = GridSearchCV(model, {"logisticregression__C": INVERSE_PENALTIES}, cv=folds)
    with warnings.catch_warnings():
        # A rare label is missing from some folds, where it counts as wrong: no reason to refuse the others.
        warnings.filterwarnings("ignore", "The least populated class in y has only", UserWarning)
        search.fit(*train)
    return float(search.score(*test))


def knn(train: Features, test: Features, k: int = 20) -> float:
    """Top-1 of a majority vote among the ``k`` nearest by cosine; all of ``train`` vote where there are fewer."""
    model = KNeighborsClassifier(min(k, len(train[1])), metric="cosine", algorithm="brute")
    return float(model.fit(*train).score(*test))


def frozen_metrics(params: Params, manifest: Manifest, pretrained: Path) -> dict[str, float]:
    """``probe_top1`` and ``knn_top1`` on the evaluated split, as far as ``evaluate.protocols`` asks for them.

    The features are those of the pretrained encoder before finetuning; labels to fit on are those of ``train``.

    Raises:
        ValueError, VideoError: as `pretrained_encoder`, `frozen_features` and `linear_probe`.
    """
    wanted = [name for name in params.evaluate.protocols if name != "finetuned"]
    if not wanted:
        return {}
    encoder = pretrained_encoder(pretrained, params)
    train, test = (frozen_features(encoder, manifest, split, params) for split in ("train", params.evaluate.split))
    rules = {"linear": ("probe_top1", linear_probe), "knn": ("knn_top1", knn)}
    return {name: round(rule(train, test), DIGITS) for name, rule in (rules[protocol] for protocol in wanted)}


def pretrained_encoder(path: Path, params: Params) -> VideoEncoder:
    """The encoder of a pretrained model's weights, on the device of ``runtime.device``.

    Raises:
        ValueError: the file cannot be read, or its encoder is not the one of ``model`` and ``clip``; the message names
            file and keys.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error
    encoder = VideoEncoder(params.model, params.clip)
    prefix = "encoder."
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    wanted = encoder.state_dict()
    faults = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or found[name].shape != wanted[name].shape
    )
    if faults:
        raise ValueError(f"{path}: missing, unexpected or of another shape: {', '.join(faults)}")
    encoder.load_state_dict(found)
    return encoder.to(choose_device(params.runtime.device))
