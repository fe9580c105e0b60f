"""Figure of a source: labels by split, and a histogram of lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mme.manifest import SPLITS, Video

MAX_NAMED_LABELS = 60
MAX_LABEL_CHARACTERS = 32
NUM_LENGTH_BINS = 40


def data_figure(videos: Sequence[Video], title: str) -> Figure:
    """Draw the number of videos per label and split, and a histogram of lengths in seconds.

    Args:
        videos: usable videos; labels are sorted by their number of videos.
        title: above the figure.
    """
    figure = Figure(figsize=(10, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 2])

    totals = Counter(video.label for video in videos if video.label is not None)
    labels = sorted(totals, key=lambda label: (-totals[label], label))
    stacked = np.zeros(len(labels))
    for split in SPLITS:
        counted = Counter(video.label for video in videos if video.split == split)
        counts = np.array([counted[label] for label in labels])
        if counts.any():
            upper.bar(np.arange(len(labels)), counts, 0.8, bottom=stacked, label=f"{split}: {counts.sum()}")
            stacked += counts
    unlabelled = sum(video.label is None for video in videos)
    upper.set(ylabel="videos", title=title, xlabel=f"{len(labels)} labels; {unlabelled} videos have none")
    if len(labels) <= MAX_NAMED_LABELS:
        names = [_shorten(label) for label in labels]
        upper.set_xticks(range(len(labels)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize="small")
    if labels:
        upper.legend()

    seconds = np.array([video.num_frames / video.fps for video in videos])
    if len(seconds):
        median = float(np.median(seconds))
        lower.hist(seconds, bins=NUM_LENGTH_BINS, color="tab:gray", edgecolor="white")
        lower.axvline(median, color="black", linewidth=1, label=f"median {median:.3g} s")
        lower.legend()
    lower.set(xlabel="length, seconds", ylabel="videos")
    return figure


def _shorten(label: str) -> str:
    return label if len(label) <= MAX_LABEL_CHARACTERS else f"{label[: MAX_LABEL_CHARACTERS - 1]}…"
