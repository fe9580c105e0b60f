"""Every error that the service answers with, as RFC 9457 problem documents with a stable ``type`` for each cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from mme.video.containers import VideoError

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One cause: the status it is answered with, and what a client should know of it."""

    status: int
    title: str
    advice: str


KINDS: Final[dict[str, Kind]] = {
    "empty": Kind(400, "The upload is empty", "Send the bytes of a video."),
    "no-file": Kind(400, "The form holds no file", "Send the video as the multipart field `file`."),
    "too-many-files": Kind(400, "The form holds too many files", "Send one file, or use POST /classify/batch."),
    "malformed-body": Kind(400, "The request's body is malformed", "Send a well-formed body of the type you declare."),
    "unauthorized": Kind(401, "A valid API key is needed", "Send it as `Authorization: Bearer KEY`."),
    "not-found": Kind(404, "There is nothing at this address", "See /openapi.json for what there is."),
    "method-not-allowed": Kind(405, "This address does not know the method", "See the Allow header."),
    "upload-timed-out": Kind(408, "The upload took too long", "Send a smaller file, or over a faster line."),
    "upload-too-large": Kind(413, "The upload has too many bytes", "Send a smaller or more compressed file."),
    "unsupported-type": Kind(
        415, "The body's content type is not accepted", "Send multipart/form-data, or the file itself as video/*."
    ),
    "not-a-video": Kind(415, "The upload is not a video", "Send a file in a video container such as MP4 or WebM."),
    "invalid-parameter": Kind(422, "A parameter is unknown or out of range", "See `errors`."),
    "no-video-stream": Kind(422, "The file holds no video stream", "Send a file with pictures, not sound alone."),
    "zero-frames": Kind(422, "The video holds no frame", "Send a video with at least one frame."),
    "truncated": Kind(422, "The video ends before it should", "Upload the whole file."),
    "too-short": Kind(422, "The video is too short", "Send a longer video."),
    "video-too-large": Kind(422, "The video is too long or its picture too large", "See `detail` for the limit."),
    "undecodable": Kind(422, "The video cannot be decoded", "Encode it anew, for example as H.264 in MP4."),
    "decoding-timed-out": Kind(422, "The video takes too long to decode", "Send a shorter or simpler video."),
    "rate-limited": Kind(429, "Too many requests", "Wait as long as Retry-After says."),
    "internal": Kind(500, "The service failed", "Tell its operator the request id."),
    "overloaded": Kind(503, "The service is busy", "Try again after Retry-After."),
    "model-not-loaded": Kind(503, "No model is loaded yet", "Try again after Retry-After; see /ready."),
    "draining": Kind(503, "The service is shutting down", "Send the request to another instance."),
    "storage-full": Kind(503, "There is no room for the upload", "Try again after Retry-After."),
    "deadline-exceeded": Kind(504, "The answer was not ready in time", "Try again later, or ask for fewer views."),
}
"""By the last part of the ``type``."""

_FROM_VIDEO_REASON: Final = {"too-large": "video-too-large", "timed-out": "decoding-timed-out"}


class ProblemDocument(BaseModel):
    """A problem (RFC 9457). `type` is stable and names the cause; further members belong to the cause."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(description="Names the cause: a path of this service that explains it.")]
    title: str
    status: int
    detail: str
    request_id: Annotated[str | None, Field(description="As in the answer's X-Request-ID header.")] = None


class Problem(Exception):  # noqa: N818 - the RFC calls it that
    """Ends a request with a problem document.

    Args:
        name: a key of ``KINDS``.
        detail: what is wrong with this request; goes to the client.
        retry_after_s: sent as ``Retry-After``.
        extensions: further members of the document.
    """

    def __init__(self, name: str, detail: str, *, retry_after_s: int | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.name, self.kind, self.detail, self.extensions = name, KINDS[name], detail, extensions
        self.headers: dict[str, str] = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    @classmethod
    def of_video(cls, error: VideoError) -> Problem:
        """The problem of an upload that is no usable video."""
        return cls(_FROM_VIDEO_REASON.get(error.reason, error.reason), error.detail)

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        """The JSON object."""
        own = {"type": f"/problems/{self.name}", "title": self.kind.title, "status": self.kind.status}
        traced = {} if request_id is None else {"request_id": request_id}
        return own | {"detail": self.detail} | self.extensions | traced

    def response(self, request_id: str | None = None) -> JSONResponse:
        """The HTTP answer."""
        document = self.document(request_id)
        return JSONResponse(document, self.kind.status, headers=self.headers, media_type=MEDIA_TYPE)


def documented(*names: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI ``responses`` of a route that may end in these problems, an example for each."""
    by_status: dict[int, list[str]] = {}
    for name in names:
        by_status.setdefault(KINDS[name].status, []).append(name)
    return {status: _response(status, group) for status, group in sorted(by_status.items())}


def _response(status: int, names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    examples = {
        name: {"summary": KINDS[name].title, "value": Problem(name, KINDS[name].advice).document()} for name in names
    }
    response: dict[str, Any] = {
        "description": "; ".join(KINDS[name].title for name in names),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}, "examples": examples}},
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return response
