from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.problems import KINDS
from tests.serving.mutants import false_headers, mutants
from tests.serving.service import RAW, is_alive, make_settings

BLAMES = {400, 415, 422}
"""Statuses that blame the file."""


def test_false_headers_are_client_errors(client: TestClient, clip: Path, tmp_path: Path) -> None:
    for name, data in false_headers(tmp_path):
        response = client.post("/classify", content=data, headers=RAW)
        assert response.status_code in BLAMES | {200}, f"{name}: {response.text}"
    assert client.post("/classify", content=clip.read_bytes(), headers=RAW).status_code == 200


@pytest.mark.slow
def test_corpus_of_damaged_videos_causes_no_server_error(folder: Path, clip: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tmp_path, decode_timeout_s=5.0, max_queue=8)
    app, statuses, causes = create_app(settings), Counter[int](), Counter[str]()
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:

        def ask(item: tuple[str, bytes]) -> None:
            name, data = item
            response = client.post("/classify?logits=1", content=data, headers=RAW)
            assert response.status_code in BLAMES | {200}, f"{name}: {response.text}"
            statuses[response.status_code] += 1
            if response.status_code != 200:
                cause = response.json()["type"].removeprefix("/problems/")
                assert KINDS[cause].status == response.status_code
                causes[cause] += 1

        list(threads.map(ask, [*false_headers(tmp_path), *mutants(tmp_path, 500)]))
        processes = app.state.engine.decoder_ids
        assert len(processes) == settings.num_decoders
        assert client.post("/classify", content=clip.read_bytes(), headers=RAW).status_code == 200
        assert [path.name for path in app.state.engine.temp_dir.iterdir()] == ["warm.mp4"]
    assert sum(statuses.values()) >= 500
    assert min(statuses[200], *(statuses[status] for status in BLAMES)) > 0  # the corpus has all kinds
    assert len(causes) >= 6, causes
    assert not any(is_alive(process) for process in processes)
