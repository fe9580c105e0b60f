from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float32

from mme.evaluation.classifier import Classifier
from mme.video.sampling import Views
from serving.http.metrics import Metrics
from serving.inference.batcher import Batcher, BatchLimits, VideoLogits
from tests.serving.service import until
from tests.tiny import moving_frames, save_tiny_folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


def prepared(classifier: Classifier, seed: int) -> Views:
    return classifier.prepare(moving_frames(seed=seed))


async def started(
    metrics: Metrics, *, max_views: int = 8, others: bool = True, max_wait_s: float = 0.2, num_threads: int = 1
) -> Batcher:
    batcher = Batcher(BatchLimits(max_views, max_wait_s, num_threads), metrics)
    batcher.start(lambda: 1000 if others else 0)
    return batcher


def batches(metrics: Metrics) -> tuple[int, int]:
    """Return the number of forward passes, and of views in all of them."""
    value = metrics.registry.get_sample_value
    return int(value("mme_batch_views_count") or 0), int(value("mme_batch_views_sum") or 0)


def test_videos_share_a_forward_pass_and_get_their_own_logits(classifier: Classifier) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        batcher = await started(metrics)
        views = [prepared(classifier, seed) for seed in range(4)]
        answers = await asyncio.gather(*(batcher.predict(classifier, item) for item in views))
        assert batches(metrics) == (1, 8)
        for item, answer in zip(views, answers, strict=True):
            np.testing.assert_allclose(answer.logits, classifier.predict([item])[0], rtol=0, atol=1e-5)
        await batcher.close()

    asyncio.run(scenario())


def test_batch_waits_only_while_more_videos_are_expected(classifier: Classifier) -> None:
    async def one(*, others: bool) -> VideoLogits:
        batcher = await started(Metrics(), others=others, max_wait_s=0.5)
        answer = await batcher.predict(classifier, prepared(classifier, 0))
        await batcher.close()
        return answer

    assert asyncio.run(one(others=False)).queue_ms < 450
    assert asyncio.run(one(others=True)).queue_ms > 450


def test_full_batch_does_not_wait(classifier: Classifier) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        batcher = await started(metrics, max_views=4, max_wait_s=30.0)
        views = [prepared(classifier, seed) for seed in range(4)]
        async with asyncio.timeout(10):
            await asyncio.gather(*(batcher.predict(classifier, item) for item in views))
        assert batches(metrics) == (2, 8)
        await batcher.close()

    asyncio.run(scenario())


def test_each_video_is_classified_by_its_own_model(classifier: Classifier, tmp_path: Path) -> None:
    other = Classifier.load(save_tiny_folder(tmp_path / "other", seed=1))

    async def scenario() -> None:
        batcher = await started(Metrics())
        views = prepared(classifier, 0)
        first, second = await asyncio.gather(batcher.predict(classifier, views), batcher.predict(other, views))
        np.testing.assert_allclose(first.logits, classifier.predict([views])[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(second.logits, other.predict([views])[0], rtol=0, atol=1e-5)
        await batcher.close()

    asyncio.run(scenario())


def test_cancelled_video_causes_no_forward_pass(classifier: Classifier) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        batcher = await started(metrics)
        waiting = asyncio.ensure_future(batcher.predict(classifier, prepared(classifier, 0)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0.4)
        assert batches(metrics) == (0, 0)
        assert batcher.alive
        await batcher.close()

    asyncio.run(scenario())


def test_failed_batch_fails_only_its_own_videos(classifier: Classifier) -> None:
    async def scenario() -> None:
        batcher = await started(Metrics(), others=False)
        broken = Views(np.zeros((1, 3, 16, 16, 3), np.uint8), None, 0.0)  # three frames do not fill two tubelets
        with pytest.raises(Exception, match=r"(?s).+"):
            await batcher.predict(classifier, broken)
        answer = await batcher.predict(classifier, prepared(classifier, 0))
        assert answer.logits.shape == (4,)
        await batcher.close()

    asyncio.run(scenario())


class Watched(Classifier):
    """Classifier whose passes wait until ``num_passes`` run at the same time."""

    def __init__(self, own: Classifier, num_passes: int) -> None:
        self.__dict__ |= vars(own)
        self.together = threading.Barrier(num_passes)
        self.seen: list[tuple[int, int]] = []

    def predict(self, batch: Sequence[Views], max_clips: int | None = None) -> list[Float32[np.ndarray, " K"]]:
        self.together.wait(30)
        self.seen.append((sum(len(views.frames) for views in batch), torch.get_num_threads()))
        return super().predict(batch, max_clips)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_concurrent_passes_share_views_and_threads(classifier: Classifier) -> None:
    async def scenario() -> None:
        batcher = await started(Metrics(), max_views=8, num_threads=2, max_wait_s=30.0)
        watched = Watched(classifier, 2)
        views = [prepared(classifier, seed) for seed in range(4)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(batcher.predict(watched, item) for item in views))
        assert watched.seen == [(4, 1), (4, 1)]
        for item, answer in zip(views, answers, strict=True):
            np.testing.assert_allclose(answer.logits, classifier.predict([item])[0], rtol=0, atol=1e-5)
        await batcher.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("torch_threads")
def test_single_video_gets_all_threads(classifier: Classifier) -> None:
    async def scenario() -> None:
        batcher = await started(Metrics(), num_threads=2, others=False)
        watched = Watched(classifier, 1)
        await batcher.predict(watched, prepared(classifier, 0))
        assert watched.seen == [(2, 2)]
        await batcher.close()

    asyncio.run(scenario())


def test_close_waits_for_running_passes(classifier: Classifier) -> None:
    async def scenario() -> None:
        batcher = await started(Metrics(), others=False)
        watched = Watched(classifier, 2)
        waiting = asyncio.ensure_future(batcher.predict(watched, prepared(classifier, 0)))
        await until(lambda: watched.together.n_waiting == 1)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        watched.together.wait(30)
        await closing
        assert (await waiting).logits.shape == (4,)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("max_views", "num_threads", "num_passes", "views_per_pass"),
    [(32, 1, 1, 32), (32, 2, 2, 16), (32, 16, 4, 8), (1, 8, 1, 1), (3, 2, 2, 1)],
)
def test_limits_hold_over_all_concurrent_passes(
    max_views: int, num_threads: int, num_passes: int, views_per_pass: int
) -> None:
    limits = BatchLimits(max_views, 0.0, num_threads)
    assert (limits.num_passes, limits.views_per_pass) == (num_passes, views_per_pass)
