"""Micro-batches: videos that are ready at the same time share a forward pass, and a few passes share the cores."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from mme.evaluation.classifier import Classifier
from mme.video.sampling import Views
from serving.http.metrics import Metrics

log = logging.getLogger(__name__)

MAX_PASSES = 4
"""At the same time. More would leave each too few views to share what a pass costs."""


@dataclass(frozen=True)
class BatchLimits:
    """How much the model may do at a time.

    Attributes:
        max_views: of all forward passes that run at the same time.
        max_wait_s: how long a batch may wait to grow.
        num_threads: of all forward passes that run at the same time.
    """

    max_views: int
    max_wait_s: float
    num_threads: int

    @property
    def num_passes(self) -> int:
        """Forward passes at the same time."""
        return min(self.num_threads, self.max_views, MAX_PASSES)

    @property
    def views_a_pass(self) -> int:
        """Views in one forward pass."""
        return self.max_views // self.num_passes


@dataclass(frozen=True)
class Answer:
    """Logits of one video, and how long it waited for the model and was in it."""

    logits: Float32[np.ndarray, " K"]
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True)
class _Item:
    classifier: Classifier
    views: Views
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """Threads run the model; while they do, the next batch gathers.

    Passes side by side do more than one pass on all cores, whose threads wait for each other after every layer; the
    cores also serve decoders, so that one of the threads is always late. A video that comes alone gets all cores.

    The queue needs no bound of its own: no more videos come than requests are admitted.
    """

    def __init__(self, limits: BatchLimits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(limits.num_passes, "model")
        self._free = asyncio.Semaphore(limits.num_passes)
        self._passes: set[asyncio.Task[None]] = set()
        self._num_in_passes = 0
        self._task: asyncio.Task[None] | None = None
        self._num_expected: Callable[[], int] = lambda: 0

    def start(self, num_expected: Callable[[], int]) -> None:
        """Begin to take videos.

        Args:
            num_expected: videos that are on their way or here already; if all are here, a batch does not wait.
        """
        self._num_expected = num_expected
        self._task = asyncio.get_running_loop().create_task(self._run(), name="batcher")

    @property
    def alive(self) -> bool:
        """Whether videos are being answered."""
        return self._task is not None and not self._task.done()

    async def predict(self, classifier: Classifier, views: Views) -> Answer:
        """Logits of one video. A caller that is cancelled while it waits costs no forward pass."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Item(classifier, views, answer, time.perf_counter()))
        self._metrics.queued.set(self._queue.qsize())
        return await answer

    async def close(self) -> None:
        """Stop; whoever still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()
        if self._passes:
            await asyncio.wait(self._passes)
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self) -> None:
        while True:
            await self._free.acquire()  # first, so that a batch grows while all threads are busy
            batch = await self._gather()
            self._num_in_passes += len(batch)
            answering = asyncio.get_running_loop().create_task(self._answer_all(batch))
            self._passes.add(answering)
            answering.add_done_callback(self._passes.discard)

    async def _gather(self) -> list[_Item]:
        """At least one video; more until the batch is full, none is coming, or the first has waited long enough."""
        batch = [await self._queue.get()]
        until = batch[0].since + self._limits.max_wait_s
        while sum(len(item.views.frames) for item in batch) < self._limits.views_a_pass:
            try:
                batch.append(await self._next(until, len(batch)))
            except TimeoutError:
                break
        self._metrics.queued.set(self._queue.qsize())
        return batch

    async def _next(self, until: float, num_gathered: int) -> _Item:
        if not self._queue.empty():
            return self._queue.get_nowait()
        if self._num_expected() <= num_gathered + self._num_in_passes:
            raise TimeoutError
        return await asyncio.wait_for(self._queue.get(), until - time.perf_counter())

    async def _answer_all(self, batch: list[_Item]) -> None:
        try:
            for classifier in {id(item.classifier): item.classifier for item in batch}.values():
                await self._answer(classifier, [item for item in batch if item.classifier is classifier])
        finally:
            self._num_in_passes -= len(batch)
            self._free.release()

    async def _answer(self, classifier: Classifier, items: list[_Item]) -> None:
        items = [item for item in items if not item.answer.done()]
        if not items:
            return
        started = time.perf_counter()
        views = [item.views for item in items]
        others = max(self._num_expected() - len(items), self._queue.qsize())
        num_threads = max(1, self._limits.num_threads // min(1 + others, self._limits.num_passes))
        try:
            logits = await asyncio.get_running_loop().run_in_executor(
                self._threads, _predict, classifier, views, self._limits.views_a_pass, num_threads
            )
        except Exception as error:  # one batch's failure must not end the batcher; its requests hear of it
            log.exception("forward pass failed")
            _fail(items, error)
            return
        seconds = time.perf_counter() - started
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_views.observe(sum(len(item.frames) for item in views))
        for item, row in zip(items, logits, strict=True):
            if not item.answer.done():
                item.answer.set_result(Answer(row, 1000 * (started - item.since), 1000 * seconds))


def _predict(
    classifier: Classifier, views: list[Views], max_views: int, num_threads: int
) -> list[Float32[np.ndarray, " K"]]:
    # Products of matrices have this number in a thread of their own; other operations have that of the latest pass.
    torch.set_num_threads(num_threads)
    return classifier.predict(views, max_views)


def _fail(items: list[_Item], error: Exception) -> None:
    for item in items:
        if not item.answer.done():
            item.answer.set_exception(error)
