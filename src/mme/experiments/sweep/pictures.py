"""Pictures of a sweep: how it went, and where in the space the good trials lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

CONTOUR_LEVELS = 12


@dataclass(frozen=True)
class Point:
    """A trial that ended: its number, its values, its last probe, and whether it was stopped early."""

    number: int
    values: Mapping[str, object]
    probe: float
    pruned: bool


def history_figure(points: Sequence[Point], chance: float, repeats: Sequence[float]) -> Figure:
    """Probes in the order of trials, the best so far, chance, and the range of one trial over seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    finished, pruned = ([point for point in points if point.pruned is flag] for flag in (False, True))
    if len(repeats) > 1:
        label = f"one trial with {len(repeats)} seeds"
        axes.axhspan(min(repeats), max(repeats), color="tab:orange", alpha=0.2, linewidth=0, label=label)
    axes.plot([point.number for point in finished], [point.probe for point in finished], "o", label="finished")
    axes.plot([point.number for point in pruned], [point.probe for point in pruned], "x", color="gray", label="stopped")
    best = np.maximum.accumulate([point.probe for point in finished])
    axes.step([point.number for point in finished], best, where="post", linewidth=1, label="best so far")
    axes.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel="trial", ylabel="top-1 of the probe, validation", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def contour_figure(points: Sequence[Point], x: str, y: str) -> Figure:
    """The probe over two parameters, interpolated between finished trials; every trial is a dot with its number."""
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.add_subplot()
    finished = [point for point in points if not point.pruned]
    places = np.array([[point.values[x], point.values[y]] for point in finished], dtype=float)
    probes = np.array([point.probe for point in finished])
    low, high = float(probes.min()), float(probes.max()) + 1e-9
    if _span_a_plane(places):
        scaled = places / np.ptp(places, axis=0)  # triangles by distance in units of each axis
        triangles = Triangulation(scaled[:, 0], scaled[:, 1]).triangles
        mesh = Triangulation(places[:, 0], places[:, 1], triangles)
        axes.tricontourf(mesh, probes, levels=np.linspace(low, high, CONTOUR_LEVELS), cmap="viridis", alpha=0.8)
    dots = axes.scatter(
        places[:, 0], places[:, 1], c=probes, cmap="viridis", vmin=low, vmax=high, edgecolors="black", zorder=3
    )
    for point in points:
        place = (float(str(point.values[x])), float(str(point.values[y])))
        if point.pruned:
            axes.plot(*place, "x", color="gray")
        axes.annotate(str(point.number), place, xytext=(5, 5), textcoords="offset points", fontsize="small")
    axes.use_sticky_edges = False  # dots at the space's ends are to be seen whole
    axes.margins(0.08)
    axes.set(xlabel=x, ylabel=y)
    figure.colorbar(dots, ax=axes, label="top-1 of the probe, validation")
    return figure


def importances_figure(importances: Mapping[str, float]) -> Figure:
    """How much of the probe's variance each parameter explains."""
    figure = Figure(figsize=(6, 1 + 0.5 * len(importances)), layout="constrained")
    axes = figure.add_subplot()
    names = list(importances)[::-1]
    axes.barh(names, [importances[name] for name in names])
    axes.set(xlabel="share of the variance explained", xlim=(0, 1))
    return figure


def _span_a_plane(places: np.ndarray) -> bool:
    """Whether there are three points that lie on no line."""
    unique = np.unique(places, axis=0)
    return len(unique) >= 3 and bool(np.linalg.matrix_rank(unique - unique[0]) == 2)
