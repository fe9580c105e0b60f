"""Requests generated from the OpenAPI document, valid and invalid, get answers that it describes."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.service import server

NUM_EXAMPLES = 90
"""Examples per operation, of valid and of invalid requests each."""

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_requests_are_answered_as_documented(folder: Path, tmp_path: Path) -> None:
    uploads, seen = tmp_path / "uploads", Counter[int]()
    uploads.mkdir()
    environment = {"MME_TORCH_THREADS": "1", "MME_FEEDBACK_DIR": str(tmp_path / "feedback")}
    with server(folder, uploads, log=tmp_path / "log", **environment) as (address, process):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for result in schema.get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @seed(0)
                @settings(
                    max_examples=NUM_EXAMPLES, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(operation.as_strategy(generation_mode=mode))
                def ask(case: Case[Any]) -> None:
                    response = case.call(timeout=60)
                    seen[response.status_code] += 1
                    case.validate_response(response, checks=CHECKS)

                nothing_to_get_wrong = (Unsatisfiable,) if mode is GenerationMode.NEGATIVE else ()
                with contextlib.suppress(*nothing_to_get_wrong):
                    ask()
        assert process.poll() is None
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert seen.total() >= 2000, seen
