from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from mme.data.views import Views
from mme.inference import Classifier
from serving.batcher import Answer, Batcher, BatchLimits
from serving.metrics import Metrics
from tests.tiny import moving_frames, save_tiny_folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


def prepared(classifier: Classifier, seed: int) -> Views:
    return classifier.prepare(moving_frames(seed=seed))


async def started(metrics: Metrics, *, max_views: int = 8, others: bool = True, max_wait_s: float = 0.2) -> Batcher:
    batcher = Batcher(BatchLimits(max_views, max_wait_s, 1), metrics)
    batcher.start(lambda num_videos: others)
    return batcher


def batches(metrics: Metrics) -> tuple[int, int]:
    """Forward passes, and views in all of them."""
    value = metrics.registry.get_sample_value
    return int(value("mme_batch_views_count") or 0), int(value("mme_batch_views_sum") or 0)


def test_videos_share_a_forward_pass_and_keep_their_own_answer(classifier: Classifier) -> None:
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


def test_a_batch_waits_only_while_others_are_coming(classifier: Classifier) -> None:
    async def one(*, others: bool) -> Answer:
        batcher = await started(Metrics(), others=others, max_wait_s=0.5)
        answer = await batcher.predict(classifier, prepared(classifier, 0))
        await batcher.close()
        return answer

    assert asyncio.run(one(others=False)).queue_ms < 450
    assert asyncio.run(one(others=True)).queue_ms > 450


def test_a_full_batch_does_not_wait(classifier: Classifier) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        batcher = await started(metrics, max_views=4, max_wait_s=30.0)
        views = [prepared(classifier, seed) for seed in range(4)]
        async with asyncio.timeout(10):
            await asyncio.gather(*(batcher.predict(classifier, item) for item in views))
        assert batches(metrics) == (2, 8)
        await batcher.close()

    asyncio.run(scenario())


def test_models_are_not_mixed(classifier: Classifier, tmp_path: Path) -> None:
    other = Classifier.load(save_tiny_folder(tmp_path / "other", seed=1))

    async def scenario() -> None:
        batcher = await started(Metrics())
        views = prepared(classifier, 0)
        first, second = await asyncio.gather(batcher.predict(classifier, views), batcher.predict(other, views))
        np.testing.assert_allclose(first.logits, classifier.predict([views])[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(second.logits, other.predict([views])[0], rtol=0, atol=1e-5)
        await batcher.close()

    asyncio.run(scenario())


def test_who_has_gone_costs_no_forward_pass(classifier: Classifier) -> None:
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


def test_a_failing_batch_fails_its_videos_alone(classifier: Classifier) -> None:
    async def scenario() -> None:
        batcher = await started(Metrics(), others=False)
        broken = Views(np.zeros((1, 3, 16, 16, 3), np.uint8), None, 0.0)  # three frames do not fill two tubelets
        with pytest.raises(Exception, match=r"(?s).+"):
            await batcher.predict(classifier, broken)
        answer = await batcher.predict(classifier, prepared(classifier, 0))
        assert answer.logits.shape == (4,)
        await batcher.close()

    asyncio.run(scenario())
