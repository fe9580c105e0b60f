"""The queue of trials: what comes next, and what becomes of interrupted ones. No training here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import psutil  # type: ignore[import-untyped]
import pytest
from optuna.trial import TrialState

from mme.experiments.sweep import study as studies
from mme.experiments.sweep.study import (
    INTERRUPTED,
    MAX_RETRIES,
    RUN_ID,
    WORKER,
    join,
    open_storage,
    plan,
    retry_unfinished,
)
from tests.small_data import small_params

SPACE = {"pretrain.mask_ratio": {"low": 0.3, "high": 0.9, "step": 0.1}}
PARAMS = small_params(
    sweep={"trials": 5, "startup_trials": 2, "space": SPACE, "fixed": {},
           "first": ({"pretrain.mask_ratio": 0.7},)},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "PARENT_WAIT_S", 0.0)


def opened() -> optuna.Study:
    """The study as another process would see it."""
    return join(PARAMS, "study", open_storage(PARAMS.runtime))


def value(trial: optuna.Trial) -> float:
    return trial.suggest_float("pretrain.mask_ratio", 0.3, 0.9, step=0.1)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def abandoned() -> dict[str, Any]:
    """A process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    process.kill()
    process.communicate()
    return {**studies.this_process(), "pid": process.pid, "started": started}


def test_the_queue_holds_what_is_missing_and_begins_with_the_first_points() -> None:
    study = opened()
    plan(study, PARAMS.sweep)
    plan(study, PARAMS.sweep)
    assert states(study) == ["WAITING"] * 5
    study.optimize(value, n_trials=2)
    assert study.get_trials()[0].params == {"pretrain.mask_ratio": 0.7}
    more = PARAMS.sweep.model_copy(update={"trials": 7})
    plan(opened(), more)
    assert states(study) == ["COMPLETE"] * 2 + ["WAITING"] * 5


def test_points_depend_on_the_trials_number_not_on_who_draws_them() -> None:
    study = opened()
    plan(study, PARAMS.sweep)
    study.optimize(value, n_trials=5)
    at_once = [trial.params for trial in study.get_trials()]
    Path("optuna.journal").unlink()
    plan(opened(), PARAMS.sweep)
    for _ in range(5):
        opened().optimize(value, n_trials=1)
    assert [trial.params for trial in opened().get_trials()] == at_once
    assert len({params["pretrain.mask_ratio"] for params in at_once}) > 2


def test_a_trial_whose_process_died_is_tried_again_with_its_values_probes_and_run() -> None:
    study = opened()
    plan(study, PARAMS.sweep)
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
    plan(opened(), PARAMS.sweep)
    assert len(opened().get_trials()) == 6  # the retried one counts once


def test_a_trial_that_is_being_worked_on_is_left_alone() -> None:
    trial = opened().ask()
    trial.set_user_attr(WORKER, studies.this_process())
    assert retry_unfinished(opened(), shared=False) == []


@pytest.mark.parametrize(("shared", "expected"), [(True, []), (False, [0])])
def test_another_hosts_trial_is_judged_by_its_heartbeat_if_the_storage_is_shared(
    shared: bool, expected: list[int]
) -> None:
    trial = opened().ask()
    trial.set_user_attr(WORKER, {**studies.this_process(), "host": "elsewhere"})
    assert retry_unfinished(opened(), shared=shared) == expected


def test_a_process_number_that_is_used_again_is_another_process() -> None:
    trial = opened().ask()
    trial.set_user_attr(WORKER, {**studies.this_process(), "pid": os.getpid(), "started": 1.0})
    assert retry_unfinished(opened(), shared=False) == [0]


def test_an_interrupted_trial_is_tried_again_and_a_failed_one_is_not() -> None:
    study = opened()
    for interrupted in (True, False):
        trial = study.ask()
        value(trial)
        if interrupted:
            trial.set_user_attr(INTERRUPTED, value=True)
        study.tell(trial, state=TrialState.FAIL)
    assert retry_unfinished(opened(), shared=False) == [0]


def test_a_trial_that_dies_every_time_is_given_up() -> None:
    study = opened()
    for _ in range(MAX_RETRIES + 1):
        trial = study.ask()
        value(trial)
        trial.set_user_attr(WORKER, abandoned())
        retry_unfinished(study, shared=False)
    assert states(study) == ["FAIL"] * (MAX_RETRIES + 1)


def test_the_study_is_found_again_when_its_best_values_have_been_applied() -> None:
    applied = PARAMS.model_copy(update={"pretrain": PARAMS.pretrain.model_copy(update={"mask_ratio": 0.9})})
    other = PARAMS.model_copy(update={"pretrain": PARAMS.pretrain.model_copy(update={"lr": 0.9})})
    name = studies.study_name(PARAMS, "data")
    assert studies.study_name(applied, "data") == name
    assert len({name, studies.study_name(other, "data"), studies.study_name(PARAMS, "other data")}) == 3


def test_a_database_that_is_not_there_is_named() -> None:
    away = PARAMS.runtime.model_copy(update={"sweep_storage": "postgresql://nobody@127.0.0.1:1/none"})
    with pytest.raises(ValueError, match=r"runtime.sweep_storage: postgresql://nobody@127.0.0.1:1/none"):
        open_storage(away)
