"""The stack of ``docker/compose.yaml`` without an engine: pipeline, registry, service, dashboards, real servers.

``make stack-test``; needs Debian's packages postgresql and prometheus.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tests import compose, media, servers
from tests.project import Project
from tests.stack import Stack
from tests.test_docker import dashboard_queries

LONG_S = 300.0
KEY = "a-key-for-the-stack"
HEADERS = {"Authorization": f"Bearer {KEY}"}
MLFLOW = ("mlflow:5000", "/health")

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The servers of the stack, with empty stores."""
    assert servers.POSTGRES is not None, "needs Debian's package postgresql"
    assert shutil.which("prometheus") is not None, "needs Debian's package prometheus"
    environment = compose.example_environment() | {"MME_API_KEYS": hashlib.sha256(KEY.encode()).hexdigest()}
    with Stack(tmp_path_factory.mktemp("stack"), environment) as stack:
        stack.start_postgres()
        stack.start_s3()
        stack.run("buckets")
        stack.run("sweep-tables")
        stack.start_web(*MLFLOW)
        stack.start_web("optuna-dashboard:8080", "/api/meta")
        stack.start_api(MME_POLL_S="1")
        stack.start_prometheus()
        yield stack


@pytest.fixture(scope="module")
def ready_without_model(stack: Stack) -> httpx.Response:
    """The service's answer to ``GET /ready`` before there is a model."""
    until(lambda: api(stack, "/ready").status_code == 503, "the service says that it has no model")
    return api(stack, "/ready")


@pytest.fixture(scope="module")
def trained(stack: Stack, ready_without_model: httpx.Response, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose pipeline has registered a champion in the stack; the service has loaded it."""
    assert ready_without_model.status_code == 503
    project = Project(tmp_path_factory.mktemp("project"))
    project.run(stack.words("train"), **stack.environment("train"))
    until(lambda: api(stack, "/ready").status_code == 200, "the service has found the champion")
    return project


@pytest.fixture
def without_mlflow(stack: Stack, trained: Project) -> Iterator[Project]:
    """The trained project while MLflow's server is stopped."""
    servers.stop(stack.running["mlflow"].process)
    yield trained
    stack.start_web(*MLFLOW)


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LONG_S:.0f} s: {what}"
        time.sleep(0.2)


def s3(stack: Stack) -> Any:
    given = stack.environment("buckets")
    return boto3.client(
        "s3",
        endpoint_url=f"http://{stack.address('minio:9000')}",
        region_name=given["AWS_DEFAULT_REGION"],
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
    )


def api(stack: Stack, path: str) -> httpx.Response:
    return httpx.get(f"http://{stack.address('api:8000')}{path}", headers=HEADERS, timeout=30)


def post(stack: Stack, video: Path, path: str = "/classify") -> httpx.Response:
    address = f"http://{stack.address('api:8000')}{path}"
    return httpx.post(address, files={"file": video.read_bytes()}, headers=HEADERS, timeout=60)


def query(stack: Stack, expression: str) -> list[dict[str, Any]]:
    address = f"http://{stack.address('prometheus:9090')}/api/v1/query"
    document = httpx.get(address, params={"query": expression}, timeout=30).json()
    assert document["status"] == "success", f"{expression}: {document}"
    result: list[dict[str, Any]] = document["data"]["result"]
    return result


def has_values(stack: Stack, expression: str) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in query(stack, expression))


def test_mlflow_answers_to_its_names_only(stack: Stack) -> None:
    address = f"http://{stack.address('mlflow:5000')}/api/2.0/mlflow/experiments/search"
    body = {"max_results": 1}
    assert httpx.post(address, json=body, headers={"Host": "mlflow:5000"}, timeout=30).status_code == 200
    assert httpx.post(address, json=body, headers={"Host": "mlflow.example:5000"}, timeout=30).status_code == 403


def test_service_without_a_model_is_alive_but_not_ready(ready_without_model: httpx.Response) -> None:
    assert ready_without_model.json()["type"] == "/problems/model-not-loaded"


def test_pipeline_registers_in_the_stack_and_keeps_its_data_there(stack: Stack, trained: Project) -> None:
    result = trained.report("register.json")
    assert (result["alias"], result["store"]) == ("champion", "http")
    assert not (trained.folder / "mlflow.db").exists()
    keys = {bucket: s3(stack).list_objects_v2(Bucket=bucket)["KeyCount"] for bucket in ("dvc", "mlflow")}
    assert min(keys.values()) > 10, keys


def test_service_answers_with_the_champion(stack: Stack, trained: Project, tmp_path: Path) -> None:
    result = trained.report("register.json")
    answer = post(stack, next((trained.folder / "data/videos").iterdir()))
    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    assert (model["name"], model["version"], model["digest"]) == (result["name"], "1", result["digest"])
    assert post(stack, media.text(tmp_path / "text.mp4")).json()["type"] == "/problems/not-a-video"
    without_key = httpx.post(f"http://{stack.address('api:8000')}/classify", content=b"", timeout=30)
    assert without_key.status_code == 401


def test_service_writes_only_to_its_cache(stack: Stack, trained: Project) -> None:
    """A read-only root file system demands it."""
    assert post(stack, next((trained.folder / "data/videos").iterdir())).status_code == 200
    assert list((stack.folder / "work/api").iterdir()) == []
    assert [path.name for path in (stack.folder / "volumes/api-models").iterdir()] == ["mme"]


def test_every_panel_of_the_dashboard_has_values(stack: Stack, trained: Project) -> None:
    videos = sorted((trained.folder / "data/videos").iterdir())[:8]
    queries = [expression.replace("$__rate_interval", "30s") for expression in dashboard_queries()]

    def all_answered() -> bool:
        for video in videos:
            assert post(stack, video).status_code == 200
        assert post(stack, videos[0], "/trajectories").status_code == 200
        return all(has_values(stack, expression) for expression in queries)

    until(all_answered, "every panel has a value")
    (info,) = query(stack, "mme_model_info")
    assert info["metric"]["version"] == "1"
    until(
        lambda: float(query(stack, 'sum(mme_videos_total{outcome="ok"})')[0]["value"][1]) > len(videos),
        "the last scrape counts the videos",
    )


@pytest.mark.usefixtures("trained")
def test_alerts_are_sound_and_none_is_wrong(stack: Stack) -> None:
    def rules() -> list[dict[str, Any]]:
        answer = httpx.get(f"http://{stack.address('prometheus:9090')}/api/v1/rules", timeout=30).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), "every rule is evaluated")
    assert len(rules()) > 5
    assert {rule["name"] for rule in rules() if rule["health"] != "ok"} == set()
    # MmeModelLoadsFail may still fire for the time before there was a model.
    assert {rule["name"] for rule in rules() if rule["state"] == "firing"} <= {"MmeModelLoadsFail"}


def test_sweeps_are_shown(stack: Stack) -> None:
    (storage,) = [word for word in stack.words("optuna-dashboard") if word.startswith("postgresql:")]
    code = "import optuna, sys; optuna.create_study(storage=sys.argv[1], study_name='of the stack')"
    environment = {**os.environ, **stack.environment("optuna-dashboard")}
    subprocess.run([sys.executable, "-c", code, storage], env=environment, check=True)
    answer = httpx.get(f"http://{stack.address('optuna-dashboard:8080')}/api/studies", timeout=30)
    assert [study["study_name"] for study in answer.json()["study_summaries"]] == ["of the stack"]


def test_sweep_refuses_a_local_storage(stack: Stack, tmp_path: Path) -> None:
    folder = Project(tmp_path).folder
    answer = subprocess.run(stack.words("sweep"), cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "runtime.sweep_storage" in answer.stdout


def test_service_answers_while_mlflow_is_down(stack: Stack, without_mlflow: Project) -> None:
    until(lambda: query(stack, 'mme_model_loads_total{outcome="failed"} > 0'), "the service has noticed")
    assert post(stack, next((without_mlflow.folder / "data/videos").iterdir())).status_code == 200
    assert api(stack, "/ready").status_code == 200
