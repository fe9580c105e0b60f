"""From an upload to an answer: admission, decoding, model, within a deadline."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32
from starlette.requests import ClientDisconnect, Request

from mme.video.codec import write_video
from mme.video.containers import VideoError
from mme.video.metadata import VideoInfo
from mme.video.sampling import Views
from serving.decoding.child import Job, VideoLimits
from serving.decoding.pool import DecodeLimits, DecodePool
from serving.decoding.tracks import TrackJob, VideoTracks
from serving.http.metrics import Metrics
from serving.http.uploads import Upload
from serving.inference.batcher import Answer, Batcher, BatchLimits
from serving.inference.host import LoadedModel, ModelHost
from serving.problems import Problem
from serving.schemas import Options
from serving.settings import Settings

log = logging.getLogger(__name__)

MODEL_WAIT_S = 20.0
"""The service starts without its model if that is not there by then."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Classified:
    """One video's logits, and all that is to be said about how they came to be."""

    model: LoadedModel
    logits: Float32[np.ndarray, " K"]
    info: VideoInfo
    num_views: int
    decode_wait_ms: float
    decode_ms: float
    answer: Answer


class Admission:
    """How many requests are in work or waiting, and the bound on it."""

    def __init__(self, max_admitted: int, metrics: Metrics) -> None:
        self._max, self._metrics = max_admitted, metrics
        self._mean_s = 1.0
        self.num_admitted = 0

    @property
    def full(self) -> bool:
        """Whether all places are taken."""
        return self.num_admitted >= self._max

    def refusal(self) -> Problem:
        """What a request is told that finds no place."""
        wait_s = max(1, math.ceil(self._mean_s))
        return Problem("overloaded", f"{self._max} requests are in work already", retry_after_s=wait_s)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place for one request; only if there is one."""
        self.num_admitted += 1
        self._metrics.admitted.set(self.num_admitted)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.num_admitted -= 1
            self._metrics.admitted.set(self.num_admitted)
            self._mean_s += 0.1 * (time.perf_counter() - started - self._mean_s)


class Engine:
    """The parts of the running service and the way of a video through them."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.admission = Admission(settings.max_queue, metrics)
        self.draining = False
        self._folder = tempfile.TemporaryDirectory(prefix="mme-serving-", dir=settings.temp_dir)
        self.temp_dir = Path(self._folder.name)
        self.host = ModelHost(settings.model, self.temp_dir / "warm.mp4", metrics)
        limits = DecodeLimits(settings.decode_timeout_s, settings.decode_memory_mb)
        self._pool = DecodePool(settings.num_decoders, limits, metrics)
        self._video_limits = VideoLimits(
            settings.max_seconds, settings.max_frames, settings.max_pixels, settings.decode_timeout_s
        )
        self._batcher = Batcher(
            BatchLimits(settings.max_batch, settings.max_wait_ms / 1000, settings.num_threads), metrics
        )

    async def start(self) -> None:
        """Processes, threads and the model; a model that is not there yet is looked for again and again."""
        await asyncio.to_thread(_write_warm_clip, self.host.warm_clip)
        self.host.start(self.settings.poll_s)
        await asyncio.gather(self._pool.start(), asyncio.to_thread(self.host.wait, MODEL_WAIT_S))
        self._batcher.start(lambda: self.admission.num_admitted)
        await self._warm_up()

    async def _warm_up(self) -> None:
        """Send a clip through all parts, so that the first request finds them warm."""
        if self.host.current is None:
            return
        clip = self.host.current.classifier.config.clip
        limits = VideoLimits(math.inf, sys.maxsize, sys.maxsize, self.settings.decode_timeout_s)
        views = await self._pool.decode(Job(self.host.warm_clip, clip, 1, 1, limits))
        await self._batcher.predict(self.host.current.classifier, views)

    async def close(self) -> None:
        """Stop all of it; by now every request has its answer."""
        self.draining = True
        self.host.close()
        await self._batcher.close()
        await self._pool.close()
        self._folder.cleanup()

    @property
    def decoder_ids(self) -> list[int]:
        """Process ids of the decoders that are alive."""
        return self._pool.process_ids

    def model(self) -> LoadedModel:
        """The model that answers now.

        Raises:
            Problem: there is none yet.
        """
        if self.host.current is None:
            wait_s = math.ceil(self.settings.poll_s)
            raise Problem("model-not-loaded", "the model has not been loaded; see the log", retry_after_s=wait_s)
        return self.host.current

    def check_ready(self) -> LoadedModel:
        """The model that answers now, if requests are answered.

        Raises:
            Problem: there is no model, or the service is stopping.
        """
        if self.draining:
            raise Problem("draining", "the service has been told to stop")
        if not self._batcher.alive:
            raise Problem("internal", "the batcher has stopped; see the log")
        return self.model()

    async def classify(self, upload: Upload, options: Options) -> Classified:
        """Logits of one video.

        Raises:
            Problem: it is no usable video, or the deadline has passed.
        """
        return await self._in_time(self._classify(upload, options))

    async def track(self, upload: Upload) -> VideoTracks:
        """Where points of one video go.

        Raises:
            Problem: it is no usable video, or the deadline has passed.
        """
        return await self._in_time(self._track(upload))

    async def _in_time(self, work: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                result = await work
        except TimeoutError as error:
            raise self._counted(self._late()) from error
        except VideoError as error:
            raise self._counted(Problem.of_video(error)) from error
        self.metrics.videos.labels("ok").inc()
        return result

    async def predict(self, model: LoadedModel, videos: list[Views]) -> list[Answer]:
        """Logits of videos that a client decoded by itself.

        Raises:
            Problem: the deadline has passed.
        """
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                return await asyncio.gather(*(self._batcher.predict(model.classifier, views) for views in videos))
        except TimeoutError as error:
            raise self._late() from error

    def _late(self) -> Problem:
        return Problem("deadline-exceeded", f"no answer within {self.settings.deadline_s:g} s")

    def _counted(self, problem: Problem) -> Problem:
        self.metrics.videos.labels(problem.name).inc()
        return problem

    async def _track(self, upload: Upload) -> VideoTracks:
        _check_not_empty(upload)
        tracks = await self._pool.decode(TrackJob(upload.path, self._video_limits))
        self.metrics.tracking_seconds.observe(tracks.seconds)
        return tracks

    async def _classify(self, upload: Upload, options: Options) -> Classified:
        _check_not_empty(upload)
        model = self.model()
        default = model.classifier.config.views
        segments = default.segments if options.segments is None else options.segments
        crops = default.crops if options.crops is None else int(options.crops)
        job = Job(upload.path, model.classifier.config.clip, segments, crops, self._video_limits)
        started = time.perf_counter()
        views = await self._pool.decode(job)
        decode_wait_ms = max(0.0, 1000 * (time.perf_counter() - started) - views.decode_ms)
        self.metrics.decode_seconds.observe(views.decode_ms / 1000)
        answer = await self._batcher.predict(model.classifier, views)
        assert views.info is not None
        return Classified(model, answer.logits, views.info, len(views.frames), decode_wait_ms, views.decode_ms, answer)


def _check_not_empty(upload: Upload) -> None:
    if not upload.num_bytes:
        raise VideoError("empty", upload.path, "0 bytes were uploaded")


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled if the client goes away. The request's body must have been read.

    Raises:
        ClientDisconnect: it went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait([task, gone])


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _write_warm_clip(path: Path) -> None:
    """Two seconds of a square that moves over noise."""
    frames = np.random.default_rng(0).integers(0, 64, (32, 64, 96, 3), dtype=np.uint8)
    for position, frame in enumerate(frames):
        frame[20:44, 2 * position : 2 * position + 24] = 200
    write_video(path, frames, fps=16, crf=20, gop_frames=8)
