"""Helpers to call the application: settings, a server process, and raw ASGI for clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from fastapi import FastAPI

from serving.inference.engine import InferenceEngine
from serving.settings import Settings
from tests.servers import free_port

BOUNDARY = "b0undary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
RAW = {"content-type": "video/mp4"}


def make_settings(folder: Path, temp_dir: Path, **changes: Any) -> Settings:
    values = {"model": str(folder), "temp_dir": temp_dir, "num_decode_workers": 2, "torch_threads": 1, "poll_s": 3600.0}
    return Settings.model_validate(values | changes)


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Return a multipart body of (field, file name, content)."""
    body = b""
    for name, filename, content in parts:
        given = "" if filename is None else f'; filename="{filename}"'
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[InferenceEngine]:
    """Run the application's lifespan."""
    async with app.router.lifespan_context(app):
        yield app.state.engine


class Call:
    """One request with body and connection under the test's control."""

    def __init__(self, app: FastAPI, path: str, headers: dict[str, str], query: str = "") -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("192.0.2.1", 1234), "server": ("test", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._events.get, self._take))

    def send(self, chunk: bytes, *, more: bool = False) -> None:
        self._events.put_nowait({"type": "http.request", "body": chunk, "more_body": more})

    def disconnect(self) -> None:
        self._events.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> tuple[int, Any]:
        await asyncio.wait_for(self.task, 60)
        assert self.status is not None
        return self.status, json.loads(self.body)

    async def _take(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it does not come true.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextmanager
def server(
    model: Path | str, temp_dir: Path, *, prefix: Sequence[str] = (), log: Path | None = None, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``python -m serving`` on a free port and wait until it is ready.

    Its log goes to ``log``, or to a temporary file: a pipe that nobody reads would stop it after some hundred requests.
    """
    port = free_port()
    given = {"MME_MODEL": str(model), "MME_PORT": str(port), "MME_TEMP_DIR": str(temp_dir), **environment}
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | given
    command = [*prefix, sys.executable, "-m", "serving"]
    with ExitStack() as stack:
        path = log or Path(stack.enter_context(tempfile.TemporaryDirectory()), "log")
        output = stack.enter_context(path.open("w"))
        process = stack.enter_context(
            subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT, text=True)
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_ready(address, process, path))
            yield address, process
        finally:
            process.kill()


def is_alive(process_id: int) -> bool:
    return bool(psutil.pid_exists(process_id))


def descendants(process_id: int) -> list[int]:
    """Return the process ids of all descendants."""
    return [child.pid for child in psutil.Process(process_id).children(recursive=True)]


def libraries(process_id: int) -> set[str]:
    """Return the names of the files that a process has mapped."""
    return {Path(region.path).name for region in psutil.Process(process_id).memory_maps()}


def is_ready(address: str, process: subprocess.Popen[str], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
