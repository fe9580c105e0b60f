"""Errors of the service: RFC 9457 problem documents with a stable ``type`` per cause."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

from asgi_correlation_id import correlation_id
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse
from starlette.types import Scope

from mme.video.containers import VideoError

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """Status, title and advice of one cause."""

    status: int
    title: str
    advice: str


KINDS: Final[dict[str, Kind]] = {
    "empty": Kind(400, "The upload is empty", "Send the bytes of a video."),
    "no-file": Kind(400, "The form contains no file", "Send the video as the multipart field `file`."),
    "too-many-files": Kind(400, "The form contains too many files", "Send one file, or use POST /classify/batch."),
    "malformed-body": Kind(400, "The request's body is malformed", "Send a well-formed body of the type you declare."),
    "unauthorized": Kind(401, "A valid API key is needed", "Send it as `Authorization: Bearer KEY`."),
    "not-found": Kind(404, "Nothing exists at this address", "See /openapi.json for the existing ones."),
    "method-not-allowed": Kind(405, "This address does not support the method", "See the Allow header."),
    "upload-timed-out": Kind(408, "The upload took too long", "Send a smaller file, or use a faster connection."),
    "upload-too-large": Kind(413, "The upload has too many bytes", "Send a smaller or more compressed file."),
    "unsupported-type": Kind(
        415, "The body's content type is not accepted", "Send multipart/form-data, or the file itself as video/*."
    ),
    "not-a-video": Kind(415, "The upload is not a video", "Send a file in a video container such as MP4 or WebM."),
    "invalid-parameter": Kind(422, "A parameter is unknown or out of range", "See `errors`."),
    "no-video-stream": Kind(422, "The file has no video stream", "Send a file with video, not only audio."),
    "zero-frames": Kind(422, "The video has no frames", "Send a video with at least one frame."),
    "truncated": Kind(422, "The video is truncated", "Upload the whole file."),
    "too-short": Kind(422, "The video is too short", "Send a longer video."),
    "video-too-large": Kind(422, "The video is too long or its frames are too large", "See `detail` for the limit."),
    "too-many-windows": Kind(422, "The video has too many windows", "Ask for a longer `hop_s`, or send parts of it."),
    "undecodable": Kind(422, "The video cannot be decoded", "Transcode it, for example to H.264 in MP4."),
    "decoding-timed-out": Kind(422, "The video takes too long to decode", "Send a shorter or simpler video."),
    "unknown-label": Kind(422, "The model has no such label", "Send one of `GET /labels`, exactly as it is there."),
    "rate-limited": Kind(429, "Too many requests", "Try again after Retry-After seconds."),
    "internal": Kind(500, "The service failed", "Report the request id to the operator."),
    "overloaded": Kind(503, "The service is busy", "Try again after Retry-After."),
    "model-not-loaded": Kind(503, "No model is loaded yet", "Try again after Retry-After; see /ready."),
    "draining": Kind(503, "The service is shutting down", "Send the request to another instance."),
    "storage-full": Kind(503, "No space is left for the upload", "Try again after Retry-After."),
    "deadline-exceeded": Kind(504, "The answer was not ready in time", "Try again later, or ask for fewer views."),
    "feedback-full": Kind(507, "No more clips are kept", "Tell the operator; the label was not stored."),
}
"""Causes by the last part of their ``type``."""

_FROM_VIDEO_REASON: Final = {"too-large": "video-too-large", "timed-out": "decoding-timed-out"}


class ProblemDocument(BaseModel):
    """A problem (RFC 9457). `type` is stable and names the cause; further members depend on the cause."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(description="Path of this service that explains the cause.")]
    title: str
    status: int
    detail: str
    request_id: Annotated[str | None, Field(description="Same as the answer's X-Request-ID header.")] = None


class Problem(Exception):  # noqa: N818 - the RFC calls it that
    """Exception that ends a request with a problem document.

    Args:
        name: a key of ``KINDS``.
        detail: description of this request's fault, for the client.
        retry_after_s: sent as ``Retry-After``.
        extensions: further members of the document.
    """

    def __init__(self, name: str, detail: str, *, retry_after_s: int | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.name = name
        self.kind = KINDS[name]
        self.detail = detail
        self.extensions = extensions
        self.headers: dict[str, str] = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    @classmethod
    def of_video(cls, error: VideoError) -> Problem:
        """Return the problem of an upload that is not a usable video."""
        return cls(_FROM_VIDEO_REASON.get(error.reason, error.reason), error.detail)

    def document(self, root_path: str, request_id: str | None = None) -> dict[str, Any]:
        """Return the JSON object; ``root_path`` is the prefix of this service's addresses."""
        members = {"type": f"{root_path}/problems/{self.name}", "title": self.kind.title, "status": self.kind.status}
        members |= {"detail": self.detail} | self.extensions
        return members if request_id is None else members | {"request_id": request_id}

    def response(self, scope: Scope) -> JSONResponse:
        """Return the HTTP answer to the current request."""
        document = self.document(scope["app"].root_path, correlation_id.get())
        return JSONResponse(document, self.kind.status, headers=self.headers, media_type=MEDIA_TYPE)


@contextmanager
def storage_problems(purpose: str) -> Iterator[None]:
    """Report a full disk, or a spent quota, as a problem: no space left to ``purpose``."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise Problem("storage-full", f"no space left to {purpose}", retry_after_s=10) from error


def documented(*names: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI ``responses`` of a route that may end in these problems, with an example per problem."""
    by_status: dict[int, list[str]] = {}
    for name in names:
        by_status.setdefault(KINDS[name].status, []).append(name)

    responses: dict[int | str, dict[str, Any]] = {}
    for status, group in sorted(by_status.items()):
        examples = {
            name: {"summary": KINDS[name].title, "value": Problem(name, KINDS[name].advice).document("")}
            for name in group
        }
        schema = {"$ref": "#/components/schemas/ProblemDocument"}
        responses[status] = {
            "description": "; ".join(KINDS[name].title for name in group),
            "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
        }
        if status in (429, 503):
            responses[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return responses
