"""A tracking server, its answer, or the stage itself, lost in the middle of a registration."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient

from mme.registry.aliases import audit_history, past_champions
from mme.stages.register import main
from mme.system.files import read_json
from mme.tracking import RegisteredModel, StoreError
from tests import servers
from tests.http_server import Handler, listening
from tests.stages.test_register import NAME, project, store

__all__ = ["project", "store"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VERSION = "POST .*/model-versions/create"
ALIAS = "POST .*/registered-models/alias"


@dataclass
class Loss:
    """What is lost: the answer to the first request that matches a pattern, and what an action ends."""

    request: str | None = None
    action: Callable[[], object] = tuple

    def take(self, request: str) -> bool:
        """Return whether the answer to a request is lost, after the action."""
        if self.request is None or re.match(self.request, request) is None:
            return False
        self.request = None
        self.action()
        return True


class Gateway(Handler):
    """A proxy before a server, which loses an answer."""

    target: str
    loss: Loss

    def respond(self) -> None:
        body = self.read_body()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
        try:
            answer = httpx.request(self.command, f"{self.target}{self.path}", content=body, headers=headers, timeout=60)
        except httpx.TransportError:
            self.close_connection = True
            return
        if self.loss.take(f"{self.command} {self.path}"):
            self.close_connection = True
            return
        self.answer(answer.status_code, answer.content, {"Content-Type": answer.headers.get("Content-Type", "")})

    do_PUT = do_PATCH = do_DELETE = respond  # noqa: N815


class Registry:
    """A server that can be killed and started again, behind a gateway."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = servers.free_port()
        self._running = contextlib.ExitStack()
        self.loss = Loss()

        class OwnGateway(Gateway):
            target = f"http://127.0.0.1:{self._port}"
            loss = self.loss

        self.gateway = OwnGateway

    def start(self) -> None:
        self._server = self._running.enter_context(
            servers.mlflow(
                self._folder / "server.log", f"sqlite:///{self._folder}/server.db", (self._folder / "stored").as_uri(),
                dict(os.environ), self._port,
            )
        )  # fmt: skip

    def kill(self) -> None:
        os.killpg(self._server.process.pid, signal.SIGKILL)
        self._server.process.wait()

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store, folder / "server.db")
    found = Registry(folder)
    found.start()
    yield found
    found.stop()


def check_one_whole_version() -> None:
    (version,) = MlflowClient().search_model_versions(f"name='{NAME}'")
    assert (version.description or "").startswith("4 labels, ")
    assert (int(version.version), version.status) == (1, "READY")
    champion = RegisteredModel(NAME).find_alias("champion")
    assert champion is not None
    assert champion.number == 1
    assert {"digest", "value", "champion_since", "champion_by"} <= champion.tags.keys()
    assert past_champions(NAME) == [1]
    assert [line["action"] for line in audit_history(NAME)] == ["register", "gate"]
    assert read_json("reports/register.json")["alias"] == "champion"


@pytest.mark.parametrize(("victim", "moment"), [("answer", VERSION), ("server", VERSION), ("stage", ALIAS)])
def test_what_is_lost_is_made_whole(
    victim: str, moment: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is lost after the server has done what a request asks, before its answer; MLflow then asks again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with listening(registry.gateway) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        registry.loss.request, registry.loss.action = moment, tuple
        if victim == "server":
            registry.loss.action = registry.kill
            with pytest.raises(StoreError, match="MLflow at "):
                main()
            registry.start()
        elif victim == "stage":
            lost = threading.Event()
            registry.loss.action = lost.set
            with subprocess.Popen([sys.executable, "-m", "mme.stages.register"]) as process:
                assert lost.wait(300)
                process.kill()
        main()
        assert registry.loss.request is None
        check_one_whole_version()
        MlflowClient().delete_registered_model(NAME)
