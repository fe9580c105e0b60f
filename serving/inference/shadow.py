"""A challenger beside the champion: it answers a share of the same videos, in idle moments, and nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from mme.evaluation.answers import softmax
from mme.evaluation.classifier import Classifier
from mme.models.checkpoints import FolderConfig
from mme.video.sampling import Views
from serving.decoding.child import VideoLimits, ViewsTask
from serving.decoding.pool import DecodePool
from serving.http.metrics import Metrics
from serving.inference.model_reloader import LoadedModel, ModelReloader

log = logging.getLogger(__name__)

MAX_WAITING = 8
MAX_WAITING_BYTES = 2**27
"""Videos that wait for the challenger, and bytes of their views; a further one is dropped."""

IDLE_POLL_S = 0.005
PAUSE_POLL_S = 0.001

MAX_PAUSE_S = 1.0
"""Pauses of the challenger per video: without requests in between, it would never answer."""


@dataclass(frozen=True)
class Answered:
    """A video that the champion has answered, as the challenger needs it.

    Attributes:
        champion: the model.
        logits: its answer.
        views: what it saw.
        segments, crops: that the request asked for; None is the model's own number.
    """

    champion: LoadedModel
    logits: Float32[np.ndarray, " K"]
    views: Views
    segments: int | None
    crops: int | None


@dataclass(frozen=True)
class _Waiting:
    video: Answered
    challenger: LoadedModel
    path: Path | None  # of a video whose views are not those that the challenger needs


class Shadow:
    """Compares the answers of two models on the same videos.

    A pass of the challenger begins when the champion's model has nothing to do, on one thread, and pauses before each
    block of its encoder while there are requests, ``MAX_PAUSE_S`` at most. Both models are timed then, one after the
    other, by the thread's processor time: the champion's own passes are shared by videos and by threads, so that their
    times do not compare.
    """

    def __init__(
        self, reloader: ModelReloader, share: float, pool: DecodePool, limits: VideoLimits, metrics: Metrics
    ) -> None:
        """Begin without videos.

        Args:
            reloader: holds the challenger.
            share: of the videos that are taken.
            pool: decodes those that the challenger sees in other views.
            limits: on such a video.
            metrics: series of the comparison.
        """
        self.reloader = reloader
        self._share = share
        self._pool = pool
        self._limits = limits
        self._metrics = metrics
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(MAX_WAITING)
        self._num_bytes = 0
        self._thread = ThreadPoolExecutor(1, "shadow")
        self._task: asyncio.Task[None] | None = None
        self._pauses: LoadedModel | None = None  # the challenger whose passes pause
        self._pause_until = 0.0
        self._unused: Callable[[], bool] = lambda: True

    def start(self, poll_s: float, idle: Callable[[], bool], unused: Callable[[], bool]) -> None:
        """Poll for the challenger, and begin to compare.

        Args:
            poll_s: interval of polling.
            idle: whether the champion's model has nothing to do.
            unused: whether there are no requests.
        """
        self.reloader.start(poll_s)
        self._unused = unused
        self._task = asyncio.get_running_loop().create_task(self._run(idle), name="shadow")

    async def close(self) -> None:
        """Stop; videos that wait are forgotten."""
        self.reloader.close()
        self._unused = lambda: True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while not self._queue.empty():
            self._discard(self._queue.get_nowait())
        await asyncio.to_thread(self._thread.shutdown)

    def offer(self, video: Answered, upload: Path) -> None:
        """Take a video or leave it; never raises, never waits.

        Args:
            video: with the champion's answer.
            upload: its file, which may vanish afterwards.
        """
        challenger = self.reloader.current
        if challenger is None or random.random() >= self._share:  # noqa: S311 - no secret
            return
        num_bytes = video.views.frames.nbytes
        if self._queue.full() or (self._num_bytes and self._num_bytes + num_bytes > MAX_WAITING_BYTES):
            self._metrics.shadow_videos.labels("dropped").inc()
            return
        path = None
        if not _same_views(video, challenger.classifier.config):
            path = upload.with_name(f"shadow-{uuid.uuid4().hex}")
            try:
                os.link(upload, path)
            except OSError as error:
                self._count_failure(error)
                return
        self._num_bytes += num_bytes
        self._queue.put_nowait(_Waiting(video, challenger, path))

    async def _run(self, idle: Callable[[], bool]) -> None:
        while True:
            waiting = await self._queue.get()
            try:
                while not idle():
                    await asyncio.sleep(IDLE_POLL_S)
                await self._compare(waiting)
            except Exception as error:  # noqa: BLE001 - whatever a challenger raises is counted, and harms nobody
                self._count_failure(error)
            finally:
                self._discard(waiting)

    def _pause(self) -> None:
        while not self._unused() and time.perf_counter() < self._pause_until:
            time.sleep(PAUSE_POLL_S)

    async def _compare(self, waiting: _Waiting) -> None:
        video, challenger = waiting.video, waiting.challenger
        views = video.views
        if waiting.path is not None:
            config = challenger.classifier.config
            segments, crops = video.segments or config.views.segments, video.crops or config.views.crops
            views = await self._pool.run(
                ViewsTask(waiting.path, config.clip, config.fps, segments, crops, self._limits)
            )  # fmt: skip

        def timed(classifier: Classifier, views: Views) -> tuple[Float32[np.ndarray, " K"], float]:
            started = time.thread_time()
            (logits,) = classifier.predict([views], len(views.frames))
            return logits, time.thread_time() - started

        def both() -> tuple[float, Float32[np.ndarray, " K"], float]:
            torch.set_num_threads(1)
            if self._pauses is not challenger:
                challenger.classifier.pause_between_blocks(self._pause)
                self._pauses = challenger
            self._pause_until = time.perf_counter() + MAX_PAUSE_S
            _, champion_s = timed(video.champion.classifier, video.views)
            return champion_s, *timed(challenger.classifier, views)

        champion_s, logits, challenger_s = await asyncio.get_running_loop().run_in_executor(self._thread, both)
        pair = (video.champion.label, challenger.label)
        labels = []
        for role, model, row, seconds in (
            ("champion", video.champion, video.logits, champion_s),
            ("challenger", challenger, logits, challenger_s),
        ):
            labels.append(model.classifier.labels[int(row.argmax())])
            self._metrics.shadow_confidence.labels(*pair, role).observe(softmax(row).max())
            self._metrics.shadow_seconds.labels(*pair, role).observe(seconds)
        self._metrics.shadow_answers.labels(*pair, "yes" if labels[0] == labels[1] else "no").inc()
        self._metrics.shadow_videos.labels("answered").inc()

    def _count_failure(self, error: Exception) -> None:
        self._metrics.shadow_videos.labels("failed").inc()
        log.warning("challenger failed", extra={"cause": f"{type(error).__name__}: {error}"})

    def _discard(self, waiting: _Waiting) -> None:
        self._num_bytes -= waiting.video.views.frames.nbytes
        if waiting.path is not None:
            waiting.path.unlink(missing_ok=True)


def _same_views(video: Answered, config: FolderConfig) -> bool:
    """Return whether the challenger would see what the champion saw."""
    own = video.champion.classifier.config
    names = {"num_frames", "stride_frames", "sampling", "snippets", "size"}
    return (
        own.clip.model_dump(include=names) == config.clip.model_dump(include=names)
        and own.fps == config.fps
        and (video.segments is not None or own.views.segments == config.views.segments)
        and (video.crops is not None or own.views.crops == config.views.crops)
    )
