"""Request bodies streamed into temporary files, with limits on bytes, time and files."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Self, TypeAlias

import multipart  # type: ignore[import-untyped]
from starlette.requests import Request

from serving.problems import Problem, storage_problems
from serving.settings import Settings

LINGER_BYTES = 8 * 2**20
LINGER_S = 2.0
"""Limits up to which a refused body is still read: closing the connection at once would lose the answer."""

MAX_PARTS = 64
"""Parts of one form, files and other fields together."""

FILE_FIELD = re.compile(r"files?(\[\d*\])?")
"""Names of the form fields that hold videos, as `files[]` in PHP and `file[0]` in JavaScript; others are skipped."""

FILE_TYPES = (
    "application/octet-stream", "application/matroska", "application/mp4", "application/mxf", "application/ogg",
    "application/x-matroska", "image/gif",
)  # fmt: skip
"""Types, beside `video/*`, of a body that is the file itself."""

MAX_TEXT_BYTES = 4096
"""Of a field that is text."""

_SHOWN_CHARACTERS = 80
"""Of a field's name in an answer."""


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
async def received(
    request: Request, settings: Settings, folder: Path, max_files: int, texts: dict[str, str] | None = None
) -> AsyncIterator[list[Upload]]:
    """Receive the files of a request, at least one, into ``folder``; they are removed at the end of the block.

    Args:
        request: the request.
        settings: limits on bytes and time.
        folder: where the files go.
        max_files: how many there may be.
        texts: by name, fields of the form that are text; those that come replace the values.

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
                uploads = await _receive_files(request, settings, new_upload, max_files, {} if texts is None else texts)
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
        with storage_problems("store the upload"):
            yield
    except TimeoutError as error:
        raise Problem("upload-timed-out", f"not complete after {settings.upload_timeout_s:g} s") from error


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


async def _receive_files(
    request: Request, settings: Settings, new_upload: _NewUpload, max_files: int, texts: dict[str, str]
) -> list[Upload]:
    kind, options = multipart.parse_options_header(request.headers.get("content-type", ""))
    if kind == "multipart/form-data":
        return await _receive_form(request, settings, new_upload, max_files, texts, options.get("boundary", ""))

    if not (kind.startswith("video/") or kind in FILE_TYPES):
        await discard_rest(request)
        detail = f"{kind or 'none'}; send multipart/form-data, video/* or one of {', '.join(FILE_TYPES)}"
        raise Problem("unsupported-type", detail)

    # The body is the file itself. Writing is not given to a thread: a chunk is at most 64 KiB, into the page cache.
    upload = new_upload(None)
    with upload.path.open("wb") as file:
        async for chunk in _limited(request, settings.max_upload_bytes):
            file.write(chunk)
            upload.num_bytes += len(chunk)
    return [upload]


class _Form:
    """Parts of a form as they arrive: files, fields that are text, and others, which are skipped."""

    def __init__(self, new_upload: _NewUpload, max_files: int, text_names: Collection[str]) -> None:
        self.uploads: list[Upload] = []
        self.texts: dict[str, BytesIO] = {}
        self.others: list[str] = []  # names of the fields that are skipped
        self._new_upload = new_upload
        self._max_files = max_files
        self._text_names = text_names
        self._part: BinaryIO | None = None  # None is skipped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, part: multipart.MultipartSegment) -> None:
        if part.name in self._text_names:
            self._part = self.texts[part.name] = BytesIO()
        elif not FILE_FIELD.fullmatch(part.name):
            self.others.append(_utf8(part.name)[:_SHOWN_CHARACTERS])
        elif len(self.uploads) == self._max_files:
            raise Problem("too-many-files", f"at most {self._max_files} allowed")
        else:
            self.uploads.append(self._new_upload(_file_name(part)))
            self._part = self.uploads[-1].path.open("wb")

    def add(self, data: bytes) -> None:
        if self._part is None:
            return
        self._part.write(data)
        if not isinstance(self._part, BytesIO):
            self.uploads[-1].num_bytes += len(data)
        elif self._part.tell() > MAX_TEXT_BYTES:
            raise Problem("malformed-body", f"a field of text has more than {MAX_TEXT_BYTES} bytes")

    def end(self) -> None:
        if self._part is not None and not isinstance(self._part, BytesIO):
            self._part.close()
        self._part = None


async def _receive_form(
    request: Request, settings: Settings, new_upload: _NewUpload, max_files: int, texts: dict[str, str], boundary: str
) -> list[Upload]:
    form = _Form(new_upload, max_files, texts)
    try:
        # Header lines are decoded as Latin-1, so that none is invalid; file names are UTF-8 in fact.
        parser = multipart.PushMultipartParser(boundary, max_segment_count=MAX_PARTS, header_charset="latin-1")
        with parser, form:
            async for chunk in _without_preamble(_limited(request, settings.max_upload_bytes), parser.boundary):
                for event in parser.parse(chunk):
                    if isinstance(event, multipart.MultipartSegment):
                        form.begin(event)
                    elif event is None:
                        form.end()
                    else:
                        form.add(event)
    except multipart.MultipartError as error:
        raise Problem("malformed-body", f"not a well-formed multipart form: {error}") from error

    if not form.uploads:
        came = ", ".join(f"`{name}`" for name in form.others) or "none"
        detail = f"the form has no field `file` with a file in it; its fields: {came}"
        raise Problem("no-file", detail, fields=form.others)
    texts |= {name: text.getvalue().decode("utf-8", "replace") for name, text in form.texts.items()}
    return form.uploads


async def _without_preamble(chunks: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[bytes]:
    """Skip what is before the first line with the boundary; the parser refuses some preambles that are allowed."""
    start = b"\n--" + boundary
    skipped: bytes | None = b"\n"  # the end of what has been skipped; None behind the first boundary
    async for chunk in chunks:
        if skipped is None:
            yield chunk
        elif (at := (skipped := skipped + chunk).find(start)) >= 0:
            yield skipped[at + 1 :]
            skipped = None
        else:
            skipped = skipped[-len(start) :]


def _file_name(part: multipart.MultipartSegment) -> str | None:
    """Return the name that the client gave, `filename*` (RFC 5987) before `filename`."""
    disposition = part.header("Content-Disposition")
    if "*" in disposition:
        message = Message()
        message["Content-Disposition"] = disposition
        for name, value in message.get_params(header="Content-Disposition") or ():
            if name.lower() == "filename" and isinstance(value, tuple):  # charset, language, text
                return collapse_rfc2231_value(value)
    return None if part.filename is None else _utf8(part.filename)


def _utf8(name: str) -> str:
    return name.encode("latin-1", "replace").decode("utf-8", "replace")


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
