"""Pools that call a function for many videos: processes of this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mme.system.parent import end_with_parent

Executor = Literal["local", "ray"]
KeyT = TypeVar("KeyT")

_CALLS_PER_WORKER = 4
"""Calls submitted at a time per worker, so that a free worker finds its next call waiting."""

_OBJECT_STORE_BYTES = 80 * 2**20
"""Object store of a Ray on this machine: arguments and results are tiny, and this is about the least Ray accepts."""


_GRACE_S = 3.0
"""Time that interrupted processes have to record it."""


@dataclass(frozen=True)
class Pool:
    """Workers that run submitted calls.

    Attributes:
        submit: ``submit(function, *args)`` returns the future of that call.
        num_workers: number of calls that run at a time.
    """

    submit: Callable[..., Future[Any]]
    num_workers: int

    def call_all(
        self, function: Callable[..., Any], calls: Iterable[tuple[KeyT, tuple[Any, ...]]]
    ) -> Iterator[tuple[KeyT, Any]]:
        """Call a function many times. Calls are drawn as workers become free, so there may be millions.

        Args:
            function: function of a module; it, its arguments and its results must be picklable.
            calls: a key and the arguments of each call.

        Yields:
            the key and the result of each call, in order of completion.

        Raises:
            Exception: the exception of a call, or the reason why its worker was lost.
        """
        todo = iter(calls)
        pending: dict[Future[Any], KeyT] = {}
        while True:
            while len(pending) < _CALLS_PER_WORKER * self.num_workers and (call := next(todo, None)):
                key, arguments = call
                pending[self.submit(function, *arguments)] = key
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()


@contextmanager
def open_pool(executor: Executor, num_workers: int, preload: str) -> Iterator[Pool]:
    """Open a pool of workers; on an error, calls that have not begun are dropped.

    Args:
        executor: ``local`` for processes of this machine; ``ray`` for the cluster of ``RAY_ADDRESS``, or else for a Ray
            on this machine that lives as long as the pool.
        num_workers: number of processes on this machine; a cluster has as many as it has cores.
        preload: module of the functions that will be submitted.

    Raises:
        ValueError: Ray is not installed.
    """
    with open_ray_pool(num_workers) if executor == "ray" else open_process_pool(num_workers, preload) as pool:
        yield pool


@contextmanager
def open_process_pool(
    num_workers: int, preload: str, initializer: Callable[..., None] | None = None, *initargs: Any
) -> Iterator[Pool]:
    """Open a pool of processes of this machine, which end with it; each first calls ``initializer(*initargs)``.

    An error waits for the calls that have begun; Ctrl-C and SIGTERM end them.
    """
    # Not fork: a fork of a process that has threads (progress bar, OpenCV) may hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    processes = ProcessPoolExecutor(num_workers, context, _initialize, (initializer, *initargs))
    try:
        yield Pool(processes.submit, num_workers)
    except KeyboardInterrupt:
        _end_children()
        raise
    finally:
        processes.shutdown(cancel_futures=True)


def _end_children() -> None:
    """End all child processes: by SIGTERM, on which runs are recorded as interrupted, then by SIGKILL."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    last = time.monotonic() + _GRACE_S
    for child in children:
        child.join(max(0.0, last - time.monotonic()))
        child.kill()  # one that is still there: it would begin the next call


def _initialize(initializer: Callable[..., None] | None, *initargs: Any) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*initargs)


@contextmanager
def open_ray_pool(num_workers: int) -> Iterator[Pool]:
    """Open a pool of the workers of a Ray cluster; see `open_pool`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # disables telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default of coming versions
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("runtime.executor: ray is not installed: pip install 'mme[ray]'") from error

    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=num_workers,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
        )

    remote = functools.cache(ray.remote)  # Ray sends each remote function to every worker

    def submit(function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = remote(function).remote(*args).future()
        return future

    try:
        yield Pool(submit, int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()  # ends the calls of this program, and a Ray that it started
