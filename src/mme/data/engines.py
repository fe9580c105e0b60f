"""Where a function is called for many videos at once: processes of this machine, or the workers of a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Engine = Literal["local", "ray"]

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
        raise ValueError("trajectories.engine: ray is not installed: pip install 'mme[ray]'") from error
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

    def submit(function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = ray.remote(function).remote(*args).future()
        return future

    try:
        yield Pool(submit, int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()  # ends what it runs for us, and a Ray of our own altogether
