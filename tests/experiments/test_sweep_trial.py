"""Trials on small data, in this process: their records and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mme.experiments.sweep import run as running
from mme.experiments.sweep import trial as trials
from mme.experiments.sweep.report import write_sweep_report
from mme.experiments.sweep.study import (
    INTERRUPTED,
    RUN_ID,
    enqueue_missing,
    is_queued,
    open_storage,
    retry_unfinished,
)
from mme.experiments.sweep.trial import METRIC, StudyRun, TrialObjective, limit_pretraining_videos
from mme.manifest import Manifest
from mme.tracking import start_run
from tests.small_data import make_small_data, small_params

CHANGED: dict[str, Any] = {
    "trials": 4, "num_clips": 6, "probe_epochs": 1, "fixed": {"pretrain.epochs": 2, "pretrain.warmup_epochs": 1},
    "first": [{"pretrain.length": length, "pretrain.mask_ratio": 0.7} for length in (3, 2, 1, 4)],
    "space": {
        "pretrain.length": {"steps": (1, 4, 1)},
        "pretrain.mask_ratio": {"steps": (0.3, 0.9, 0.1)},
    },
}  # fmt: skip
PARAMS = small_params(sweep=CHANGED)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_small_data(folder / "data", PARAMS)
    return folder


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def recorded(run_id: str) -> Run:
    return MlflowClient().get_run(run_id)


class Impatient(optuna.pruners.BasePruner):
    """Prune every trial but the first."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number > 0


def test_trial_trains_on_some_clips_and_is_probed_on_all_labelled_ones() -> None:
    manifest = Manifest.load("data/manifest.parquet")
    few = limit_pretraining_videos(manifest, PARAMS)
    assert len(few.videos(PARAMS.pretrain.splits)) == 6
    assert len(few.videos("val")) == len(manifest.videos("val"))
    assert few.digest == limit_pretraining_videos(manifest, PARAMS).digest
    other = small_params(sweep=CHANGED, seed=1)
    assert few.digest != limit_pretraining_videos(manifest, other).digest


def test_trials_are_recorded_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(
        study_name=running.name_of_study(PARAMS), storage=open_storage(PARAMS), direction="maximize",
        pruner=Impatient(),
    )  # fmt: skip
    enqueue_missing(study, PARAMS)
    with start_run("sweep", PARAMS) as parent:
        pass
    study.set_user_attr(RUN_ID, parent.id)
    taken: list[int] = []
    objective = TrialObjective(StudyRun(PARAMS, "sweep-x", parent.id), lambda: taken.append(1))
    study.optimize(objective, n_trials=2)

    def fail(*_: Any) -> None:
        raise ValueError("broken data")

    def stop(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("database is locked")  # as recording the interruption may raise

    for broken in (fail, stop):
        monkeypatch.setattr(trials, "run_pretraining", broken)
        try:
            study.optimize(objective, n_trials=1, catch=(Exception,))
        except KeyboardInterrupt:
            assert broken is stop
    done = study.get_trials()
    assert [trial.state.name for trial in done] == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert [INTERRUPTED in trial.user_attrs for trial in done] == [False, False, False, True]
    assert len(taken) == 4
    runs = [recorded(trial.user_attrs[RUN_ID]) for trial in done]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FAILED", "KILLED"]
    assert [run.info.run_name for run in runs] == [f"trial 0{number}" for number in range(4)]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.id}
    assert [run.data.params["pretrain.length"] for run in runs] == ["3", "2", "1", "4"]
    assert "broken data" in runs[2].data.tags["error"]
    assert list(done[0].intermediate_values) == [1, 2]
    assert runs[0].data.metrics[METRIC] == done[0].value == done[0].intermediate_values[2]
    steps = [entry.step for entry in MlflowClient().get_metric_history(runs[0].info.run_id, METRIC)]
    assert steps == [0, 1]
    assert list(done[1].intermediate_values) == [1]
    study.optimize(objective, n_trials=1, catch=(Exception,))  # the queue is empty: another host was faster
    assert not is_queued(study.get_trials()[4])
    assert RUN_ID not in study.get_trials()[4].user_attrs
    enqueue_missing(study, PARAMS)
    assert len(study.get_trials()) == 5
    text = write_sweep_report(PARAMS).read_text(encoding="utf-8")
    assert "1 trials finished, 1 were pruned, 2 failed" in text
    assert "Best: trial 0" in text
    assert Path("reports/sweep/contour.png").is_file() is False  # one finished trial gives no contour
    assert {entry.path for entry in MlflowClient().list_artifacts(parent.id)} == {"params.yaml", "report"}


def test_trials_with_equal_values_have_folders_of_their_own_and_a_retried_one_has_its_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = optuna.create_study(direction="maximize")
    for _ in range(2):
        study.enqueue_trial({"pretrain.length": 3, "pretrain.mask_ratio": 0.7})
    folders: list[Path] = []

    def stop(*arguments: Any) -> None:
        folders.append(arguments[3])
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "run_pretraining", stop)
    with start_run("sweep", PARAMS) as parent:
        pass
    objective = TrialObjective(StudyRun(PARAMS, "sweep-y", parent.id), lambda: None)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            study.optimize(objective, n_trials=1)
        retry_unfinished(study, shared=False)
    assert folders[0] != folders[1]
    assert folders[2:] == folders[:2]
