"""Service, tracking server and clients in processes of their own, while one of them fails."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from mlflow.tracking import MlflowClient

from mme.models.checkpoints import WEIGHTS_FILE, content_digest
from tests.servers import free_port
from tests.serving.load import load
from tests.serving.service import server, wait_until
from tests.tiny import save_tiny_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_CLIENTS = 4


@dataclass
class Registry:
    """An MLflow server whose registry holds two versions of ``tiny``."""

    folder: Path
    port: int
    process: psutil.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as in docker/compose.yaml
        with (self.folder / "mlflow.log").open("a") as log:
            self.process = psutil.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._answers)

    def kill(self) -> None:
        assert self.process is not None
        if not self.process.is_running():
            return
        family = [*self.process.children(recursive=True), self.process]
        for member in family:
            member.kill()
        psutil.wait_procs(family)

    def client(self) -> MlflowClient:
        return MlflowClient(self.address)

    def add(self, folder: Path) -> None:
        client = self.client()
        run = client.create_run("0")
        client.log_artifacts(run.info.run_id, str(folder), "export")
        tags = {"digest": content_digest(folder), "folder": "export"}
        client.create_model_version("tiny", run.info.artifact_uri, run.info.run_id, tags=tags)

    def promote(self, version: str) -> None:
        self.client().set_registered_model_alias("tiny", "champion", version)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "mlflow.log").read_text()
        try:
            return httpx.get(f"{self.address}/health").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    registry = Registry(folder, free_port())
    registry.start()
    try:
        registry.client().create_registered_model("tiny")
        for seed in (1, 2):
            registry.add(save_tiny_folder(tmp_path / f"made-{seed}", seed=seed))
        registry.promote("1")
        yield registry
    finally:
        registry.kill()


@contextmanager
def service(registry: Registry, tmp_path: Path) -> Iterator[str]:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    environment = {
        "MLFLOW_TRACKING_URI": registry.address, "XDG_CACHE_HOME": str(tmp_path / "cache"), "MME_POLL_S": "0.2",
        "MME_NUM_DECODE_WORKERS": "2", "MME_TORCH_THREADS": "1",
    }  # fmt: skip
    with server("models:/tiny@champion", uploads, log=tmp_path / "service.log", **environment) as (address, process):
        yield address
        assert process.poll() is None


def answers_with(address: str, version: str) -> bool:
    return bool(httpx.get(f"{address}/ready").json()["model"]["version"] == version)


def load_error(address: str) -> str | None:
    response = httpx.get(f"{address}/ready")
    assert response.status_code == 200
    error: str | None = response.json()["last_load_error"]
    return error


def test_promotion_and_registry_outage_fail_no_request(registry: Registry, clip: Path, tmp_path: Path) -> None:
    with service(registry, tmp_path) as address, load(address, clip.read_bytes(), NUM_CLIENTS) as seen:
        seen.wait_for_more()
        registry.promote("2")
        wait_until(lambda: {reply.version for reply in seen.newest()} == {"2"})

        registry.kill()
        wait_until(lambda: load_error(address) is not None)
        seen.wait_for_more()  # it goes on answering

        (cached,) = (tmp_path / "cache/mme").glob(content_digest(tmp_path / "made-1"))
        (cached / WEIGHTS_FILE).write_bytes(b"damaged")
        registry.start()
        wait_until(lambda: load_error(address) is None)
        registry.promote("1")  # the copy of it is damaged: it is removed and downloaded anew
        wait_until(lambda: {reply.version for reply in seen.newest()} == {"1"})
        assert content_digest(cached) == content_digest(tmp_path / "made-1")

    assert seen.statuses() == {200}
    for client in seen.replies:
        versions = [reply.version for reply in client]
        changes = [late for early, late in itertools.pairwise(versions) if early != late]
        assert changes == ["2", "1"]  # a client never sees an old version after a new one
    logits = {(reply.body["model"]["digest"], str(reply.body["predictions"])) for reply in seen.all()}
    assert len(logits) == 2
    assert "Traceback" not in (tmp_path / "service.log").read_text()
