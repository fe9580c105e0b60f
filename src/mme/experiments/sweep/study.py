"""Study of a sweep: storage, sampler, and the queue of trials."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil  # type: ignore[import-untyped]
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from mme.config import Params
from mme.system.files import digest

MAX_RETRIES = 3
"""Times that a trial is run again after it was interrupted or its process died."""

MAX_CONNECTIONS = 5
"""Attempts to open a database, one second apart."""

PARENT_WAIT_S = 60.0
"""Seconds to wait for the host that created the study to publish the parent run."""

RUN_ID, WORKER, INTERRUPTED = "run_id", "worker", "interrupted"
"""Optuna user attributes: MLflow run id (also of the study), owning process, ended by a signal."""

SEED, REPEAT_OF = "seed", "repeat_of"
"""User attributes of a repetition: its seed, and the number of the repeated trial."""


def study_name(params: Params, data: object) -> str:
    """Return the name of the study; trials in one study are comparable.

    Args:
        params: all values of ``clip``, ``model`` and ``pretrain`` count except the swept ones, so that the study is
            found again after its best values have been applied.
        data: JSON-able identity of videos and trajectories.
    """
    sections = params.model_dump(mode="json", include={"clip", "model", "pretrain"})
    for name in (*params.sweep.space, *params.sweep.fixed):
        section, _, key = name.partition(".")
        del sections[section][key]
    search = params.sweep.model_dump(mode="json", include={"fixed", "space", "num_clips"})
    return f"sweep-{digest([sections, search, params.seed, data])}"


def is_shared(params: Params) -> bool:
    """Return True if the storage is a database, which trials on other hosts may use at the same time."""
    return "://" in params.runtime.sweep_storage


def open_storage(params: Params) -> BaseStorage:
    """Open the journal file or the database of the sweep.

    Raises:
        ValueError: the database cannot be reached.
    """
    address, heartbeat_s = params.runtime.sweep_storage, params.runtime.sweep_heartbeat_s
    if not is_shared(params):
        path = Path(address).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))

    for attempt in range(1, MAX_CONNECTIONS + 1):
        try:
            with _allow_experimental():
                return RDBStorage(
                    address,
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=heartbeat_s,
                    grace_period=2 * heartbeat_s,
                    heartbeat_stale_trial_callback=_enqueue_again,
                )
        except SQLAlchemyError as error:
            # Hosts that open an empty database at the same time all create its tables, and all but one fail: PostgreSQL
            # says that a name is taken, as a broken constraint or as a wrong statement.
            if not isinstance(error, (IntegrityError, ProgrammingError)) or attempt == MAX_CONNECTIONS:
                raise ValueError(f"runtime.sweep_storage: {address}: {error}") from error
            time.sleep(1)
    raise AssertionError("the last attempt returns or raises")


class TrialSampler(TPESampler):
    """TPE seeded by the number of the trial: resumed sweeps and additional workers draw no point twice."""

    def __init__(self, seed: int, startup_trials: int) -> None:
        self._sweep_seed = seed
        self._startup_trials = startup_trials
        self._reset(0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed the random numbers of the trial."""
        self._reset(trial.number)
        super().before_trial(study, trial)

    def _reset(self, number: int) -> None:
        seed = int(np.random.SeedSequence((self._sweep_seed, number)).generate_state(1)[0])
        with _allow_experimental():
            super().__init__(n_startup_trials=self._startup_trials, multivariate=True, constant_liar=True, seed=seed)


def sampler_and_pruner(params: Params) -> dict[str, Any]:
    """Return the keyword arguments ``sampler`` and ``pruner`` of a study."""
    sweep = params.sweep
    return {
        "sampler": TrialSampler(params.seed, sweep.startup_trials),
        "pruner": optuna.pruners.SuccessiveHalvingPruner(sweep.prune_after_epochs, sweep.reduction_factor),
    }


def join_study(params: Params, name: str, storage: BaseStorage) -> optuna.Study:
    """Create a study, or load it once the host that created it has published the parent run."""
    options = sampler_and_pruner(params)
    try:
        return optuna.create_study(study_name=name, storage=storage, direction="maximize", **options)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, **options)
    deadline = time.monotonic() + PARENT_WAIT_S
    while RUN_ID not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.5)
    return study


def enqueue_missing(study: optuna.Study, params: Params) -> None:
    """Fill the queue up to ``sweep.trials``; the workers of all hosts take trials from it, each once."""
    sweep = params.sweep
    trials = study.get_trials(deepcopy=False)
    retried = _retried(trials)
    planned = [trial for trial in trials if is_queued(trial) and not is_repeat(trial) and trial.number not in retried]
    for number in range(len(planned), sweep.trials):
        study.enqueue_trial(dict(sweep.first[number]) if number < len(sweep.first) else {})


def enqueue_repeats(study: optuna.Study, trials: Iterable[FrozenTrial], seeds: Sequence[int]) -> None:
    """Add the missing repetitions of some trials to the queue: one seed of all trials after the other.

    Hosts that do so at the same moment add them twice; see `has_twin`.
    """
    known = {_repeat_key(trial) for trial in study.get_trials(deepcopy=False)}
    for seed in seeds:
        for trial in trials:
            if (trial.number, seed) not in known:
                attributes = {REPEAT_OF: trial.number, SEED: seed}
                study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        params=trial.params,
                        distributions=trial.distributions,
                        user_attrs=attributes,
                    )
                )


def is_repeat(trial: FrozenTrial) -> bool:
    """Return True for a repetition of another trial."""
    return REPEAT_OF in trial.user_attrs


def has_twin(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Return True if another host has added the same repetition before."""
    return is_repeat(trial) and any(
        _repeat_key(other) == _repeat_key(trial) and other.state != TrialState.FAIL
        for other in study.get_trials(deepcopy=False)[: trial.number]
    )


def _repeat_key(trial: FrozenTrial) -> tuple[int | None, int | None]:
    return trial.user_attrs.get(REPEAT_OF), trial.user_attrs.get(SEED)


def retry_unfinished(study: optuna.Study, *, shared: bool) -> list[int]:
    """Enqueue the trials again that were interrupted or whose process is gone.

    Args:
        study: study of the sweep.
        shared: other hosts may run trials; the storage's heartbeat detects the dead ones. False: every trial that no
            process of this host runs is abandoned.

    Returns:
        Numbers of these trials.
    """
    trials = study.get_trials(deepcopy=False)
    retried = _retried(trials)
    numbers = []
    for trial in trials:
        abandoned = trial.state == TrialState.RUNNING and not _is_running(trial.user_attrs.get(WORKER), shared=shared)
        interrupted = trial.state == TrialState.FAIL and INTERRUPTED in trial.user_attrs and trial.number not in retried
        if abandoned:
            study.tell(trial.number, state=TrialState.FAIL)
        if abandoned or interrupted:
            _enqueue_again(study, trial)
            numbers.append(trial.number)
    return numbers


def is_queued(trial: FrozenTrial) -> bool:
    """Return True if a trial came from the queue.

    If two hosts take the last queued trial at the same time, Optuna creates a new trial for the slower one. It has none
    of these attributes, does not run and is not counted.
    """
    return bool({"fixed_params", "retry_history"} & trial.system_attrs.keys() or trial.user_attrs)


def is_waiting(study: optuna.Study) -> bool:
    """Return True if the queue has a trial."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def is_running(study: optuna.Study) -> bool:
    """Return True if a process of any host runs a trial; those whose heartbeat has stopped are queued again first."""
    with _allow_experimental():
        optuna.storages.fail_stale_trials(study)
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return any(WORKER in trial.user_attrs for trial in running)


def this_process() -> dict[str, Any]:
    """Return host, process id and start time, which together identify a process: ids are reused."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _is_running(worker: dict[str, Any] | None, *, shared: bool) -> bool:
    if worker is None or worker["host"] != socket.gethostname():
        return shared  # just taken from the queue, or by another host: the heartbeat decides
    try:
        process = psutil.Process(worker["pid"])
        return bool(process.create_time() == worker["started"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _enqueue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue a trial with its values, probes and MLflow run; it resumes from its last checkpoint."""
    trial.user_attrs = {name: value for name, value in trial.user_attrs.items() if name not in (WORKER, INTERRUPTED)}
    with _allow_experimental():
        RetryHeartbeatStaleTrialCallback(MAX_RETRIES, inherit_intermediate_values=True)(study, trial)


def _retried(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of trials that a later trial resumes."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}


@contextmanager
def _allow_experimental() -> Iterator[None]:
    """Silence Optuna's warning about experimental parts; its version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
