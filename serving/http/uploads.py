"""Request bodies on their way into temporary files whose names we choose, with the limit held while they stream."""

from __future__ import annotations

import asyncio
import errno
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from serving.problems import Problem

LINGER_BYTES = 8 * 2**20
LINGER_S = 2.0
"""A client that is turned away while it sends is read this far: closing a connection on it would lose the answer."""

MAX_PARTS = 64
"""Of one form, files and other fields together."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class UploadLimits:
    """Bytes of the whole body, its time to arrive, and files in it."""

    max_bytes: int
    timeout_s: float
    max_files: int


@dataclass
class Upload:
    """One file.

    Attributes:
        path: where it lies.
        name: what the client calls it; only ever echoed.
        num_bytes: its size.
    """

    path: Path
    name: str | None
    num_bytes: int = 0


@asynccontextmanager
async def received(request: Request, limits: UploadLimits, folder: Path) -> AsyncIterator[list[Upload]]:
    """The files of a request, at least one; they are removed at the end of the block.

    Raises:
        Problem: the body is malformed, empty, too large, too slow, of another type, or the disk is full.
    """
    places = _Places(folder)
    try:
        with _full_disk_is_a_problem(), _slowness_is_a_problem(limits.timeout_s):
            async with asyncio.timeout(limits.timeout_s):
                files = await _receive(request, limits, places)
        yield files
    finally:
        places.clear()


class _Places:
    """Names for the files of one request. In a folder of their own they would take three times as long to go."""

    def __init__(self, folder: Path) -> None:
        self._prefix = str(folder / f"upload-{uuid.uuid4().hex}")
        self._taken: list[str] = []

    def next(self) -> Path:
        """One that nothing has."""
        self._taken.append(f"{self._prefix}-{len(self._taken)}")
        return Path(self._taken[-1])

    def clear(self) -> None:
        """Remove what was put there."""
        for name in self._taken:
            with suppress(OSError):
                os.unlink(name)


@contextmanager
def _full_disk_is_a_problem() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise Problem("storage-full", "no room to keep the upload", retry_after_s=10) from error


@contextmanager
def _slowness_is_a_problem(timeout_s: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Problem("upload-timed-out", f"not complete after {timeout_s:g} s") from error


async def body_bytes(request: Request, limits: UploadLimits) -> bytes:
    """A whole body in memory, for JSON.

    Raises:
        Problem: it is too large or too slow.
    """
    with _slowness_is_a_problem(limits.timeout_s):
        async with asyncio.timeout(limits.timeout_s):
            return b"".join([chunk async for chunk in _limited(request, limits.max_bytes)])


async def discard_rest(request: Request) -> None:
    """Read on for a moment before an early answer. A client that waits for permission to send gets none."""
    if "expect" in request.headers:
        return
    num_bytes = 0
    try:
        async with asyncio.timeout(LINGER_S):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > LINGER_BYTES:
                    return
    except (TimeoutError, RuntimeError):  # RuntimeError: the stream is consumed already
        return


async def _receive(request: Request, limits: UploadLimits, places: _Places) -> list[Upload]:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary")
        if not boundary:
            raise Problem("malformed-body", "the Content-Type names no boundary")
        return await _receive_form(request, limits, _Form(places, boundary, limits.max_files))
    if kind.startswith(b"video/") or kind == b"application/octet-stream":
        return await _receive_raw(request, limits, places)
    await discard_rest(request)
    told = kind.decode("latin-1") or "none"
    raise Problem("unsupported-type", f"{told}; send multipart/form-data, video/* or application/octet-stream")


async def _receive_raw(request: Request, limits: UploadLimits, places: _Places) -> list[Upload]:
    upload = Upload(places.next(), None)
    with upload.path.open("wb") as file:
        async for chunk in _limited(request, limits.max_bytes):
            file.write(chunk)
            upload.num_bytes += len(chunk)
    return [upload]


async def _receive_form(request: Request, limits: UploadLimits, form: _Form) -> list[Upload]:
    try:
        async for chunk in _limited(request, limits.max_bytes):
            form.parser.write(chunk)
        form.parser.finalize()
    except FormParserError as error:
        raise Problem("malformed-body", "not a well-formed multipart form") from error
    finally:
        form.close()
    if not form.complete:
        raise Problem("malformed-body", "the form ends before its last boundary")
    if not form.uploads:
        raise Problem("no-file", "the form has no field `file` with a file in it")
    return form.uploads


async def _limited(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body's chunks; too large a body is refused by its declared length, or as soon as it is."""
    declared = request.headers.get("content-length", "")
    num_bytes = 0
    if not (declared.isdigit() and int(declared) > max_bytes):
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                break
            yield chunk
        else:
            return
    await discard_rest(request)
    raise Problem("upload-too-large", f"at most {max_bytes} bytes are allowed", max_bytes=max_bytes)


class _Form:
    """Takes a multipart form apart; the parts named ``file`` or ``files`` go to disk, others are dropped.

    Writing is not handed to a thread: a chunk is at most 64 KiB and goes to the page cache.
    """

    def __init__(self, places: _Places, boundary: bytes, max_files: int) -> None:
        self.uploads: list[Upload] = []
        self.complete = False
        self._places, self._max_files = places, max_files
        self._file: BinaryIO | None = None
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._num_parts = 0
        try:
            self.parser = python_multipart.MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_file,
                    "on_part_data": self._write,
                    "on_part_end": self.close,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise Problem("malformed-body", "the boundary is too long") from error

    def _begin_part(self) -> None:
        self._disposition = b""
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise Problem("malformed-body", f"the form has more than {MAX_PARTS} parts")

    def _end_header(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            self._disposition = value

    def _open_file(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") not in (b"file", b"files"):
            return
        if len(self.uploads) == self._max_files:
            raise Problem("too-many-files", f"at most {self._max_files} allowed")
        name = options.get(b"filename")
        path = self._places.next()
        self._file = path.open("wb")
        self.uploads.append(Upload(path, None if name is None else name.decode("utf-8", "replace")))

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            self.uploads[-1].num_bytes += end - start

    def _end(self) -> None:
        self.complete = True

    def close(self) -> None:
        """Close the file that is being written, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None
