"""Request bodies streamed into temporary files, with limits on bytes, time and files."""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import multipart  # type: ignore[import-untyped]
from starlette.requests import Request

from serving.problems import Problem
from serving.settings import Settings

LINGER_BYTES = 8 * 2**20
LINGER_S = 2.0
"""Limits up to which a refused body is still read: closing the connection at once would lose the answer."""

MAX_PARTS = 64
"""Parts of one form, files and other fields together."""

FILE_FIELDS = ("file", "files")
"""Names of the form fields that hold videos; others are skipped."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass
class Upload:
    """One uploaded file.

    Attributes:
        path: temporary file with a name chosen by the service.
        name: file name given by the client; only ever echoed.
        num_bytes: size.
    """

    path: Path
    name: str | None
    num_bytes: int = 0


_NewUpload: TypeAlias = Callable[[str | None], Upload]


@asynccontextmanager
async def received(request: Request, settings: Settings, folder: Path, max_files: int) -> AsyncIterator[list[Upload]]:
    """Receive the files of a request, at least one, into ``folder``; they are removed at the end of the block.

    Raises:
        Problem: the body is malformed, empty, too large, too slow, of another type, or the disk is full.
    """
    with ExitStack() as stack:

        def new_upload(name: str | None) -> Upload:
            path = folder / f"upload-{uuid.uuid4().hex}"
            stack.callback(path.unlink, missing_ok=True)
            return Upload(path, name)

        with _upload_problems(settings):
            async with asyncio.timeout(settings.upload_timeout_s):
                uploads = await _receive_files(request, settings, new_upload, max_files)
        yield uploads


async def body_bytes(request: Request, settings: Settings) -> bytes:
    """Receive a whole body into memory, for JSON.

    Raises:
        Problem: it is too large or too slow.
    """
    with _upload_problems(settings):
        async with asyncio.timeout(settings.upload_timeout_s):
            return b"".join([chunk async for chunk in _limited(request, settings.max_upload_bytes)])


@contextmanager
def _upload_problems(settings: Settings) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:  # before OSError, of which it is a subclass
        raise Problem("upload-timed-out", f"not complete after {settings.upload_timeout_s:g} s") from error
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise Problem("storage-full", "no space left to store the upload", retry_after_s=10) from error


async def discard_rest(request: Request) -> None:
    """Read on for a moment before an early answer, unless the client waits for ``100 Continue`` before it sends."""
    if "expect" in request.headers:
        return

    num_bytes = 0
    try:
        async with asyncio.timeout(LINGER_S):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > LINGER_BYTES:
                    return
    except (TimeoutError, RuntimeError):  # RuntimeError: the stream has been consumed already
        return


async def _receive_files(request: Request, settings: Settings, new_upload: _NewUpload, max_files: int) -> list[Upload]:
    kind, options = multipart.parse_options_header(request.headers.get("content-type", ""))
    if kind == "multipart/form-data":
        return await _receive_form(request, settings, new_upload, max_files, options.get("boundary", ""))

    if not (kind.startswith("video/") or kind == "application/octet-stream"):
        await discard_rest(request)
        detail = f"{kind or 'none'}; send multipart/form-data, video/* or application/octet-stream"
        raise Problem("unsupported-type", detail)

    # The body is the file itself. Writing is not given to a thread: a chunk is at most 64 KiB, into the page cache.
    upload = new_upload(None)
    with upload.path.open("wb") as file:
        async for chunk in _limited(request, settings.max_upload_bytes):
            file.write(chunk)
            upload.num_bytes += len(chunk)
    return [upload]


async def _receive_form(
    request: Request, settings: Settings, new_upload: _NewUpload, max_files: int, boundary: str
) -> list[Upload]:
    uploads: list[Upload] = []
    file: BinaryIO | None = None  # of the current part, if that is a video

    try:
        # Header lines are decoded as Latin-1, so that none is invalid; file names are UTF-8 in fact.
        parser = multipart.PushMultipartParser(boundary, max_segment_count=MAX_PARTS, header_charset="latin-1")
        with parser, ExitStack() as open_files:
            async for chunk in _limited(request, settings.max_upload_bytes):
                for event in parser.parse(chunk):
                    if isinstance(event, multipart.MultipartSegment):  # a part begins
                        if event.name not in FILE_FIELDS:
                            continue
                        if len(uploads) == max_files:
                            raise Problem("too-many-files", f"at most {max_files} allowed")
                        uploads.append(new_upload(_utf8(event.filename)))
                        file = open_files.enter_context(uploads[-1].path.open("wb"))
                    elif file is not None and event is not None:  # bytes of a part
                        file.write(event)
                        uploads[-1].num_bytes += len(event)
                    elif file is not None:  # a part ends
                        file.close()
                        file = None
    except multipart.MultipartError as error:
        raise Problem("malformed-body", f"not a well-formed multipart form: {error}") from error

    if not uploads:
        raise Problem("no-file", "the form has no field `file` with a file in it")
    return uploads


def _utf8(name: str | None) -> str | None:
    return None if name is None else name.encode("latin-1", "replace").decode("utf-8", "replace")


async def _limited(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body's chunks; refuse a body that is too large by its declared length, or once it exceeds the limit."""
    declared = request.headers.get("content-length", "")
    num_bytes = int(declared) if declared.isdigit() else 0
    if num_bytes <= max_bytes:
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                break
            yield chunk
        else:
            return

    await discard_rest(request)
    raise Problem("upload-too-large", f"at most {max_bytes} bytes are allowed", max_bytes=max_bytes)
