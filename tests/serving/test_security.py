from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings
from tests.serving.service import RAW, make_settings


def test_api_key_is_required_if_keys_are_configured(folder: Path, clip: Path, tmp_path: Path) -> None:
    hashes = tuple(hashlib.sha256(key).hexdigest() for key in (b"first", b"second"))
    with TestClient(create_app(make_settings(folder, tmp_path, api_keys=hashes))) as client:
        for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic Zmlyc3Q6"}):
            response = client.post("/classify", content=clip.read_bytes(), headers=RAW | headers)
            assert response.status_code == 401
            assert response.json()["type"] == "/problems/unauthorized"
            assert response.headers["www-authenticate"] == "Bearer"
        for key in ("first", "second"):
            headers = RAW | {"authorization": f"Bearer {key}"}
            assert client.post("/classify", content=clip.read_bytes(), headers=headers).status_code == 200
        assert client.get("/model").status_code == 401
        for path in ("/health", "/ready", "/metrics", "/openapi.json", "/"):
            assert client.get(path).status_code == 200


def test_rate_limit_is_per_caller(folder: Path, tmp_path: Path) -> None:
    hashes = tuple(hashlib.sha256(key).hexdigest() for key in (b"first", b"second"))
    settings = make_settings(folder, tmp_path, api_keys=hashes, rate_per_minute=3)
    with TestClient(create_app(settings)) as client:
        first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
        assert [client.get("/labels", headers=first).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = client.get("/labels", headers=first)
        assert refused.json()["type"] == "/problems/rate-limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert client.get("/labels", headers=second).status_code == 200
        assert client.get("/health").status_code == 200


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"key").hexdigest()
    monkeypatch.setenv("MME_MODEL", "models:/name@champion")
    monkeypatch.setenv("MME_MAX_QUEUE", "7")
    monkeypatch.setenv("MME_API_KEYS", f" {digest}, {digest.upper()} ")
    settings = Settings()
    assert (settings.model, settings.max_queue, settings.api_keys) == ("models:/name@champion", 7, (digest, digest))
    assert settings.num_decoders >= 1


@pytest.mark.parametrize(("name", "value"), [("MME_API_KEYS", "secret"), ("MME_MAX_QUEUE", "0"), ("MME_PORT", "x")])
def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.removeprefix("MME_").lower()):
        Settings()
