"""The services of ``docker/compose.yaml`` as local processes: their commands with other addresses and folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests import compose, servers

LOCAL = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
"""Environment that replaces the folders of an image."""

KEPT = ("MLFLOW_SERVER_ALLOWED_HOSTS",)
"""Settings that hold the names within the stack on purpose: they are not rewritten."""


class Stack(ExitStack):
    """Ports for every address of the stack, folders for every mount, and the running servers; leaving it ends them.

    Args:
        folder: for the content of volumes, and for logs.
        environment: the content of ``.env``.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        super().__init__()
        self.folder = folder
        self.running: dict[str, servers.Server] = {}
        self._document = compose.load(environment)
        self.services: dict[str, Any] = self._document["services"]
        self._addresses: dict[str, str] = {}

    def address(self, place: str) -> str:
        """Return the local ``127.0.0.1:port`` of ``service:port`` within the stack."""
        if place not in self._addresses:
            self._addresses[place] = f"127.0.0.1:{servers.free_port()}"
        return self._addresses[place]

    def rewrite(self, service: str, text: str) -> str:
        """Replace the stack's addresses, mounts and port in a setting of a service by local ones."""
        names = "|".join(map(re.escape, self.services))
        text = re.sub(rf"\b({names}):\d+\b", lambda found: self.address(found[0]), text)
        mounts = self._mounts(service)
        if mounts:
            inside = "|".join(map(re.escape, mounts))
            text = re.sub(rf"(?:^|(?<==))({inside})(?=/|$)", lambda found: str(mounts[found[0]]), text)
        port = re.fullmatch(r"--port=(\d+)", text)
        if port:
            return f"--port={self.address(f'{service}:{port[1]}').rpartition(':')[2]}"
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
        """Return the command of a service."""
        return [self.rewrite(service, word) for word in self.services[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment that a service adds."""
        given = self.services[service].get("environment", {})
        return {name: value if name in KEPT else self.rewrite(service, value) for name, value in given.items()}

    def start(self, service: str, words: list[str], environment: dict[str, str], ready: str) -> None:
        """Start a server in a folder of its own and wait until ``GET ready`` succeeds."""
        work = self.folder / "work" / service
        work.mkdir(parents=True, exist_ok=True)
        command = servers.Command(words, self.folder / f"{service}.log", {**environment, **LOCAL}, folder=work)
        self.running[service] = self.enter_context(servers.started(command, ready, servers.answers(ready)))

    def start_web(self, place: str, health: str) -> None:
        """Start a web server of the stack, ``service:port``, with its own command."""
        service = place.partition(":")[0]
        ready = f"http://{self.address(place)}{health}"
        self.start(service, self.words(service), self.environment(service), ready)

    def run(self, service: str) -> None:
        """Run a service that ends by itself."""
        environment = {**os.environ, **self.environment(service), **LOCAL}
        answer = subprocess.run(self.words(service), env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr

    def start_postgres(self) -> None:
        """Start PostgreSQL with the stack's databases."""
        user = self.services["postgres"]["environment"]["POSTGRES_USER"]
        password = self._document["x-store-clients"]["PGPASSWORD"]
        server = self.enter_context(servers.postgres([], user=user, password=password))
        self._addresses["postgres:5432"] = urlsplit(server.address).netloc.rpartition("@")[2]
        statements = (compose.DOCKER / "postgres/databases.sql").read_text(encoding="utf-8")
        with psycopg.connect(f"{server.address}/postgres", autocommit=True) as connection:
            for statement in re.findall(r"^CREATE [^;]+", statements, re.MULTILINE):
                connection.execute(statement.encode())

    def start_s3(self) -> None:
        """Start moto instead of MinIO."""
        server = self.enter_context(servers.s3(self.folder / "minio.log", []))
        self._addresses["minio:9000"] = urlsplit(server.address).netloc

    def start_api(self, **more: str) -> None:
        """Start the service with the environment and the entry point of its image."""
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
        """Start Prometheus with the stack's own file, scraping ten times as often."""
        source = compose.DOCKER / "prometheus"
        config = self.folder / "prometheus"
        config.mkdir()
        for file in source.glob("*.yml"):
            text = self.rewrite("prometheus", file.read_text(encoding="utf-8"))
            (config / file.name).write_text(text.replace("_interval: 10s", "_interval: 1s"), encoding="utf-8")
        address = self.address("prometheus:9090")
        words = [word.replace(str(source), str(config)) for word in self.words("prometheus")]
        words = ["prometheus", *words, f"--web.listen-address={address}"]
        self.start("prometheus", words, self.environment("prometheus"), f"http://{address}/-/ready")
