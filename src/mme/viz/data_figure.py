"""Histograms of a source: labels by split, and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mme.manifest import Video

SPLITS = ("pretrain", "train", "val", "test")
MAX_NAMED_LABELS = 60
NUM_BINS = 40
MAX_NAME = 32


def data_figure(videos: Sequence[Video], title: str) -> Figure:
    """Videos a label and split, most frequent label first, above a histogram of lengths in seconds."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 2])
    totals = Counter(video.label for video in videos if video.label is not None)
    labels = sorted(totals, key=lambda label: (-totals[label], label))
    place = {label: number for number, label in enumerate(labels)}
    below = np.zeros(len(labels))
    for split in SPLITS:
        counts = np.zeros(len(labels))
        for video in videos:
            if video.split == split and video.label is not None:
                counts[place[video.label]] += 1
        if counts.any():
            upper.bar(np.arange(len(labels)), counts, 0.8, bottom=below, label=f"{split}: {counts.sum():.0f}")
            below += counts
    unlabelled = sum(video.label is None for video in videos)
    upper.set(ylabel="videos", title=title, xlabel=f"{len(labels)} labels; {unlabelled} videos have none")
    if len(labels) <= MAX_NAMED_LABELS:
        names = [label if len(label) <= MAX_NAME else f"{label[: MAX_NAME - 1]}…" for label in labels]
        upper.set_xticks(range(len(labels)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize="small")
    if labels:
        upper.legend()
    seconds = np.array([video.num_frames / video.fps for video in videos])
    if len(seconds):
        lower.hist(seconds, bins=NUM_BINS, color="tab:gray", edgecolor="white")
        lower.axvline(float(np.median(seconds)), color="black", linewidth=1, label=f"median {np.median(seconds):.3g} s")
        lower.legend()
    lower.set(xlabel="length, seconds", ylabel="videos")
    return figure
