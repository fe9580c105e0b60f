"""Run a sweep: worker processes that take trials from the queue, and their supervisor."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import cv2
import joblib  # type: ignore[import-untyped]
import optuna
import torch
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from mme.config import Params
from mme.config.edit import Values
from mme.config.paths import TRACKS_FOLDER
from mme.experiments.sweep.points import (
    Point,
    best_point,
    compare,
    measured_points,
    points_to_repeat,
)
from mme.experiments.sweep.space import STEP_DIGITS, check_space
from mme.experiments.sweep.study import (
    RUN_ID,
    SEED,
    enqueue_missing,
    enqueue_repeats,
    is_queued,
    is_running,
    is_shared,
    is_waiting,
    join_study,
    open_storage,
    retry_unfinished,
    sampler_and_pruner,
    study_name,
)
from mme.experiments.sweep.trial import (
    METRIC,
    StudyRun,
    TrialObjective,
    manifest_path,
)
from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.system.parent import end_with_parent
from mme.tracking import open_store, start_run

POLL_S = 2.0
STOP_S = 60.0
"""Seconds that a terminated worker has to record the interruption."""

ShowTrial = Callable[[FrozenTrial], None]
"""Called with each trial after its end."""


def name_of_study(params: Params) -> str:
    """Return the name of the study of ``params`` and the data in the working folder."""
    data = [Manifest.load(manifest_path(params)).digest, TrackStore(TRACKS_FOLDER).params]
    return study_name(params, [METRIC, params.evaluate.pool, *data])


def run_sweep(params: Params, num_workers: int, show: ShowTrial) -> optuna.Study:
    """Run the missing trials, then the best points again with other seeds, together with other hosts of a database.

    A study that was interrupted or killed at any point is continued, in the same MLflow run.

    Raises:
        ValueError: the space is invalid, or data, trajectories or storage are missing.
        RuntimeError: a worker exited without reporting an error, or no trial finished.
    """
    check_space(params)
    open_store()
    name, sweep = name_of_study(params), params.sweep
    study = join_study(params, name, open_storage(params))
    with start_run("sweep", params, tags={"study": name}, resume_run_id=study.user_attrs.get(RUN_ID)) as run:
        study_run = StudyRun(params, name, run.id)
        _retry(study_run, study)
        enqueue_missing(study, params)
        study.set_user_attr(RUN_ID, run.id)

        _run_queue(study_run, study, num_workers, show)
        points = measured_points(study)
        if not points:
            raise RuntimeError(f"{name}: no trial finished; the workers' logs are in {study_run.work}")
        repeated = [point.trial for point in points_to_repeat(points, sweep.repeat_best)]
        enqueue_repeats(study, repeated, further_seeds(params, sweep.repeat_seeds))
        _run_queue(study_run, study, num_workers, show)

        points = measured_points(study)
        best = best_point(points)
        run.log_metrics({METRIC: best.estimate, "sweep/finished": len(points)})
    return study


def repeat_trial(params: Params, number: int | None, num_seeds: int, num_workers: int, show: ShowTrial) -> optuna.Study:
    """Run a trial again with other seeds.

    Args:
        params: parameters of the pipeline.
        number: number of the trial; None = the best.
        num_seeds: number of further seeds.
        num_workers: processes.
        show: called with each repetition.

    Raises:
        ValueError: there is no such finished trial.
    """
    open_store()  # asked before any work; the repetitions are recorded by the workers
    study = load_study(params)
    study_run = StudyRun(params, study.study_name, study.user_attrs[RUN_ID])
    _retry(study_run, study)
    enqueue_repeats(study, [finished_point(study, number).trial], further_seeds(params, num_seeds))
    _run_queue(study_run, study, num_workers, show)
    return study


def further_seeds(params: Params, count: int) -> range:
    """Return the seeds of repetitions."""
    return range(params.seed + 1, params.seed + 1 + count)


def load_study(params: Params) -> optuna.Study:
    """Load the study of ``params`` and the data in the working folder.

    Raises:
        ValueError: there is no such study.
    """
    name, storage = name_of_study(params), open_storage(params)
    known = optuna.get_all_study_names(storage)
    if name not in known:
        raise ValueError(
            f"{params.runtime.sweep_storage}: has no study {name} of these parameters and data, only {known}"
        )
    return optuna.load_study(study_name=name, storage=storage)


def finished_point(study: optuna.Study, number: int | None) -> Point:
    """Return the point of a finished trial, or the best one.

    Raises:
        ValueError: there is no such trial, or it repeats another one.
    """
    points = {point.trial.number: point for point in measured_points(study)}
    if not points or (number is not None and number not in points):
        raise ValueError(f"{study.study_name}: trial {number} is not finished; finished are {sorted(points)}")
    return best_point(list(points.values())) if number is None else points[number]


def trial_values(point: Point) -> Values:
    """Return the values of a point, to be written into ``params.yaml``."""
    values = point.trial.params
    return {name: round(value, STEP_DIGITS) if isinstance(value, float) else value for name, value in values.items()}


def check_significance(study: optuna.Study, point: Point) -> None:
    """Check that a point is above the median one by two standard errors.

    Raises:
        ValueError: it is not, or was not repeated with other seeds; the message says what to do.
    """
    number = point.trial.number
    comparison = compare(measured_points(study), point)
    if comparison is None:
        raise ValueError(
            f"trial {number} and the median finished one were not repeated with the same seeds; run `mme sweep` or"
            f" `mme sweep repeat --trial NUMBER` for both, or apply it with --force"
        )
    if not comparison.is_significant:
        raise ValueError(
            f"{comparison}, so it may be luck; raise sweep.repeat_seeds or pretrain.epochs in sweep.fixed and run"
            " `mme sweep` again, or apply it with --force"
        )


def describe_trial(trial: FrozenTrial) -> str:
    """Return one line about an ended trial: state, probe, duration, values."""
    state = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}[trial.state]
    probe = "" if trial.value is None else f"{trial.value:.1%}"
    seconds = f"{trial.duration.total_seconds():.0f} s" if trial.duration else ""
    seed = {SEED: trial.user_attrs[SEED]} if SEED in trial.user_attrs else {}
    values = format_values({**trial.params, **seed})
    return f"trial {trial.number:>3}  {state:<8}  {probe:>6}  {seconds:>7}  {values}"


def format_values(values: Values) -> str:
    """Return values as text, each with the last part of its name."""
    short = {name.rpartition(".")[2]: value for name, value in values.items()}
    return ", ".join(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in short.items())


def _run_queue(study_run: StudyRun, study: optuna.Study, num_workers: int, show: ShowTrial) -> None:
    """Run the queued trials, and wait for those that other processes and hosts have taken."""
    while is_waiting(study) or is_running(study):
        if is_waiting(study):
            _run_workers(study_run, study, num_workers, show)
        else:
            time.sleep(POLL_S)
        _retry(study_run, study)


def _run_workers(study_run: StudyRun, study: optuna.Study, num_workers: int, show: ShowTrial) -> None:
    """Run the queued trials in worker processes; replace a worker that was killed and run its trial again."""
    num_threads = max(1, joblib.cpu_count() // num_workers)

    def start(index: int) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(study_run, index, num_threads))
        process.start()
        return process

    shown = {trial.number for trial in _ended(study)}
    workers = [start(index) for index in range(num_workers)]
    try:
        while any(worker.is_alive() for worker in workers):
            wait([worker.sentinel for worker in workers if worker.is_alive()], POLL_S)
            for trial in _ended(study):
                if trial.number not in shown:
                    shown.add(trial.number)
                    show(trial)
            for index, worker in enumerate(workers):
                if worker.exitcode is not None and worker.exitcode < 0:
                    _retry(study_run, study)
                    workers[index] = start(index)
                elif worker.exitcode:
                    raise RuntimeError(f"worker {index} failed, see {_log_file(study_run, index)}")
    finally:
        for worker in workers:
            worker.terminate()  # it records that its trial was interrupted
        for worker in workers:
            worker.join(STOP_S)
            worker.kill()
            worker.join()


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if is_queued(trial)]


def _retry(study_run: StudyRun, study: optuna.Study) -> None:
    with _queue_lock(study_run):
        retry_unfinished(study, shared=is_shared(study_run.params))


def _queue_lock(study_run: StudyRun) -> FileLock:
    """Return the lock that is held on this host while a trial is taken from the queue and marked with its worker."""
    study_run.work.mkdir(parents=True, exist_ok=True)
    return FileLock(study_run.work / "queue.lock", thread_local=False)


def _log_file(study_run: StudyRun, index: int) -> Path:
    return study_run.work / f"worker-{index}.log"


def _work(study_run: StudyRun, index: int, num_threads: int) -> None:
    """Run one trial after the other until the queue is empty (worker process)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all; the supervisor terminates its workers
    end_with_parent(signal.SIGTERM)
    torch.set_num_threads(num_threads)
    cv2.setNumThreads(1)

    # Send all output to a file: the progress bars of several workers would overwrite each other.
    with _log_file(study_run, index).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())

    study = optuna.load_study(
        study_name=study_run.study, storage=open_storage(study_run.params), **sampler_and_pruner(study_run.params)
    )
    lock = _queue_lock(study_run)
    objective = TrialObjective(study_run, on_taken=lambda: lock.release(force=True))
    while True:
        with lock:
            if not is_waiting(study):
                return
            study.optimize(objective, n_trials=1, catch=(Exception,))
