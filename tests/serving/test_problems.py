from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from asgi_correlation_id import correlation_id
from starlette.testclient import TestClient

from serving.http.logs import RequestJsonFormatter
from serving.http.uploads import FILE_TYPES
from serving.problems import KINDS, MEDIA_TYPE


@pytest.mark.parametrize(
    ("method", "path", "cause"),
    [
        ("GET", "/nothing/here", "not-found"),
        ("GET", "/classify", "method-not-allowed"),
        ("DELETE", "/labels", "method-not-allowed"),
        ("POST", "/classify?top_k=0", "invalid-parameter"),
        ("POST", "/classify?top_k=many", "invalid-parameter"),
        ("POST", "/classify?crops=2", "invalid-parameter"),
        ("POST", "/classify?segments=1000", "invalid-parameter"),
        ("POST", "/classify?logits=perhaps", "invalid-parameter"),
        ("POST", "/classify/batch", "unsupported-type"),
        ("GET", "/problems/unheard-of", "not-found"),
        ("GET", "/static/../app.py", "not-found"),
        ("GET", "/static/%2e%2e/app.py", "not-found"),
    ],
)
def test_every_error_is_a_problem_document(client: TestClient, method: str, path: str, cause: str) -> None:
    response = client.request(method, path)
    problem = response.json()
    assert problem["type"] == f"/problems/{cause}"
    assert response.status_code == problem["status"] == KINDS[cause].status
    assert response.headers["content-type"] == MEDIA_TYPE
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"] == KINDS[cause].title
    assert problem["detail"]


def test_invalid_parameters_are_named(client: TestClient) -> None:
    problem = client.post("/classify?top_k=0&crops=7").json()
    assert [error["location"] for error in problem["errors"]] == [["query", "top_k"], ["query", "crops"]]
    assert "top_k" in problem["detail"]


def test_wrong_method_gets_an_allow_header(client: TestClient) -> None:
    assert client.get("/classify").headers["allow"] == "POST, OPTIONS"


def test_every_problem_type_is_explained(client: TestClient) -> None:
    for name, kind in KINDS.items():
        assert client.get(f"/problems/{name}").json() == {
            "type": f"/problems/{name}", "status": kind.status, "title": kind.title, "advice": kind.advice
        }  # fmt: skip


def test_valid_request_ids_are_echoed(client: TestClient) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1.2:3"}).headers["x-request-id"] == "abc-1.2:3"
    for bad in ("a b", "x" * 129, "<script>", ""):
        given = client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_answers_carry_security_headers(client: TestClient) -> None:
    for path in ("/", "/health", "/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "server" not in headers


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


class TestOpenApi:
    def test_every_error_is_documented_as_a_problem(self, document: Any) -> None:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                for status, response in operation["responses"].items():
                    if status == "200":
                        continue
                    assert list(response["content"]) == [MEDIA_TYPE], (path, method, status)
                    for name, example in response["content"][MEDIA_TYPE]["examples"].items():
                        assert KINDS[name].status == int(status) == example["value"]["status"]

    def test_references_resolve(self, document: Any) -> None:
        text = json.dumps(document)
        names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
        assert names
        assert names <= document["components"]["schemas"].keys()
        assert "HTTPValidationError" not in text

    def test_form_and_raw_bodies_are_documented(self, document: Any) -> None:
        content = document["paths"]["/classify"]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "video/*", *FILE_TYPES}

    def test_example_of_the_answer_fits_its_schema(self, document: Any) -> None:
        schema = document["components"]["schemas"]["ClassificationAnswer"]
        assert set(schema["examples"][0]) == set(schema["properties"])


def test_log_line_is_one_json_object_with_the_request_id() -> None:
    token = correlation_id.set("r-1")
    try:
        record = logging.makeLogRecord(
            {"name": "n", "levelno": logging.INFO, "levelname": "INFO", "msg": "a %s", "args": ("b",), "path": "/x\n"}
        )
        line = RequestJsonFormatter().format(record)
    finally:
        correlation_id.reset(token)
    entry = json.loads(line)
    assert "\n" not in line
    assert {key: entry[key] for key in ("level", "logger", "message", "request_id", "path")} == {
        "level": "info", "logger": "n", "message": "a b", "request_id": "r-1", "path": "/x\n"
    }  # fmt: skip
