"""Server processes, and clients that need little CPU, since they share the cores with the servers."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]

BOUNDARY = "b0undary"
START_TIMEOUT_S = 300.0
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """Result of a load test: statuses and seconds per request, wall time, and processor time of the server."""

    statuses: Counter[int]
    seconds: np.ndarray
    wall_s: float
    cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        """Return the requests per second that were answered with 200."""
        return self.statuses[200] / self.wall_s

    def quantile_ms(self, share: float) -> float:
        """Return a quantile of the latency in milliseconds."""
        return 1000 * float(np.quantile(self.seconds, share))


def body(clip: bytes) -> bytes:
    """Return a multipart form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="clip.mp4"\r\n'
    return f"{head}Content-Type: video/mp4\r\n\r\n".encode() + clip + f"\r\n--{BOUNDARY}--\r\n".encode()


HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@contextmanager
def started(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Start a server, wait until it accepts connections, and kill it and its children at the end."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    with subprocess.Popen([sys.executable, "-m", *command], env=environ, stdout=subprocess.DEVNULL) as popen:
        process = psutil.Process(popen.pid)
        try:
            _wait_until_it_listens(popen, port)
            yield process
        finally:
            family = [*process.children(recursive=True), process] if process.is_running() else []
            for member in family:
                member.kill()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"{process.args!r} does not listen")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def closed_loop(port: int, bodies: Sequence[bytes], num_clients: int, num_requests: int) -> Outcome:
    """Run clients that each send the next request after the answer to the last, on one connection each."""
    statuses, seconds, turns = Counter[int](), [], iter(range(num_requests))

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        for turn in turns:
            begun = time.perf_counter()
            connection.request("POST", "/classify", bodies[turn % len(bodies)], HEADERS)
            response = connection.getresponse()
            response.read()
            seconds.append(time.perf_counter() - begun)
            statuses[response.status] += 1
        connection.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as threads:
        for client in [threads.submit(ask) for _ in range(num_clients)]:
            client.result()
    return Outcome(statuses, np.array(seconds), time.perf_counter() - begun)


async def open_loop(port: int, clip: bytes, rate: float, duration_s: float) -> tuple[Outcome, np.ndarray]:
    """Send requests at a steady rate, without waiting for answers, each on a connection of its own.

    Returns:
        The result of all requests, and the seconds of those that were answered with 200.
    """
    statuses, seconds, admitted = Counter[int](), [], []
    content = body(clip)
    head = f"POST /classify HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
    request = head.encode() + f"Content-Type: {HEADERS['Content-Type']}\r\n\r\n".encode() + content

    async def ask() -> None:
        begun = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            status = int((await reader.readline()).split()[1])
            await reader.read()
            writer.close()
        except (OSError, IndexError):
            status = 0  # no answer
        seconds.append(time.perf_counter() - begun)
        statuses[status] += 1
        if status == 200:
            admitted.append(seconds[-1])

    begun, running = time.perf_counter(), set()
    for number in range(int(rate * duration_s)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        if time.perf_counter() - begun > duration_s:
            break  # the generator itself cannot keep up
        task = asyncio.create_task(ask())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return Outcome(statuses, np.array(seconds), time.perf_counter() - begun), np.array(admitted)


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time of a server and its children so far."""
    times = [member.cpu_times() for member in [process, *process.children(recursive=True)]]
    return float(sum(time.user + time.system for time in times))


def memory_mb(process: psutil.Process) -> float:
    """Return the unshared memory of a server and its children in MiB."""
    family = [process, *process.children(recursive=True)]
    return float(sum(member.memory_full_info().uss for member in family) / 2**20)


def clip_files(folder: Path) -> list[bytes]:
    """Return the contents of all files of a folder."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]
