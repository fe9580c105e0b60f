"""Requests under load while something fails, with the service in processes of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.serving.load import load
from tests.serving.service import RAW, descendants, is_alive, server, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = {"MME_NUM_DECODE_WORKERS": "2", "MME_TORCH_THREADS": "1", "MME_POLL_S": "3600"}
NUM_KILLS = 10


def metric(address: str, series: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == series)


def decoders(process_id: int) -> list[int]:
    """Return the decoders, which are children of multiprocessing's fork server, the busiest first.

    That of long videos is among them; nobody notices its death before the next long video comes.
    """
    children = [child for server in psutil.Process(process_id).children() for child in server.children()]
    return [child.pid for child in sorted(children, key=lambda child: -child.cpu_times().user)]


def fill(path: Path) -> bool:
    """Append until the disk is full; call it again, since requests in progress free space when they end."""
    try:
        with path.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def test_killed_decoders_fail_no_request(folder: Path, clip: Path, tmp_path: Path) -> None:
    log, uploads = tmp_path / "log", tmp_path / "uploads"
    uploads.mkdir()
    with server(folder, uploads, log=log, **SMALL) as (address, process):
        with load(address, clip.read_bytes(), 4) as seen:
            seen.wait_for_more()
            for number in range(1, NUM_KILLS + 1):
                os.kill(decoders(process.pid)[0], signal.SIGKILL)
                wait_until(lambda number=number: metric(address, "mme_decoders_replaced_total") >= number)  # type: ignore[misc]
                seen.wait_for_more()  # a video is tried twice: one that is killed again is taken for the cause
        assert seen.statuses() == {200}
        wait_until(lambda: len(decoders(process.pid)) == 2 + 1)  # two, and one for long videos
        assert metric(address, "mme_admitted_requests") == 0


def test_full_disk_refuses_uploads_only(folder: Path, clip: Path, tmp_path: Path) -> None:
    """The uploads are on a file system of 2 MiB, in a mount namespace that ends with the service."""
    uploads, log = tmp_path / "uploads", tmp_path / "log"
    uploads.mkdir()
    script = f'mount -t tmpfs -o size=2m tmpfs "{uploads}" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if os.spawnvp(os.P_WAIT, prefix[0], [*prefix, "true"]) != 0:
        pytest.skip("mounting is not allowed here")
    with server(folder, uploads, prefix=prefix, log=log, **SMALL) as (address, process):
        seen_by_service = Path(f"/proc/{process.pid}/root{uploads}")
        filling = next(seen_by_service.iterdir()) / "filling"
        with load(address, clip.read_bytes(), 4) as seen:
            seen.wait_for_more()
            wait_until(lambda: fill(filling) and {reply.status for reply in seen.newest()} == {503})
            refused = seen.newest()[0].body
            assert refused["type"] == "/problems/storage-full"
            assert httpx.get(f"{address}/ready").status_code == 200
            filling.unlink()
            wait_until(lambda: {reply.status for reply in seen.newest()} == {200})
        assert seen.statuses() == {200, 503}
        assert {reply.body["type"] for reply in seen.all() if reply.status == 503} == {"/problems/storage-full"}
        assert [path.name for path in filling.parent.iterdir()] == ["warm.mp4"]


@pytest.mark.parametrize("drain_s", ["0", "1"])
def test_shutdown_under_load_answers_every_accepted_request(
    folder: Path, clip: Path, tmp_path: Path, drain_s: str
) -> None:
    """Every request that the service has logged has reached its client with the same status."""
    log, uploads = tmp_path / "log", tmp_path / "uploads"
    uploads.mkdir()
    with server(folder, uploads, log=log, MME_DRAIN_S=drain_s, **SMALL) as (address, process):
        family = descendants(process.pid)
        with load(address, clip.read_bytes(), 6, reconnect=True) as seen:
            wait_until(lambda: len(seen.all()) >= 30)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: process.poll() is not None)
    assert process.returncode in (0, -signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, family)))
    assert list(uploads.iterdir()) == []

    entries = [json.loads(line) for line in log.read_text().splitlines()]
    done = {entry["request_id"]: entry["status"] for entry in entries if entry.get("path") == "/classify"}
    told = {reply.request_id: reply.status for reply in seen.all() if reply.status is not None}
    assert done == told
    assert set(done.values()) == {200}
    assert all("Connect" in reply.body or reply.request_id not in done for reply in seen.all() if reply.status is None)


def test_disconnected_clients_leave_no_files_or_slots(folder: Path, slow: Path, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with server(folder, uploads, log=tmp_path / "log", **SMALL) as (address, _):
        for _ in range(5):
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{address}/classify", content=slow.read_bytes(), headers=RAW, timeout=0.05)
        wait_until(lambda: metric(address, "mme_admitted_requests") == 0)
        assert httpx.post(f"{address}/classify", content=slow.read_bytes(), headers=RAW, timeout=120).status_code == 200
        assert [path.name for path in next(uploads.iterdir()).iterdir()] == ["warm.mp4"]
