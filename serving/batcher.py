"""Micro-batches: videos that are ready at the same time share a forward pass."""

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

from mme.data.views import Views
from mme.inference import Classifier
from serving.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may grow and how long it may wait to; ``num_threads`` of one forward pass."""

    max_views: int
    max_wait_s: float
    num_threads: int


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
    """One thread runs the model; while it does, the next batch gathers.

    The queue needs no bound of its own: no more videos come than requests are admitted.
    """

    def __init__(self, limits: BatchLimits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(limits.num_threads,))
        self._task: asyncio.Task[None] | None = None
        self._others_coming: Callable[[int], bool] = lambda num_videos: True

    def start(self, others_coming: Callable[[int], bool]) -> None:
        """Begin to take videos.

        Args:
            others_coming: whether, beyond this many videos, more are on their way; if none are, a batch does not wait.
        """
        self._others_coming = others_coming
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
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            batch = await self._gather()
            for classifier in {id(item.classifier): item.classifier for item in batch}.values():
                await self._answer(classifier, [item for item in batch if item.classifier is classifier])

    async def _gather(self) -> list[_Item]:
        """At least one video; more until the batch is full, none is coming, or the first has waited long enough."""
        batch = [await self._queue.get()]
        until = batch[0].since + self._limits.max_wait_s
        while sum(len(item.views.frames) for item in batch) < self._limits.max_views:
            try:
                batch.append(await self._next(until, len(batch)))
            except TimeoutError:
                break
        self._metrics.queued.set(self._queue.qsize())
        return batch

    async def _next(self, until: float, num_gathered: int) -> _Item:
        if not self._queue.empty():
            return self._queue.get_nowait()
        if not self._others_coming(num_gathered):
            raise TimeoutError
        return await asyncio.wait_for(self._queue.get(), until - time.perf_counter())

    async def _answer(self, classifier: Classifier, items: list[_Item]) -> None:
        items = [item for item in items if not item.answer.done()]
        if not items:
            return
        started = time.perf_counter()
        views = [item.views for item in items]
        try:
            logits = await asyncio.get_running_loop().run_in_executor(
                self._thread, classifier.predict, views, self._limits.max_views
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


def _fail(items: list[_Item], error: Exception) -> None:
    for item in items:
        if not item.answer.done():
            item.answer.set_exception(error)
