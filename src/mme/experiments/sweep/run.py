"""Run a sweep: worker processes that take trials from the queue, and their supervisor."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import cv2
import optuna
import torch
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from mme.config import Params
from mme.config.edit import Values
from mme.config.paths import TRACKS_FOLDER
from mme.experiments.sweep.space import STEP_DIGITS, check_space
from mme.experiments.sweep.study import (
    RUN_ID,
    enqueue_missing,
    is_queued,
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
    REPEAT_OF,
    SEED,
    VALUES,
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

REPEATS = "-repeats"
"""Suffix of the study of a study's repetitions."""

ShowTrial = Callable[[FrozenTrial], None]
"""Called with each trial after its end."""


def name_of_study(params: Params) -> str:
    """Return the name of the study of ``params`` and the data in the working folder."""
    return study_name(params, [Manifest.load(manifest_path(params)).digest, TrackStore(TRACKS_FOLDER).params])


def run_sweep(params: Params, num_workers: int, show: ShowTrial) -> optuna.Study:
    """Run the missing trials, together with other hosts if the storage is a database.

    A study that was interrupted or killed at any point is continued, in the same MLflow run.

    Raises:
        ValueError: the space is invalid, or data, trajectories or storage are missing.
        RuntimeError: a worker exited without reporting an error, or no trial finished.
    """
    check_space(params)
    open_store()
    name = name_of_study(params)
    study = join_study(params, name, open_storage(params))
    with start_run("sweep", params, tags={"study": name}, resume_run_id=study.user_attrs.get(RUN_ID)) as run:
        study_run = StudyRun(params, name, run.id)
        _retry(study_run, study)
        enqueue_missing(study, params)
        study.set_user_attr(RUN_ID, run.id)

        _run_queue(study_run, study, num_workers, show)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not finished:
            raise RuntimeError(f"{name}: no trial finished; the workers' logs are in {study_run.work}")
        run.log_metrics({METRIC: study.best_value, "sweep/finished": len(finished)})
    return study


def repeat_trial(
    params: Params, number: int | None, seeds: Sequence[int], num_workers: int, show: ShowTrial
) -> optuna.Study:
    """Run a trial again with other seeds, in a study of its own, to measure the spread over seeds.

    Args:
        params: parameters of the pipeline.
        number: number of the trial; None = the best.
        seeds: values of ``seed``.
        num_workers: processes.
        show: called with each repetition.

    Raises:
        ValueError: there is no such finished trial.
    """
    open_store()  # asked before any work; the repetitions are recorded by the workers
    study = load_study(params)
    trial = finished_trial(study, number)
    repeats = optuna.create_study(
        study_name=study.study_name + REPEATS,
        storage=open_storage(params),
        direction="maximize",
        load_if_exists=True,
    )
    study_run = StudyRun(params, repeats.study_name, study.user_attrs[RUN_ID])
    _retry(study_run, repeats)
    known = {(old.user_attrs[REPEAT_OF], old.user_attrs[SEED]) for old in repeats.get_trials(deepcopy=False)}
    for seed in seeds:
        if (trial.number, seed) not in known:
            attributes = {REPEAT_OF: trial.number, SEED: seed, VALUES: trial.params}
            repeats.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))
    _run_queue(study_run, repeats, num_workers, show)
    return repeats


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


def finished_trial(study: optuna.Study, number: int | None) -> FrozenTrial:
    """Return a finished trial by its number, or the best one.

    Raises:
        ValueError: there is no such trial.
    """
    finished = {trial.number: trial for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    if not finished or (number is not None and number not in finished):
        raise ValueError(f"{study.study_name}: trial {number} is not finished; finished are {sorted(finished)}")
    return study.best_trial if number is None else finished[number]


def trial_values(params: Params, number: int | None) -> Values:
    """Return the values of a finished trial, or of the best; raises as `load_study` and `finished_trial`."""
    values = finished_trial(load_study(params), number).params
    return {name: round(value, STEP_DIGITS) if isinstance(value, float) else value for name, value in values.items()}


def describe_trial(trial: FrozenTrial) -> str:
    """Return one line about an ended trial: state, probe, duration, values."""
    state = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}[trial.state]
    probe = "" if trial.value is None else f"{trial.value:.1%}"
    seconds = f"{trial.duration.total_seconds():.0f} s" if trial.duration else ""
    seed = {SEED: trial.user_attrs[SEED]} if SEED in trial.user_attrs else {}
    values = format_values({**trial.user_attrs.get(VALUES, {}), **trial.params, **seed})
    return f"trial {trial.number:>3}  {state:<8}  {probe:>6}  {seconds:>7}  {values}"


def format_values(values: Values) -> str:
    """Return values as text, each with the last part of its name."""
    short = {name.rpartition(".")[2]: value for name, value in values.items()}
    return ", ".join(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in short.items())


def _run_queue(study_run: StudyRun, study: optuna.Study, num_workers: int, show: ShowTrial) -> None:
    """Run the queued trials in worker processes; replace a worker that was killed and run its trial again."""
    num_threads = max(1, len(os.sched_getaffinity(0)) // num_workers)

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

    is_repeats = study_run.study.endswith(REPEATS)
    no_pruner: dict[str, Any] = {"pruner": optuna.pruners.NopPruner()}
    study = optuna.load_study(
        study_name=study_run.study,
        storage=open_storage(study_run.params),
        **(no_pruner if is_repeats else sampler_and_pruner(study_run.params)),
    )
    lock = _queue_lock(study_run)
    objective = TrialObjective(study_run, on_taken=lambda: lock.release(force=True))
    while True:
        with lock:
            if not is_waiting(study):
                return
            study.optimize(objective, n_trials=1, catch=(Exception,))
