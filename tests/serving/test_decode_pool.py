from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from mme.video.containers import VideoError
from mme.video.sampling import Views, sample_views
from serving.decoding.child import VideoLimits, ViewsTask
from serving.decoding.pool import DecodeLimits, DecodePool
from serving.http.metrics import Metrics
from tests import media
from tests.serving.rogue_task import RogueAnswer
from tests.serving.service import is_alive, libraries, until
from tests.tiny import tiny_config

NO_LIMITS = VideoLimits(math.inf, 10**9, 10**9, 60.0)


def job(path: Path, limits: VideoLimits = NO_LIMITS) -> ViewsTask:
    return ViewsTask(path, tiny_config().clip, 16, 2, 3, limits)


@asynccontextmanager
async def pool(num_workers: int = 1, timeout_s: float = 60.0, memory_mb: int = 1024) -> AsyncIterator[DecodePool]:
    pool = DecodePool(num_workers, DecodeLimits(timeout_s, memory_mb), Metrics())
    await pool.start()
    try:
        yield pool
    finally:
        processes = pool.process_ids
        await pool.close()
        assert not any(is_alive(process) for process in processes)


def test_views_equal_those_of_the_parent_process(clip: Path) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            there = await decoders.run(job(clip))
            here = sample_views(clip, tiny_config().clip, 16, 2, 3)
            np.testing.assert_array_equal(there.frames, here.frames)
            assert there.info == here.info

    asyncio.run(scenario())


def test_timeout_kills_and_replaces_the_process(clip: Path) -> None:
    async def scenario() -> None:
        async with pool(timeout_s=3.0) as decoders:
            (process,) = decoders.process_ids
            os.kill(process, signal.SIGSTOP)  # a decoder that hangs
            with pytest.raises(VideoError) as caught:
                await decoders.run(job(clip))
            assert caught.value.reason == "timed-out"
            assert not is_alive(process)
            assert len((await decoders.run(job(clip))).frames) == 6

    asyncio.run(scenario())


def test_planned_replacements_are_not_counted(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned replacements are frequent under load: counting them would cause false alerts."""
    monkeypatch.setattr("serving.decoding.pool.MAX_TASKS", 2)
    metrics = Metrics()

    def count() -> float:
        return metrics.registry.get_sample_value("mme_decoders_replaced_total") or 0.0

    async def scenario() -> None:
        decoders = DecodePool(1, DecodeLimits(60.0, 1024), metrics)
        await decoders.start()
        try:
            seen = set()
            for _ in range(5):
                seen |= set(decoders.process_ids)
                await decoders.run(job(clip))
            assert len(seen) == 3
            assert count() == 0
            (process,) = decoders.process_ids
            os.kill(process, signal.SIGSTOP)
            given_up = asyncio.ensure_future(decoders.run(job(clip)))
            await asyncio.sleep(0.2)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            assert len((await decoders.run(job(clip))).frames) == 6
            assert count() == 0
            (process,) = decoders.process_ids
            os.kill(process, signal.SIGKILL)
            assert len((await decoders.run(job(clip))).frames) == 6
            assert count() == 1
        finally:
            await decoders.close()

    asyncio.run(scenario())


def test_video_above_the_memory_limit_is_refused(clip: Path, tmp_path: Path) -> None:
    large = media.write(tmp_path / "large.mp4", size=(1920, 1080), num_frames=24)  # its frames take three times as much

    async def scenario() -> None:
        async with pool(memory_mb=24) as decoders:
            with pytest.raises(VideoError) as caught:
                await decoders.run(job(large))
            assert caught.value.reason in {"too-large", "undecodable", "truncated"}  # as the libraries take it
            assert len((await decoders.run(job(clip))).frames) == 6

    asyncio.run(scenario())


def test_processor_time_is_limited() -> None:
    script = "from serving.decoding.child import limit_cpu; limit_cpu(0.1)\nwhile True: pass"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    spinning = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False)
    assert spinning.returncode == -signal.SIGXCPU


async def sent_to_stopped(decoders: DecodePool, process: int, video: Path) -> asyncio.Task[Views]:
    """Stop a process, so that it cannot answer too early, and send a video to it."""
    os.kill(process, signal.SIGSTOP)
    decoding = asyncio.ensure_future(decoders.run(job(video)))
    for _ in range(20):  # the loop sends it within a few turns
        await asyncio.sleep(0)
    return decoding


def test_video_of_a_killed_process_is_retried(clip: Path) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            (process,) = decoders.process_ids
            decoding = await sent_to_stopped(decoders, process, clip)
            os.kill(process, signal.SIGKILL)
            assert len((await decoding).frames) == 6
            (process,) = decoders.process_ids
            os.kill(process, signal.SIGKILL)  # while idle
            await asyncio.sleep(0.1)
            assert len((await decoders.run(job(clip))).frames) == 6

    asyncio.run(scenario())


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGSEGV, "undecodable"), (signal.SIGXCPU, "timed-out")])
def test_crash_is_attributed_to_the_video(clip: Path, number: int, reason: str) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            (process,) = decoders.process_ids
            decoding = await sent_to_stopped(decoders, process, clip)
            os.kill(process, number)
            os.kill(process, signal.SIGCONT)
            with pytest.raises(VideoError) as caught:
                await decoding
            assert caught.value.reason == reason
            assert len((await decoders.run(job(clip))).frames) == 6

    asyncio.run(scenario())


def test_cancellation_kills_and_replaces_the_process(clip: Path) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            (process,) = decoders.process_ids
            decoding = await sent_to_stopped(decoders, process, clip)
            decoding.cancel()
            await until(lambda: not is_alive(process))
            assert len((await decoders.run(job(clip))).frames) == 6

    asyncio.run(scenario())


def test_sigterm_and_sigint_do_not_stop_a_process(clip: Path) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            (process,) = decoders.process_ids
            decoding = await sent_to_stopped(decoders, process, clip)
            os.kill(process, signal.SIGTERM)
            os.kill(process, signal.SIGINT)
            os.kill(process, signal.SIGCONT)
            assert len((await decoding).frames) == 6
            assert decoders.process_ids == [process]

    asyncio.run(scenario())


def test_decoding_process_does_not_load_torch(clip: Path) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            await decoders.run(job(clip))
            (process,) = decoders.process_ids
            assert not any("torch" in library for library in libraries(process))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b"{}", b"x" * 1001),  # more than the task may answer with
        (b" " * 70_000, b""),
        (b"no JSON", b""),
        (b"[" * 60_000, b""),
        (b"[1]", b""),
        (b'{"shape": [3]}', b"xx"),
        (b'{"shape": [-7, "x"]}', b"xx"),
    ],
)
def test_malformed_answer_replaces_the_process(clip: Path, header: bytes, payload: bytes) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            (process,) = decoders.process_ids
            with pytest.raises(VideoError) as caught:
                await decoders.run(RogueAnswer(clip, header, payload))
            assert caught.value.reason == "undecodable"
            assert not is_alive(process)
            assert len((await decoders.run(job(clip))).frames) == 6

    asyncio.run(scenario())


def test_process_that_sends_unrequested_data_is_replaced(clip: Path) -> None:
    async def scenario() -> None:
        async with pool() as decoders:
            (process,) = decoders.process_ids
            told = await decoders.run(RogueAnswer(clip, b'{"shape": [2]}', b"no", delay_s=0.2))
            assert told == b"ok"
            await until(lambda: not decoders._workers[0]._is_silent())
            there, here = await decoders.run(job(clip)), sample_views(clip, tiny_config().clip, 16, 2, 3)
            np.testing.assert_array_equal(there.frames, here.frames)
            assert not is_alive(process)

    asyncio.run(scenario())
