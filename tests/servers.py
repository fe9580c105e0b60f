"""Real servers for tests, each in a process group of its own on loopback: PostgreSQL, moto for S3, MLflow."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

START_S = 300.0
"""Longest time until a server is ready; generous, since the machine may be busy."""

STOP_S = 20.0

_SCOPE = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""Header that marks a request to moto as one to S3; moto checks no signature."""

S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def _postgres_folder() -> Path | None:
    # Debian keeps the programs of each version off the path.
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("postgres")
    if installed or on_path is None:
        return installed[-1] if installed else None
    return Path(on_path).parent


POSTGRES = _postgres_folder()
needs_postgres = pytest.mark.skipif(POSTGRES is None, reason="needs Debian's package postgresql")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(address: str) -> Callable[[], bool]:
    """Return a check that ``GET address`` succeeds."""

    def ask() -> bool:
        try:
            return httpx.get(address, timeout=10).is_success
        except httpx.TransportError:
            return False

    return ask


@dataclass(frozen=True)
class Server:
    """A running server: address, process and log file."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(frozen=True)
class Command:
    """Command that starts a server.

    Attributes:
        words: program and arguments.
        log: file for its output.
        environment: variables in addition to those of the tests.
        user: account to run as if the tests run as root.
        folder: working folder, by default that of the tests.
        end: signal that ends it.
    """

    words: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    user: str | None = None
    folder: Path | None = None
    end: signal.Signals = signal.SIGTERM


@contextmanager
def started(command: Command, address: str, ready: Callable[[], bool]) -> Iterator[Server]:
    """Start a server, wait until it is ready, and end it and its children afterwards."""
    with command.log.open("wb") as log:
        process = subprocess.Popen(
            command.words,
            env={**os.environ, **command.environment},
            cwd=command.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            user=command.user if os.geteuid() == 0 else None,
        )
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            written = command.log.read_text(encoding="utf-8", errors="replace")[-4000:]
            assert process.poll() is None, f"{command.words} ended with {process.returncode}:\n{written}"
            assert time.monotonic() < deadline, f"{command.words} is not ready after {START_S} s:\n{written}"
            time.sleep(0.1)
        yield Server(address, process, command.log)
    finally:
        stop(process, command.end)


def stop(process: subprocess.Popen[bytes], end: signal.Signals = signal.SIGTERM) -> None:
    """End a server's process group by its signal, or by SIGKILL if it does not end in time."""
    for sent in (end, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    process.wait(STOP_S)


@contextmanager
def postgres(databases: Sequence[str], user: str = "mme", password: str = "secret") -> Iterator[Server]:
    """Start PostgreSQL with a superuser and databases, one of which is at ``f"{server.address}/{name}"``."""
    assert POSTGRES is not None, "mark the test with `needs_postgres`"
    # Outside pytest's folder, which only its owner may enter: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="mme-postgres-"))
    account = "postgres" if os.geteuid() == 0 else None
    try:
        (folder / "password").write_text(password, encoding="utf-8")
        if account is not None:
            owner = pwd.getpwnam(account)
            for path in (folder, folder / "password"):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        with _postgres_in(folder, account, (user, password)) as server:
            _create_databases(server.address, databases)
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _postgres_in(folder: Path, account: str | None, login: tuple[str, str]) -> Iterator[Server]:
    assert POSTGRES is not None
    data, port = folder / "data", free_port()
    options = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--encoding=UTF8", "--locale=C.UTF-8"]
    subprocess.run(
        [str(POSTGRES / "initdb"), "-D", str(data), "-U", login[0], *options, "--no-sync"],
        check=True, capture_output=True, user=account, cwd=folder,
    )  # fmt: skip
    words = [str(POSTGRES / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    # On SIGTERM it would wait for its clients to leave.
    command = Command([*words, "-c", "fsync=off"], folder / "log", {}, account, folder, signal.SIGINT)
    address = f"postgresql://{login[0]}:{login[1]}@127.0.0.1:{port}"
    with started(command, address, lambda: _is_accepting(port)) as server:
        yield server


def _is_accepting(port: int) -> bool:
    assert POSTGRES is not None
    asked = subprocess.run(
        [str(POSTGRES / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"], check=False, cwd="/"
    )
    return asked.returncode == 0


def _create_databases(address: str, databases: Sequence[str]) -> None:
    with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:  # none is made within a transaction
        for database in databases:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


@contextmanager
def s3(log: Path, buckets: Sequence[str]) -> Iterator[Server]:
    """Start moto's server with buckets in memory; clients use ``S3_CREDENTIALS``."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with started(Command(words, log, S3_CREDENTIALS), address, answers(f"{address}/moto-api/")) as server:
        for bucket in buckets:
            httpx.put(f"{address}/{bucket}", headers={"Authorization": _SCOPE}).raise_for_status()
        yield server


@contextmanager
def mlflow(
    log: Path, store: str, artifacts: str, environment: Mapping[str, str], port: int | None = None
) -> Iterator[Server]:
    """Start ``mlflow server`` with runs in ``store`` and artifacts proxied from ``artifacts``."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    words = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", artifacts,
    ]  # fmt: skip
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}  # as in docker/compose.yaml
    with started(Command(words, log, environment), address, answers(f"{address}/health")) as server:
        yield server
