"""Processes that work on one task at a time and are killed when it takes too long.

Decoders can hang for ever, or crash, on a bad file; neither may stop the work on the other files.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_BACKSTOP_S = 600.0
"""Time beyond the deadline after which the kernel ends a process that hangs and whose parent is gone."""


_LEAST_WAIT_S = 0.1


@dataclass(frozen=True)
class _Usage:
    """Seconds that a process has run, and waited for a processor; whether it is running, or waiting for one, now."""

    ran_s: float
    waited_s: float
    is_ready: bool


@dataclass(frozen=True)
class Lost:
    """A task without a result: its process was killed at the deadline, or died of a signal."""

    cause: Literal["timed-out", "died"]
    detail: str


def run_killable(
    work: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int, deadline_s: float
) -> Iterator[tuple[Task, Result | Lost]]:
    """Run ``work`` on every task, in processes that are used again until one has to be killed.

    Args:
        work: a module's function; it and what it takes and returns must be picklable.
        tasks: yielded back with their results, in the order in which they are done.
        num_workers: processes at a time.
        deadline_s: seconds after which a task's process is killed. Seconds in which it waits for a processor do not
            count where the system (Linux) tells them, so that a busy machine makes no file bad.

    Raises:
        RuntimeError: ``work`` raised an exception, which stands on stderr, or a process cannot start.
    """
    todo = deque(tasks)
    workers: list[_Worker[Task, Result]] = []
    try:
        workers += [_Worker(work, deadline_s) for _ in range(min(num_workers, len(todo)))]
        while workers:
            for worker in list(workers):
                if worker.lost is None and not worker.idle:
                    continue
                if worker.idle and todo:
                    worker.give(todo.popleft())
                    continue
                workers.remove(worker)
                worker.close()
                if todo:
                    workers.append(_Worker(work, deadline_s))
            yield from _results(workers)
    finally:
        for worker in workers:
            worker.close()


_kept: dict[Any, Any] = {}
"""A process each for the functions that ``call_killable`` was called with."""


def call_killable(work: Callable[[Task], Result], task: Task, deadline_s: float) -> Result | Lost:
    """Run ``work`` on one task, for a caller that is itself one of many workers.

    The process is kept for the next call; it ends with the caller.

    Args:
        work: a module's function; it and what it takes and returns must be picklable.
        task: for it.
        deadline_s: as of `run_killable`.

    Raises:
        RuntimeError: ``work`` raised an exception, which stands on stderr, or a process cannot start.
    """
    worker = _kept.pop((work, deadline_s), None) or _Worker[Task, Result](work, deadline_s)
    try:
        while True:
            if worker.idle:
                worker.give(task)
            for _, outcome in _results([worker]):
                if not isinstance(outcome, Lost):
                    _kept[work, deadline_s] = worker
                return outcome
    finally:
        if _kept.get((work, deadline_s)) is not worker:
            worker.close()


def _results(workers: list[_Worker[Task, Result]]) -> Iterator[tuple[Task, Result | Lost]]:
    """Wait until one or more workers have something to say, or one is overdue."""
    if not workers:
        return
    nearest = min(worker.deadline for worker in workers)
    timeout_s = None if nearest == float("inf") else max(0.0, nearest - time.monotonic())
    wait([worker.connection for worker in workers], timeout_s)
    for worker in workers:
        outcome = worker.collect()
        if outcome is not None:
            yield outcome


class _Worker(Generic[Task, Result]):
    """A process and the task it works on."""

    def __init__(self, work: Callable[[Task], Result], deadline_s: float) -> None:
        context = multiprocessing.get_context("spawn")  # a fork could inherit a lock that no thread will release
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, deadline_s + _BACKSTOP_S), daemon=True)
        self._process.start()
        theirs.close()
        self._deadline_s = deadline_s
        self._tasks: list[Task] = []
        self._starting = True
        self._began = 0.0
        self._before: _Usage | None = None
        self.deadline = float("inf")
        self.lost: Lost | None = None

    @property
    def idle(self) -> bool:
        """Whether it can be given a task."""
        return not self._starting and not self._tasks and self.lost is None

    def give(self, task: Task) -> None:
        """Let it work on a task, from now to the deadline."""
        self._tasks = [task]
        self._began, self._before = time.monotonic(), self._usage()
        self.deadline = self._began + self._deadline_s
        self.connection.send(task)

    def collect(self) -> tuple[Task, Result | Lost] | None:
        """What became of its task, if that is known by now; kills the process if it is overdue."""
        if self.connection.poll():
            try:
                message = self.connection.recv()
            except EOFError:
                return self._collect_dead()
            if self._starting:
                self._starting = False
                return None
            return self._done(message)
        if time.monotonic() < self.deadline:
            return None
        left_s = self._left_s()
        if left_s > 0:
            self.deadline = time.monotonic() + max(left_s, _LEAST_WAIT_S)
            return None
        self._process.kill()
        return self._lose(Lost("timed-out", f"killed after {self._deadline_s:g} s"))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()

    def _left_s(self) -> float:
        """How much of its time a task has left: at least this much, if it is waiting for a processor just now."""
        now, before = self._usage(), self._before
        if now is None or before is None:
            return 0.0
        if now.is_ready:  # how long it has been waiting this time is not known
            return self._deadline_s - (now.ran_s - before.ran_s)
        return self._deadline_s - (time.monotonic() - self._began) + (now.waited_s - before.waited_s)

    def _usage(self) -> _Usage | None:
        """Known on Linux only, and only of a process that lives."""
        folder = Path(f"/proc/{self._process.pid}")
        try:
            ran_ns, waited_ns, _ = (folder / "schedstat").read_text(encoding="ascii").split()
            state = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            return None
        return _Usage(int(ran_ns) / 1e9, int(waited_ns) / 1e9, state == "R")

    def _collect_dead(self) -> tuple[Task, Result | Lost]:
        self._process.join()
        code = self._process.exitcode
        if self._starting or code is None or code >= 0:
            raise RuntimeError(f"a worker process ended with exit code {code}; the reason stands above")
        if code == -signal.SIGALRM:  # the backstop was faster than this process
            return self._lose(Lost("timed-out", f"killed after {self._deadline_s:g} s"))
        return self._lose(Lost("died", f"its decoder died of {signal.Signals(-code).name}"))

    def _lose(self, lost: Lost) -> tuple[Task, Result | Lost]:
        self.lost = lost
        return self._done(lost)

    def _done(self, outcome: Result | Lost) -> tuple[Task, Result | Lost]:
        task = self._tasks.pop()
        self.deadline = float("inf")
        return task, outcome


def _serve(connection: Connection, work: Callable[[Task], Result], backstop_s: float) -> None:
    """Answer tasks until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends its processes
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, backstop_s)  # the kernel's kill, should the parent be gone by then
        result = work(task)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(result)
