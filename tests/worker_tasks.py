"""Work for processes that may be killed: it has to be importable there, which test modules are not."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

TOIL_S = 0.1


@dataclass(frozen=True)
class Order:
    """What a process is to do, and what it answers if it gets that far."""

    number: int
    what: Literal["answer", "hang", "crash", "raise", "toil", "spin"] = "answer"


def obey(order: Order) -> tuple[int, int]:
    """The number, and the process that had it."""
    if order.what == "hang":
        while True:
            time.sleep(60)
    if order.what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order.what == "raise":
        raise ValueError(f"order {order.number} is wrong")
    if order.what == "toil":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        begin = time.process_time()
        while time.process_time() < begin + TOIL_S:
            pass
    if order.what == "spin":
        while True:
            pass
    return order.number, os.getpid()
