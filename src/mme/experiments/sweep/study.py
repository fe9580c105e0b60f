"""Studies: where trials are kept, which comes next, and what becomes of those whose process is gone."""

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
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mme.config import Params, RuntimeParams
from mme.config.sweep import SweepParams
from mme.system.files import digest

MAX_RETRIES = 3
"""How often a trial is tried again that was interrupted, or whose process died."""

NUM_CONNECTIONS = 5
"""Attempts to open a database, a second apart."""

PARENT_WAIT_S = 60.0
"""How long who joins a new study waits for the one that made it to fill it."""

RUN_ID, WORKER, INTERRUPTED, SURPLUS = "run_id", "worker", "interrupted", "surplus"
"""Attributes of trials, the first also of studies: MLflow's run, the process at work, whether it was stopped, whether
it is one that nobody asked for."""


def study_name(params: Params, data: object) -> str:
    """Names what trials have in common, so that only comparable ones are in one study.

    Args:
        params: all but the swept ones count, so that a study is found again when its best values have been applied.
        data: JSON-able, identifies videos and trajectories.
    """
    sections = params.model_dump(mode="json", include={"clip", "model", "pretrain"})
    for name in (*params.sweep.space, *params.sweep.fixed):
        section, _, key = name.partition(".")
        del sections[section][key]
    search = params.sweep.model_dump(mode="json", include={"fixed", "space", "num_clips"})
    return f"sweep-{digest([sections, search, params.seed, data])}"


def open_storage(params: RuntimeParams) -> BaseStorage:
    """The journal file or the database that ``runtime.sweep_storage`` names.

    Raises:
        ValueError: the database cannot be reached.
    """
    if "://" not in params.sweep_storage:
        path = Path(params.sweep_storage).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    for attempt in range(NUM_CONNECTIONS):
        try:
            return _database(params)
        except Exception as error:
            if not type(error).__module__.startswith("sqlalchemy"):
                raise
            # Hosts that open an empty database at the same moment all make its tables, and all but one fail.
            if type(error).__name__ != "IntegrityError" or attempt == NUM_CONNECTIONS - 1:
                raise ValueError(f"runtime.sweep_storage: {params.sweep_storage}: {error}") from error
            time.sleep(1)
    raise AssertionError("returned or raised above")


def _database(params: RuntimeParams) -> RDBStorage:
    with _knowingly():
        return RDBStorage(
            params.sweep_storage,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=params.sweep_heartbeat_s,
            grace_period=2 * params.sweep_heartbeat_s,
            heartbeat_stale_trial_callback=_try_again,
        )


class TrialSampler(BaseSampler):
    """Optuna's TPE, seeded by the trial's number: neither resuming nor further workers draw a point twice."""

    def __init__(self, seed: int, startup_trials: int) -> None:
        self._seed, self._startup_trials = seed, startup_trials
        self._sampler = self._seeded(0)

    def _seeded(self, number: int) -> TPESampler:
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        with _knowingly():
            return TPESampler(n_startup_trials=self._startup_trials, multivariate=True, constant_liar=True, seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial's own random numbers."""
        self._sampler = self._seeded(trial.number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As TPE."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As TPE."""
        self._sampler.after_trial(study, trial, state, values)


def join(params: Params, name: str, storage: BaseStorage) -> optuna.Study:
    """A study, which is made if need be; who joins one that is being made waits until it has its parent run."""
    parts = sampler_and_pruner(params)
    try:
        return optuna.create_study(study_name=name, storage=storage, direction="maximize", **parts)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, **parts)
    deadline = time.monotonic() + PARENT_WAIT_S
    while RUN_ID not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.5)
    return study


def sampler_and_pruner(params: Params) -> dict[str, Any]:
    """What decides on the next point, and on ending a trial before its end."""
    sweep = params.sweep
    return {
        "sampler": TrialSampler(params.seed, sweep.startup_trials),
        "pruner": optuna.pruners.MedianPruner(sweep.prune_after_trials, sweep.prune_after_epochs),
    }


def plan(study: optuna.Study, params: SweepParams) -> None:
    """Queue as many trials as are missing; workers on any host take them from the queue, each once."""
    trials = study.get_trials(deepcopy=False)
    asked_for = [trial for trial in trials if SURPLUS not in trial.user_attrs]
    for number in range(len(asked_for) - len(_tried_again(trials)), params.trials):
        study.enqueue_trial(dict(params.first[number]) if number < len(params.first) else {})


def retry_unfinished(study: optuna.Study, *, shared: bool) -> list[int]:
    """Queue the trials again that were interrupted or whose process is gone.

    Args:
        study: of this sweep.
        shared: other hosts may be at work, whose silence the storage's heartbeat tells; otherwise whatever this host
            is not working on is abandoned.

    Returns:
        Their numbers.
    """
    trials = study.get_trials(deepcopy=False)
    done = _tried_again(trials)
    numbers = []
    for trial in trials:
        gone = trial.state == TrialState.RUNNING and not _is_at_work(trial.user_attrs.get(WORKER), shared=shared)
        stopped = trial.state == TrialState.FAIL and INTERRUPTED in trial.user_attrs and trial.number not in done
        if gone:
            study.tell(trial.number, state=TrialState.FAIL)
        if gone or stopped:
            _try_again(study, trial)
            numbers.append(trial.number)
    return numbers


def is_queued(trial: FrozenTrial) -> bool:
    """Whether a trial came from the queue.

    Two hosts that see the last one at the same moment ask for it both, and Optuna makes the slower one a new trial.
    """
    return bool({"fixed_params", "retry_history"} & trial.system_attrs.keys() or trial.user_attrs)


def is_waiting(study: optuna.Study) -> bool:
    """Whether a trial is queued."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


@contextmanager
def _knowingly() -> Iterator[None]:
    """Use a part of Optuna that it calls experimental; the version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def this_process() -> dict[str, Any]:
    """What names a process for good: numbers of processes are used again."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _is_at_work(worker: dict[str, Any] | None, *, shared: bool) -> bool:
    if worker is None:  # it has been taken from the queue just now, or its process died that very moment
        return shared
    if worker["host"] != socket.gethostname():
        return shared
    try:
        process = psutil.Process(worker["pid"])
        return bool(process.create_time() == worker["started"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial with its values and its probes; it goes on in the same MLflow run, from the last checkpoint."""
    kept = {name: value for name, value in trial.user_attrs.items() if name not in (WORKER, INTERRUPTED)}
    trial.user_attrs = kept
    with _knowingly():
        RetryHeartbeatStaleTrialCallback(MAX_RETRIES, inherit_intermediate_values=True)(study, trial)


def _tried_again(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of trials that another trial goes on with."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
