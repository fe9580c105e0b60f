from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from serving.app import create_app
from serving.http.middleware import CLIENT_CLOSED_REQUEST
from serving.http.server import MAX_ACCEPTS, make_server
from tests.servers import free_port
from tests.serving.service import RAW, Call, is_alive, make_settings, running, until


def value(app: object, name: str, **labels: str) -> float:
    return app.state.engine.metrics.registry.get_sample_value(name, labels) or 0.0  # type: ignore[attr-defined]


def test_full_queue_is_refused_at_once(folder: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path, max_queue=2))

    async def scenario() -> None:
        async with running(app) as engine:
            slow = [Call(app, "/classify", RAW) for _ in range(2)]
            for call in slow:
                call.send(clip.read_bytes()[:1000], more=True)
            await until(lambda: engine.admission.num_admitted == 2)
            refused = Call(app, "/classify", RAW)
            refused.send(clip.read_bytes())
            status, problem = await refused.answer()
            assert (status, problem["type"]) == (503, "/problems/overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            for call in slow:
                call.send(clip.read_bytes()[1000:])
                assert (await call.answer())[0] == 200
            later = Call(app, "/classify", RAW)
            later.send(clip.read_bytes())
            assert (await later.answer())[0] == 200
            assert engine.admission.num_admitted == 0

    asyncio.run(scenario())


def test_under_overload_requests_are_answered_or_refused(folder: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path, max_queue=8))

    async def scenario() -> None:
        async with running(app):
            calls = [Call(app, "/classify", RAW) for _ in range(100)]
            for call in calls:
                call.send(clip.read_bytes())
            answers = [await call.answer() for call in calls]
            assert {status for status, _ in answers} == {200, 503}
            assert sum(status == 200 for status, _ in answers) >= 8

    asyncio.run(scenario())


def test_flood_of_connections_waits_in_the_kernel_and_is_taken_in_small_turns(folder: Path, tmp_path: Path) -> None:
    server = make_server(make_settings(folder, tmp_path, port=free_port()))
    open_connections = server.server_state.connections

    async def scenario() -> None:
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        with ExitStack() as stack:
            for _ in range(20 * MAX_ACCEPTS):  # the event loop stands still meanwhile
                address = (server.config.host, server.config.port)
                stack.enter_context(socket.create_connection(address, timeout=5))
            turns = [len(open_connections)]
            while turns[-1] < 20 * MAX_ACCEPTS:
                await asyncio.sleep(0)
                turns.append(len(open_connections))
            assert turns[0] == 0
            assert max(np.diff(turns)) <= MAX_ACCEPTS + 1
        server.should_exit = True
        await serving

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_deadline_ends_a_request_and_kills_its_decoder(folder: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path, deadline_s=1.0, num_decode_workers=1))

    async def scenario() -> None:
        async with running(app) as engine:
            (process,) = engine.decoder_ids
            os.kill(process, signal.SIGSTOP)  # a decoder that hangs
            call = Call(app, "/classify", RAW)
            call.send(clip.read_bytes())
            status, problem = await call.answer()
            assert (status, problem["type"]) == (504, "/problems/deadline-exceeded")
            await until(lambda: not is_alive(process) and len(engine.decoder_ids) == 1)
            assert value(app, "mme_videos_total", outcome="deadline-exceeded") == 1

    asyncio.run(scenario())


def test_disconnected_client_releases_its_slot(folder: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path, num_decode_workers=1))

    async def scenario() -> None:
        async with running(app) as engine:
            (process,) = engine.decoder_ids
            os.kill(process, signal.SIGSTOP)  # a decoder that hangs
            call = Call(app, "/classify", RAW)
            call.send(clip.read_bytes())
            await until(lambda: value(app, "mme_decoding_videos") == 1)
            call.disconnect()
            await asyncio.wait_for(call.task, 10)
            assert call.status is None
            assert engine.admission.num_admitted == 0
            await until(lambda: not is_alive(process))
            gone = {"method": "POST", "route": "/classify", "status": str(CLIENT_CLOSED_REQUEST)}
            assert value(app, "mme_http_requests_total", **gone) == 1
            again = Call(app, "/classify", RAW)
            again.send(clip.read_bytes())
            assert (await again.answer())[0] == 200
            assert value(app, "mme_decoding_videos") == 0

    asyncio.run(scenario())


def test_client_that_disconnects_during_upload_leaves_nothing(folder: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path))

    async def scenario() -> None:
        async with running(app) as engine:
            call = Call(app, "/classify", RAW)
            call.send(clip.read_bytes()[:1000], more=True)
            await until(lambda: engine.admission.num_admitted == 1)
            call.disconnect()
            await asyncio.wait_for(call.task, 10)
            assert engine.admission.num_admitted == 0
            assert [path.name for path in engine.temp_dir.iterdir()] == ["warm.mp4"]

    asyncio.run(scenario())


def test_slow_upload_times_out(folder: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path, upload_timeout_s=0.1))

    async def scenario() -> None:
        async with running(app) as engine:
            call = Call(app, "/classify", RAW)
            call.send(b"x", more=True)
            status, problem = await call.answer()
            assert (status, problem["type"]) == (408, "/problems/upload-timed-out")
            assert engine.admission.num_admitted == 0

    asyncio.run(scenario())
