from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from mme.commands.app import app
from mme.commands.compare import Sample, comparisons
from mme.models.checkpoints import content_digest
from tests import media
from tests.http_server import Handler, listening
from tests.serving.service import RAW, server, wait_until
from tests.tiny import save_tiny_folder

RUNNER = CliRunner()


def has_line(address: str, line: str) -> bool:
    return line in httpx.get(f"{address}/metrics").text


def pair_of(champion: str, challenger: str, videos: tuple[int, int], seconds: float) -> list[Sample]:
    pair = {"champion": champion, "challenger": challenger}
    number = float(sum(videos))
    yes, no = videos
    samples: list[Sample] = [
        ("answers_total", {**pair, "agree": "yes"}, yes),
        ("answers_total", {**pair, "agree": "no"}, no),
    ]
    for what in ("seconds", "confidence"):
        for role, value in (("champion", seconds), ("challenger", 2 * seconds)):
            samples.append((f"{what}_sum", {**pair, "role": role}, number * value))
            samples.append((f"{what}_count", {**pair, "role": role}, number))
    return samples


def test_services_are_added_up_by_pair() -> None:
    one, two = pair_of("m/1", "m/2", (3, 1), 0.1), pair_of("m/1", "m/2", (3, 3), 0.2)
    (found,) = comparisons([*one, *two, *pair_of("m/2", "m/3", (0, 0), 0.1)])
    assert (found.champion, found.challenger, found.videos, found.agreement) == ("m/1", "m/2", 10, 0.6)
    assert found.latency_ms == pytest.approx((160, 320))
    assert found.confidence == pytest.approx((0.16, 0.32))


def test_figures_of_a_service_are_printed_side_by_side(tmp_path: Path) -> None:
    champion, challenger = (save_tiny_folder(tmp_path / f"{seed}", seed=seed) for seed in (0, 3))
    settings = {"MME_SHADOW_MODEL": str(challenger), "MME_SHADOW_SHARE": "1"}
    with server(champion, tmp_path, log=tmp_path / "log", **settings) as (address, _):
        compare = ["models", "compare", "--url", address]
        before = RUNNER.invoke(app, compare, env={"COLUMNS": "200"})
        assert "no video was answered by two models; is MME_SHADOW_MODEL set?" in before.output
        wait_until(partial(has_line, address, 'mme_shadow_model_loads_total{outcome="ok"} 1.0'))
        for seed in range(3):
            video = media.write(tmp_path / f"{seed}.mp4", num_frames=40, seed=seed).read_bytes()
            assert httpx.post(f"{address}/classify", content=video, headers=RAW, timeout=60).status_code == 200
            answered = f'mme_shadow_videos_total{{outcome="answered"}} {seed + 1}.0'
            wait_until(partial(has_line, address, answered))
        shown = RUNNER.invoke(app, compare, env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        _, row, outcomes = shown.output.splitlines()
        assert row.split()[:3] == [f"tiny/{content_digest(champion)}", f"tiny/{content_digest(challenger)}", "3"]
        assert row.split()[3].endswith("%")
        assert outcomes == "0 videos dropped, 0 failed in the challenger"
        (one,) = json.loads(RUNNER.invoke(app, [*compare, "--json"]).output)["comparisons"]
        assert one["videos"] == 3
        assert min(one["latency_ms"]) > 0
    gone = RUNNER.invoke(app, compare)
    assert gone.exit_code == 1


@pytest.fixture
def prometheus() -> Iterator[tuple[str, list[str]]]:
    """An API like that of Prometheus, with one pair of models."""
    queries: list[str] = []

    class Prometheus(Handler):
        def respond(self) -> None:
            (query,) = parse_qs(urlsplit(self.path).query)["query"]
            queries.append(query)
            results = [
                {"metric": labels, "value": [0, str(value)]}
                for name, labels, value in pair_of("m/1", "m/2", (3, 1), 0.1)
                if f"(mme_shadow_{name}[" in query
            ]
            self.answer(200, {"status": "success", "data": {"resultType": "vector", "result": results}})

    with listening(Prometheus) as address:
        yield f"http://{address}", queries


def test_prometheus_is_asked_for_a_while(prometheus: tuple[str, list[str]]) -> None:
    address, queries = prometheus
    shown = RUNNER.invoke(app, ["models", "compare", "--prometheus", address, "--since", "12h"], env={"COLUMNS": "200"})
    assert shown.output.splitlines()[1].split() == [
        "m/1", "m/2", "4", "75.0%", "0.10", "and", "0.20", "100.0", "and", "200.0"
    ]  # fmt: skip
    assert all("[12h]" in query for query in queries)
