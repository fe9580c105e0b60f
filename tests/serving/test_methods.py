"""HEAD, OPTIONS and requests of pages from other origins."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings
from tests.serving.service import make_settings, server

APP = "https://app.example"
PREFLIGHT = {"origin": APP, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/labels", "/openapi.json", "/static/page.js", "/nothing"])
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    got, asked = client.get(path), client.head(path)
    assert asked.status_code == got.status_code
    assert asked.content == b""
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_monitor_keeps_its_connection_after_head(folder: Path, tmp_path: Path) -> None:
    with server(folder, tmp_path) as (address, _), httpx.Client(base_url=address) as monitor:
        for path in ("/health", "/ready", "/", "/health") * 2:
            answer = monitor.head(path)
            assert answer.status_code == 200
            assert int(answer.headers["content-length"]) > 0
        counted = monitor.get("/metrics").text
    assert 'mme_http_requests_total{method="HEAD",route="/health",status="200"} 4.0' in counted


def test_options_names_the_methods(client: TestClient) -> None:
    for path, methods in (("/health", {"GET", "HEAD", "OPTIONS"}), ("/classify", {"POST", "OPTIONS"})):
        answer = client.options(path)
        assert answer.status_code == 204
        assert set(answer.headers["allow"].split(", ")) == methods
    assert client.options("/nothing").status_code == 404


def test_other_origins_are_shut_out_by_default(client: TestClient) -> None:
    for answer in (client.get("/health", headers={"origin": APP}), client.options("/classify", headers=PREFLIGHT)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_named_origins_may_send_videos_and_read_answers(folder: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tmp_path, cors_origins=f"{APP}, http://localhost:3000")
    with TestClient(create_app(settings)) as client:
        preflight = client.options("/classify", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == APP
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        assert client.options("/classify", headers={**PREFLIGHT, "origin": "https://evil.example"}).status_code == 400

        for answer in (
            client.get("/health", headers={"origin": APP}),
            client.post("/classify", headers={"origin": APP}),
        ):
            assert answer.headers["access-control-allow-origin"] == APP
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        evil = client.get("/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in evil.headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://app.example/page", "null"])
def test_what_is_no_origin_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("MME_CORS_ORIGINS", origin)
    with pytest.raises(ValidationError, match="is no origin"):
        Settings()
