from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mme.experiments.ablation.plan import RunResult
from mme.experiments.ablation.report import curve_figure


def result(objective: str, test: dict[str, float], probed: int) -> RunResult:
    curve = [{"epoch": epoch, "seconds": 2.0 * epoch, "test/probe_top1": 0.5} for epoch in range(probed)]
    run: dict[str, Any] = {"objective": objective, "init": "random"}
    return {"run": run, "run_id": "", "curve": curve, "val": {}, "test": test}


@pytest.mark.parametrize(
    ("tuned", "probed", "panels"),
    [
        ({}, 1, ["frozen probe"]),
        ({"top1": 0.75}, 1, ["frozen probe", "finetuned"]),
        ({"top1": 0.75}, 3, ["over pretraining time", "frozen probe", "finetuned"]),
    ],
)
def test_figure_shows_what_was_measured(tuned: dict[str, float], probed: int, panels: list[str]) -> None:
    finished = [result("scratch", {"probe_top1": 0.125}, 0), result("mme", {"probe_top1": 0.5, **tuned}, probed)]
    figure = curve_figure(finished, ["scratch", "mme"])
    assert [axes.get_title() for axes in figure.axes] == panels
    probe = next(axes for axes in figure.axes if axes.get_title() == "frozen probe")
    assert [label.get_text() for label in probe.get_yticklabels()] == ["scratch", "mme"]
    assert len(probe.patches) == 2
    points = [np.asarray(line.get_xydata()) for line in probe.lines]
    assert np.concatenate(points).tolist() == [[12.5, 0], [50, 1]]
