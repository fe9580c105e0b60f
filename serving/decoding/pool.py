"""A pool of decoding processes, each killed and replaced when a video makes it exceed a limit."""

from __future__ import annotations

import asyncio
import atexit
import errno
import json
import logging
import multiprocessing
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar

from mme.video.containers import Reason, VideoError
from serving.decoding import child
from serving.decoding.child import Task
from serving.http.metrics import Metrics

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
MAX_HEADER_BYTES = 64 * 1024
SOCKET_BYTES = 2**20
"""What a process may send before we read it, if the system allows so much: it need not wait for us."""

MAX_JOBS = 1000
"""A process is replaced after so many videos, so that what a decoder leaks is bounded."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodeLimits:
    """Wall time of one video and address space of one process."""

    timeout_s: float
    memory_mb: int


class DecodePool:
    """Decodes videos in child processes; as many at once as there are processes, others wait their turn.

    The processes are forked from a server process that has imported the decoders and nothing of the service, so a
    replacement is there within milliseconds. The event loop itself speaks to them: a thread for each would have to
    wait for Python's lock at every step, and its process for the thread.
    """

    def __init__(self, num_workers: int, limits: DecodeLimits, metrics: Metrics) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["serving.decoding.child", "serving.decoding.tracks"])
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        self._workers = [_Worker(context, limits, metrics, self._threads) for _ in range(num_workers)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._running: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start all processes; returns when each has said that it is ready."""
        await asyncio.gather(*(worker.start() for worker in self._workers))
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def decode(self, task: Task[Result]) -> Result:
        """What a task asks of its video. If the caller is cancelled, the process that works for it is killed.

        Raises:
            VideoError: the video cannot be decoded, or only beyond the limits.
        """
        worker = await self._idle.get()
        running = asyncio.get_running_loop().create_task(worker.run(task))
        self._running.add(running)
        running.add_done_callback(lambda done: self._give_back(worker, done))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                worker.abandon()
            raise

    def _give_back(self, worker: _Worker, done: asyncio.Task[Any]) -> None:
        if not done.cancelled():
            done.exception()  # a caller that went away leaves nobody to look at it
        self._running.discard(done)
        self._idle.put_nowait(worker)

    @property
    def process_ids(self) -> list[int]:
        """The processes that are alive."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    async def close(self) -> None:
        """Kill all processes and wait until they are gone."""
        await asyncio.gather(*(worker.close() for worker in self._workers))
        if self._running:
            await asyncio.wait(self._running)
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.hang_up()


class _Lost(Exception):  # noqa: N818 - an outcome of one attempt, never seen outside
    """The process is gone or must go; ``again`` if that says nothing about the video."""

    def __init__(self, reason: Reason, detail: str, *, again: bool = False) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.again = reason, detail, again

    @classmethod
    def by_exit_code(cls, code: int | None) -> _Lost:
        if code == -signal.SIGXCPU:
            return cls("timed-out", "decoding used more processor time than is allowed")
        if code == -signal.SIGKILL:  # an operator, or the kernel when the machine's memory ran out
            return cls("too-large", "the decoding process was killed", again=True)
        return cls("undecodable", "the decoder crashed, or needed more memory than is allowed")


class _Worker:
    """One process and the socket to it. All methods belong to the event loop; what blocks is done in a thread."""

    def __init__(
        self, context: ForkServerContext, limits: DecodeLimits, metrics: Metrics, threads: ThreadPoolExecutor
    ) -> None:
        self._context, self._limits, self._metrics, self._threads = context, limits, metrics, threads
        self._process: ForkServerProcess | None = None
        self._socket: socket.socket | None = None
        self._num_jobs = 0
        self._abandoned = self._closed = False

    @property
    def process_id(self) -> int | None:
        """The process, if it is alive."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            RuntimeError: it does not come up.
        """
        self.hang_up()
        await self._in_thread(self._start)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        process = self._context.Process(
            target=child.serve, args=(theirs, self._limits.memory_mb), name="decode", daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._socket, self._num_jobs = process, ours, 0
        atexit.register(self._kill)  # multiprocessing joins at exit, and the process ignores SIGTERM
        if self._closed:
            self._kill()
        ours.settimeout(START_TIMEOUT_S)
        try:
            ready = ours.recv(len(child.READY)) == child.READY
        except OSError:
            ready = False
        ours.setblocking(False)
        if not ready and not self._closed:
            raise RuntimeError(f"a decoding process did not start: exit code {process.exitcode}")

    async def run(self, task: Task[Result]) -> Result:
        """Do it in the process; whatever goes wrong, a live process stands ready afterwards.

        Raises:
            VideoError: the video cannot be decoded, or only beyond the limits.
        """
        self._abandoned = False
        if not self._is_fit():
            await self._replace("died while idle")
        try:
            return await self._attempt(task)
        except _Lost as lost:
            if not lost.again or self._abandoned or self._closed:
                raise VideoError(lost.reason, task.path, lost.detail) from lost
        try:
            return await self._attempt(task)
        except _Lost as lost:
            raise VideoError(lost.reason, task.path, lost.detail) from lost

    async def _attempt(self, task: Task[Result]) -> Result:
        self._num_jobs += 1
        try:
            answer = await self._ask(task)
        except _Lost as lost:
            await self._replace(lost.detail)
            raise
        if self._num_jobs >= MAX_JOBS:
            await self._replace("has had its number of videos", planned=True)
        return answer

    async def _ask(self, task: Task[Result]) -> Result:
        assert self._socket is not None
        assert self._process is not None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await asyncio.get_running_loop().sock_sendall(self._socket, child.packed(task))
                header, payload = await receive(self._socket, MAX_HEADER_BYTES, task.max_bytes)
                refusal = _refusal(task, header) if "reason" in header else None
                if refusal is None:
                    return task.parse(header, payload)
        except TimeoutError as error:
            raise _Lost("timed-out", f"decoding took more than {self._limits.timeout_s:g} s") from error
        except (EOFError, OSError) as error:
            await self._in_thread(self._process.join, 1.0)
            raise _Lost.by_exit_code(self._process.exitcode) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Lost("undecodable", "the decoder gave no answer that makes sense") from error
        raise refusal

    def _is_fit(self) -> bool:
        """Whether the process lives and is silent: it has not been asked anything yet."""
        if self._socket is None:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def _replace(self, cause: str, planned: bool = False) -> None:
        await self._in_thread(self._kill)
        if self._closed:
            return
        if not planned and not self._abandoned:  # neither says anything about videos or limits
            self._metrics.decoders_replaced.inc()
        log.info("decoding process replaced", extra={"cause": cause})
        await self.start()

    def _kill(self) -> None:
        atexit.unregister(self._kill)
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def abandon(self) -> None:
        """Kill the process because nobody waits for its answer; ``run`` sees its end closed and replaces it."""
        self._abandoned = True
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """Kill the process for good."""
        self._closed = True
        if self._process is not None:
            self._process.kill()  # at once: threads may all be waiting for processes to start
        await self._in_thread(self._kill)

    def hang_up(self) -> None:
        """Close our end."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _in_thread(self, function: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


async def receive(
    source: socket.socket, max_header_bytes: int, max_payload_bytes: int
) -> tuple[dict[str, Any], bytearray]:
    """An answer, as ``child.serve`` sends it.

    Raises:
        EOFError: it ends before its end.
        OSError: it is larger than allowed, or the connection is broken.
    """
    loop = asyncio.get_running_loop()
    begun = bytearray(max_header_bytes)
    size = child.SIZES.size
    count = await _fill(loop, source, begun, 0, size)
    num_header, num_payload = child.SIZES.unpack_from(begun)
    if num_header > max_header_bytes - size or num_payload > max_payload_bytes:
        raise OSError(errno.EMSGSIZE, "a decoding process sent more than it may")
    count = await _fill(loop, source, begun, count, size + num_header)
    header: dict[str, Any] = json.loads(begun[size : size + num_header])
    payload = bytearray(num_payload)
    there = count - size - num_header
    if there > num_payload:
        raise OSError(errno.EMSGSIZE, "a decoding process sent more than it said")
    payload[:there] = begun[size + num_header : count]
    await _fill(loop, source, payload, there, num_payload)
    return header, payload


async def _fill(
    loop: asyncio.AbstractEventLoop, source: socket.socket, buffer: bytearray, count: int, needed: int
) -> int:
    """Receive into a buffer that has ``count`` bytes until it has ``needed``; how many it has then."""
    with memoryview(buffer) as view:
        while count < needed:
            received = await loop.sock_recv_into(source, view[count:])
            if not received:
                raise EOFError
            count += received
    return count


def _refusal(task: Task[object], header: dict[str, Any]) -> VideoError | _Lost:
    """The error of a video that the process answered for; one that ran out of memory is not used again."""
    if "cause" in header:
        log.warning("decoder gave up", extra={"cause": header["cause"]})
    if header.get("spent"):
        return _Lost(header["reason"], header["detail"])
    return VideoError(header["reason"], task.path, header["detail"])
