"""The project in a folder with an awkward name, below the root of its repository: stages, registry, servers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient

from tests import servers
from tests.project import STAGES, Project
from tests.serving.service import server

NAME = "-modèle d'été №1 #2 50% [a] $x & é;"
MODEL = "mme-motion-primitives"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro register` and a commit of the lock."""
    repository = tmp_path_factory.mktemp("odd")
    (repository / NAME).mkdir()
    project = Project(repository / NAME, repository)
    assert project.repro("register") == STAGES
    project.commit("first result")
    return project


def mme(project: Project, *words: str) -> str:
    return project.run([sys.executable, "-m", "mme.commands.app", *words], COLUMNS="250")


def test_all_results_are_in_the_folder(project: Project) -> None:
    assert project.git("status", "--porcelain") == ""
    assert sorted(path.name for path in project.folder.parent.iterdir()) == sorted([".git", NAME])
    assert project.report("register.json")["alias"] == "champion"
    assert "test top-1" in mme(project, "summary")
    assert re.search(r"^1 +champion", mme(project, "models", "list"), re.MULTILINE)
    assert f"models:/{MODEL}/1" in mme(project, "models", "show", "1")
    video = next((project.folder / "data/videos").iterdir())
    assert mme(project, "classify", str(video), "--model", f"models:/{MODEL}@champion")


def test_the_service_answers(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    video = next((project.folder / "data/videos").iterdir())
    for model in (f"models:/{MODEL}@champion", "models/export"):
        with server(model, tmp_path, log=tmp_path / "log") as (address, _):
            answer = httpx.post(
                f"{address}/classify", content=video.read_bytes(), headers={"content-type": "video/mp4"}
            )
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["predictions"]) == 5


def test_mlflows_page_has_runs_and_files(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make ui` starts it."""
    monkeypatch.chdir(project.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    port = servers.free_port()
    address = f"http://127.0.0.1:{port}"
    command = servers.Command([sys.executable, "-m", "mlflow", "ui", "--port", str(port)], tmp_path / "log", {})
    with servers.started(command, address, servers.answers(f"{address}/health")):
        client = MlflowClient(address)
        run_id = project.report("register.json")["run_id"]
        assert client.get_run(run_id).data.tags["stage"] == "register"
        files = httpx.get(f"{address}/ajax-api/2.0/mlflow/artifacts/list", params={"run_id": run_id}).json()["files"]
        assert "README.md" in {file["path"] for file in files}
        text = httpx.get(f"{address}/get-artifact", params={"run_uuid": run_id, "path": "params.yaml"}).text
        assert "mask_ratio" in text
    assert sorted(path.name for path in project.folder.parent.iterdir()) == sorted([".git", NAME])
