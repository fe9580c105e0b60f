"""Where a function is called for many videos at once: processes of this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Engine = Literal["local", "ray"]
Key = TypeVar("Key")

_CALLS_A_WORKER = 4
"""Under way at a time, so that a worker that is done has its next call waiting."""

_OBJECT_STORE_BYTES = 80 * 2**20
"""Of a Ray on this machine: what calls take and return is tiny, and this is about the least that Ray takes."""


@dataclass(frozen=True)
class Pool:
    """Workers that calls are given to.

    Attributes:
        submit: ``submit(function, *args)`` gives the future of that call.
        num_workers: calls that run at a time.
    """

    submit: Callable[..., Future[Any]]
    num_workers: int

    def call_all(
        self, function: Callable[..., Any], calls: Iterable[tuple[Key, tuple[Any, ...]]]
    ) -> Iterator[tuple[Key, Any]]:
        """Call a function many times; the calls are drawn as workers become free, and may be millions.

        Args:
            function: of a module; it and what it takes and returns must be picklable.
            calls: what to call each by, and its arguments.

        Yields:
            what a call is called by, and what it returned, in the order in which they are done.

        Raises:
            Exception: whatever a call raised, or why its worker was lost.
        """
        todo = iter(calls)
        pending: dict[Future[Any], Key] = {}
        while True:
            while len(pending) < _CALLS_A_WORKER * self.num_workers and (call := next(todo, None)):
                key, arguments = call
                pending[self.submit(function, *arguments)] = key
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()


@contextmanager
def open_pool(engine: Engine, num_workers: int, preload: str) -> Iterator[Pool]:
    """Workers to submit calls to; on an error, what has not begun is dropped.

    Args:
        engine: ``local`` for processes of this machine; ``ray`` for the cluster that ``RAY_ADDRESS`` names, or else for
            a Ray of this machine that lives as long as the pool.
        num_workers: processes of this machine; a cluster has as many as it has cores.
        preload: module of the functions that will be submitted.

    Raises:
        ValueError: Ray is not installed.
    """
    with _ray_pool(num_workers) if engine == "ray" else _local_pool(num_workers, preload) as pool:
        yield pool


@contextmanager
def _local_pool(num_workers: int, preload: str) -> Iterator[Pool]:
    # Not fork: a fork of a process that has threads (progress bar, OpenCV) may hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_die_with_parent)
    try:
        yield Pool(pool.submit, num_workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """Workers wait on a queue whose other end they hold themselves, so they would outlive a killed parent for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _ray_pool(num_workers: int) -> Iterator[Pool]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing phones home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default of coming versions
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("engine: ray is not installed: pip install 'mme[ray]'") from error
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

    remote = functools.cache(ray.remote)  # each one made is sent to every worker

    def submit(function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = remote(function).remote(*args).future()
        return future

    try:
        yield Pool(submit, int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()  # ends what it runs for us, and a Ray of our own altogether
