"""Forms and bodies as clients send them: curl, httpx, requests, aiohttp, and what older ones write by hand."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import httpx
import pytest
import requests
from starlette.testclient import TestClient

from tests import media
from tests.serving.service import BOUNDARY, FORM, form, server


def part(disposition: str, data: bytes) -> bytes:
    """Return one part of a form, with its own header."""
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\nContent-Type: video/mp4\r\n\r\n"
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def batch(client: TestClient, body: bytes | Iterator[bytes]) -> list[Any]:
    response = client.post("/classify/batch", content=body, headers=FORM)
    assert response.status_code == 200, response.text
    results: list[Any] = response.json()["results"]
    assert [item["status"] for item in results] == [200] * len(results), results
    return results


@pytest.mark.parametrize("field", ["file", "files", "file[]", "files[]", "file[0]", "files[12]"])
def test_field_names_of_frameworks_are_files(client: TestClient, clip: Path, field: str) -> None:
    body = form(("token", None, b"abc"), (field, "clip.mp4", clip.read_bytes()))
    assert client.post("/classify", content=body, headers=FORM).status_code == 200


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("form-data; name=\"file\"; filename*=UTF-8''na%C3%AFve%20%E7%8C%AB.mp4", "naïve 猫.mp4"),
        ("form-data; name=file; filename*=iso-8859-1'en'na%EFve.mp4", "naïve.mp4"),
        ('form-data; name="file"; filename="x.mp4"; filename*=UTF-8\'\'na%C3%AFve.mp4', "naïve.mp4"),
        ('form-data; name="file"; filename="two * stars.mp4"', "two * stars.mp4"),
        ("form-data; filename=clip.mp4; name=file", "clip.mp4"),
        ("form-data; name=\"file\"; filename*=nonsense''%C3%AFa", None),
        ('form-data; name="file"; filename*=broken', None),
        ('form-data; name="file"', None),
    ],
)
def test_file_names_are_understood(client: TestClient, clip: Path, disposition: str, name: str | None) -> None:
    (entry,) = batch(client, part(disposition, clip.read_bytes()) + END)
    if name is not None:
        assert entry["name"] == name


PREAMBLES = {
    "empty line": b"\r\n",
    "a line": b"This is a message in MIME format.\r\n",
    "bare line feeds": b"One line\nand another\n",
    "long": b"x" * 200_000 + b"\r\n",
    "the boundary within a line": f"see --{BOUNDARY} below\r\n".encode(),
}


@pytest.mark.parametrize("name", PREAMBLES)
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 10**9])
def test_preamble_is_skipped(client: TestClient, clip: Path, name: str, chunk_bytes: int) -> None:
    body = PREAMBLES[name] + part('form-data; name="file"; filename="clip.mp4"', clip.read_bytes()) + END + b"epilogue"
    if chunk_bytes == 1:  # around the first boundary; the rest at once, which saves a minute
        start, end = (max(0, len(PREAMBLES[name]) + shift) for shift in (-50, 200))
        (entry,) = batch(client, iter([body[:start], *(body[i : i + 1] for i in range(start, end)), body[end:]]))
    else:
        (entry,) = batch(client, iter([body[i : i + chunk_bytes] for i in range(0, len(body), chunk_bytes)]))
    assert entry["name"] == "clip.mp4"


def test_form_is_the_same_in_chunks_of_any_size(client: TestClient, clip: Path) -> None:
    rng = random.Random(0)
    body = form(("file", "a.mp4", clip.read_bytes()), ("file[]", "b.mp4", clip.read_bytes()))
    whole = [entry["result"]["predictions"] for entry in batch(client, body)]
    for _ in range(10):
        cuts = [0, *sorted(rng.sample(range(len(body)), 40)), len(body)]
        pieces = [body[i:j] for i, j in pairwise(cuts)]
        assert [entry["result"]["predictions"] for entry in batch(client, iter(pieces))] == whole


@pytest.mark.parametrize(
    ("fields", "shown"), [(("video", "größe"), ["video", "größe"]), (("file[a]",), ["file[a]"]), ((), [])]
)
def test_wrong_field_names_are_listed(client: TestClient, fields: tuple[str, ...], shown: list[str]) -> None:
    problem = client.post("/classify", content=form(*((name, "a.mp4", b"x") for name in fields)), headers=FORM).json()
    assert problem["type"] == "/problems/no-file"
    assert problem["fields"] == shown
    assert all(name in problem["detail"] for name in shown)
    assert "`file`" in problem["detail"]


def test_listed_field_names_are_bounded(client: TestClient) -> None:
    body = form(*((f"{number}" * 1000, None, b"x") for number in range(60)))
    answer = client.post("/classify", content=body, headers=FORM)
    assert answer.json()["type"] == "/problems/no-file"
    assert len(answer.content) < 20_000


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "image/gif": ("clip.gif", {"codec": "gif", "pixel_format": "rgb8", "container": "gif"}),
    "application/mp4": ("clip.mp4", {}),
    "application/x-matroska": ("clip.mkv", {}),
    "application/matroska": ("clip.mkv", {}),
    "application/octet-stream": ("clip.avi", {"codec": "mpeg4"}),
    "application/ogg": ("clip.mp4", {}),
    "video/quicktime": ("clip.mov", {}),
    "Video/MP4; codecs=avc1": ("clip.mp4", {}),
}


@pytest.mark.parametrize("kind", BODIES)
def test_bodies_of_many_types_are_files(client: TestClient, tmp_path: Path, kind: str) -> None:
    name, changes = BODIES[kind]
    data = media.write(tmp_path / name, num_frames=20, **changes).read_bytes()
    response = client.post("/classify", content=data, headers={"content-type": kind})
    assert response.status_code == 200, response.text


Peer = Callable[[str, Path], str | None]
"""Sends a file to ``/classify/batch`` and returns the name that arrived; None: it cannot be told."""


def with_httpx(url: str, path: Path) -> str:
    with path.open("rb") as file:
        answer = httpx.post(f"{url}/classify/batch", files={"file": file}, timeout=60)
    return only_name(answer.json())


def with_requests(url: str, path: Path) -> str:
    with path.open("rb") as file:
        answer = requests.post(f"{url}/classify/batch", files={"files[]": file}, timeout=60)
    return only_name(answer.json())


def with_aiohttp(url: str, path: Path) -> str:
    async def ask() -> Any:
        data = aiohttp.FormData()
        with path.open("rb") as file:
            data.add_field("file", file, filename=path.name, content_type="video/mp4")
            async with aiohttp.ClientSession() as session, session.post(f"{url}/classify/batch", data=data) as answer:
                return await answer.json()

    return unquote(only_name(asyncio.run(ask())))  # aiohttp sends other letters than ASCII percent-encoded


def with_curl(url: str, path: Path, *options: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = ["curl", "-sS", "--fail-with-body", *options, "-F", f"file=@{path}", f"{url}/classify/batch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_name(httpx.Response(200, text=done.stdout).json())


def with_curl_chunked(url: str, path: Path) -> str:
    return with_curl(url, path, "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")


def only_name(document: Any) -> str:
    (entry,) = document["results"]
    assert entry["status"] == 200, entry
    return str(entry["name"])


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(folder, tmp_path_factory.mktemp("uploads")) as (address, _):
        yield address


@pytest.mark.parametrize("peer", [with_httpx, with_requests, with_aiohttp, with_curl, with_curl_chunked])
def test_real_clients_send_files_of_any_name(address: str, clip: Path, tmp_path: Path, peer: Peer) -> None:
    for name in ("clip.mp4", "naïve 猫 5€.mp4"):
        path = tmp_path / name
        path.write_bytes(clip.read_bytes())
        assert peer(address, path) == name
