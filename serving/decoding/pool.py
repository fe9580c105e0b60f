"""Pool of decoding processes; a process is killed and replaced when a video makes it exceed a limit."""

from __future__ import annotations

import asyncio
import atexit
import errno
import json
import logging
import multiprocessing
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar

from mme.video.containers import Reason, VideoError
from serving.decoding import child
from serving.decoding.child import DecodeTask
from serving.http.metrics import Metrics

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
MAX_HEADER_BYTES = 64 * 1024
SOCKET_BYTES = 2**20
"""Send buffer of a process, if the system allows it: it holds most answers, so that the process need not wait."""

MAX_TASKS = 1000
"""Tasks after which a process is replaced, which bounds what a decoder leaks."""

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class DecodeLimits:
    """Wall time per task and address space per process."""

    timeout_s: float
    memory_mb: int


class DecodePool:
    """Run tasks in child processes, as many at once as there are processes.

    The processes are forked from a server process that has imported the decoders and nothing of the service, so a
    process is replaced within milliseconds. The event loop reads from their sockets directly: threads in between
    would wait for Python's lock at every step.
    """

    def __init__(self, num_workers: int, limits: DecodeLimits, metrics: Metrics) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            [f"serving.decoding.{name}" for name in ("child", "normal", "tracks", "windows")]
        )
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        self._workers = [_DecodeProcess(context, limits, metrics, self._threads) for _ in range(num_workers)]
        self._idle: asyncio.LifoQueue[_DecodeProcess] = asyncio.LifoQueue()
        self._metrics = metrics
        self._running: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start all processes and wait until each is ready."""
        await asyncio.gather(*(worker.start() for worker in self._workers))
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def run(self, task: DecodeTask[Parsed], deliver: Callable[[Parsed], Awaitable[None]] | None = None) -> Parsed:
        """Run a task and return its last answer. If the caller is cancelled, the process that works for it is killed.

        Args:
            task: the task. Its time limit holds for each of its answers.
            deliver: takes all answers before the last one; until it returns, the process waits.

        Raises:
            VideoError: the video cannot be decoded within the limits.
        """
        worker = await self._idle.get()
        running = asyncio.get_running_loop().create_task(worker.run(task, deliver))
        self._running.add(running)
        self._metrics.decoding.inc()
        running.add_done_callback(lambda done: self._release(worker, done))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                worker.abandon()
            raise

    def _release(self, worker: _DecodeProcess, done: asyncio.Task[Any]) -> None:
        if not done.cancelled():
            done.exception()  # marks it as retrieved: the caller may be gone
        self._running.discard(done)
        self._metrics.decoding.dec()
        self._idle.put_nowait(worker)

    @property
    def process_ids(self) -> list[int]:
        """Ids of the live processes."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    async def close(self) -> None:
        """Kill all processes and wait until they have ended."""
        await asyncio.gather(*(worker.close() for worker in self._workers))
        if self._running:
            await asyncio.wait(self._running)
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.disconnect()


class _ProcessLost(Exception):  # noqa: N818 - an outcome of one attempt, never seen outside
    """The process has ended or must be killed; ``retry`` if the video is not the likely cause."""

    def __init__(self, reason: Reason, detail: str, *, retry: bool = False) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail
        self.retry = retry

    @classmethod
    def by_exit_code(cls, code: int | None) -> _ProcessLost:
        if code == -signal.SIGXCPU:
            return cls("timed-out", "decoding used more processor time than is allowed")
        if code == -signal.SIGKILL:  # by an operator, or by the kernel when the machine ran out of memory
            return cls("too-large", "the decoding process was killed", retry=True)
        return cls("undecodable", "the decoder crashed, or needed more memory than is allowed")


class _DecodeProcess:
    """One process and the socket to it. All methods run in the event loop; blocking calls are made in a thread."""

    def __init__(
        self, context: ForkServerContext, limits: DecodeLimits, metrics: Metrics, threads: ThreadPoolExecutor
    ) -> None:
        self._context = context
        self._limits = limits
        self._metrics = metrics
        self._threads = threads
        self._process: ForkServerProcess | None = None
        self._socket: socket.socket | None = None
        self._num_tasks = 0
        self._num_delivered = 0
        self._abandoned = False
        self._closed = False

    @property
    def process_id(self) -> int | None:
        """Id of the process; None if it is not alive."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            RuntimeError: it does not start.
        """
        self.disconnect()
        await self._in_thread(self._start)

    def _start(self) -> None:
        own_end, child_end = socket.socketpair()
        for end in (own_end, child_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        process = self._context.Process(
            target=child.serve, args=(child_end, self._limits.memory_mb), name="decode", daemon=True
        )
        process.start()
        child_end.close()
        self._process = process
        self._socket = own_end
        self._num_tasks = 0
        atexit.register(self._kill)  # multiprocessing joins its children at exit, and this one ignores SIGTERM
        if self._closed:
            self._kill()

        own_end.settimeout(START_TIMEOUT_S)
        try:
            ready = own_end.recv(len(child.READY)) == child.READY
        except OSError:
            ready = False
        own_end.setblocking(False)
        if not ready and not self._closed:
            raise RuntimeError(f"a decoding process did not start: exit code {process.exitcode}")

    async def run(self, task: DecodeTask[Parsed], deliver: Callable[[Parsed], Awaitable[None]] | None) -> Parsed:
        """Run a task; on return or error, a live process is ready for the next one.

        Raises:
            VideoError: the video cannot be decoded within the limits.
        """
        self._abandoned = False
        if not self._is_silent():
            await self._replace("died while idle")

        try:
            return await self._attempt(task, deliver)
        except _ProcessLost as lost:
            if not lost.retry or self._num_delivered or self._abandoned or self._closed:
                raise VideoError(lost.reason, task.path, lost.detail) from lost
        try:
            return await self._attempt(task, deliver)  # a second process that is lost is taken for the video's fault
        except _ProcessLost as lost:
            raise VideoError(lost.reason, task.path, lost.detail) from lost

    async def _attempt(self, task: DecodeTask[Parsed], deliver: Callable[[Parsed], Awaitable[None]] | None) -> Parsed:
        self._num_tasks += 1
        try:
            answer = await self._ask(task, deliver)
        except _ProcessLost as lost:
            await self._replace(lost.detail)
            raise
        if self._num_tasks >= MAX_TASKS:
            await self._replace("reached its maximum number of tasks", planned=True)
        return answer

    async def _ask(self, task: DecodeTask[Parsed], deliver: Callable[[Parsed], Awaitable[None]] | None) -> Parsed:
        assert self._socket is not None
        assert self._process is not None
        self._num_delivered = 0
        try:
            async with asyncio.timeout(self._limits.timeout_s) as limit:
                await asyncio.get_running_loop().sock_sendall(self._socket, child.packed(task))
                while True:
                    header, payload = await _receive_answer(self._socket, task.max_bytes)
                    refusal = _video_error(task, header) if "reason" in header else None
                    if refusal is not None:
                        break
                    answer = task.parse(header, payload)
                    if deliver is None or "more" not in header:
                        return answer
                    limit.reschedule(None)  # the caller's time is not the decoder's
                    if not self._abandoned:
                        await deliver(answer)
                    self._num_delivered += 1
                    limit.reschedule(asyncio.get_running_loop().time() + self._limits.timeout_s)
        except TimeoutError as error:
            raise _ProcessLost("timed-out", f"decoding took more than {self._limits.timeout_s:g} s") from error
        except (EOFError, OSError) as error:
            await self._in_thread(self._process.join, 1.0)
            raise _ProcessLost.by_exit_code(self._process.exitcode) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _ProcessLost("undecodable", "the decoder's answer is malformed") from error
        raise refusal

    def _is_silent(self) -> bool:
        """Return whether the process lives and has sent nothing: before a task, any bytes are from a rogue process."""
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
        if not planned and not self._abandoned:  # neither of the two is a sign of bad videos or tight limits
            self._metrics.decoders_replaced.inc()
        log.info("decoding process replaced", extra={"cause": cause})
        await self.start()

    def _kill(self) -> None:
        atexit.unregister(self._kill)
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def abandon(self) -> None:
        """Kill the process because its caller is gone; ``run`` notices the closed socket and replaces it."""
        self._abandoned = True
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """Kill the process for good."""
        self._closed = True
        if self._process is not None:
            self._process.kill()  # at once: all threads may be waiting for processes to start
        await self._in_thread(self._kill)

    def disconnect(self) -> None:
        """Close this end of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _in_thread(self, function: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


async def _receive_answer(source: socket.socket, max_payload_bytes: int) -> tuple[dict[str, Any], bytearray]:
    """Receive an answer in the format of ``child.serve``.

    Raises:
        EOFError: the connection ends early.
        OSError: the answer is larger than allowed, or the connection is broken.
    """
    num_header, num_payload = child.SIZES.unpack(await _receive_exactly(source, child.SIZES.size))
    if num_header > MAX_HEADER_BYTES or num_payload > max_payload_bytes:
        raise OSError(errno.EMSGSIZE, "a decoding process sent more than it may")
    header: dict[str, Any] = json.loads(await _receive_exactly(source, num_header))
    return header, await _receive_exactly(source, num_payload)


async def _receive_exactly(source: socket.socket, num_bytes: int) -> bytearray:
    loop = asyncio.get_running_loop()
    buffer = bytearray(num_bytes)
    done = 0
    with memoryview(buffer) as view:
        while done < num_bytes:
            received = await loop.sock_recv_into(source, view[done:])
            if not received:
                raise EOFError
            done += received
    return buffer


def _video_error(task: DecodeTask[object], header: dict[str, Any]) -> VideoError | _ProcessLost:
    """Return the error that a process reported; a process that ran out of memory is replaced."""
    if "cause" in header:
        log.warning("decoder failed", extra={"cause": header["cause"]})
    if header.get("spent"):
        return _ProcessLost(header["reason"], header["detail"])
    return VideoError(header["reason"], task.path, header["detail"])
