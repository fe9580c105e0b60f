"""What ``docker/compose.yaml`` says, started by hand: its commands and settings with other addresses and folders."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests import compose, servers

KEY = "a-key-for-the-stack"
OURS = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
"""What stands for an image's own folders."""

KEPT = ("MLFLOW_SERVER_ALLOWED_HOSTS",)
"""Settings whose point are the names within the stack: they are not rewritten."""


class Stack:
    """Ports for every address of the stack, folders for every mount, and the servers that run so far.

    Args:
        folder: holds what containers would hold in volumes, and logs.
        environment: what ``.env`` would hold.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.started_s: dict[str, float] = {}
        self.running: dict[str, servers.Server] = {}
        self._document = compose.load(environment)
        self.services: dict[str, Any] = self._document["services"]
        self._addresses: dict[str, str] = {}
        self._servers = ExitStack()

    def close(self) -> None:
        """End all servers, the last first."""
        self._servers.close()

    def address(self, place: str) -> str:
        """Where ``service:port`` of the stack listens here, as ``127.0.0.1:port``."""
        if place not in self._addresses:
            self._addresses[place] = f"127.0.0.1:{servers.free_port()}"
        return self._addresses[place]

    def here(self, service: str, text: str) -> str:
        """A setting of a service with the stack's addresses, mounts and port replaced by ours."""
        names = "|".join(map(re.escape, self.services))
        text = re.sub(rf"\b({names}):\d+\b", lambda found: self.address(found[0]), text)
        mounts = self._mounts(service)
        if mounts:
            inside = "|".join(map(re.escape, mounts))
            text = re.sub(rf"(?:^|(?<==))({inside})(?=/|$)", lambda found: str(mounts[found[0]]), text)
        own = re.fullmatch(r"--port=(\d+)", text)
        if own:
            return f"--port={self.address(f'{service}:{own[1]}').rpartition(':')[2]}"
        return re.sub("^--workers=.*", "--workers=1", text.replace("=0.0.0.0", "=127.0.0.1"))

    def _mounts(self, service: str) -> dict[str, Path]:
        mounts = {}
        for volume in self.services[service].get("volumes", []):
            source, inside = volume.split(":")[:2]
            mounts[inside] = compose.DOCKER / source if source.startswith(".") else self.folder / "volumes" / source
            if not source.startswith("."):
                mounts[inside].mkdir(parents=True, exist_ok=True)
        return mounts

    def words(self, service: str) -> list[str]:
        """The command of a service."""
        return [self.here(service, word) for word in self.services[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """The environment that a service adds."""
        given = self.services[service].get("environment", {})
        return {name: value if name in KEPT else self.here(service, value) for name, value in given.items()}

    def start(self, service: str, words: list[str], environment: dict[str, str], ready: str) -> None:
        """Start a server in an empty folder of its own and wait until ``GET ready`` succeeds."""
        work = self.folder / "work" / service
        work.mkdir(parents=True)
        command = servers.Command(words, self.folder / f"{service}.log", {**environment, **OURS}, folder=work)
        began = time.monotonic()
        running = servers.started(command, ready, servers.answers(ready))
        self.running[service] = self._servers.enter_context(running)
        self.started_s[service] = time.monotonic() - began

    def run(self, service: str) -> None:
        """Run a service that ends by itself."""
        began = time.monotonic()
        environment = {**os.environ, **self.environment(service), **OURS}
        answer = subprocess.run(self.words(service), env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        self.started_s[service] = time.monotonic() - began

    def start_postgres(self) -> None:
        """PostgreSQL with the stack's databases, at the stack's address."""
        began = time.monotonic()
        service = self.services["postgres"]
        password = self._document["x-store-clients"]["PGPASSWORD"]
        server = self._servers.enter_context(
            servers.postgres([], user=service["environment"]["POSTGRES_USER"], password=password)
        )
        self._addresses["postgres:5432"] = urlsplit(server.address).netloc.rpartition("@")[2]
        statements = (compose.DOCKER / "postgres/databases.sql").read_text(encoding="utf-8")
        with psycopg.connect(f"{server.address}/postgres", autocommit=True) as connection:
            for statement in re.findall(r"^CREATE [^;]+", statements, re.MULTILINE):
                connection.execute(statement.encode())
        self.started_s["postgres"] = time.monotonic() - began

    def start_s3(self) -> None:
        """moto in the place of MinIO."""
        began = time.monotonic()
        server = self._servers.enter_context(servers.s3(self.folder / "minio.log", []))
        self._addresses["minio:9000"] = urlsplit(server.address).netloc
        self.started_s["minio (moto)"] = time.monotonic() - began

    def start_api(self, **more: str) -> None:
        """The service, with the environment of its image."""
        image = compose.read_image(compose.DOCKER / "serve.Dockerfile", "serve")
        ((inside, outside),) = self._mounts("api").items()
        cache = image.environment["XDG_CACHE_HOME"]
        assert inside == f"{cache}/mme", f"models go to {cache}/mme, the volume is at {inside}"
        host, port = self.address("api:8000").split(":")
        environment = {
            **image.environment,
            **self.environment("api"),
            "XDG_CACHE_HOME": str(outside),
            "MME_HOST": host,
            "MME_PORT": port,
            **more,
        }
        words = [sys.executable, *image.entrypoint[1:]]
        self.start("api", words, environment, f"http://{host}:{port}/health")

    def start_prometheus(self) -> None:
        """Prometheus with the stack's own file, ten times as often."""
        source = compose.DOCKER / "prometheus"
        config = self.folder / "prometheus"
        config.mkdir()
        for file in source.glob("*.yml"):
            text = self.here("prometheus", file.read_text(encoding="utf-8"))
            (config / file.name).write_text(text.replace("_interval: 10s", "_interval: 1s"), encoding="utf-8")
        address = self.address("prometheus:9090")
        words = [word.replace(str(source), str(config)) for word in self.words("prometheus")]
        words = ["prometheus", *words, f"--web.listen-address={address}"]
        self.start("prometheus", words, self.environment("prometheus"), f"http://{address}/-/ready")


@contextmanager
def stack_in(folder: Path, environment: dict[str, str]) -> Iterator[Stack]:
    """A stack whose servers are gone at the end."""
    stack = Stack(folder, environment)
    with contextlib.closing(stack):
        yield stack
