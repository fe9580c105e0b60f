"""The stack of ``docker/compose.yaml`` without an engine: pipeline, registry, service, dashboards, real servers.

``make stack-test``; needs Debian's packages postgresql and prometheus. The tests run in order.
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
from tests.stack import KEY, Stack, stack_in
from tests.test_docker import dashboard_queries
from tests.test_pipeline import Project

LONG_S = 300.0
HEADERS = {"Authorization": f"Bearer {KEY}"}

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    assert servers.POSTGRES is not None, "needs Debian's package postgresql"
    assert shutil.which("prometheus") is not None, "needs Debian's package prometheus"
    environment = compose.example_environment() | {"MME_API_KEYS": hashlib.sha256(KEY.encode()).hexdigest()}
    with stack_in(tmp_path_factory.mktemp("stack"), environment) as stack:
        stack.start_postgres()
        stack.start_s3()
        stack.run("buckets")
        stack.run("sweep-tables")
        for service, health in (("mlflow:5000", "/health"), ("optuna-dashboard:8080", "/api/meta")):
            name = service.partition(":")[0]
            ready = f"http://{stack.address(service)}{health}"
            stack.start(name, stack.words(name), stack.environment(name), ready)
        stack.start_api(MME_POLL_S="1")
        stack.start_prometheus()
        yield stack
        shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stack.started_s.items())
        print(f"\nstarted or run in: {shown}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


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


def query(stack: Stack, expression: str) -> list[dict[str, Any]]:
    answer = httpx.get(
        f"http://{stack.address('prometheus:9090')}/api/v1/query", params={"query": expression}, timeout=30
    )
    document = answer.json()
    assert document["status"] == "success", f"{expression}: {document}"
    result: list[dict[str, Any]] = document["data"]["result"]
    return result


def has_figures(stack: Stack, expression: str) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in query(stack, expression))


def test_mlflow_goes_by_its_names_only(stack: Stack) -> None:
    address = f"http://{stack.address('mlflow:5000')}/api/2.0/mlflow/experiments/search"
    body = {"max_results": 1}
    assert httpx.post(address, json=body, headers={"Host": "mlflow:5000"}, timeout=30).status_code == 200
    assert httpx.post(address, json=body, headers={"Host": "mlflow.example:5000"}, timeout=30).status_code == 403


def test_service_without_a_model_is_alive_but_not_ready(stack: Stack) -> None:
    until(lambda: api(stack, "/ready").status_code == 503, "the service says that it has no model")
    assert api(stack, "/ready").json()["type"] == "/problems/model-not-loaded"


def test_pipeline_registers_in_the_stack_and_keeps_its_data_there(stack: Stack, project: Project) -> None:
    began = time.monotonic()
    project.run(stack.words("train"), **stack.environment("train"))
    stack.started_s["train"] = time.monotonic() - began
    receipt = project.report("register.json")
    assert (receipt["alias"], receipt["store"]) == ("champion", "http")
    assert not (project.folder / "mlflow.db").exists()
    keys = {bucket: s3(stack).list_objects_v2(Bucket=bucket)["KeyCount"] for bucket in ("dvc", "mlflow")}
    assert min(keys.values()) > 10, keys


def test_service_finds_the_champion_and_answers(stack: Stack, project: Project, tmp_path: Path) -> None:
    until(lambda: api(stack, "/ready").status_code == 200, "the service has found the champion")
    receipt = project.report("register.json")
    video = next((project.folder / "data/videos").iterdir())
    answer = post(stack, video)
    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    assert (model["name"], model["version"], model["digest"]) == (receipt["name"], "1", receipt["digest"])
    assert post(stack, media.text(tmp_path / "text.mp4")).json()["type"] == "/problems/not-a-video"
    without_key = httpx.post(f"http://{stack.address('api:8000')}/classify", content=b"", timeout=30)
    assert without_key.status_code == 401


def post(stack: Stack, video: Path, path: str = "/classify") -> httpx.Response:
    with video.open("rb") as file:
        return httpx.post(
            f"http://{stack.address('api:8000')}{path}", files={"file": file}, headers=HEADERS, timeout=60
        )


def test_service_writes_nowhere_but_to_its_cache(stack: Stack) -> None:
    """What a read-only root file system demands."""
    assert list((stack.folder / "work/api").iterdir()) == []
    assert [path.name for path in (stack.folder / "volumes/api-models").iterdir()] == ["mme"]


def test_dashboard_has_figures_to_show(stack: Stack, project: Project) -> None:
    videos = sorted((project.folder / "data/videos").iterdir())[:8]
    queries = [expression.replace("$__rate_interval", "30s") for expression in dashboard_queries()]

    def all_answered() -> bool:
        for video in videos:
            assert post(stack, video).status_code == 200
        assert post(stack, videos[0], "/trajectories").status_code == 200
        return all(has_figures(stack, expression) for expression in queries)

    until(all_answered, "every panel has a figure")
    (info,) = query(stack, "mme_model_info")
    assert info["metric"]["version"] == "1"
    (answered,) = query(stack, 'sum(mme_videos_total{outcome="ok"})')
    assert float(answered["value"][1]) > len(videos)


def test_alerts_are_sound_and_none_is_wrong(stack: Stack) -> None:
    rules = httpx.get(f"http://{stack.address('prometheus:9090')}/api/v1/rules", timeout=30).json()
    found = {rule["name"]: rule for group in rules["data"]["groups"] for rule in group["rules"]}
    assert len(found) > 5
    assert {name for name, rule in found.items() if rule["health"] != "ok"} == set()
    # MmeModelLoadsFail may still tell of the time before there was a model.
    assert {name for name, rule in found.items() if rule["state"] == "firing"} <= {"MmeModelLoadsFail"}


def test_sweeps_are_shown(stack: Stack) -> None:
    (storage,) = [word for word in stack.words("optuna-dashboard") if word.startswith("postgresql:")]
    code = "import optuna, sys; optuna.create_study(storage=sys.argv[1], study_name='of the stack')"
    environment = {**os.environ, **stack.environment("optuna-dashboard")}
    subprocess.run([sys.executable, "-c", code, storage], env=environment, check=True)
    answer = httpx.get(f"http://{stack.address('optuna-dashboard:8080')}/api/studies", timeout=30)
    assert [study["study_name"] for study in answer.json()["study_summaries"]] == ["of the stack"]


def test_sweep_refuses_a_storage_that_others_do_not_see(stack: Stack, project: Project) -> None:
    answer = subprocess.run(stack.words("sweep"), cwd=project.folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "sweep.storage" in answer.stdout


def test_service_goes_on_without_mlflow(stack: Stack, project: Project) -> None:
    servers.stop(stack.running["mlflow"].process)
    until(lambda: query(stack, 'mme_model_loads_total{outcome="failed"} > 0'), "the service has noticed")
    assert post(stack, next((project.folder / "data/videos").iterdir())).status_code == 200
    assert api(stack, "/ready").status_code == 200
