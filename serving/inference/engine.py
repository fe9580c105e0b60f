"""Path from an upload to an answer: admission, decoding and model, within a deadline."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32
from prometheus_client import Gauge
from starlette.requests import ClientDisconnect, Request

from mme.evaluation.classifier import Prediction
from mme.evaluation.windows import LabelledWindow, window_times
from mme.ingest.feedback import Correction
from mme.system.files import sha256_file
from mme.video.codec import write_video
from mme.video.containers import VideoError
from mme.video.metadata import VideoInfo
from mme.video.sampling import Views
from mme.video.windows import Window, WindowPlan
from serving.decoding.child import VideoLimits, ViewsTask
from serving.decoding.normal import CorrectionTask
from serving.decoding.pool import DecodeLimits, DecodePool
from serving.decoding.tracks import TracksTask, VideoTracks
from serving.decoding.windows import WindowsTask
from serving.feedback import FeedbackStore, check_label
from serving.http.metrics import Metrics
from serving.http.uploads import Upload
from serving.inference.batcher import Batcher, BatchLimits, VideoLogits
from serving.inference.model_reloader import LoadedModel, ModelReloader
from serving.inference.monitor import AnswerMonitor, Kind
from serving.inference.shadow import Answered, Shadow
from serving.problems import Problem
from serving.schemas import ViewOptions
from serving.settings import Settings

log = logging.getLogger(__name__)

MODEL_WAIT_S = 20.0
"""Time that the start waits for the model; the service then starts without one."""

Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Classified:
    """Logits of one video, with the metadata and the timings of its answer."""

    model: LoadedModel
    logits: Float32[np.ndarray, " K"]
    info: VideoInfo
    num_views: int
    decode_wait_ms: float
    decode_ms: float
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True)
class ClassifiedWindows:
    """Labels of the windows of one video, with the metadata and the timings of its answer."""

    model: LoadedModel
    windows: list[LabelledWindow]
    info: VideoInfo
    decode_ms: float


@dataclass(frozen=True)
class Corrected:
    """A label that was kept: the model's own answer, and what was said of the same file before."""

    model: LoadedModel
    answered: Prediction
    sha256: str
    former: Correction | None


class Admission:
    """Counter of requests in progress or waiting, with an upper bound."""

    def __init__(self, max_admitted: int, gauge: Gauge) -> None:
        self._max = max_admitted
        self._gauge = gauge
        self._mean_s = 1.0  # moving average of the time for which a request holds its slot
        self.num_admitted = 0

    @property
    def full(self) -> bool:
        """True if no slot is free."""
        return self.num_admitted >= self._max

    def refusal(self) -> Problem:
        """Return the problem of a request that found no free slot."""
        wait_s = max(1, math.ceil(self._mean_s))
        return Problem("overloaded", f"{self._max} requests are already in progress", retry_after_s=wait_s)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for one request; check ``full`` first."""
        self.num_admitted += 1
        self._gauge.set(self.num_admitted)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.num_admitted -= 1
            self._gauge.set(self.num_admitted)
            self._mean_s += 0.1 * (time.perf_counter() - started - self._mean_s)


class InferenceEngine:
    """The running components, and the path of a video through them."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.admission = Admission(settings.max_queue, metrics.admitted)
        self.long_admission = Admission(settings.long_max_queue, metrics.admitted_long)
        self.draining = False

        settings.prepare_folders()
        self._folder = tempfile.TemporaryDirectory(prefix="mme-serving-", dir=settings.temp_dir)
        self.temp_dir = Path(self._folder.name)
        warm_up_clip, precision = self.temp_dir / "warm.mp4", settings.precision
        self.reloader = ModelReloader(settings.model, warm_up_clip, metrics.model, precision)

        self._video_limits = _video_limits(settings)
        decode_limits = DecodeLimits(settings.decode_timeout_s, settings.decode_memory_mb)
        self._pool = DecodePool(settings.num_decoders, decode_limits, metrics)
        # Processes of their own: a short video never waits for a long one.
        self._long_pool = DecodePool(max(1, settings.num_decoders // 2), decode_limits, metrics)
        batch_limits = BatchLimits(settings.max_batch, settings.max_wait_ms / 1000, settings.num_threads)
        self._batcher = Batcher(batch_limits, metrics)
        self._monitor = AnswerMonitor(metrics, settings.drift_window)
        self._shadow: Shadow | None = None
        if settings.shadow_model is not None:
            challenger = ModelReloader(settings.shadow_model, warm_up_clip, metrics.shadow_model, precision)
            self._shadow = Shadow(challenger, settings.shadow_share, self._long_pool, self._video_limits, metrics)
        self.feedback = FeedbackStore.of(settings, metrics)
        self._expiry: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start processes, threads and the polling for the model, then send a clip through all of them."""
        await asyncio.to_thread(_write_warm_up_clip, self.reloader.warm_up_clip)
        self.reloader.start(self.settings.poll_s)
        await asyncio.gather(
            self._pool.start(), self._long_pool.start(), asyncio.to_thread(self.reloader.wait, MODEL_WAIT_S)
        )
        self._batcher.start(lambda: self.admission.num_admitted)
        if self._shadow is not None:
            self._shadow.start(
                self.settings.poll_s, lambda: self._batcher.idle, lambda: not self.admission.num_admitted
            )
        if self.feedback is not None:
            self._expiry = asyncio.get_running_loop().create_task(_expire_hourly(self.feedback))

        if self.reloader.current is not None:
            classifier = self.reloader.current.classifier
            limits = VideoLimits(math.inf, sys.maxsize, sys.maxsize, self.settings.decode_timeout_s)
            config = classifier.config
            views = await self._pool.run(ViewsTask(self.reloader.warm_up_clip, config.clip, config.fps, 1, 1, limits))
            await self._batcher.predict(classifier, views)

    async def close(self) -> None:
        """Stop everything, once every request has been answered."""
        self.draining = True
        self.reloader.close()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._shadow is not None:
            await self._shadow.close()
        await self._batcher.close()
        await asyncio.gather(self._pool.close(), self._long_pool.close())
        self._folder.cleanup()

    @property
    def decoder_ids(self) -> list[int]:
        """Process ids of the live decoders."""
        return self._pool.process_ids

    @property
    def long_decoder_ids(self) -> list[int]:
        """Process ids of the live decoders of long videos."""
        return self._long_pool.process_ids

    def model(self) -> LoadedModel:
        """Return the current model.

        Raises:
            Problem: none has been loaded yet.
        """
        if self.reloader.current is None:
            wait_s = math.ceil(self.settings.poll_s)
            raise Problem("model-not-loaded", "the model has not been loaded; see the log", retry_after_s=wait_s)
        return self.reloader.current

    def check_ready(self) -> LoadedModel:
        """Return the current model, if requests are answered.

        Raises:
            Problem: no model is loaded, or the service is shutting down.
        """
        if self.draining:
            raise Problem("draining", "the service is shutting down")
        if not self._batcher.alive:
            raise Problem("internal", "the batcher has stopped; see the log")
        return self.model()

    async def classify(self, upload: Upload, options: ViewOptions) -> Classified:
        """Decode one video and return its logits.

        Raises:
            Problem: it is not a usable video, or the deadline has passed.
        """
        async with self._counted_video(upload):
            model, started = self.model(), time.perf_counter()
            views = await self._pool.run(self._views_task(model, upload, options))
            classified = await self._answer(model, views, started)
            own = classified.model.classifier.config.views
            comparable = options.segments in (None, own.segments) and options.crops in (None, own.crops)
            self._count(classified.model, classified.logits, "video", comparable=comparable)
            if self._shadow is not None:
                crops = None if options.crops is None else int(options.crops)
                answered = Answered(classified.model, classified.logits, views, options.segments, crops)
                self._shadow.offer(answered, upload.path)
            return classified

    def _views_task(self, model: LoadedModel, upload: Upload, options: ViewOptions) -> ViewsTask:
        config = model.classifier.config
        segments = config.views.segments if options.segments is None else options.segments
        crops = config.views.crops if options.crops is None else int(options.crops)
        return ViewsTask(upload.path, config.clip, config.fps, segments, crops, self._video_limits)

    async def _answer(self, model: LoadedModel, views: Views, started: float) -> Classified:
        """Run the model on the views of a file; ``started`` is when decoding was asked for."""
        decode_wait_ms = max(0.0, 1000 * (time.perf_counter() - started) - views.decode_ms)
        self.metrics.decode_seconds.observe(views.decode_ms / 1000)
        assert views.info is not None

        row = await self._batcher.predict(model.classifier, views)
        return Classified(
            model, row.logits, views.info, len(views.frames),
            decode_wait_ms, views.decode_ms, row.queue_ms, row.inference_ms,
        )  # fmt: skip

    async def correct(self, upload: Upload, label: str, note: str) -> Corrected:
        """Keep a video with its right label and the model's answer, which is no answer to count.

        Raises:
            Problem: it is not a usable video, the model has no such label, nothing more is kept, or the deadline has
                passed.
        """
        assert self.feedback is not None
        model = self.model()
        check_label(label, model.classifier.labels)
        async with self._counted_video(upload):
            sha256 = await asyncio.to_thread(sha256_file, upload.path)
            known, started = await asyncio.to_thread(self.feedback.find, sha256), time.perf_counter()
            task, clip = self._views_task(model, upload, ViewOptions()), None
            if known is not None:
                views = await self._pool.run(task)
            else:
                side, max_bytes = self.settings.feedback_short_side, self.settings.max_upload_bytes
                views, clip = await self._pool.run(CorrectionTask(task, side, max_bytes))
            classified = await self._answer(model, views, started)
            (answered,) = classified.model.classifier.rank(classified.logits, 1)
            correction = Correction(
                label=label, note=note, answered=answered.label, probability=answered.probability,
                model=classified.model.name, version=classified.model.version, model_digest=classified.model.digest,
                received=datetime.now(UTC),
            )  # fmt: skip
            former = await asyncio.to_thread(self.feedback.keep, sha256, classified.info.duration_s, correction, clip)
        self.metrics.feedback.labels("agrees" if label == answered.label else "disagrees").inc()
        return Corrected(classified.model, answered, sha256, former)

    async def classify_windows(
        self, upload: Upload, window_s: float, hop_s: float, options: ViewOptions
    ) -> ClassifiedWindows:
        """Decode one video once, and label its windows while it is decoded.

        Raises:
            Problem: it is not a usable video, has too many windows, or the deadline has passed.
        """
        limits = self.settings.for_long_videos
        async with self._counted_video(upload, limits.deadline_s):
            model = self.model()
            config = model.classifier.config
            segments = config.views.segments if options.segments is None else options.segments
            crops = config.views.crops if options.crops is None else int(options.crops)
            plan = WindowPlan(window_s, hop_s, config.fps)
            max_windows = limits.max_windows
            task = WindowsTask(upload.path, config.clip, plan, segments, crops, max_windows, _video_limits(limits))

            labels: list[asyncio.Task[LabelledWindow]] = []
            free = asyncio.Semaphore(max(1, self.settings.max_batch // (segments * crops)))

            async def label(window: Window) -> LabelledWindow:
                logits = (await self._batcher.predict(model.classifier, window.views)).logits
                self.metrics.windows.inc()
                self._count(model, logits, "window")
                return LabelledWindow(
                    *window_times(window, config.fps), model.classifier.rank(logits, options.top_k)
                )  # fmt: skip

            def done(label: asyncio.Task[LabelledWindow]) -> None:
                free.release()
                if not label.cancelled():
                    label.exception()  # marks it as retrieved: the caller may be gone

            async def take(window: object) -> None:
                if not isinstance(window, Window) or len(labels) == max_windows:
                    raise ValueError("not a window, or too many of them")  # a process gone rogue
                await free.acquire()
                labels.append(asyncio.ensure_future(label(window)))
                labels[-1].add_done_callback(done)

            try:
                end = await self._long_pool.run(task, take)
                windows = await asyncio.gather(*labels)
            finally:
                for one in labels:
                    one.cancel()
            assert isinstance(end, tuple)
            return ClassifiedWindows(model, windows, end[0], 1000 * end[1])

    async def track(self, upload: Upload, start_s: float | None) -> VideoTracks:
        """Decode one video and return tracks of its points, at the frame rate of the model; see ``TracksTask``.

        Raises:
            Problem: it is not a usable video, or the deadline has passed.
        """
        async with self._counted_video(upload):
            fps = self.model().classifier.config.fps
            tracks = await self._pool.run(TracksTask(upload.path, fps, self._video_limits, start_s))
            self.metrics.tracking_seconds.observe(tracks.seconds)
            return tracks

    async def predict(self, model: LoadedModel, videos: list[Views]) -> list[VideoLogits]:
        """Return logits of videos that a client decoded by itself.

        Raises:
            Problem: the deadline has passed.
        """
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                rows = await asyncio.gather(*(self._batcher.predict(model.classifier, views) for views in videos))
        except TimeoutError as error:
            raise _late(self.settings.deadline_s) from error
        for row in rows:
            self._count(model, row.logits, "view")
        return rows

    def _count(
        self, model: LoadedModel, logits: Float32[np.ndarray, " K"], kind: Kind, *, comparable: bool = False
    ) -> None:
        """Count an answer, unless its model has been replaced meanwhile."""
        if model is self.reloader.current:
            self._monitor.observe(model, logits, kind, comparable=comparable)

    @asynccontextmanager
    async def _counted_video(self, upload: Upload, deadline_s: float | None = None) -> AsyncIterator[None]:
        """Enforce the deadline on the work for one video, and count its outcome."""
        deadline_s = deadline_s or self.settings.deadline_s
        cause: Exception
        try:
            async with asyncio.timeout(deadline_s):
                if not upload.num_bytes:
                    raise VideoError("empty", upload.path, "0 bytes were uploaded")
                yield
        except TimeoutError as error:
            problem, cause = _late(deadline_s), error
        except VideoError as error:
            problem, cause = Problem.of_video(error), error
        else:
            self.metrics.videos.labels("ok").inc()
            return
        self.metrics.videos.labels(problem.name).inc()
        raise problem from cause


async def _expire_hourly(feedback: FeedbackStore) -> None:
    while True:
        await asyncio.sleep(3600)
        try:
            await asyncio.to_thread(feedback.expire)
        except OSError as error:  # another hour, another attempt
            log.error("feedback not expired", extra={"cause": str(error)})


def _late(deadline_s: float) -> Problem:
    return Problem("deadline-exceeded", f"no answer within {deadline_s:g} s")


def _video_limits(settings: Settings) -> VideoLimits:
    return VideoLimits(settings.max_seconds, settings.max_frames, settings.max_pixels, settings.decode_timeout_s)


async def while_connected(request: Request, work: Awaitable[Returned]) -> Returned:
    """Await ``work``, and cancel it if the client disconnects. The request's body must have been read.

    Raises:
        ClientDisconnect: the client disconnected.
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


def _write_warm_up_clip(path: Path) -> None:
    """Write two seconds of a square that moves over noise."""
    frames = np.random.default_rng(0).integers(0, 64, (32, 64, 96, 3), dtype=np.uint8)
    for position, frame in enumerate(frames):
        frame[20:44, 2 * position : 2 * position + 24] = 200
    write_video(path, frames, fps=16, crf=20, gop_frames=8)
