"""Figure of a source: labels by split, and a histogram of lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mme.manifest import SPLITS, Video
from mme.viz.lettering import lettering, no_formula, written

MAX_NAMED_LABELS = 60
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
    shown, families = written(title)
    upper.set_title(no_formula(shown), family=families)
    upper.set(ylabel="videos", xlabel=f"{len(labels)} labels; {unlabelled} videos have none")
    if len(labels) <= MAX_NAMED_LABELS:
        by_name = sorted(labels)
        tick_names = lettering(by_name)
        names = [tick_names.names[by_name.index(label)] for label in labels]
        style = {"family": tick_names.families, "fontsize": "small", "rotation": 60, "rotation_mode": "anchor"}
        upper.set_xticks(range(len(labels)), names, ha="right", **style)
        if tick_names.note:
            upper.set_xlabel(f"{upper.get_xlabel()}\n{tick_names.note}")
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
