from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mme.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, content_digest
from serving.app import create_app
from serving.http.metrics import Metrics
from serving.inference.model_reloader import ModelReloader
from tests.serving.service import RAW, make_settings, wait_until
from tests.tiny import save_tiny_folder


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.fixture
def host(own: Path, clip: Path) -> ModelReloader:
    return ModelReloader(str(own), clip, Metrics().model)


def current_digest(host: ModelReloader) -> str:
    assert host.current is not None
    return host.current.digest


def test_unchanged_folder_is_loaded_once(host: ModelReloader, own: Path) -> None:
    assert host.refresh()
    assert current_digest(host) == content_digest(own)
    assert not host.refresh()
    assert host.last_error is None


def test_new_model_in_the_folder_replaces_the_current_one(host: ModelReloader, own: Path) -> None:
    host.refresh()
    before = current_digest(host)
    save_tiny_folder(own, seed=1)
    assert host.refresh()
    assert current_digest(host) == content_digest(own) != before


def test_rewriting_the_same_model_changes_nothing(host: ModelReloader, own: Path, folder: Path) -> None:
    host.refresh()
    before = host.current
    shutil.copy(folder / WEIGHTS_FILE, own / WEIGHTS_FILE)
    assert not host.refresh()
    assert host.current is before


@pytest.mark.parametrize("damage", ["missing", "weights", "config"])
def test_broken_model_keeps_the_current_one(host: ModelReloader, own: Path, damage: str) -> None:
    host.refresh()
    before = host.current
    if damage == "missing":
        shutil.rmtree(own)
    else:
        (own / (WEIGHTS_FILE if damage == "weights" else CONFIG_FILE)).write_bytes(b"{}")
    assert not host.refresh()
    assert host.current is before
    assert host.last_error is not None
    assert "own" in host.last_error
    save_tiny_folder(own, seed=2)
    assert host.refresh()
    assert host.last_error is None


def test_version_is_read_from_the_folder(own: Path, clip: Path) -> None:
    save_tiny_folder(own, provenance={"version": 7})
    host = ModelReloader(str(own), clip, Metrics().model)
    host.refresh()
    assert host.current is not None
    assert host.current.version == "7"


def test_service_without_a_model_answers_503_until_one_is_loaded(folder: Path, clip: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    app = create_app(make_settings(later, tmp_path, poll_s=0.05))
    with TestClient(app) as client:
        assert client.get("/health").status_code == 200
        refused = client.post("/classify", headers=RAW, content=clip.read_bytes())
        for response in (client.get("/ready"), client.get("/model"), refused):
            assert response.status_code == 503
            assert response.json()["type"] == "/problems/model-not-loaded"
            assert response.headers["retry-after"] == "1"
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy").rename(later)
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/classify", content=clip.read_bytes(), headers=RAW).status_code == 200


def test_model_swap_under_load_fails_no_request(own: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(own, tmp_path, poll_s=0.05))
    stop = threading.Event()
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:

        def load() -> list[tuple[int, str, float]]:
            seen = []
            while not stop.is_set():
                response = client.post("/classify?logits=1", content=clip.read_bytes(), headers=RAW)
                answer = response.json()
                seen.append((response.status_code, answer["model"]["digest"], round(answer["logits"][0], 3)))
            return seen

        running = [threads.submit(load) for _ in range(4)]
        digests = [client.get("/model").json()["digest"]]
        for seed in (1, 2):
            save_tiny_folder(own, seed=seed)
            digests.append(content_digest(own))
            wait_until(lambda: client.get("/model").json()["digest"] == digests[-1])
        stop.set()
        seen = [item for future in running for item in future.result()]
    assert {status for status, _, _ in seen} == {200}
    assert {digest for _, digest, _ in seen} <= set(digests)
    assert len({digest for _, digest, _ in seen}) >= 2
    assert len({(digest, logit) for _, digest, logit in seen}) == len({digest for _, digest, _ in seen})
