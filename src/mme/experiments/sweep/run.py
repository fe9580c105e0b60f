"""Running a sweep: worker processes that take trials from the queue, and the one that looks after them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from mme.experiments.sweep.space import DIGITS, check_space
from mme.experiments.sweep.study import (
    RUN_ID,
    SURPLUS,
    is_waiting,
    join,
    open_storage,
    plan,
    retry_unfinished,
    sampler_and_pruner,
    study_name,
)
from mme.experiments.sweep.trial import METRIC, REPEAT_OF, SEED, VALUES, WORK, Objective, Setting
from mme.manifest import MANIFEST_FILE, Manifest
from mme.motion.store import TrackStore
from mme.system.parent import end_with_parent
from mme.tracking import start_run

TRACKS = Path("data/trajectories")

POLL_S = 2.0
STOP_S = 60.0
"""How long a worker has to record that it was stopped."""

Show = Callable[[FrozenTrial], None]
"""Receives each trial when it has ended."""


@dataclass(frozen=True)
class Crew:
    """Worker processes of a study.

    Attributes:
        params: of the pipeline.
        study: the study's name.
        parent_id: MLflow's run of the sweep.
        num_workers: processes.
    """

    params: Params
    study: str
    parent_id: str
    num_workers: int

    @property
    def num_threads(self) -> int:
        """Of each worker, so that together they use the cores once."""
        return max(1, len(os.sched_getaffinity(0)) // self.num_workers)


def manifest_file(params: Params) -> Path:
    """Of the data set that trials pretrain on; its labelled videos are what they are probed with."""
    return Path(params.pretrain.data, MANIFEST_FILE)


def name_of_study(params: Params) -> str:
    """The study that ``params`` and the data in the working folder belong to."""
    return study_name(params, [Manifest.load(manifest_file(params)).digest, TrackStore(TRACKS).params])


def sweep(params: Params, num_workers: int, show: Show) -> optuna.Study:
    """Run the trials that are missing, together with other hosts if the storage is a database.

    A study that was interrupted, killed at any point included, goes on where it was, in the same MLflow run.

    Raises:
        ValueError: the space is wrong, or data, trajectories or storage are not there.
        RuntimeError: a worker ended without a word, or no trial at all was finished.
    """
    check_space(params)
    name, storage = name_of_study(params), open_storage(params.runtime)
    (WORK / name).mkdir(parents=True, exist_ok=True)
    study = join(params, name, storage)
    tags = {"study": name}
    with start_run("sweep", params, tags=tags, resume_run_id=study.user_attrs.get(RUN_ID)) as run:
        _retry(study, params)
        plan(study, params.sweep)
        study.set_user_attr(RUN_ID, run.id)
        _work_off(Crew(params, name, run.id, num_workers), study, show)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not finished:
            raise RuntimeError(f"{name}: no trial was finished; {WORK / name} holds the workers' logs")
        run.log_metrics({METRIC: study.best_value, "sweep/finished": len(finished)})
    return study


def repeat(params: Params, number: int | None, seeds: Sequence[int], num_workers: int, show: Show) -> optuna.Study:
    """Run a trial again with other seeds, in a study of its own: how much of a difference is chance.

    Args:
        params: of the pipeline.
        number: the trial; None = the best.
        seeds: in the place of ``seed``.
        num_workers: processes.
        show: receives each repetition.

    Raises:
        ValueError: there is no such finished trial.
    """
    study = load(params)
    trial = finished_trial(study, number)
    repeats = optuna.create_study(
        study_name=repeats_name(study.study_name), storage=open_storage(params.runtime), direction="maximize",
        load_if_exists=True, pruner=optuna.pruners.NopPruner(),
    )  # fmt: skip
    (WORK / repeats.study_name).mkdir(parents=True, exist_ok=True)
    _retry(repeats, params)
    known = {(old.user_attrs[REPEAT_OF], old.user_attrs[SEED]) for old in repeats.get_trials(deepcopy=False)}
    for seed in seeds:
        if (trial.number, seed) not in known:
            attributes = {REPEAT_OF: trial.number, SEED: seed, VALUES: trial.params}
            repeats.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))
    _work_off(Crew(params, repeats.study_name, study.user_attrs[RUN_ID], num_workers), repeats, show)
    return repeats


def load(params: Params) -> optuna.Study:
    """The study of ``params`` and the data in the working folder.

    Raises:
        ValueError: there is none.
    """
    name, storage = name_of_study(params), open_storage(params.runtime)
    known = optuna.get_all_study_names(storage)
    if name not in known:
        where = params.runtime.sweep_storage
        raise ValueError(f"{where}: no study {name} of these parameters and data, it has {known}")
    return optuna.load_study(study_name=name, storage=storage)


def finished_trial(study: optuna.Study, number: int | None) -> FrozenTrial:
    """A finished trial by its number, or the best.

    Raises:
        ValueError: there is none.
    """
    finished = {trial.number: trial for trial in study.get_trials(states=(TrialState.COMPLETE,))}
    if not finished or (number is not None and number not in finished):
        raise ValueError(f"{study.study_name}: trial {number} is not finished; finished are {sorted(finished)}")
    return study.best_trial if number is None else finished[number]


def repeats_name(study: str) -> str:
    """The study of a study's repetitions."""
    return f"{study}-repeats"


def _retry(study: optuna.Study, params: Params) -> None:
    with _queue_lock(study.study_name):
        retry_unfinished(study, shared="://" in params.runtime.sweep_storage)


def _queue_lock(study: str) -> FileLock:
    """Held on this host from a look at the queue until a trial has been taken from it and says by whom."""
    return FileLock(WORK / study / "queue.lock", thread_local=False)


def _work_off(crew: Crew, study: optuna.Study, show: Show) -> None:
    """Let workers run the queued trials; one that is killed is replaced, and its trial tried again."""
    shown = {trial.number for trial in _ended(study)}
    workers = [_start(crew, index) for index in range(crew.num_workers)]
    try:
        while any(worker.is_alive() for worker in workers):
            wait([worker.sentinel for worker in workers if worker.is_alive()], POLL_S)
            for trial in _ended(study):
                if trial.number not in shown:
                    shown.add(trial.number)
                    show(trial)
            for index, worker in enumerate(workers):
                if worker.exitcode is not None and worker.exitcode < 0:
                    _retry(study, crew.params)
                    workers[index] = _start(crew, index)
                elif worker.exitcode:
                    raise RuntimeError(f"worker {index} failed, see {_log_file(crew.study, index)}")
    finally:
        _stop(workers)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if SURPLUS not in trial.user_attrs]


def _start(crew: Crew, index: int) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(crew, index), name=f"sweep-{index}")
    process.start()
    return process


def _stop(workers: Sequence[SpawnProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()  # it records that its trial was interrupted
    for worker in workers:
        worker.join(STOP_S)
        if worker.is_alive():
            worker.kill()
            worker.join()


def _work(crew: Crew, index: int) -> None:
    """A worker process: one trial after the other until the queue is empty."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; who started this one passes it on
    _write_to(_log_file(crew.study, index))
    end_with_parent(signal.SIGTERM)  # whose handler records that the trial was interrupted
    torch.set_num_threads(crew.num_threads)
    cv2.setNumThreads(1)
    data = manifest_file(crew.params)
    setting = Setting(crew.params, data, Manifest.load(data), TrackStore(TRACKS), crew.study, crew.parent_id)
    is_repeats = crew.study.endswith(repeats_name(""))
    parts: dict[str, Any] = {"pruner": optuna.pruners.NopPruner()} if is_repeats else sampler_and_pruner(crew.params)
    study = optuna.load_study(study_name=crew.study, storage=open_storage(crew.params.runtime), **parts)
    lock = _queue_lock(crew.study)
    objective = Objective(setting, lambda: lock.release(force=True))
    while True:
        with lock:
            if not is_waiting(study):
                return
            study.optimize(objective, n_trials=1, catch=(Exception,))


def _log_file(study: str, index: int) -> Path:
    return WORK / study / f"worker-{index}.log"


def _write_to(path: Path) -> None:
    """Let all that this process says go to a file: the bars of several would overwrite each other."""
    with path.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def best_values(params: Params, number: int | None) -> Values:
    """The values of a finished trial, or of the best one; raises as `load` and `finished_trial`."""
    return {
        name: round(value, DIGITS) if isinstance(value, float) else value
        for name, value in finished_trial(load(params), number).params.items()
    }


def line(trial: FrozenTrial) -> str:
    """What became of a trial."""
    outcome = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed"}[trial.state]
    probe = "" if trial.value is None else f"{trial.value:.1%}"
    seconds = f"{trial.duration.total_seconds():.0f} s" if trial.duration else ""
    seed = {SEED: trial.user_attrs[SEED]} if SEED in trial.user_attrs else {}
    values = values_text({**trial.user_attrs.get(VALUES, {}), **trial.params, **seed})
    return f"trial {trial.number:>3}  {outcome:<8}  {probe:>6}  {seconds:>7}  {values}"


def values_text(values: Values) -> str:
    """Values for people, by the last part of their names."""
    shown = {name.rpartition(".")[2]: value for name, value in values.items()}
    return ", ".join(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in shown.items())
