"""What a client may send outside a request's body, byte by byte to a running server."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.service import server

LIMIT = 16 * 2**10  # of what is not complete
LARGE = 2**20  # more than arrives at once

GET = b"GET /health HTTP/1.1\r\nhost: here\r\n"
POST = b"POST /classify HTTP/1.1\r\nhost: here\r\ncontent-type: video/mp4\r\ntransfer-encoding: chunked\r\n"


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.URL]:
    with server(folder, tmp_path_factory.mktemp("uploads"), MME_NUM_DECODE_WORKERS="1") as (address, _):
        yield httpx.URL(address)


def statuses(address: httpx.URL, *parts: bytes) -> list[int]:
    """Send bytes, in parts, and return the statuses of all answers until the server closes the connection."""
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(2**16):
                answer += data
        except ConnectionError:  # the server has closed while this end was sending
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def fields(num_bytes: int) -> bytes:
    """Return headers of ``num_bytes`` of names and values together."""
    return b"".join(b"x-%06d: %s\r\n" % (number, b"v" * 92) for number in range(num_bytes // 100))


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x-endless: " + b"a" * LARGE,
        GET + b"x-" + b"a" * LARGE,
        GET + fields(LARGE) + b"\r\n",
        b"GET /health?" + b"a" * LARGE + b" HTTP/1.1\r\nhost: here\r\n\r\n",
        POST + b"\r\n" + chunk(b"data", b";x=" + b"a" * LARGE),
        POST + b"\r\n" + chunk(b"data") + b"0\r\n" + fields(LARGE) + b"\r\n",
        POST + b"\r\n" + chunk(b"data") + b"0\r\nx-endless: " + b"a" * LARGE,
        b"GET /\xff HTTP/1.1\r\nhost: here\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
    ids=["value", "name", "fields", "address", "extension", "trailers", "trailer", "non-ascii", "tls"],
)
def test_more_than_the_limit_or_no_http_is_a_bad_request(address: httpx.URL, head: bytes) -> None:
    found = statuses(address, head)
    assert found == [400] or (len(head) > LARGE and not found)  # none: reset while the rest is on its way
    assert httpx.get(f"{address}/health").status_code == 200


def test_large_headers_and_trailers_below_the_limit_are_read(address: httpx.URL, clip: Path) -> None:
    large = fields(LIMIT - 1000)
    assert statuses(address, GET + large + b"connection: close\r\n\r\n") == [200]
    body = chunk(clip.read_bytes(), b";x=1") + b"0\r\n" + fields(1000) + b"\r\n"
    assert statuses(address, POST + b"connection: close\r\n\r\n", body) == [200]


def test_body_in_tiny_chunks_is_read(address: httpx.URL, clip: Path) -> None:
    data = clip.read_bytes()
    body = b"".join(chunk(data[at : at + 1]) for at in range(len(data))) + b"0\r\n\r\n"
    assert statuses(address, POST + b"connection: close\r\n\r\n" + body) == [200]


def test_pipelined_requests_are_answered_in_turn(address: httpx.URL) -> None:
    last = GET + b"connection: close\r\n\r\n"
    assert statuses(address, (GET + b"\r\n") * 50 + last) == [200] * 51


def test_upgrade_that_is_not_offered_is_ignored(address: httpx.URL, clip: Path) -> None:
    upgrade = b"connection: close, upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
    assert statuses(address, GET + upgrade) == [200]
    assert statuses(address, POST + upgrade + chunk(clip.read_bytes()) + b"0\r\n\r\n") == [200]
