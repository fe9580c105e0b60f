"""Tasks for worker processes, which can import this module but not a test module."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

CPU_WORK_S = 0.1


@dataclass(frozen=True)
class WorkerTask:
    """A task that returns, hangs, crashes, raises, computes for a while or computes for ever."""

    number: int
    what: Literal["answer", "hang", "crash", "raise", "work", "spin"] = "answer"


def run_task(task: WorkerTask) -> tuple[int, int]:
    """Return the number of the task and the id of the process."""
    if task.what == "hang":
        while True:
            time.sleep(60)
    if task.what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.what == "raise":
        raise ValueError(f"task {task.number} is wrong")
    if task.what == "work":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        begin = time.process_time()
        while time.process_time() < begin + CPU_WORK_S:
            pass
    if task.what == "spin":
        while True:
            pass
    return task.number, os.getpid()
