"""Clients that send requests continuously and record the answers."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serving.service import RAW, wait_until


@dataclass(frozen=True)
class Reply:
    """Outcome of one request; ``status`` is None without an answer."""

    request_id: str
    status: int | None
    body: Any

    @property
    def version(self) -> str | None:
        """Version of the model that answered."""
        return str(self.body["model"]["version"]) if self.status == 200 else None


@dataclass
class Load:
    """Replies so far, a list per client."""

    replies: list[list[Reply]] = field(default_factory=list)

    def all(self) -> list[Reply]:
        return [reply for client in self.replies for reply in list(client)]

    def newest(self) -> list[Reply]:
        """Return the last reply of each client."""
        return [client[-1] for client in self.replies if client]

    def wait_for_more(self) -> None:
        """Wait until every client has the answer to a request that it sends after this call."""
        before = [len(client) for client in self.replies]
        wait_until(lambda: all(len(now) >= then + 2 for now, then in zip(self.replies, before, strict=True)))

    def statuses(self) -> set[int | None]:
        return {reply.status for reply in self.all()}


@contextmanager
def load(address: str, clip: bytes, num_clients: int, *, reconnect: bool = False) -> Iterator[Load]:
    """Send requests from several threads until the block ends; a client's exception is raised there.

    Args:
        address: address of the service.
        clip: body of every request.
        num_clients: number of threads, each with one request at a time.
        reconnect: open a connection per request; a client then stops at its first request without an answer.
    """
    stop, seen = threading.Event(), Load([[] for _ in range(num_clients)])

    def ask(replies: list[Reply]) -> None:
        client = httpx.Client(timeout=120)
        while not stop.is_set():
            replies.append(_ask(client, address, clip))
            if reconnect:
                client.close()
                client = httpx.Client(timeout=120)
                if replies[-1].status is None:
                    break
        client.close()

    with ThreadPoolExecutor(num_clients) as threads:
        running = [threads.submit(ask, replies) for replies in seen.replies]
        try:
            yield seen
        finally:
            stop.set()
        for item in running:
            item.result()


def _ask(client: httpx.Client, address: str, clip: bytes) -> Reply:
    request_id = uuid.uuid4().hex
    try:
        response = client.post(f"{address}/classify", content=clip, headers=RAW | {"x-request-id": request_id})
    except httpx.TransportError as error:
        return Reply(request_id, None, repr(error))
    return Reply(request_id, response.status_code, response.json())
