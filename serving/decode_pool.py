"""A pool of decoding processes, each killed and replaced when a video makes it exceed a limit."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import multiprocessing
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar

from mme.data.containers import Reason, VideoError
from serving import decode_child
from serving.decode_child import Task
from serving.metrics import Metrics

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
MAX_HEADER_BYTES = 64 * 1024
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
    replacement is there within milliseconds.
    """

    def __init__(self, num_workers: int, limits: DecodeLimits, metrics: Metrics) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["serving.decode_child", "serving.track_job"])
        self._workers = [_Worker(context, limits, metrics) for _ in range(num_workers)]
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()

    async def start(self) -> None:
        """Start all processes; returns when each has said that it is ready."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, worker.start) for worker in self._workers))
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def decode(self, task: Task[Result]) -> Result:
        """What a task asks of its video. If the caller is cancelled, the process that works for it is killed.

        Raises:
            VideoError: the video cannot be decoded, or only beyond the limits.
        """
        worker = await self._idle.get()
        running = asyncio.get_running_loop().run_in_executor(self._threads, worker.run, task)
        running.add_done_callback(lambda done: self._give_back(worker, done))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                worker.abandon()
            raise

    def _give_back(self, worker: _Worker, done: asyncio.Future[Result]) -> None:
        if not done.cancelled():
            done.exception()  # a caller that went away leaves nobody to look at it
        self._idle.put_nowait(worker)

    @property
    def process_ids(self) -> list[int]:
        """The processes that are alive."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    async def close(self) -> None:
        """Kill all processes and wait until they are gone."""
        for worker in self._workers:
            worker.close()
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
    """One process and the pipe to it. ``run`` is called by one thread at a time, the rest by any."""

    def __init__(self, context: ForkServerContext, limits: DecodeLimits, metrics: Metrics) -> None:
        self._context, self._limits, self._metrics = context, limits, metrics
        self._process: ForkServerProcess | None = None
        self._connection: Connection[Any, Any] | None = None
        self._num_jobs = 0
        self._abandoned = self._closed = False

    @property
    def process_id(self) -> int | None:
        """The process, if it is alive."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            RuntimeError: it does not come up.
        """
        self.hang_up()
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._limits.memory_mb)
        process = self._context.Process(target=decode_child.serve, args=arguments, name="decode", daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection, self._num_jobs = process, ours, 0
        atexit.register(self.close)  # multiprocessing joins at exit, and the process ignores SIGTERM
        try:
            ready = ours.poll(START_TIMEOUT_S) and ours.recv_bytes(MAX_HEADER_BYTES) == b"ready"
        except (EOFError, OSError):
            ready = False
        if not ready and not self._closed:
            raise RuntimeError(f"a decoding process did not start: exit code {process.exitcode}")

    def run(self, task: Task[Result]) -> Result:
        """Do it in the process; whatever goes wrong, a live process stands ready afterwards.

        Raises:
            VideoError: the video cannot be decoded, or only beyond the limits.
        """
        self._abandoned = False
        if self.process_id is None:
            self._replace("died while idle")
        try:
            return self._attempt(task)
        except _Lost as lost:
            if not lost.again or self._abandoned or self._closed:
                raise VideoError(lost.reason, task.path, lost.detail) from lost
        try:
            return self._attempt(task)
        except _Lost as lost:
            raise VideoError(lost.reason, task.path, lost.detail) from lost

    def _attempt(self, task: Task[Result]) -> Result:
        self._num_jobs += 1
        try:
            answer = self._ask(task)
        except _Lost as lost:
            self._replace(lost.detail)
            raise
        if self._num_jobs >= MAX_JOBS:
            self._replace("has had its number of videos")
        return answer

    def _ask(self, task: Task[Result]) -> Result:
        assert self._connection is not None
        assert self._process is not None
        until = time.monotonic() + self._limits.timeout_s
        try:
            self._connection.send(task)
            header = json.loads(self._receive(MAX_HEADER_BYTES, until))
            if "reason" in header:
                raise _refusal(task, header)
            return task.parse(header, self._receive(task.max_bytes, until))
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            raise _Lost.by_exit_code(self._process.exitcode) from error

    def _receive(self, max_bytes: int, until: float) -> bytes:
        assert self._connection is not None
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            raise _Lost("timed-out", f"decoding took more than {self._limits.timeout_s:g} s")
        return self._connection.recv_bytes(max_bytes)

    def _replace(self, cause: str) -> None:
        self._kill()
        if self._closed:
            return
        self._metrics.decoders_replaced.inc()
        log.info("decoding process replaced", extra={"cause": cause})
        self.start()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def abandon(self) -> None:
        """Kill the process because nobody waits for its answer; ``run`` sees the pipe closed and replaces it."""
        self._abandoned = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Kill the process for good."""
        self._closed = True
        atexit.unregister(self.close)
        self._kill()

    def hang_up(self) -> None:
        """Close our end of the pipe, which no thread may be using."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _refusal(task: Task[object], header: dict[str, Any]) -> VideoError | _Lost:
    """The error of a video that the process answered for; one that ran out of memory is not used again."""
    if "cause" in header:
        log.warning("decoder gave up", extra={"cause": header["cause"]})
    if header.get("spent"):
        return _Lost(header["reason"], header["detail"])
    return VideoError(header["reason"], task.path, header["detail"])
