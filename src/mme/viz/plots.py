"""Figures of an evaluation, drawn without pyplot: no window system, no global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64
from matplotlib.figure import Figure

from mme.system.files import atomic_path
from mme.viz.lettering import lettering

MAX_LABELS_WITH_COUNTS = 30
MAX_LABELS_WITH_NAMES = 80


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure atomically; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def confusion_figure(counts: Int64[np.ndarray, "K K"], labels: tuple[str, ...]) -> Figure:
    """Draw a confusion matrix: numbers of videos, shaded by their share of the actual label (the row)."""
    num_labels = len(labels)
    side = float(np.clip(2.5 + 0.4 * num_labels, 5, 20))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    note = ""
    if num_labels <= MAX_LABELS_WITH_NAMES:
        written = lettering(labels)
        style: dict[str, Any] = {"family": written.families}
        axes.set_xticks(range(num_labels), written.names, rotation=60, ha="right", rotation_mode="anchor", **style)
        axes.set_yticks(range(num_labels), written.names, **style)
        note = f"\n{written.note}" if written.note else ""
    if num_labels <= MAX_LABELS_WITH_COUNTS:
        for y, x in np.argwhere(counts):
            colour = "white" if shares[y, x] > 0.5 else "black"
            axes.text(x, y, str(counts[y, x]), ha="center", va="center", color=colour)
    correct = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel=f"predicted{note}", ylabel="actual", title=f"{counts.sum()} videos, {correct:.1%} correct")
    figure.colorbar(image, ax=axes, label="share of the actual label's videos", shrink=0.8)
    return figure


def calibration_figure(bins: pd.DataFrame, calibration_error: float) -> Figure:
    """Draw a reliability diagram over a histogram of confidence.

    Args:
        bins: columns ``low``, ``high``, ``num_videos``, ``confidence``, ``accuracy``.
        calibration_error: written in the title.
    """
    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    used = bins[bins["num_videos"] > 0]
    widths = used["high"] - used["low"]
    style = {"align": "edge", "edgecolor": "white"}
    upper.bar(used["low"], used["accuracy"], widths, color="tab:blue", label="accuracy", **style)
    upper.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="perfect calibration")
    upper.plot(
        used["confidence"],
        used["accuracy"],
        "o",
        color="tab:orange",
        markersize=4,
        clip_on=False,
        label="mean confidence",
    )
    upper.set(ylabel="share correct", xlim=(0, 1), ylim=(0, 1), title=f"calibration error {calibration_error:.3f}")
    upper.legend(loc="upper left")
    lower.bar(used["low"], used["num_videos"], widths, color="tab:gray", **style)
    lower.set(xlabel="confidence of the predicted label", ylabel="videos")
    return figure
