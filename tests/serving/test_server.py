from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serving.service import descendants, is_alive, server, wait_until


def test_server_starts_answers_drains_and_stops(folder: Path, clip: Path, slow: Path, tmp_path: Path) -> None:
    settings = {"MME_NUM_DECODE_WORKERS": "1", "MME_DRAIN_S": "4", "MME_MAX_UPLOAD_BYTES": "1000000"}
    log, uploads = tmp_path / "log", tmp_path / "uploads"
    uploads.mkdir()
    with server(folder, uploads, log=log, **settings) as (address, process), ThreadPoolExecutor(6) as threads:
        family = descendants(process.pid)
        assert family
        assert answer_to(address, b"GET /labels HTTP/1.1\r\nhost: here\r\nx-endless: " + b"a" * 20_000).startswith(
            b"HTTP/1.1 400 "
        )
        for _ in range(5):  # an early answer reaches a client that is still sending
            assert post(address, b"x" * 3_000_000) == 413

        running = [threads.submit(post, address, slow.read_bytes()) for _ in range(6)]
        wait_until(lambda: metric(address, "mme_admitted_requests") == 6 or all(item.done() for item in running))
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{address}/ready").status_code == 503)
        assert httpx.get(f"{address}/ready").json()["type"] == "/problems/draining"
        assert post(address, clip.read_bytes()) == 200  # until its port closes
        assert [item.result() for item in running] == [200] * 6
        process.wait(timeout=60)

    assert process.returncode in (0, -signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, family)))
    assert list(uploads.iterdir()) == []
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    requests = [entry for entry in entries if entry.get("path") == "/classify"]
    assert [entry["status"] for entry in requests] == [413] * 5 + [200] * 7
    assert len({entry["request_id"] for entry in requests}) == 12


def test_killed_server_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path) as (_, process):
        family = descendants(process.pid)
        process.kill()
        wait_until(lambda: not any(map(is_alive, family)))


def test_help_is_printed_and_nothing_served() -> None:
    answer = started_with("--help")
    assert answer.returncode == 0
    assert "max_upload_bytes: size of a request's whole body" in answer.stdout
    wrong = started_with("--port=9")
    assert wrong.returncode == 2
    assert "unrecognized arguments: --port=9" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MME_PORT", "abc", "MME_PORT=abc: Input should be a valid integer"),
        ("MME_SHADOW_SHARE", "7", "MME_SHADOW_SHARE=7: Input should be less than or equal to 1"),
        ("MME_API_KEYS", "secret", "MME_API_KEYS: Value error, key 0 is not a SHA-256"),
        ("MME_PRECISION", "int8", "MME_PRECISION=int8: Input should be '32' or 'bf16'"),
        ("MME_TEMP_DIR", "/proc/none", "/proc/none/mme-serving-"),
        ("MME_FEEDBACK_DIR", "/proc/none/x", "/proc/none: cannot be written: No such file or directory"),
    ],
)
def test_wrong_setting_is_named_in_one_line(name: str, value: str, message: str) -> None:
    wrong = started_with(MME_MODEL="none", **{name: value})
    assert wrong.returncode == 2
    error = wrong.stderr.splitlines()[-1]
    assert error.startswith(f"python -m serving: error: {message}")
    assert "Traceback" not in wrong.stderr
    assert "secret" not in wrong.stderr


def started_with(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a service that is to end by itself."""
    command = [sys.executable, "-m", "serving", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, check=False, capture_output=True, text=True, timeout=60
    )


def answer_to(address: str, data: bytes) -> bytes:
    """Send the beginning of a request and return the first bytes of the answer."""
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port), timeout=60) as connection:
        connection.sendall(data)
        return connection.recv(1024)


def post(address: str, data: bytes) -> int:
    response = httpx.post(f"{address}/classify", content=data, headers={"content-type": "video/mp4"}, timeout=60)
    return response.status_code


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)
