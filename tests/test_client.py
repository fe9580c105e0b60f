"""The client against the real service, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from mme.client import (
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    FailedError,
    InvalidAnswerError,
    Outcome,
    ProblemError,
    RejectedError,
    Retries,
    UnreachableError,
)
from mme.ingest.feedback import load_record
from tests import media
from tests.http_server import Handler, listening
from tests.serving.service import server
from tests.tiny import LABELS, save_tiny_folder

QUICK = Retries(number=3, max_wait_s=5.0)
BUSY = {"type": "/problems/overloaded", "title": "The service is busy", "status": 503, "detail": "full"}
GOOD = {"predictions": [{"label": "left", "probability": 0.75}]}

Reply = tuple[int, dict[str, str], Any]
"""Status, headers and document, or bytes; status 0 breaks the connection."""


@contextmanager
def scripted(reply: Callable[[int, str, bytes], Reply]) -> Iterator[str]:
    """A server that answers by the number of the request, its path and its body."""
    numbers = iter(range(10**6))

    class Scripted(Handler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            status, headers, document = reply(next(numbers), self.path, self.read_body())
            if status:
                self.answer(status, document, headers)
            else:
                self.close_connection = True

    with listening(Scripted) as address:
        yield f"http://{address}"


class Blocking:
    """``AsyncClient`` with blocking methods, so that one test is for both."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _run(self, name: str, *args: Any, **options: Any) -> Any:
        async def call() -> Any:
            async with AsyncClient(self._url, **self._options) as client:
                return await getattr(client, name)(*args, **options)

        return asyncio.run(call())

    def classify(self, *args: Any, **options: Any) -> Any:
        return self._run("classify", *args, **options)

    def feedback(self, *args: Any, **options: Any) -> Any:
        return self._run("feedback", *args, **options)

    def trajectories(self, *args: Any, **options: Any) -> Any:
        return self._run("trajectories", *args, **options)

    def labels(self) -> Any:
        return self._run("labels")

    def model(self) -> Any:
        return self._run("model")

    def classify_many(self, *args: Any, **options: Any) -> Any:
        async def call() -> list[Outcome]:
            async with AsyncClient(self._url, **self._options) as client:
                return [outcome async for outcome in client.classify_many(*args, **options)]

        return asyncio.run(call())


both = pytest.mark.parametrize("kind", [Client, Blocking])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=20)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> Iterator[str]:
    folder = save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
    uploads = tmp_path_factory.mktemp("uploads")
    with server(folder, uploads, MME_MAX_QUEUE="2", MME_FEEDBACK_DIR=str(kept)) as (address, _):
        yield address


@both
def test_answers_are_those_of_the_service(address: str, clip: Path, kind: Any) -> None:
    expected = httpx.post(f"{address}/classify?top_k=2", files={"file": clip.read_bytes()}, timeout=60).json()
    with kind(address) as service:
        for video in (clip, str(clip), clip.read_bytes()):
            answer = service.classify(video, top_k=2, segments=None)
            assert answer["predictions"] == expected["predictions"]
        assert service.labels() == list(LABELS)
        assert service.model()["digest"] == expected["model"]["digest"]
        assert service.trajectories(clip)["windows"]


@both
def test_right_label_is_told(address: str, clip: Path, kept: Path, kind: Any) -> None:
    with kind(address) as service:
        service.feedback(clip, "up")
        answer = service.feedback(clip.read_bytes(), "down", "ça descend")
        assert (answer["label"], answer["former_label"]) == ("down", "up")
        assert load_record(kept / f"{answer['clip']}.json").last.note == "ça descend"
        with pytest.raises(RejectedError, match="'downn' is not one of the 4 labels, such as down") as caught:
            service.feedback(clip, "downn")
    assert caught.value.name == "unknown-label"


@both
def test_many_videos_wait_for_a_busy_service(address: str, clip: Path, tmp_path: Path, kind: Any) -> None:
    """Eight at a time into a queue of two: each is answered in the end."""
    bad, missing = media.text(tmp_path / "bad.mp4"), tmp_path / "missing.mp4"
    videos = [clip] * 10 + [bad] + [clip] * 5 + [missing]
    with kind(address, retries=Retries(number=30)) as service:
        outcomes = list(service.classify_many(iter(videos), concurrency=8, top_k=1))
    assert [outcome.source for outcome in outcomes] == videos
    failed = {outcome.source: outcome.error for outcome in outcomes if outcome.answer is None}
    assert isinstance(failed.pop(bad), RejectedError)
    assert isinstance(failed.pop(missing), FileNotFoundError)
    assert not failed
    refused = httpx.get(f"{address}/metrics").text
    assert 'route="/classify",status="503"' in refused  # otherwise nothing was retried


@both
def test_progress_reaches_the_whole_file(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(300_000))
    seen: list[tuple[int, int]] = []
    bodies: list[bytes] = []

    def reply(number: int, _path: str, body: bytes) -> Reply:
        bodies.append(body)
        return (503, {"Retry-After": "0"}, BUSY) if number == 0 else (200, {}, GOOD)

    with scripted(reply) as url, kind(url) as service:
        assert service.classify(path, progress=lambda sent, total: seen.append((sent, total))) == GOOD
    assert {total for _, total in seen} == {300_000}
    sent = [part for part, _ in seen]
    begins = [position for position, part in enumerate(sent) if part == 0]
    assert len(begins) == 2  # an attempt each
    for attempt in (sent[: begins[1]], sent[begins[1] :]):
        assert attempt == sorted(attempt)
        assert len(attempt) > 3
        assert attempt[-1] == 300_000
    assert all(bytes(300_000) in body and b'filename="a.mp4"' in body for body in bodies)


@both
def test_retry_after_is_obeyed(kind: Any) -> None:
    times: list[float] = []

    def reply(number: int, _path: str, _body: bytes) -> Reply:
        times.append(time.monotonic())
        in_two_s = format_datetime(datetime.now(UTC) + timedelta(seconds=2.9), usegmt=True)
        return [(503, {"Retry-After": "1"}, BUSY), (429, {"Retry-After": in_two_s}, BUSY), (200, {}, GOOD)][number]

    with scripted(reply) as url, kind(url, retries=QUICK) as service:
        assert service.classify(b"video") == GOOD
    first, second = (later - earlier for earlier, later in pairwise(times))
    assert first >= 1.0
    assert second >= 1.5


@both
def test_lost_connection_is_tried_again(kind: Any) -> None:
    with (
        scripted(lambda number, _path, _body: (0, {}, b"") if number < 2 else (200, {}, GOOD)) as url,
        kind(url, retries=QUICK) as service,
    ):
        assert service.classify(b"video") == GOOD


ENDS: dict[str, tuple[Reply, type[ClientError], int]] = {
    "busy to the end": ((503, {"Retry-After": "0"}, BUSY), BusyError, 4),
    "busy for an hour": ((503, {"Retry-After": "3600"}, BUSY), BusyError, 1),
    "rejected": ((422, {}, {"type": "/x/problems/too-short", "title": "t", "detail": "d"}), RejectedError, 1),
    "failed": ((500, {}, {"type": "/problems/internal", "title": "t", "request_id": "r"}), FailedError, 1),
    "a proxy's page": ((502, {}, b"<html>"), InvalidAnswerError, 1),
    "no service": ((200, {}, b"<html>"), InvalidAnswerError, 1),
    "a list": ((200, {}, [1]), InvalidAnswerError, 1),
    "lost": ((0, {}, b""), UnreachableError, 4),
}


@both
@pytest.mark.parametrize("name", ENDS)
def test_errors_say_what_happened(kind: Any, name: str) -> None:
    reply, error, attempts = ENDS[name]
    count = []

    def counted(number: int, _path: str, _body: bytes) -> Reply:
        count.append(number)
        return reply

    retries = Retries(number=3, max_wait_s=0.1)
    with scripted(counted) as url, kind(url, retries=retries) as service, pytest.raises(error) as caught:
        service.classify("tests/tiny.py")
    assert len(count) == attempts
    assert "\n" not in str(caught.value)
    if isinstance(caught.value, ProblemError):
        assert str(caught.value).startswith("tests/tiny.py: ")
        assert caught.value.status == reply[0]
        assert caught.value.name == reply[2]["type"].rpartition("/")[2]


@both
def test_unreachable_service_is_named_at_once(kind: Any) -> None:
    with kind("http://127.0.0.1:9/") as service, pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        service.labels()


@both
def test_prefix_key_and_options_are_sent(kind: Any) -> None:
    paths: list[str] = []

    def reply(_number: int, path: str, _body: bytes) -> Reply:
        paths.append(path)
        return 200, {}, GOOD

    with scripted(reply) as url, kind(f"{url}/team/motion/", api_key="secret") as service:
        service.classify(b"video", top_k=3, logits=True, crops=None)
    assert paths == ["/team/motion/classify?top_k=3&logits=true"]


@both
def test_no_more_videos_are_in_flight_than_asked_for(kind: Any) -> None:
    running, most, lock = [0], [0], threading.Lock()

    def reply(_number: int, _path: str, _body: bytes) -> Reply:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return 200, {}, GOOD

    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"video"

    with scripted(reply) as url, kind(url) as service:
        assert len(list(service.classify_many([b"video"] * 30, concurrency=3))) == 30
        assert most[0] == 3
        if kind is Client:
            outcomes = service.classify_many(endless(), concurrency=3)
            assert [next(outcomes).answer for _ in range(5)] == [GOOD] * 5
            outcomes.close()
            assert len(taken) <= 5 + 6


def test_async_batch_can_be_left_early() -> None:
    async def first(url: str) -> Any:
        async with AsyncClient(url) as client:
            outcomes = client.classify_many([b"video"] * 100, concurrency=2)
            outcome = await anext(outcomes)
            await outcomes.aclose()
            return outcome.answer, len(asyncio.all_tasks())

    with scripted(lambda *_: (200, {}, GOOD)) as url:
        assert asyncio.run(first(url)) == (GOOD, 1)


def test_example_of_the_documents_runs(
    address: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs/serving.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "mme.client" in code]
    for name in ("clip", "a", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(clip.read_bytes())
    media.text(tmp_path / "b.mp4")
    monkeypatch.chdir(tmp_path)
    exec(example.replace("http://127.0.0.1:8000", address), {})
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.count("probability") == 3
    assert [line.split()[0] for line in lines] == ["a.mp4", "b.mp4", "c.mp4"]
    assert "b.mp4: 415 The upload is not a video" in lines[1]
    assert lines[0].split()[1] in LABELS


def test_import_takes_no_torch() -> None:
    script = "import sys, mme.client; sys.exit(bool({'torch', 'numpy', 'av', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
