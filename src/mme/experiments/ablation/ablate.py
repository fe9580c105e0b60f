"""The whole ablation: search, final runs, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import joblib  # type: ignore[import-untyped]
import torch
from threadpoolctl import threadpool_limits

import mme
from mme.config import Params
from mme.config.ablation import SCRATCH, Budget
from mme.config.paths import TRACKS_FOLDER
from mme.experiments.ablation.plan import (
    AblationRun,
    RunResult,
    final_runs,
    finetuned_runs,
    search_runs,
)
from mme.experiments.ablation.report import write_ablation_report
from mme.experiments.ablation.runs import AblationContext, execute_run, stored_result
from mme.manifest import MANIFEST_FILE, SPLITS, Manifest
from mme.motion.store import TrackStore
from mme.system.executors import open_process_pool
from mme.system.files import digest, sha256_file
from mme.tracking import start_noted_run
from mme.training.pretrain import span_frames

RUNS_FOLDER = Path(".work/ablation")

MODULES = ("experiments/ablation/runs.py", "experiments/ablation/plan.py", "evaluation/probe.py")
PACKAGES = ("data", "models", "motion", "targets", "training", "video")
"""Code that decides the result of a run."""

ShowLine = Callable[[str], None]


def run_ablation(
    params: Params,
    budget: Budget,
    data: Path,
    reports: Path,
    workers: int,
    show: ShowLine,
    *,
    stored_only: bool = False,
) -> None:
    """Search, train and measure all objectives and write the report; finished runs of an earlier call are kept.

    Args:
        params: the whole of ``params.yaml``.
        budget: ``params.ablation``, or its ``quick`` part.
        data: folder of ``manifest.parquet``, ``videos`` and ``trajectories``.
        reports: path of the report without a suffix.
        workers: trainings in parallel, on equal shares of the cores.
        show: receives one line per finished run.
        stored_only: True to train nothing and to report what earlier calls have finished.

    Raises:
        ValueError: the data do not fit the parameters.
    """
    manifest = Manifest.load(data / MANIFEST_FILE)
    if budget.folds is not None:
        tracks = TrackStore(data / TRACKS_FOLDER.name)
        untracked = [v for v in manifest.labelled(("train", "val", "test"), span_frames(params)) if v.id not in tracks]
        if untracked:
            raise ValueError(
                f"{data}: no trajectories of {len(untracked)} labelled videos, which folds train on in turn; set"
                f" trajectories.splits: {list(SPLITS)} and run `dvc repro trajectories`"
            )
    code = code_digest()
    note = RUNS_FOLDER / f"run-{digest([budget.model_dump(mode='json'), manifest.digest, code])}"
    with start_noted_run("ablation", params, note) as recorded:
        recorded.log_dataset(data / MANIFEST_FILE, manifest.digest, "ablation")
        context = AblationContext(params, budget, data, RUNS_FOLDER, code, recorded.id)
        execute = partial(execute_runs, context, workers=workers, show=show, stored_only=stored_only)
        searched = execute(search_runs(budget))
        finals = final_runs(budget, searched)
        finished = execute(finals)
        if tuned_runs := finetuned_runs(budget, finals):
            tuned = execute(tuned_runs, finetuned=True)
            again = [result["run"] for result in tuned]
            finished = tuned + [result for result in finished if result["run"] not in again]
        if not finished:
            raise ValueError(f"{RUNS_FOLDER}: no training of this ablation is finished, there is nothing to report")
        recorded.log_metrics(write_ablation_report(params, searched, finished, budget, manifest, reports))
        for path in sorted(reports.parent.glob(f"{reports.name}.*")):
            recorded.log_artifact(path)


def execute_runs(
    context: AblationContext,
    runs: Sequence[AblationRun],
    *,
    workers: int,
    show: ShowLine,
    finetuned: bool = False,
    stored_only: bool = False,
) -> list[RunResult]:
    """Execute runs in parallel processes and return their results in the order of ``runs``.

    Search runs of ``scratch`` are finetuned, of the others those where ``finetuned`` says so. With ``stored_only``
    nothing is trained, and runs without a result are left out.
    """
    call = {run: (context, run, finetuned or (run.search and run.objective == SCRATCH)) for run in runs}
    if stored_only:
        return [result for run in runs if (result := stored_result(*call[run])) is not None]
    results: dict[AblationRun, RunResult] = {}
    num_threads = max(1, joblib.cpu_count() // workers)
    with open_process_pool(workers, execute_run.__module__, _limit_threads, num_threads) as pool:
        for run, result in pool.call_all(execute_run, call.items()):
            results[run] = result
            show(f"{len(results)}/{len(runs)} {run.name}: {describe_result(result)}")
    return [results[run] for run in runs]


def describe_result(result: RunResult) -> str:
    """Return the metrics and seconds of a result in one line."""
    split, metrics = ("test", result["test"]) if "test" in result else ("val", result["val"])
    parts = [f"{split} {name} {value:.1%}" for name, value in metrics.items()]
    if "pretrain_s" in result:
        parts.append(f"pretrain_s {result['pretrain_s']:.0f}")
    if "finetune_s" in result:
        parts.append(f"finetune_s {result['finetune_s']:.0f}")
    return ", ".join(parts)


def code_digest() -> str:
    """Return the digest of the code that decides results: editing it invalidates finished runs."""
    root = Path(mme.__file__).parent
    files = [root / name for name in MODULES]
    files += [path for name in PACKAGES for path in sorted((root / name).rglob("*.py"))]
    return digest([[str(path.relative_to(root)), sha256_file(path)] for path in files])


def _limit_threads(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    cv2.setNumThreads(num_threads)
    threadpool_limits(num_threads)
