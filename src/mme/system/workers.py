"""Worker processes that are killed when a task misses its deadline.

A decoder can hang or crash on a bad file; neither may stop the work on the other files.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeVar

import psutil  # type: ignore[import-untyped]

from mme.system.executors import Executor, Pool, open_ray_pool
from mme.system.parent import end_with_parent

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_MIN_WAIT_S = 0.1
"""Shortest wait between two looks at a task that is overdue by the clock, but not by its own time."""

_GLANCE_S = 0.02
"""Time in which a process that has a processor is seen to run: longer than a tick of the system's clock."""


@dataclass(frozen=True)
class WorkerFailure:
    """A task without a result: its process was killed at the deadline, or died of a signal."""

    cause: Literal["timed-out", "died"]
    detail: str


def run_with_deadline(
    work: Callable[[TaskT], ResultT],
    tasks: Iterable[TaskT],
    num_workers: int,
    deadline_s: float,
    executor: Executor = "local",
) -> Iterator[tuple[TaskT, ResultT | WorkerFailure]]:
    """Run ``work`` on every task, in processes that are reused until one has to be killed.

    Args:
        work: function of a module; it, its tasks and its results must be picklable.
        tasks: yielded back with their results, in order of completion.
        num_workers: number of processes; a Ray cluster has as many as it has cores.
        deadline_s: seconds after which the process of a task is killed. Time spent waiting for a processor does not
            count where the system reports it (Linux), so that a busy machine cannot time out a valid file.
        executor: ``ray`` to run on the workers of a cluster, each of which keeps a process of its own.

    Raises:
        RuntimeError: ``work`` raised an exception, which is printed on stderr, or a process cannot start.
        ValueError: the executor is ``ray``, which is not installed.
    """
    if executor == "ray":
        calls = ((task, (work, task, deadline_s)) for task in tasks)
        with open_ray_pool(num_workers) as pool:
            yield from pool.call_all(call_with_deadline, calls)
    else:
        with _open_deadline_pool(work, num_workers, deadline_s) as (pool, call):
            yield from pool.call_all(call, ((task, (task,)) for task in tasks))


@contextmanager
def _open_deadline_pool(
    work: Callable[[TaskT], ResultT], num_workers: int, deadline_s: float
) -> Iterator[tuple[Pool, Callable[[TaskT], ResultT | WorkerFailure]]]:
    """Open threads that each wait for a process of their own, and the function that they call."""
    workers = [_DeadlineProcess(work, deadline_s) for _ in range(num_workers)]
    idle: SimpleQueue[_DeadlineProcess[TaskT, ResultT]] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def call(task: TaskT) -> ResultT | WorkerFailure:
        worker = idle.get()
        try:
            return worker.call(task)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(num_workers)
    try:
        yield Pool(threads.submit, num_workers), call
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        threads.shutdown()
        for worker in workers:
            worker.close()


_kept: dict[Any, _DeadlineProcess[Any, Any]] = {}
"""One process for each function and deadline that `call_with_deadline` was called with."""


def call_with_deadline(work: Callable[[TaskT], ResultT], task: TaskT, deadline_s: float) -> ResultT | WorkerFailure:
    """Run ``work`` on one task, in a process that is kept for the next call and ends with the caller.

    Args, results and errors are those of `run_with_deadline`.
    """
    worker = _kept.setdefault((work, deadline_s), _DeadlineProcess(work, deadline_s))
    result: ResultT | WorkerFailure = worker.call(task)
    return result


class _DeadlineProcess(Generic[TaskT, ResultT]):
    """A process that works on one task at a time, started when there is a task for it."""

    def __init__(self, work: Callable[[TaskT], ResultT], deadline_s: float) -> None:
        self._work = work
        self._deadline_s = deadline_s
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._is_killed = False

    def call(self, task: TaskT) -> ResultT | WorkerFailure:
        """Run ``work`` on a task.

        Raises:
            RuntimeError: ``work`` raised an exception, which is printed on stderr, or the process cannot start.
        """
        process, connection = self._started()
        begin_s = _own_time_s(process)
        connection.send(task)

        remaining_s = self._deadline_s
        while not connection.poll(max(remaining_s, _MIN_WAIT_S)):
            if _is_waiting(process):
                remaining_s = 0
                continue
            remaining_s = self._deadline_s - (_own_time_s(process) - begin_s)
            if remaining_s <= 0:
                self.close()
                return WorkerFailure("timed-out", f"killed after {self._deadline_s:g} s")

        try:
            result: ResultT = connection.recv()
        except EOFError:
            exit_code = self._exit_code()
            if exit_code >= 0:
                raise RuntimeError(f"a worker process ended with exit code {exit_code}; see its error above") from None
            return WorkerFailure("died", f"its decoder died of {signal.Signals(-exit_code).name}")
        return result

    def kill(self) -> None:
        """End the process for good, from another thread."""
        self._is_killed = True
        process = self._process  # may become None at any time
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process and release the connection to it."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None

    def _exit_code(self) -> int:
        """Return the exit code of a process that has closed its end of the connection."""
        assert self._process is not None
        self._process.join()
        exit_code = self._process.exitcode
        self.close()
        assert exit_code is not None
        return exit_code

    def _started(self) -> tuple[SpawnProcess, Connection]:
        """Return the process and the connection to it, once it has imported what it needs."""
        if self._process is not None and self._connection is not None:
            return self._process, self._connection

        context = multiprocessing.get_context("spawn")  # a fork could inherit a lock that no thread will release
        connection, other_end = context.Pipe()
        process = context.Process(target=_serve, args=(other_end, self._work), daemon=True)
        process.start()
        other_end.close()
        self._process = process
        self._connection = connection
        if self._is_killed:  # before this process was known
            process.kill()
        try:
            connection.recv()
        except EOFError:
            raise RuntimeError(f"a worker process could not start: exit code {self._exit_code()}, see above") from None
        return process, connection


def _own_time_s(process: SpawnProcess) -> float:
    """Return a clock in seconds that does not advance while a process waits for a processor.

    Waits are known on Linux only, and only when they are over; elsewhere this is an ordinary clock.
    """
    return time.monotonic() - _scheduled_ns(process)[1] / 1e9


def _is_waiting(process: SpawnProcess) -> bool:
    """Return whether a process waits for a processor now: it could run, and does not. Unknown if not on Linux."""
    ran_ns, _ = _scheduled_ns(process)
    time.sleep(_GLANCE_S)
    later_ns, _ = _scheduled_ns(process)
    return 0 < ran_ns == later_ns and psutil.Process(process.pid).status() == psutil.STATUS_RUNNING


def _scheduled_ns(process: SpawnProcess) -> tuple[int, int]:
    """Return for how long a process ran and waited for a processor; zeros where the system does not say so."""
    try:
        ran_ns, waited_ns, _ = Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()
    except OSError:
        return 0, 0
    return int(ran_ns), int(waited_ns)


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Answer tasks until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends its processes
    end_with_parent()
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(work(task))
