"""Client of the service, for Python programs: ``Client`` and, with the same methods, ``AsyncClient``.

It needs httpx alone, neither PyTorch nor a model:

>>> from mme.client import Client
>>> with Client("http://127.0.0.1:8000") as service:  # doctest: +SKIP
...     print(service.classify("clip.mp4")["predictions"][0]["label"])
"""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import httpx

Source: TypeAlias = Path | str | bytes
"""A video: the path of a file, or its bytes."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes sent and the bytes in total as an upload proceeds; a new attempt begins at 0."""

Document: TypeAlias = dict[str, Any]
"""An answer of the service, as described in its ``/openapi.json``."""

_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_LOST = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""How the refusal of a busy service may arrive while the upload is still being sent."""


class ClientError(Exception):
    """Base of all errors of this module."""


class UnreachableError(ClientError):
    """No answer came: the connection was refused or lost, or the time was over."""


class InvalidAnswerError(ClientError):
    """What answered is not the service: a proxy, or another program."""


class ProblemError(ClientError):
    """The service answered with a problem.

    Attributes:
        status: of the answer.
        name: the cause, such as ``too-short``: the last part of the problem's ``type``.
        title, detail: sentences about the cause and about this request.
        request_id: the request in the service's log.
        document: the whole problem.
    """

    def __init__(self, source: str, status: int, document: Document) -> None:
        self.status = status
        self.name = str(document.get("type", "")).rpartition("/")[2]
        self.title, self.detail = str(document.get("title", "")), str(document.get("detail", ""))
        self.request_id: str | None = document.get("request_id")
        self.document = document
        super().__init__(f"{source}: {status} {self.title}: {self.detail}")


class RejectedError(ProblemError):
    """The request is at fault, in most cases the video: another attempt ends alike (4xx)."""


class BusyError(ProblemError):
    """The service is still busy, or the caller still above its rate, after the last attempt (429, 503)."""


class FailedError(ProblemError):
    """The service is at fault (other 5xx)."""


@dataclass(frozen=True)
class Retries:
    """When a request is repeated: after 429 and 503, and when the connection is lost while a video is sent.

    The wait is the answer's ``Retry-After``, or else doubles from half a second; a random part keeps many clients from
    coming back at once.

    Attributes:
        number: attempts after the first.
        max_wait_s: longest wait; if the service asks for more, that is the end.
    """

    number: int = 6
    max_wait_s: float = 30.0

    def wait_s(self, attempt: int, response: httpx.Response | None) -> float | None:
        """Return the seconds to wait after an attempt, counted from 0; None: no other is to be made.

        ``response`` is None if the connection was lost.
        """
        if attempt >= self.number or (response is not None and response.status_code not in _BUSY):
            return None
        asked = None if response is None else _retry_after_s(response)
        if asked is None:
            return random.uniform(0.5, 1.0) * min(self.max_wait_s, 0.5 * 2.0**attempt)  # noqa: S311 - no secret
        return None if asked > self.max_wait_s else asked * random.uniform(1.0, 1.25)  # noqa: S311


@dataclass(frozen=True)
class Outcome:
    """Answer to one video of many, or its error."""

    source: Source
    answer: Document | None
    error: ClientError | OSError | None


class _Connection:
    """What both clients share: address, headers, retries, and the meaning of answers."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: address of the service, with the prefix of its proxy if it has one.
            api_key: sent as ``Authorization: Bearer``.
            timeout_s: longest time without any progress of a request.
            retries: when requests are repeated.
        """
        self.url = url.rstrip("/")
        self._retries = retries or Retries()
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            "timeout": timeout_s,
        }

    def _wait_after_loss_s(self, attempt: int, error: httpx.TransportError) -> float:
        """Return the seconds to wait after an attempt without an answer; raise if it was the last one."""
        wait_s = self._retries.wait_s(attempt, None) if isinstance(error, _LOST) else None
        if wait_s is None:
            raise UnreachableError(f"{self.url}: {error or type(error).__name__}") from error
        return wait_s

    def _check(self, response: httpx.Response, source: Source | None) -> httpx.Response:
        if response.is_success:
            return response
        document = self._document(response)
        error: type[ProblemError] = RejectedError
        if response.status_code in _BUSY:
            error = BusyError
        elif response.is_server_error:
            error = FailedError
        raise error(self.url if source is None else _shown(source), response.status_code, document)

    def _document(self, response: httpx.Response) -> Document:
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise InvalidAnswerError(f"{self.url} answered {response.status_code}, but no JSON")
        return document


class Client(_Connection):
    """Client of a service; safe to use from several threads. Leave it by ``with`` or ``close``.

    Every method raises ``ClientError``: ``RejectedError`` for a video that cannot be classified, ``BusyError`` after
    the last retry, ``UnreachableError``, ``FailedError``, ``InvalidAnswerError``. A file that cannot be read is an
    ``OSError``.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(self, video: Source, *, progress: Progress | None = None, **options: Any) -> Document:
        """Classify one video.

        Args:
            video: path or bytes.
            progress: called as the upload proceeds.
            options: parameters of ``POST /classify``: ``top_k``, ``segments``, ``crops``, ``logits``, ...
        """
        return self._document(self.request("/classify", video, options, progress))

    def classify_many(
        self, videos: Iterable[Source], *, concurrency: int = 4, **options: Any
    ) -> Generator[Outcome, None, None]:
        """Classify many videos, ``concurrency`` at a time, and yield outcomes in the order of the videos.

        An error of one does not stop the others. Twice as many videos as are sent are taken in advance at most, so
        ``videos`` may be endless.
        """

        def outcome(video: Source) -> Outcome:
            try:
                return Outcome(video, self.classify(video, **options), None)
            except (ClientError, OSError) as error:
                return Outcome(video, None, error)

        pending: deque[Future[Outcome]] = deque()
        with ThreadPoolExecutor(concurrency, "mme-client") as threads:
            try:
                for video in videos:
                    pending.append(threads.submit(outcome, video))
                    if len(pending) >= 2 * concurrency:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:  # also if the caller stops early
                for future in pending:
                    future.cancel()

    def feedback(
        self, video: Source, label: str, note: str | None = None, *, progress: Progress | None = None
    ) -> Document:
        """Tell the right label of one video, which the service then keeps.

        Args:
            video: path or bytes, as they were sent to be classified.
            label: one of ``labels()``.
            note: in your own words.
            progress: called as the upload proceeds.
        """
        return self._document(self.request("/feedback", video, {}, progress, {"label": label, "note": note}))

    def trajectories(self, video: Source, *, progress: Progress | None = None) -> Document:
        """Track points through one video."""
        return self._document(self.request("/trajectories", video, {}, progress))

    def labels(self) -> list[str]:
        """Return the labels, in the order of the logits."""
        return list(self._document(self.request("/labels"))["labels"])

    def model(self) -> Document:
        """Describe the model that answers."""
        return self._document(self.request("/model"))

    def request(
        self,
        path: str,
        video: Source | None = None,
        parameters: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        fields: Mapping[str, str | None] | None = None,
    ) -> httpx.Response:
        """Send a video to an address by POST, or ask it by GET if there is none; return the successful answer.

        Args:
            path: of the address.
            video: path or bytes.
            parameters: of the query; those that are None are left out.
            progress: called as the upload proceeds.
            fields: of the form, beside the video; those that are None are left out.
        """
        for attempt in itertools.count():
            try:
                with _form(video, progress) as files:
                    method = "GET" if files is None else "POST"
                    response = self._http.request(
                        method, path, params=_sent(parameters), data=_sent(fields), files=files
                    )
            except httpx.TransportError as error:
                wait_s = self._wait_after_loss_s(attempt, error)
            else:
                next_s = self._retries.wait_s(attempt, response)
                if next_s is None:
                    return self._check(response, video)
                wait_s = next_s
            time.sleep(wait_s)
        raise AssertionError


class AsyncClient(_Connection):
    """Client of a service for asyncio; methods and errors as of ``Client``. Leave it by ``async with`` or ``close``."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0, retries: Retries | None = None
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def classify(self, video: Source, *, progress: Progress | None = None, **options: Any) -> Document:
        """Classify one video, as ``Client.classify``."""
        return self._document(await self.request("/classify", video, options, progress))

    async def classify_many(
        self, videos: Iterable[Source], *, concurrency: int = 4, **options: Any
    ) -> AsyncGenerator[Outcome, None]:
        """Classify many videos, as ``Client.classify_many``."""
        free = asyncio.Semaphore(concurrency)

        async def outcome(video: Source) -> Outcome:
            async with free:
                try:
                    return Outcome(video, await self.classify(video, **options), None)
                except (ClientError, OSError) as error:
                    return Outcome(video, None, error)

        pending: deque[asyncio.Task[Outcome]] = deque()
        try:
            for video in videos:
                pending.append(asyncio.create_task(outcome(video)))
                if len(pending) >= 2 * concurrency:
                    yield await pending[0]
                    pending.popleft()
            while pending:
                yield await pending[0]
                pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def feedback(
        self, video: Source, label: str, note: str | None = None, *, progress: Progress | None = None
    ) -> Document:
        """Tell the right label of one video, as ``Client.feedback``."""
        return self._document(await self.request("/feedback", video, {}, progress, {"label": label, "note": note}))

    async def trajectories(self, video: Source, *, progress: Progress | None = None) -> Document:
        """Track points through one video."""
        return self._document(await self.request("/trajectories", video, {}, progress))

    async def labels(self) -> list[str]:
        """Return the labels, in the order of the logits."""
        return list(self._document(await self.request("/labels"))["labels"])

    async def model(self) -> Document:
        """Describe the model that answers."""
        return self._document(await self.request("/model"))

    async def request(
        self,
        path: str,
        video: Source | None = None,
        parameters: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        fields: Mapping[str, str | None] | None = None,
    ) -> httpx.Response:
        """Send a video or ask an address, as ``Client.request``."""
        for attempt in itertools.count():
            try:
                with _form(video, progress) as files:
                    method = "GET" if files is None else "POST"
                    response = await self._http.request(
                        method, path, params=_sent(parameters), data=_sent(fields), files=files
                    )
            except httpx.TransportError as error:
                wait_s = self._wait_after_loss_s(attempt, error)
            else:
                next_s = self._retries.wait_s(attempt, response)
                if next_s is None:
                    return self._check(response, video)
                wait_s = next_s
            await asyncio.sleep(wait_s)
        raise AssertionError


class _Counted(io.RawIOBase):
    """A file that reports what has been read of it."""

    def __init__(self, file: BinaryIO, num_bytes: int, progress: Progress) -> None:
        self._file, self._num_bytes, self._progress = file, num_bytes, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data:
            self._progress(self._file.tell(), self._num_bytes)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _form(video: Source | None, progress: Progress | None) -> Iterator[dict[str, tuple[str, Any]] | None]:
    """Open a video and yield httpx's description of the form with it."""
    if video is None:
        yield None
        return
    # Bytes of a name that are not UTF-8 cannot be sent; the service shows the name and nothing more.
    name = "video" if isinstance(video, bytes) else Path(video).name.encode(errors="replace").decode()
    with io.BytesIO(video) if isinstance(video, bytes) else Path(video).open("rb") as file:
        if progress is None:
            yield {"file": (name, file)}
            return
        num_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        progress(0, num_bytes)
        yield {"file": (name, _Counted(file, num_bytes, progress))}


def _sent(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (parameters or {}).items() if value is not None}


def _shown(source: Source) -> str:
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds of ``Retry-After``, which is a number or a date; None if there is none."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment: datetime = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
