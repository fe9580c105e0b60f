from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests import media


@contextmanager
def server(folder: Path, temp_dir: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``python -m serving`` on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"MME_MODEL": str(folder), "MME_PORT": str(port), "MME_TEMP_DIR": str(temp_dir), **environment}
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | given
    command = [sys.executable, "-m", "serving"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, process)
            yield address, process
        finally:
            process.kill()


def wait_until_ready(address: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the server did not become ready")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("slow") / "slow.mp4", size=(1280, 720), num_frames=60)


def test_what_was_accepted_is_answered_before_it_stops(folder: Path, slow: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path, MME_NUM_DECODE_WORKERS="1") as (address, process), ThreadPoolExecutor(6) as threads:
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        data = slow.read_bytes()
        running = [threads.submit(post, address, data) for _ in range(6)]
        while metric(address, "mme_admitted_requests") < 6 and not all(future.done() for future in running):
            pass
        process.send_signal(signal.SIGTERM)
        assert [future.result() for future in running] == [200] * 6
        output, _ = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert list(tmp_path.iterdir()) == []
    entries = [json.loads(line) for line in output.splitlines()]
    requests = [entry for entry in entries if entry.get("path") == "/classify"]
    assert [entry["status"] for entry in requests] == [200] * 6
    assert len({entry["request_id"] for entry in requests}) == 6


def test_readiness_goes_before_the_port(folder: Path, clip: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path, MME_DRAIN_S="2") as (address, process):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = httpx.get(f"{address}/ready")
        assert (ready.status_code, ready.json()["type"]) == (503, "/problems/draining")
        assert post(address, clip.read_bytes()) == 200
        process.wait(timeout=30)


def test_a_killed_server_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path) as (_, process):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert not psutil.wait_procs(family, timeout=10)[1]


def test_an_early_answer_reaches_a_client_that_is_still_sending(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path, MME_MAX_UPLOAD_BYTES="1000") as (address, _):
        for _ in range(10):
            assert post(address, b"x" * 3_000_000) == 413


def post(address: str, data: bytes) -> int:
    response = httpx.post(f"{address}/classify", content=data, headers={"content-type": "video/mp4"}, timeout=60)
    return response.status_code


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)
