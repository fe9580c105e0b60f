"""A tracking store that is away, hangs, fails or refuses: at the start of a run, and in the middle of one."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mme.config import Params, load_params
from mme.tracking import StoreError, read_run, send_unsent, start_run
from mme.tracking.outbox import UNSENT_FOLDER
from tests import servers
from tests.http_server import Handler, listening
from tests.small_disk import fill, read_only, small_disk

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
"""Far below MLflow's own patience of minutes, far above ours on a busy machine."""


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database, which takes seconds to make: each test copies it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def project(tmp_path: Path, database: Path) -> Path:
    shutil.copy(database, tmp_path)
    return tmp_path


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers every request with one status."""

    class Answering(Handler):
        def respond(self) -> None:
            self.answer(status, b"")

    with listening(Answering) as address:
        yield address


def fails_to_start(params: Params, message: str) -> str:
    """The error of a run whose block must not be entered."""
    begin = time.monotonic()
    with pytest.raises(StoreError, match=message) as caught, start_run("pretrain", params):
        raise AssertionError("the work has begun")
    assert time.monotonic() - begin < SECONDS
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_there_is_named_without_its_password(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:secret@{address}")
    error = fails_to_start(params, "refuses connections: start it or correct MLFLOW_TRACKING_URI")
    assert address in error
    assert "secret" not in error
    assert not list(Path.cwd().iterdir())


def test_a_server_that_accepts_and_never_answers_is_given_up(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        fails_to_start(params, "does not answer in time")


@pytest.mark.parametrize(
    ("status", "message"),
    [(500, "answers with an error of its own"), (401, "MLFLOW_TRACKING_USERNAME"), (403, "MLFLOW_TRACKING_USERNAME")],
)
def test_a_server_that_fails_or_refuses(
    status: int, message: str, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        assert address in fails_to_start(params, message)


def test_a_database_server_that_is_not_there(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://mme:secret@127.0.0.1:{servers.free_port()}/mlflow")
    assert "secret" not in fails_to_start(params, "refuses connections")


def test_a_deleted_experiment_is_named_and_comes_back_as_the_message_says(params: Params, project: Path) -> None:
    with start_run("pretrain", params):
        pass
    client = MlflowClient()
    found = client.get_experiment_by_name(params.runtime.experiment)
    assert found is not None
    client.delete_experiment(found.experiment_id)
    error = fails_to_start(params, "experiment 'mme'.*is deleted.*runtime.experiment")
    command = error.partition("`")[2].partition("`")[0].split()
    assert command[:3] == ["mlflow", "experiments", "restore"]
    client.restore_experiment(command[-1])
    with start_run("pretrain", params):
        pass


@pytest.mark.slow
def test_a_database_that_another_process_holds(params: Params, project: Path) -> None:
    with start_run("pretrain", params):
        pass
    with closing(sqlite3.connect(project / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        fails_to_start(params, "mlflow.db: the database is locked")


def test_a_full_disk_and_a_read_only_one(
    params: Params, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", database.stat().st_size + 2**19) as disk:
        shutil.copy(database, disk)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
        with start_run("pretrain", params) as run:
            filling = fill(disk)
            run.log_metrics({f"loss/{number}": 1.0 for number in range(500)}, 0)
            assert "its disk is full: make room, then try again" in caplog.text
        assert "is not complete" in caplog.text
        assert fails_to_start(params, "its disk is full: make room").startswith(f"MLflow at {disk}/mlflow.db")
        filling.unlink()
        with read_only(disk, tmp_path / "view") as view, monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{view}/mlflow.db")
            assert f"{view}/mlflow.db" in fails_to_start(params, "cannot be written: give yourself the right")
        with start_run("finetune", params):
            pass
        assert read_run(run.id).status == "FINISHED"
        assert read_run(run.id).metrics["loss/499"] == 1.0


CREATE = """
from mme.system.errors import one_line_errors
from mme.tracking import open_store
with one_line_errors():
    open_store()
"""


@pytest.mark.slow
def test_a_database_whose_creation_was_cut_off(tmp_path: Path, database: Path) -> None:
    """By a full disk or a lost process: the next one creates it anew. The path of the store names it in both cases."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", CREATE]

    def create(folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    for share in (0.1, 0.35, 0.9):
        with small_disk(tmp_path / f"disk{share}", 2 * database.stat().st_size) as disk:
            (disk / "filling").write_bytes(bytes(int((2 - share) * database.stat().st_size)))
            answer = create(disk)
            assert answer.stderr.splitlines() == [
                f"MLflow at {disk}/mlflow.db: its disk is full: make room, then try again"
            ]
            (disk / "filling").unlink()
            assert create(disk).returncode == 0

    folder = tmp_path / "killed"
    folder.mkdir()
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        while not any(path.stat().st_size > 100_000 for path in folder.rglob("mlflow.db")):
            assert process.poll() is None
        process.kill()
    assert create(folder).returncode == 0


@pytest.mark.slow
def test_a_database_lost_for_a_while_loses_no_record(
    params: Params, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run("pretrain", params) as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        with closing(sqlite3.connect(project / "mlflow.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            run.log_metrics({"train/loss": 0.5}, 1)
            assert "is locked" in caplog.text
            (project / "metrics.json").write_text("{}")
            run.log_artifact(project / "metrics.json")
            (project / "metrics.json").unlink()
        assert (project / UNSENT_FOLDER / run.id).is_dir()
    assert not (project / UNSENT_FOLDER / run.id).exists()
    assert read_run(run.id).status == "FINISHED"
    client = MlflowClient()
    assert [entry.value for entry in client.get_metric_history(run.id, "train/loss")] == [1.0, 0.5]
    assert {entry.path for entry in client.list_artifacts(run.id)} == {"metrics.json", "params.yaml"}


def test_a_run_that_was_deleted_meanwhile_says_what_it_lacks(
    params: Params, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run("pretrain", params) as run:
        MlflowClient().delete_run(run.id)
        run.log_metrics({"train/loss": 1.0}, 0)
    assert f"run {run.id} lacks metrics train/loss" in caplog.text


@pytest.mark.slow
def test_records_that_can_neither_be_sent_nor_kept_are_named(
    params: Params, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run("pretrain", params) as run, closing(sqlite3.connect(project / "mlflow.db")) as other:
        (project / UNSENT_FOLDER).write_text("in the way")
        other.execute("BEGIN EXCLUSIVE")
        run.log_metrics({"train/loss": 1.0}, 0)
        assert f"run {run.id} lacks metrics train/loss" in caplog.text
        other.rollback()


def test_what_is_meant_for_another_store_is_left(params: Params, project: Path) -> None:
    folder = project / UNSENT_FOLDER / ("0" * 32)
    folder.mkdir(parents=True)
    (folder / "store.txt").write_text("http://elsewhere:5000")
    with start_run("pretrain", params):
        pass
    assert folder.is_dir()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_killed_in_mid_training_and_started_again(
    hangs: bool, params: Params, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """While it is away the training goes on: a hundred epochs take seconds. The rest is sent by the next run."""
    caplog.set_level(logging.WARNING)
    shutil.copy(database, tmp_path / "server.db")
    port = servers.free_port()
    where = (f"sqlite:///{tmp_path}/server.db", (tmp_path / "stored").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with servers.mlflow(tmp_path / "first.log", *where, dict(os.environ), port) as server:
        with start_run("pretrain", params) as run:
            run.log_metrics({"train/loss": -1.0}, 0)
            servers.stop(server.process)
            with socket.create_server(("127.0.0.1", port)) if hangs else closing(socket.socket()):
                begin = time.monotonic()
                for epoch in range(1, 101):
                    run.log_metrics({"train/loss": 1.0 / epoch}, epoch)
                (tmp_path / "curves.csv").write_text("1\n")
                run.log_artifact(tmp_path / "curves.csv")
                assert time.monotonic() - begin < SECONDS
        assert time.monotonic() - begin < 2 * SECONDS
    assert f"run {run.id} is not complete" in caplog.text
    with servers.mlflow(tmp_path / "second.log", *where, dict(os.environ), port):
        assert read_run(run.id).status == "RUNNING"
        if hangs:
            assert send_unsent() > 100
        else:
            with start_run("finetune", params):
                pass
        found = read_run(run.id)
        assert found.status == "FINISHED"
        assert found.metrics["train/loss"] == 0.01
        client = MlflowClient()
        assert [entry.step for entry in client.get_metric_history(run.id, "train/loss")] == list(range(101))
        assert mlflow.artifacts.load_text(f"runs:/{run.id}/curves.csv") == "1\n"
    assert not list((tmp_path / UNSENT_FOLDER).iterdir())


RECORD = """
from mme.config import load_params
from mme.tracking import read_run, start_run
with start_run("pretrain", load_params("params.yaml")) as run:
    run.log_metrics({"val/top1": 0.5})
print(run.id, read_run(run.id).read_params().count("mask_ratio"))
"""


@pytest.mark.parametrize("name", ["vidéo d'été", "#1 [a]&b$ 100% sure", "what?"])
def test_the_folder_of_a_project_may_have_any_name(name: str, database: Path, tmp_path: Path) -> None:
    project = tmp_path / name
    project.mkdir()
    shutil.copy(database, project)
    shutil.copy(ROOT / "params.yaml", project)
    assert record_in(project).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [pytest.param("a%20b", marks=pytest.mark.slow), 'l\'été "50"'])
def test_a_folder_name_that_mlflow_cannot_take_is_refused(name: str, tmp_path: Path) -> None:
    project = tmp_path / name
    project.mkdir()
    shutil.copy(ROOT / "params.yaml", project)
    error = record_in(project).stderr.splitlines()[-1]
    assert f"{project}" in error
    assert "rename the" in error


def test_a_copy_that_dvc_made_records_in_its_project(database: Path, tmp_path: Path) -> None:
    """Of a project in a subfolder of its repository."""
    project = tmp_path / "repository" / "our project"
    copy = project / ".dvc/tmp/exps/standalone/tmp1"
    for repository in (tmp_path / "repository", copy):
        (repository / ".git").mkdir(parents=True)
    (copy / "our project").mkdir()
    shutil.copy(database, project)
    shutil.copy(ROOT / "params.yaml", copy / "our project")
    answer = record_in(copy / "our project")
    assert answer.returncode == 0, answer.stderr
    run_id = answer.stdout.split()[0]
    assert MlflowClient(f"sqlite:///{project}/mlflow.db").get_run(run_id).info.status == "FINISHED"
    assert (project / "mlartifacts").is_dir()
    assert [path.name for path in (copy / "our project").iterdir()] == ["params.yaml"]


def record_in(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", RECORD]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
