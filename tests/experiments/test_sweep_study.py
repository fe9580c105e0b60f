"""Queue of trials: order, points, and retry of interrupted trials. Nothing is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import psutil  # type: ignore[import-untyped]
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from mme.config import Params
from mme.experiments.sweep import study as studies
from mme.experiments.sweep.study import (
    INTERRUPTED,
    MAX_RETRIES,
    REPEAT_OF,
    RUN_ID,
    SEED,
    WORKER,
    enqueue_missing,
    enqueue_repeats,
    has_twin,
    is_running,
    join_study,
    open_storage,
    retry_unfinished,
)
from tests.small_data import small_params

PROBES = [0.5, 0.4, 0.6, 0.55, 0.3, 0.62, 0.58, 0.7]
SPACE = {"pretrain.mask_ratio": {"steps": (0.3, 0.9, 0.1)}}
PARAMS = small_params(
    sweep={"trials": 5, "startup_trials": 2, "space": SPACE, "fixed": {}, "prune_after_epochs": 6,
           "reduction_factor": 2, "first": ({"pretrain.mask_ratio": 0.7},)},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "PARENT_WAIT_S", 0.0)


def opened() -> optuna.Study:
    """The study as another process opens it."""
    return join_study(PARAMS, "study", open_storage(PARAMS))


def with_sweep(**values: Any) -> Params:
    return PARAMS.model_copy(update={"sweep": PARAMS.sweep.model_copy(update=values)})


def value(trial: optuna.Trial) -> float:
    return trial.suggest_float("pretrain.mask_ratio", 0.3, 0.9, step=0.1)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def abandoned() -> dict[str, Any]:
    """Identity of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    process.kill()
    process.communicate()
    return {**studies.this_process(), "pid": process.pid, "started": started}


def test_queue_holds_the_missing_trials_and_starts_with_the_first_points() -> None:
    study = opened()
    enqueue_missing(study, PARAMS)
    enqueue_missing(study, PARAMS)
    assert states(study) == ["WAITING"] * 5
    study.optimize(value, n_trials=2)
    assert study.get_trials()[0].params == {"pretrain.mask_ratio": 0.7}
    enqueue_missing(opened(), with_sweep(trials=7))
    assert states(study) == ["COMPLETE"] * 2 + ["WAITING"] * 5


def test_points_depend_on_the_number_of_the_trial_not_on_the_process() -> None:
    study = opened()
    enqueue_missing(study, PARAMS)
    study.optimize(value, n_trials=5)
    at_once = [trial.params for trial in study.get_trials()]
    Path("optuna.journal").unlink()
    enqueue_missing(opened(), PARAMS)
    for _ in range(5):
        opened().optimize(value, n_trials=1)
    assert [trial.params for trial in opened().get_trials()] == at_once
    assert len({params["pretrain.mask_ratio"] for params in at_once}) > 2


def test_trial_of_a_dead_process_is_queued_again_with_values_probes_and_run() -> None:
    study = opened()
    enqueue_missing(study, PARAMS)
    trial = study.ask()
    value(trial)
    trial.report(0.25, 3)
    trial.set_user_attr(RUN_ID, "a" * 32)
    trial.set_user_attr(WORKER, abandoned())
    assert retry_unfinished(opened(), shared=False) == [0]
    again = opened().get_trials()[-1]
    assert (again.state, again.params) == (TrialState.WAITING, {"pretrain.mask_ratio": 0.7})
    assert (again.intermediate_values, again.user_attrs) == ({3: 0.25}, {RUN_ID: "a" * 32})
    assert states(opened()) == ["FAIL"] + ["WAITING"] * 5
    assert retry_unfinished(opened(), shared=False) == []
    enqueue_missing(opened(), PARAMS)
    assert len(opened().get_trials()) == 6  # a retried trial counts once


def test_running_trial_is_not_queued_again() -> None:
    trial = opened().ask()
    trial.set_user_attr(WORKER, studies.this_process())
    assert retry_unfinished(opened(), shared=False) == []


@pytest.mark.parametrize(("shared", "expected"), [(True, []), (False, [0])])
def test_trial_of_another_host_is_left_to_the_heartbeat_of_a_shared_storage(shared: bool, expected: list[int]) -> None:
    trial = opened().ask()
    trial.set_user_attr(WORKER, {**studies.this_process(), "host": "elsewhere"})
    assert retry_unfinished(opened(), shared=shared) == expected


def test_reused_process_id_is_another_process() -> None:
    trial = opened().ask()
    trial.set_user_attr(WORKER, {**studies.this_process(), "pid": os.getpid(), "started": 1.0})
    assert retry_unfinished(opened(), shared=False) == [0]


def test_interrupted_trial_is_queued_again_and_a_failed_one_is_not() -> None:
    study = opened()
    for interrupted in (True, False):
        trial = study.ask()
        value(trial)
        if interrupted:
            trial.set_user_attr(INTERRUPTED, value=True)
        study.tell(trial, state=TrialState.FAIL)
    assert retry_unfinished(opened(), shared=False) == [0]


def test_trial_is_retried_at_most_three_times() -> None:
    study = opened()
    for _ in range(MAX_RETRIES + 1):
        trial = study.ask()
        value(trial)
        trial.set_user_attr(WORKER, abandoned())
        retry_unfinished(study, shared=False)
    assert states(study) == ["FAIL"] * (MAX_RETRIES + 1)


def test_repetitions_are_queued_once_with_the_values_of_their_trial() -> None:
    study = opened()
    enqueue_missing(study, PARAMS)
    study.optimize(value, n_trials=2)
    trials = study.get_trials()[:2]
    enqueue_repeats(study, trials, [1])
    enqueue_repeats(opened(), trials, [1, 2])
    queued = opened().get_trials()[5:]
    assert [(trial.user_attrs[REPEAT_OF], trial.user_attrs[SEED]) for trial in queued] == [
        (0, 1),
        (1, 1),
        (0, 2),
        (1, 2),
    ]
    assert [trial.params for trial in queued] == [trials[0].params, trials[1].params] * 2
    enqueue_missing(opened(), with_sweep(trials=6))
    assert len(opened().get_trials()) == 10  # a repetition is no trial of the sweep
    study.optimize(value, n_trials=4)
    assert study.get_trials()[5].params == trials[0].params


def test_of_a_repetition_that_two_hosts_have_queued_one_is_run() -> None:
    study = opened()
    enqueue_missing(study, PARAMS)
    study.optimize(value, n_trials=1)
    repeats = {REPEAT_OF: 0, SEED: 1}
    for _ in range(2):
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=repeats))
    first, second = study.get_trials()[5:]
    assert (has_twin(study, first), has_twin(study, second)) == (False, True)
    assert not has_twin(study, study.get_trials()[0])


def test_dead_process_of_a_repetition_is_replaced() -> None:
    study = opened()
    enqueue_missing(study, with_sweep(trials=1))
    study.optimize(value, n_trials=1)
    enqueue_repeats(study, study.get_trials(), [1])
    trial = study.ask()
    trial.set_user_attr(WORKER, abandoned())
    assert is_running(opened())
    assert retry_unfinished(opened(), shared=False) == [1]
    again = opened().get_trials()[-1]
    assert (again.user_attrs, again.state) == ({REPEAT_OF: 0, SEED: 1}, TrialState.WAITING)
    assert not has_twin(study, again)
    assert not is_running(opened())
    enqueue_repeats(study, study.get_trials()[:1], [1])
    assert len(study.get_trials()) == 3


def test_half_of_the_trials_go_on() -> None:
    """Against the rule of successive halving: the best half of those that were compared so far."""
    study = opened()

    def objective(trial: optuna.Trial) -> float:
        trial.report(PROBES[trial.number], 6)
        if trial.should_prune():
            raise optuna.TrialPruned
        return PROBES[trial.number]

    study.optimize(objective, n_trials=len(PROBES))
    expected = []
    for number, probe in enumerate(PROBES):
        seen = sorted(PROBES[: number + 1], reverse=True)
        expected.append("COMPLETE" if probe >= seen[max(1, len(seen) // 2) - 1] else "PRUNED")
    assert states(study) == expected
    assert set(expected) == {"COMPLETE", "PRUNED"}


def test_study_is_found_again_after_its_best_values_were_applied() -> None:
    applied = PARAMS.model_copy(update={"pretrain": PARAMS.pretrain.model_copy(update={"mask_ratio": 0.9})})
    other = PARAMS.model_copy(update={"pretrain": PARAMS.pretrain.model_copy(update={"lr": 0.9})})
    name = studies.study_name(PARAMS, "data")
    assert studies.study_name(applied, "data") == name
    assert len({name, studies.study_name(other, "data"), studies.study_name(PARAMS, "other data")}) == 3


def test_unreachable_database_is_named() -> None:
    with pytest.raises(ValueError, match=r"runtime.sweep_storage: postgresql://nobody@127.0.0.1:1/none"):
        open_storage(small_params(runtime={"sweep_storage": "postgresql://nobody@127.0.0.1:1/none"}))


@pytest.mark.parametrize("refusal", [IntegrityError, ProgrammingError])
def test_hosts_that_open_an_empty_database_at_once_all_get_it(
    refusal: type[DBAPIError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna fails where another host has created a table between its look and its statement: it is asked again."""
    refusals = [refusal("CREATE TABLE studies", None, Exception('relation "studies" already exists'))]

    def storage(address: str, **options: Any) -> RDBStorage:
        if refusals:
            raise refusals.pop()
        return RDBStorage(address, **options)

    monkeypatch.setattr(studies, "RDBStorage", storage)
    address = f"sqlite:///{tmp_path}/optuna.db"
    assert isinstance(open_storage(small_params(runtime={"sweep_storage": address})), RDBStorage)
    assert not refusals
