"""A model after training: served, loaded elsewhere, reproduced, shared, promoted, rolled back. Real servers."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mme.config.edit import write_values
from mme.evaluation.classifier import Classifier
from mme.system.files import read_json
from tests import servers
from tests.project import ROOT, STAGES, Project
from tests.serving.service import server, wait_until

NAME = "mme-motion-primitives"
CHAMPION = f"models:/{NAME}@champion"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro register` and a commit of the lock. Tests that use it change nothing."""
    project = Project(tmp_path_factory.mktemp("life"))
    assert project.train() == STAGES
    return project


@pytest.fixture
def project(trained: Project) -> Iterator[Project]:
    """The trained project for a test that changes it; afterwards it is as before."""
    yield trained
    trained.restore()


def mme(project: Project, *words: str) -> str:
    return project.run([sys.executable, "-m", "mme.commands.app", *words], COLUMNS="250")


def store(project: Project) -> str:
    return f"sqlite:///{project.folder}/mlflow.db"


def last_run(project: Project, stage: str) -> str:
    client = MlflowClient(store(project))
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return str(client.search_runs(everywhere, f"tags.stage = '{stage}'")[0].info.run_id)


def video_of(project: Project) -> Path:
    return min((project.folder / "data/videos").rglob("*.mp4"))


@pytest.fixture(scope="module")
def mlflow_server(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """The champion, served by MLflow's own server."""
    port = servers.free_port()
    words = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("mlflow-serve")
    environment = {
        "MLFLOW_TRACKING_URI": store(trained),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    address = f"http://127.0.0.1:{port}"
    command = servers.Command(words, folder / "log", environment, None, folder)
    with servers.started(command, address, servers.answers(f"{address}/ping")) as running:
        yield running


def test_mlflows_server_answers_like_the_service_for_a_path_and_for_bytes(
    trained: Project, mlflow_server: servers.Server, tmp_path: Path
) -> None:
    video = video_of(trained)
    inline = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
    asked = {"dataframe_records": [{"video": str(video)}, {"video": inline}], "params": {"top_k": 3}}
    answer = httpx.post(f"{mlflow_server.address}/invocations", json=asked, timeout=120)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    with server(trained.folder / "models/export", tmp_path) as (address, _):
        ours = httpx.post(f"{address}/classify", params={"top_k": 3}, files={"file": video.read_bytes()}, timeout=60)
    expected = ours.json()["predictions"]
    for row in rows:
        assert row["labels"] == [prediction["label"] for prediction in expected]
        assert row["label"] == expected[0]["label"]
        assert row["probability"] == pytest.approx(expected[0]["probability"], abs=1e-5)


LOAD = """
import importlib.metadata, json, sys
from importlib.machinery import PathFinder
wanted, address, video = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
foreign = {
    name for name, owners in importlib.metadata.packages_distributions().items()
    if name != "mme" and not set(wanted) & {owner.lower().replace("_", "-").replace(".", "-") for owner in owners}
}
class Installed(PathFinder):  # as if the others were not
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in foreign else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
import mlflow.pyfunc, pandas
answer = mlflow.pyfunc.load_model(address).predict(pandas.DataFrame({"video": [video]}))
import mme
print(json.dumps([answer["label"][0], mme.__file__, sorted(foreign & set(sys.modules))]))
"""


def closure(extras: set[str], *others: str) -> list[str]:
    """Return the distributions that `pip install mme[...] OTHER...` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
        *others,
    ]
    todo, done = {part for line in own for part in parts(Requirement(line))}, {("mme", "")}
    while todo:
        name, extra = todo.pop()
        done.add((name, extra))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo |= parts(requirement) - done
    return sorted({name for name, _ in done})


def parts(requirement: Requirement) -> set[tuple[str, str]]:
    """A distribution by itself and with each of its extras."""
    return {(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)}


def test_registered_model_loads_with_the_serving_extra_and_mlflow_only(trained: Project, tmp_path: Path) -> None:
    """All other packages cannot be imported, and mme's code is that of the registered model."""
    allowed = closure({"serving", "registry"}, "mlflow")
    assert {"fastapi", "mlflow", "torch"} <= set(allowed)
    assert not {"dvc", "optuna", "pytorch-lightning", "torchmetrics"} & set(allowed)
    video = video_of(trained)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(allowed), CHAMPION, str(video)],
        env={**environment, "MLFLOW_TRACKING_URI": store(trained)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    label, where, loaded = json.loads(answer.stdout.splitlines()[-1])
    assert label == Classifier.load(trained.folder / "models/export").classify(video).predictions[0].label
    assert Path(where).parts[-3] == "code"
    assert loaded == []


def test_run_is_reproduced_to_the_last_digit(trained: Project) -> None:
    run_id = last_run(trained, "finetune")
    shown = mme(trained, "reproduce", run_id)
    assert trained.git("rev-parse", "trained~1").strip() in shown
    assert "dvc repro --force --single-item finetune" in shown
    before = sorted(path.name for path in trained.folder.iterdir())
    output = mme(trained, "reproduce", run_id, "--run")
    assert re.search(r"all \d+ metrics are equal to the last digit", output)
    assert "val/top1" in output
    assert sorted(path.name for path in trained.folder.iterdir()) == before


def check_pulled(project: Project, folder: Path, environment: Mapping[str, str]) -> None:
    """After `dvc pull` a second clone has all results; only the registration in its own registry may run."""
    clone = project.clone(folder)
    clone.run([sys.executable, "-m", "dvc", "pull", "--allow-missing"], **environment)
    for name in ("models/export/model.safetensors", "reports/evaluate/metrics.json", "data/manifest.parquet"):
        assert (clone.folder / name).read_bytes() == (project.folder / name).read_bytes()
    assert clone.repro("evaluate") == []
    assert clone.repro("register") in ([], ["register"])
    assert read_json(clone.folder / "reports/register.json")["digest"] == project.report("register.json")["digest"]


def test_results_reach_a_second_clone_through_a_folder(project: Project, tmp_path: Path) -> None:
    project.dvc("remote", "add", "--default", "--force", "shared", str(tmp_path / "remote"))
    project.commit("a remote")
    project.dvc("push")
    check_pulled(project, tmp_path / "clone", {})


def test_results_reach_a_second_clone_through_s3(project: Project, tmp_path: Path) -> None:
    with servers.s3(tmp_path / "log", ["dvc"]) as bucket:
        project.dvc("remote", "add", "--default", "--force", "shared", "s3://dvc/mme")
        project.dvc("remote", "modify", "shared", "endpointurl", bucket.address)
        project.commit("a bucket")
        project.run([sys.executable, "-m", "dvc", "push"], **servers.S3_CREDENTIALS)
        check_pulled(project, tmp_path / "clone", servers.S3_CREDENTIALS)


def test_changed_value_reruns_its_stages_and_a_rollback_reaches_the_service(project: Project, tmp_path: Path) -> None:
    """From another parameter value to a new champion, and back."""
    environment = {"MLFLOW_TRACKING_URI": store(project), "MME_POLL_S": "0.5"}
    with server(CHAMPION, tmp_path, log=tmp_path / "log", **environment) as (address, _):

        def served() -> str:
            return str(httpx.get(f"{address}/model").json()["version"])

        assert served() == "1"
        assert write_values(project.folder / "params.yaml", {"pretrain.mask_ratio": 0.5}, write=True)
        assert project.repro("register") == ["pretrain", "finetune", "evaluate", "register"]
        receipt = project.report("register.json")
        assert receipt["version"] == 2
        if receipt["alias"] != "champion":  # at this size the better model is a matter of chance
            assert served() == "1"
            mme(project, "models", "promote", "2", "--reason", "a look at it")
        wait_until(lambda: served() == "2")
        assert "version 2" in mme(project, "models", "show", "2")
        mme(project, "models", "rollback", "--reason", "worse in practice")
        wait_until(lambda: served() == "1")
        assert address in mme(project, "models", "list", "--url", address)
    audit = (project.folder / "registry-audit.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["action"] for line in audit][-1] == "rollback"
    assert project.repro("register") == []  # the rollback stands
