from __future__ import annotations

import asyncio
import csv
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mme.evaluation.classifier import Classifier
from mme.evaluation.windows import CSV_COLUMNS, classify_windows
from mme.video.codec import write_video
from serving.app import create_app
from tests import media
from tests.evaluation.test_windows import changing_frames
from tests.serving.service import RAW, Call, is_alive, make_settings, running, until


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "scenes.mp4"
    write_video(path, changing_frames(6), fps=16, crf=10, gop_frames=12)
    return path


def ask(client: TestClient, path: Path, query: str, **headers: str) -> Any:
    return client.post(f"/classify?{query}", content=path.read_bytes(), headers=RAW | headers)


@pytest.mark.parametrize("query", ["window_s=1&hop_s=0.25", "window_s=0.5", "window_s=1&hop_s=0.5&segments=1&crops=3"])
def test_windows_are_those_of_the_classifier(
    client: TestClient, classifier: Classifier, scenes: Path, query: str
) -> None:
    given = {key: float(value) for key, value in (item.split("=") for item in query.split("&"))}
    views = {key: int(value) for key, value in given.items() if key in ("segments", "crops")}
    hop_s = given.get("hop_s", given["window_s"])
    expected = classify_windows(classifier, scenes, given["window_s"], hop_s, 4, **views)
    response = ask(client, scenes, f"{query}&top_k=4")
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["window_s"], answer["hop_s"]) == (given["window_s"], hop_s)
    assert [(w["start_s"], w["end_s"]) for w in answer["windows"]] == [(w.start_s, w.end_s) for w in expected.windows]
    for window, one in zip(answer["windows"], expected.windows, strict=True):
        assert [p["label"] for p in window["predictions"]] == [p.label for p in one.predictions]
        chances = [p["probability"] for p in window["predictions"]]
        assert chances == pytest.approx([p.probability for p in one.predictions], abs=1e-5)
    segments = [(s["start_s"], s["end_s"], s["label"], s["num_windows"]) for s in answer["segments"]]
    assert segments == [(s.start_s, s.end_s, s.label, s.num_windows) for s in expected.segments]
    assert len(segments) > 1
    assert answer["video"]["num_frames"] == 72
    assert answer["model"]["digest"] == classifier.digest
    assert answer["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("format=csv", "*/*", "text/csv"),
        ("format=vtt", "text/csv", "text/vtt"),
        ("format=json", "text/vtt", "application/json"),
        ("", "text/vtt, */*;q=0.1", "text/vtt"),
        ("", "application/json;q=0.2, text/csv;q=0.9, text/vtt;q=0.5", "text/csv"),
        ("", "text/html, image/png", "application/json"),
        ("", "text/csv;q=0", "application/json"),
        ("", "text/csv;q=nonsense", "application/json"),
    ],
)
def test_format_is_that_of_the_query_or_of_accept(
    client: TestClient, scenes: Path, query: str, accept: str, kind: str
) -> None:
    response = ask(client, scenes, f"window_s=1&hop_s=0.5&{query}", accept=accept)
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == kind
    segments = ask(client, scenes, "window_s=1&hop_s=0.5").json()["segments"]
    if kind == "text/vtt":
        assert response.text.startswith("WEBVTT\n\n00:00:00.000 --> ")
        assert response.text.count("-->") == len(segments)
    if kind == "text/csv":
        header, *rows = csv.reader(io.StringIO(response.text, newline=""))
        assert tuple(header) == CSV_COLUMNS
        assert int(rows[-1][4]) == len(segments) - 1


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("window_s=0", "window_s"),
        ("window_s=inf", "window_s"),
        ("window_s=0.01", "window_s"),
        ("window_s=1e7", "window_s"),
        ("window_s=1&hop_s=0.01", "hop_s"),
        ("hop_s=1", "hop_s"),
        ("format=vtt", "format"),
        ("window_s=1&format=srt", "format"),
        ("window_s=1&logits=true", "logits"),
    ],
)
def test_bad_parameter_is_named(client: TestClient, scenes: Path, query: str, name: str) -> None:
    response = ask(client, scenes, query)
    assert response.status_code == 422
    document = response.json()
    assert document["type"] == "/problems/invalid-parameter"
    assert document["errors"][0]["location"] == ["query", name]


@pytest.mark.parametrize(
    ("make", "kind"), [(media.text, "not-a-video"), (media.empty, "empty"), (media.audio_only, "no-video-stream")]
)
def test_bad_file_is_a_client_error(client: TestClient, tmp_path: Path, make: Any, kind: str) -> None:
    response = ask(client, make(tmp_path / "clip.mp4"), "window_s=1")
    assert response.json()["type"] == f"/problems/{kind}"


def test_limits_are_those_of_long_videos(folder: Path, tmp_path: Path, scenes: Path) -> None:
    settings = make_settings(
        folder, tmp_path, max_seconds=1, max_upload_bytes=100, max_windows=17, long_max_seconds=5,
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        assert ask(client, scenes, "").json()["type"] == "/problems/upload-too-large"
        assert len(ask(client, scenes, "window_s=0.5&hop_s=0.25").json()["windows"]) == 17
        refused = ask(client, scenes, "window_s=0.5&hop_s=0.2")
        assert refused.status_code == 422
        assert refused.json()["type"] == "/problems/too-many-windows"
        assert "21 windows; at most 17" in refused.json()["detail"]
        longer = tmp_path / "longer.mp4"
        write_video(longer, changing_frames(8), fps=16, crf=10, gop_frames=12)
        assert ask(client, longer, "window_s=1").json()["type"] == "/problems/video-too-large"


def test_deadline_kills_the_decoder_and_the_next_video_is_classified(
    folder: Path, tmp_path: Path, scenes: Path
) -> None:
    async def run() -> None:
        app = create_app(make_settings(folder, tmp_path, long_deadline_s=1.0))
        async with running(app) as engine:
            (process,) = engine.long_decoder_ids
            os.kill(process, signal.SIGSTOP)  # a decoder that hangs
            call = Call(app, "/classify", RAW, "window_s=0.5")
            call.send(scenes.read_bytes())
            status, document = await call.answer()
            assert (status, document["type"]) == (504, "/problems/deadline-exceeded")
            await until(lambda: not is_alive(process) and len(engine.long_decoder_ids) == 1)
            assert engine.long_admission.num_admitted == 0
            engine.settings = make_settings(folder, tmp_path)
            call = Call(app, "/classify", RAW, "window_s=0.5")
            call.send(scenes.read_bytes())
            assert (await call.answer())[0] == 200

    asyncio.run(run())


def test_short_videos_do_not_wait_for_long_ones(folder: Path, tmp_path: Path, clip: Path, scenes: Path) -> None:
    async def run() -> None:
        app = create_app(make_settings(folder, tmp_path, num_decode_workers=1, long_max_queue=2, max_queue=2))
        async with running(app) as engine:
            (process,) = engine.long_decoder_ids
            os.kill(process, signal.SIGSTOP)  # a video that takes long
            calls = [Call(app, "/classify", RAW, "window_s=0.5&hop_s=0.1") for _ in range(3)]
            calls[0].send(scenes.read_bytes())
            await until(lambda: engine.metrics.registry.get_sample_value("mme_decoding_videos") == 1)
            calls[1].send(scenes.read_bytes())
            await until(lambda: engine.long_admission.num_admitted == 2)
            calls[2].send(scenes.read_bytes())
            status, document = await calls[2].answer()
            assert (status, document["type"]) == (503, "/problems/overloaded")
            assert engine.long_admission.num_admitted == 2
            short = Call(app, "/classify", RAW)
            short.send(clip.read_bytes())
            assert (await short.answer())[0] == 200
            assert engine.long_admission.num_admitted == 2
            calls[0].disconnect()
            await until(lambda: not is_alive(process))
            assert (await calls[1].answer())[0] == 200

    asyncio.run(run())
