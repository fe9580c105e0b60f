"""A challenger beside the champion: what is counted, and that nobody waits for it or fails with it. Real models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mme.evaluation.classifier import Classifier
from serving.app import create_app
from serving.inference import shadow
from serving.inference.shadow import MAX_PAUSE_S, MAX_WAITING
from tests import media
from tests.serving.registered import register_two_versions
from tests.serving.service import RAW, make_settings
from tests.serving.test_classify import read_metric
from tests.tiny import save_tiny_folder, tiny_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [media.write(folder / f"{seed}.mp4", num_frames=40, seed=seed) for seed in range(12)]


@contextmanager
def shadowed(
    folder: Path, temp: Path, challenger: Path | str, share: float = 1.0, **changes: Any
) -> Iterator[TestClient]:
    settings = make_settings(folder, temp, shadow_model=str(challenger), shadow_share=share, **changes)
    with TestClient(create_app(settings)) as client:
        until(lambda: sum_of(client, "mme_shadow_model_loads_total") > 0)
        yield client


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sum_of(client: TestClient, name: str, *parts: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(name) and all(part in line for part in parts)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def outcomes(client: TestClient) -> dict[str, float]:
    names = ("answered", "dropped", "failed")
    return {name: read_metric(client, f'mme_shadow_videos_total{{outcome="{name}"}}') for name in names}


def has_outcomes(client: TestClient, number: float) -> bool:
    return sum(outcomes(client).values()) == number


def classify(client: TestClient, video: Path, query: str = "") -> Any:
    response = client.post(f"/classify{query}", content=video.read_bytes(), headers=RAW)
    assert response.status_code == 200, response.text
    return response.json()


def send_all(client: TestClient, videos: list[Path], query: str = "") -> None:
    """Send one after the other, so that none is dropped."""
    before = sum(outcomes(client).values())
    for number, video in enumerate(videos, start=1):
        classify(client, video, query)
        until(partial(has_outcomes, client, before + number))


@pytest.mark.parametrize(("changes", "query"), [
    ({}, ""),
    ({"views": {"segments": 3, "crops": 1}}, ""),  # other views than the champion's: decoded again
    ({"views": {"segments": 3, "crops": 1}}, "?segments=1&crops=1"),
    ({"fps": 8.0}, ""),
])  # fmt: skip
def test_agreement_confidence_and_latency_are_counted_by_pair(
    folder: Path, videos: list[Path], tmp_path: Path, changes: dict[str, Any], query: str
) -> None:
    other = save_tiny_folder(tmp_path / "other", seed=3, **changes)
    champion, challenger = Classifier.load(folder), Classifier.load(other)
    views = {"segments": 1, "crops": 1} if query else {}
    pairs = [(champion.classify(video, **views), challenger.classify(video, **views)) for video in videos]
    alike = sum(one.predictions[0].label == two.predictions[0].label for one, two in pairs)
    assert 0 < alike < len(videos)  # otherwise this test could not tell
    with shadowed(folder, tmp_path, other) as client:
        send_all(client, videos, query)
        assert outcomes(client) == {"answered": len(videos), "dropped": 0, "failed": 0}
        pair = f'challenger="tiny/{challenger.digest}",champion="tiny/{champion.digest}"'
        assert sum_of(client, "mme_shadow_answers_total{", 'agree="yes"', pair) == alike
        assert sum_of(client, "mme_shadow_answers_total{", 'agree="no"', pair) == len(videos) - alike
        for role, position in (("champion", 0), ("challenger", 1)):
            confidence = sum(found[position].predictions[0].probability for found in pairs)
            of_model = (f'role="{role}"', pair)
            assert sum_of(client, "mme_shadow_confidence_sum{", *of_model) == pytest.approx(confidence, abs=1e-4)
            assert sum_of(client, "mme_shadow_seconds_count{", *of_model) == len(videos)
            assert sum_of(client, "mme_shadow_seconds_sum{", *of_model) > 0
        assert list(Path(tmp_path).glob("mme-serving-*/shadow-*")) == []


def test_challenger_pauses_while_there_are_requests(
    folder: Path, other: Path, videos: list[Path], tmp_path: Path
) -> None:
    with shadowed(folder, tmp_path, other) as client:
        send_all(client, videos[:1])
        with client.app.state.engine.admission.slot():  # type: ignore[attr-defined]
            started = time.perf_counter()
            send_all(client, videos[1:2])
            assert time.perf_counter() - started >= 0.9 * MAX_PAUSE_S
        computed_s = sum_of(client, "mme_shadow_seconds_sum{", 'role="challenger"')
        assert computed_s < MAX_PAUSE_S / 2  # pauses do not count


def test_share_is_kept(folder: Path, other: Path, videos: list[Path], tmp_path: Path) -> None:
    with shadowed(folder, tmp_path, other, share=0.0) as client:
        classify(client, videos[0])
        assert sum(outcomes(client).values()) == 0
    with shadowed(folder, tmp_path, other, share=0.5) as client:
        for _ in range(10):
            for video in videos:
                classify(client, video)
        until(lambda: 30 <= sum(outcomes(client).values()) <= 90)


def test_challenger_that_does_not_load_or_fails_harms_no_answer(
    folder: Path, other: Path, videos: list[Path], tmp_path: Path
) -> None:
    expected = Classifier.load(folder).classify(videos[0]).predictions[0]
    with shadowed(folder, tmp_path, tmp_path / "missing") as client:
        assert classify(client, videos[0])["predictions"][0]["label"] == expected.label
        assert client.get("/ready").json()["last_load_error"] is None
        assert read_metric(client, 'mme_shadow_model_loads_total{outcome="failed"}') == 1
        assert read_metric(client, 'mme_model_loads_total{outcome="failed"}') == 0
        assert sum(outcomes(client).values()) == 0
    # Its views are more than a decoding process may hold.
    config = tiny_config()
    sizes: dict[str, Any] = {
        "clip": config.clip.model_dump() | {"size": 512},
        "model": config.model.model_dump() | {"patch_size": 128},
    }
    greedy = save_tiny_folder(tmp_path / "greedy", **sizes, views={"segments": 32, "crops": 1})
    with shadowed(folder, tmp_path, greedy, decode_memory_mb=64) as client:
        send_all(client, videos[:2])
        assert outcomes(client) == {"answered": 0, "dropped": 0, "failed": 2}
        assert classify(client, videos[0])["predictions"][0]["label"] == expected.label


def test_moved_alias_replaces_the_challenger(
    folder: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry = register_two_versions(tmp_path)
    registry.set_registered_model_alias("tiny", "challenger", "1")
    with shadowed(folder, tmp_path, "models:/tiny@challenger", poll_s=0.2) as client:
        send_all(client, videos[:3])
        registry.set_registered_model_alias("tiny", "challenger", "2")
        until(lambda: sum_of(client, "mme_shadow_model_info{", 'version="2"') == 1)
        send_all(client, videos[:2])
        assert sum_of(client, "mme_shadow_answers_total{", 'challenger="tiny/1"') == 3
        assert sum_of(client, "mme_shadow_answers_total{", 'challenger="tiny/2"') == 2


def test_challenger_that_is_slow_delays_nobody_and_drops_what_it_cannot_take(
    folder: Path, other: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MAX_PAUSE_S", 600)  # without an end for this test
    with shadowed(folder, tmp_path, other) as client:
        with client.app.state.engine.admission.slot():  # type: ignore[attr-defined]
            for video in videos:
                classify(client, video)
            assert outcomes(client)["answered"] == 0  # every caller had an answer before the challenger gave its first
            dropped = outcomes(client)["dropped"]
            assert 0 < dropped <= len(videos) - MAX_WAITING
        until(partial(has_outcomes, client, len(videos)))
        assert outcomes(client) == {"answered": len(videos) - dropped, "dropped": dropped, "failed": 0}
