"""Figure of a source: labels by split, and histograms of lengths and frame rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mme.ingest.rates import distribution
from mme.manifest import SPLITS, Video
from mme.viz.lettering import lettering, no_formula, written

MAX_NAMED_LABELS = 60
NUM_LENGTH_BINS = 40


def data_figure(videos: Sequence[Video], title: str, fps: float) -> Figure:
    """Draw the number of videos per label and split, a histogram of lengths in seconds, and one of frame rates.

    Args:
        videos: usable videos; labels are sorted by their number of videos.
        title: above the figure.
        fps: frame rate of the normal form, drawn as a line.
    """
    figure = Figure(figsize=(10, 10), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, height_ratios=[3, 2, 2])

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
        middle.hist(seconds, bins=NUM_LENGTH_BINS, color="tab:gray", edgecolor="white")
        middle.axvline(median, color="black", linewidth=1, label=f"median {median:.3g} s")
        middle.legend()
    middle.set(xlabel="length, seconds", ylabel="videos")

    rates = distribution([video.source_fps for video in videos])
    lower.bar(list(rates), list(rates.values()), color="tab:gray")
    lower.axvline(fps, color="black", linewidth=1, label=f"fps {fps:g}")
    lower.legend()
    lower.set(xlabel="frame rate of the source, per second", ylabel="videos")
    return figure
