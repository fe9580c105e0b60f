"""A training that is killed, as a machine that loses its power would kill it, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mme.system.files import sha256_file
from tests.small_data import make_small_data, small_params

ROOT = Path(__file__).parents[2]
EPOCHS, KILLED_AFTER = 12, 3
DEADLINE_S = 600.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PARAMS = small_params(
    runtime={"device": "cpu", "experiment": "killed"},
    pretrain={"epochs": EPOCHS, "batch_size": 2, "ema_decay": 0.9, "drop_path": 0.1},
    finetune={"epochs": EPOCHS, "batch_size": 2, "mixup": 0.8, "drop_path": 0.1, "rand_augment": "rand-m7-n2"},
)


def start(stage: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / f"{stage}.log").open("ab") as log:
        command = [sys.executable, "-m", f"mme.stages.{stage}"]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(stage: str, folder: Path) -> None:
    process = start(stage, folder)
    assert process.wait(DEADLINE_S) == 0, (folder / f"{stage}.log").read_text(encoding="utf-8")[-4000:]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def recorded_epochs(folder: Path, stage: str) -> int:
    """Epochs in the curves of unfinished work."""
    found = list((folder / ".work" / stage).glob("*/curves.csv"))
    return len(found[0].read_text(encoding="utf-8").splitlines()) - 1 if found else 0


def kill_in_mid_epoch(stage: str, folder: Path) -> None:
    process = start(stage, folder)
    wait_until(lambda: recorded_epochs(folder, stage) >= KILLED_AFTER, process)
    os.killpg(process.pid, signal.SIGKILL)  # with the workers that load for it
    assert process.wait(DEADLINE_S) == -signal.SIGKILL
    assert KILLED_AFTER <= recorded_epochs(folder, stage) < EPOCHS
    assert not (folder / "models" / stage / "model.safetensors").exists()


def runs_of(folder: Path, stage: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    return [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags["stage"] == stage]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two projects with the same data."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "killed")]
    make_small_data(folders[0] / "data", PARAMS)
    (folders[1] / "data").symlink_to(folders[0] / "data")
    for folder in folders:
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(mode="json")), encoding="utf-8")
    return folders


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_killed_stage_ends_as_if_nothing_had_happened(stage: str, folders: list[Path]) -> None:
    whole, killed = folders
    finish(stage, whole)
    kill_in_mid_epoch(stage, killed)
    (interrupted,) = runs_of(killed, stage)
    finish(stage, killed)
    for name in (f"models/{stage}/model.safetensors", f"reports/{stage}/curves.csv", f"reports/{stage}/metrics.json"):
        assert sha256_file(whole / name) == sha256_file(killed / name), name
    (run,) = runs_of(killed, stage)
    assert (run.info.run_id, run.info.status) == (interrupted.info.run_id, "FINISHED")
    history = MlflowClient(f"sqlite:///{killed}/mlflow.db").get_metric_history(run.info.run_id, "train/loss")
    assert {metric.step for metric in history} == set(range(EPOCHS))
    assert not (killed / ".work" / stage).exists()


def test_resume_after_change_of_cache_size(folders: list[Path], tmp_path: Path) -> None:
    """A value that changes no result continues the interrupted run, and leaves no checkpoints of another digest."""
    (tmp_path / "data").symlink_to(folders[0] / "data")
    raw = PARAMS.model_dump(mode="json")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    kill_in_mid_epoch("pretrain", tmp_path)
    (interrupted,) = runs_of(tmp_path, "pretrain")

    raw["runtime"]["frame_cache_mb"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    finish("pretrain", tmp_path)

    (run,) = runs_of(tmp_path, "pretrain")
    assert (run.info.run_id, run.info.status) == (interrupted.info.run_id, "FINISHED")
    assert not (tmp_path / ".work/pretrain").exists()
