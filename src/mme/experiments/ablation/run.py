"""The whole ablation: search, final runs, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import torch
from threadpoolctl import threadpool_limits

import mme
from mme.config import Params
from mme.config.ablation import Budget
from mme.experiments.ablation.cells import Site, run_cell
from mme.experiments.ablation.plan import Cell, Result, final_cells, search_cells
from mme.experiments.ablation.report import write_report
from mme.manifest import Manifest
from mme.system.executors import open_process_pool
from mme.system.files import digest, sha256_file, write_text
from mme.tracking import start_run

MODULES = ("experiments/ablation/cells.py", "experiments/ablation/plan.py", "evaluation/probe.py")
PACKAGES = ("data", "models", "motion", "targets", "training", "video")
"""Whose code decides what a cell comes to."""

Tell = Callable[[str], None]
"""Receives a line for people."""


def run_ablation(params: Params, budget: Budget, data: Path, reports: Path, workers: int, tell: Tell) -> None:
    """Search, train and measure all objectives, and write the report; what an interrupted call finished is kept.

    Args:
        params: the whole of ``params.yaml``.
        budget: ``params.ablation.full`` or ``.quick``.
        data: folder of ``manifest.parquet``, ``videos`` and ``trajectories``.
        reports: the report's path without a suffix.
        workers: trainings side by side, on equal shares of the cores.
        tell: receives a line for each finished cell.

    Raises:
        ValueError: the data do not fit the parameters.
    """
    manifest = Manifest.load(data / "manifest.parquet")
    work = Path(".work/ablation")
    code = code_digest()
    note = work / f"run-{digest([budget.model_dump(mode='json'), manifest.digest, code])}"
    former = note.read_text(encoding="utf-8") if note.exists() else None
    with start_run("ablation", params, resume_run_id=former) as run:
        write_text(note, run.id)
        run.log_dataset(data / "manifest.parquet", manifest.digest, "ablation")
        site = Site(params, budget, data, work, code, run.id)
        searched = run_cells(site, search_cells(budget), workers, tell)
        finished = run_cells(site, final_cells(budget, searched), workers, tell)
        summary = write_report(searched, finished, budget, manifest, reports)
        run.log_metrics(summary)
        for path in sorted(reports.parent.glob(f"{reports.name}.*")):
            run.log_artifact(path)


def run_cells(site: Site, cells: Sequence[Cell], workers: int, tell: Tell) -> list[Result]:
    """Results in the order of ``cells``."""
    results: dict[Cell, Result] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    with open_process_pool(workers, run_cell.__module__, limit_threads, threads) as pool:
        for cell, result in pool.call_all(run_cell, ((cell, (site, cell)) for cell in cells)):
            results[cell] = result
            tell(f"{len(results)}/{len(cells)} {cell.name}: {figures(result)}")
    return [results[cell] for cell in cells]


def limit_threads(count: int) -> None:
    """Use so many cores in this process."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    threadpool_limits(count)


def figures(result: Result) -> str:
    """A result in a line."""
    split = "val" if result["cell"]["search"] else "test"
    parts = [f"{split} {name} {value:.1%}" for name, value in result[split].items()]
    return ", ".join(
        [*parts, *(f"{name} {result[name]:.0f}" for name in ("pretrain_s", "finetune_s") if name in result)]
    )


def code_digest() -> str:
    """What the code is that decides results: editing it starts the ablation afresh."""
    root = Path(mme.__file__).parent
    files = [root / name for name in MODULES]
    files += [path for name in PACKAGES for path in sorted((root / name).rglob("*.py"))]
    return digest([[str(path.relative_to(root)), sha256_file(path)] for path in files])
