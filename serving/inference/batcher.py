"""Micro-batching: videos that are ready at the same time share a forward pass, and a few passes share the cores."""

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
"""Concurrent forward passes. More would leave each too few views to share the fixed cost of a pass."""


@dataclass(frozen=True)
class BatchLimits:
    """Limits over all concurrent forward passes.

    Attributes:
        max_views: views in the model at a time.
        max_wait_s: time for which a batch may wait to grow.
        num_threads: threads of the model.
    """

    max_views: int
    max_wait_s: float
    num_threads: int

    @property
    def num_passes(self) -> int:
        """Number of concurrent forward passes."""
        return min(self.num_threads, self.max_views, MAX_PASSES)

    @property
    def views_per_pass(self) -> int:
        """Views in one forward pass."""
        return self.max_views // self.num_passes


@dataclass(frozen=True)
class VideoLogits:
    """Logits of one video, with the time it waited for the model and the time of its forward pass."""

    logits: Float32[np.ndarray, " K"]
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True)
class _QueuedVideo:
    classifier: Classifier
    views: Views
    answer: asyncio.Future[VideoLogits]
    since: float


class Batcher:
    """Queue in front of the model; the next batch gathers while threads run the model.

    Concurrent passes do more than one pass on all cores, whose threads wait for each other after every layer: the
    cores also run decoders, so one of the threads is always late. A video that arrives alone gets all cores.

    The queue is bounded by the number of admitted requests.
    """

    def __init__(self, limits: BatchLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._queue: asyncio.Queue[_QueuedVideo] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(limits.num_passes, "model")
        self._free = asyncio.Semaphore(limits.num_passes)
        self._passes: set[asyncio.Task[None]] = set()
        self._num_in_passes = 0
        self._loop_task: asyncio.Task[None] | None = None
        self._num_expected: Callable[[], int] = lambda: 0

    def start(self, num_expected: Callable[[], int]) -> None:
        """Begin to take videos.

        Args:
            num_expected: videos that are still to arrive or here already; if all are here, a batch does not wait.
        """
        self._num_expected = num_expected
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="batcher")

    @property
    def alive(self) -> bool:
        """True while videos are answered."""
        return self._loop_task is not None and not self._loop_task.done()

    @property
    def idle(self) -> bool:
        """True if no video is in the model or waits for it."""
        return self._num_in_passes == 0 and self._queue.empty()

    async def predict(self, classifier: Classifier, views: Views) -> VideoLogits:
        """Return the logits of one video. If the caller is cancelled while it waits, no forward pass is run for it."""
        answer: asyncio.Future[VideoLogits] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_QueuedVideo(classifier, views, answer, time.perf_counter()))
        self._metrics.queued.set(self._queue.qsize())
        return await answer

    async def close(self) -> None:
        """Stop; cancel callers that still wait, and finish running passes."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()
        if self._passes:
            await asyncio.wait(self._passes)
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self) -> None:
        while True:
            await self._free.acquire()  # before gathering, so that a batch grows while all threads are busy
            batch = await self._gather()
            self._num_in_passes += len(batch)
            running = asyncio.get_running_loop().create_task(self._run_batch(batch))
            self._passes.add(running)
            running.add_done_callback(self._passes.discard)

    async def _gather(self) -> list[_QueuedVideo]:
        """Collect videos until the batch is full, no more are expected, or the first has waited long enough."""
        batch = [await self._queue.get()]
        until = batch[0].since + self._limits.max_wait_s
        while sum(len(item.views.frames) for item in batch) < self._limits.views_per_pass:
            if self._queue.empty() and self._num_expected() <= len(batch) + self._num_in_passes:
                break
            try:
                batch.append(await self._next(until))
            except TimeoutError:
                break
        self._metrics.queued.set(self._queue.qsize())
        return batch

    async def _next(self, until: float) -> _QueuedVideo:
        if not self._queue.empty():
            return self._queue.get_nowait()
        return await asyncio.wait_for(self._queue.get(), until - time.perf_counter())

    async def _run_batch(self, batch: list[_QueuedVideo]) -> None:
        """Run one forward pass per model: a batch may contain videos for the model before a swap and after it."""
        try:
            for classifier in {id(item.classifier): item.classifier for item in batch}.values():
                items = [item for item in batch if item.classifier is classifier and not item.answer.done()]
                if items:
                    await self._run_pass(classifier, items)
        finally:
            self._num_in_passes -= len(batch)
            self._free.release()

    async def _run_pass(self, classifier: Classifier, items: list[_QueuedVideo]) -> None:
        started = time.perf_counter()
        views = [item.views for item in items]

        # Threads are shared with the passes that may run at the same time.
        others = max(self._num_expected() - len(items), self._queue.qsize())
        num_threads = max(1, self._limits.num_threads // min(1 + others, self._limits.num_passes))

        def forward() -> list[Float32[np.ndarray, " K"]]:
            # Matrix products use this thread's own number; other operations use the number of the latest pass.
            torch.set_num_threads(num_threads)
            return classifier.predict(views, self._limits.views_per_pass)

        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._threads, forward)
        except Exception as error:  # the failure of one batch must not end the batcher
            log.exception("forward pass failed")
            for item in items:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return

        seconds = time.perf_counter() - started
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_views.observe(sum(len(item.frames) for item in views))
        for item, row in zip(items, logits, strict=True):
            if not item.answer.done():
                item.answer.set_result(VideoLogits(row, 1000 * (started - item.since), 1000 * seconds))
