"""The addresses that clients call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serving.decoding.tracks import LENGTH, windows
from serving.http.uploads import Upload, UploadLimits, discard_rest, received
from serving.inference.engine import Classified, Engine, while_connected
from serving.inference.host import LoadedModel
from serving.problems import Problem, ProblemDocument, documented
from serving.schemas import (
    BatchAnswer,
    BatchEntry,
    ClassificationAnswer,
    ClipFacts,
    Crops,
    DefaultViews,
    Labels,
    ModelCard,
    ModelName,
    Options,
    Prediction,
    Timings,
    TracksAnswer,
    VideoFacts,
    ViewsTaken,
)

PER_VIDEO = (
    "empty", "not-a-video", "no-video-stream", "zero-frames", "truncated", "too-short", "video-too-large",
    "undecodable", "decoding-timed-out", "deadline-exceeded",
)  # fmt: skip
PER_UPLOAD = (
    "no-file", "too-many-files", "malformed-body", "upload-timed-out", "upload-too-large", "unsupported-type",
    "storage-full",
)  # fmt: skip
PER_CALL = ("unauthorized", "rate-limited", "overloaded", "model-not-loaded", "internal")

_BINARY = {"type": "string", "format": "binary"}
_BODY_ONE = {
    "required": True,
    "description": "A video file, as a form or as the body itself.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}},
        "video/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
    },
}
_FILES = {"type": "array", "items": _BINARY, "minItems": 1}
_BODY_MANY = {
    "required": True,
    "description": "Several video files, each a field `file`.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": _FILES}}}
    },
}

_bearer = HTTPBearer(auto_error=False, description="An API key, where the operator asks for one.")


def engine_of(request: Request) -> Engine:
    """The running parts."""
    engine: Engine = request.app.state.engine
    return engine


async def check_caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> None:
    """Turn away callers without a key and callers that call too often.

    A coroutine, as ``read_options``, because FastAPI hands functions to threads, where they wait for the lock that
    Python's threads share.
    """
    caller = request.app.state.api_keys.check(credentials.credentials if credentials else None)
    address = request.client.host if request.client else "unknown"
    request.app.state.rate_limit.check(caller or address)


async def read_options(
    request: Request,
    top_k: Annotated[int, Query(ge=1, le=1000, description="How many labels to name.")] = 5,
    segments: Annotated[int | None, Query(ge=1, description="Clips along the video; default: the model's.")] = None,
    crops: Annotated[Crops | None, Query(description="Squares a frame; default: the model's.")] = None,
    logits: Annotated[bool, Query(description="Add the logits of all labels.")] = False,
) -> Options:
    """The query's parameters."""
    most = engine_of(request).settings.max_segments
    if segments is not None and segments > most:
        errors = [{"location": ["query", "segments"], "message": f"must be at most {most}"}]
        raise Problem("invalid-parameter", f"segments: {segments} is above {most}", errors=errors)
    return Options(top_k=top_k, segments=segments, crops=crops, logits=logits)


router = APIRouter(dependencies=[Depends(check_caller)])


@router.post(
    "/classify",
    summary="Which action does a video show?",
    responses=documented(*PER_VIDEO, *PER_UPLOAD, *PER_CALL, "invalid-parameter"),
    openapi_extra={"requestBody": _BODY_ONE},
)
async def classify(request: Request, options: Annotated[Options, Depends(read_options)]) -> ClassificationAnswer:
    """Send one video, `curl -F file=@clip.mp4` or the bytes themselves with a `video/*` type; get the likely labels."""
    engine, started = engine_of(request), time.perf_counter()
    async with admitted(request, engine), received(request, upload_limits(engine, 1), engine.temp_dir) as uploads:
        engine.metrics.upload_bytes.inc(uploads[0].num_bytes)
        uploaded = time.perf_counter()
        classified = await while_connected(request, engine.classify(uploads[0], options))
        return answer(request, options, classified, (started, uploaded))


@router.post(
    "/classify/batch",
    summary="Several videos in one request",
    responses=documented(*PER_UPLOAD, *PER_CALL, "invalid-parameter"),
    openapi_extra={"requestBody": _BODY_MANY},
)
async def classify_batch(request: Request, options: Annotated[Options, Depends(read_options)]) -> BatchAnswer:
    """Each file has its own entry with an answer or a problem; a bad one does not fail the others."""
    engine, started = engine_of(request), time.perf_counter()
    limits = upload_limits(engine, engine.settings.max_files)
    async with admitted(request, engine), received(request, limits, engine.temp_dir) as uploads:
        engine.metrics.upload_bytes.inc(sum(upload.num_bytes for upload in uploads))
        times = (started, time.perf_counter())
        work = asyncio.gather(*(_outcome(engine, upload, options) for upload in uploads))
        entries = []
        for index, (upload, outcome) in enumerate(zip(uploads, await while_connected(request, work), strict=True)):
            shown = outcome if isinstance(outcome, Problem) else answer(request, options, outcome, times)
            entries.append(_entry(index, upload, shown))
        return BatchAnswer(results=entries)


@router.post(
    "/trajectories",
    summary="How do points in a video move?",
    responses=documented(*PER_VIDEO, *PER_UPLOAD, *PER_CALL) | {200: {"model": TracksAnswer}},
    openapi_extra={"requestBody": _BODY_ONE},
)
async def trajectories(request: Request) -> JSONResponse:
    """Tracks to be drawn over one video, sent as to `/classify`: the motion that the model was trained to predict."""
    engine, started = engine_of(request), time.perf_counter()
    async with admitted(request, engine), received(request, upload_limits(engine, 1), engine.temp_dir) as uploads:
        engine.metrics.upload_bytes.inc(uploads[0].num_bytes)
        tracks = await while_connected(request, engine.track(uploads[0]))
        # Not as a model: checking tens of thousands of numbers would take longer than finding them.
        document = {
            "video": VideoFacts.model_validate(tracks.info, from_attributes=True).model_dump(),
            "num_steps": LENGTH,
            "windows": windows(tracks),
            "total_ms": 1000 * (time.perf_counter() - started),
            "request_id": request.state.request_id,
        }
        return JSONResponse(document)


@router.get("/labels", summary="What the model can tell apart", responses=documented(*PER_CALL))
async def labels(request: Request) -> Labels:
    """All labels, in the order of the logits."""
    return Labels(labels=list(engine_of(request).model().classifier.labels))


@router.get("/model", summary="Which model answers", responses=documented(*PER_CALL))
async def model(request: Request) -> ModelCard:
    """Name, version, digest, what it sees of a video, how good it was and where it comes from."""
    loaded = engine_of(request).model()
    config = loaded.classifier.config
    return ModelCard(
        **name_of(loaded).model_dump(),
        address=loaded.address,
        loaded_at=loaded.loaded_at.isoformat(),
        num_labels=len(config.labels),
        clip=ClipFacts(**config.clip.model_dump(include={"num_frames", "stride_frames", "size"})),
        views=DefaultViews(**config.views.model_dump()),
        metrics=config.metrics,
        provenance=dict(config.provenance),
    )


def name_of(loaded: LoadedModel) -> ModelName:
    """How an answer names its model."""
    return ModelName(name=loaded.name, version=loaded.version, digest=loaded.digest)


def answer(
    request: Request, options: Options, classified: Classified, times: tuple[float, float]
) -> ClassificationAnswer:
    """The answer's document; ``times`` are when the request began and when its body was there."""
    classifier, info, (started, uploaded) = classified.model.classifier, classified.info, times
    default = classifier.config.views
    return ClassificationAnswer(
        predictions=[
            Prediction(label=item.label, probability=item.probability)
            for item in classifier.rank(classified.logits, options.top_k)
        ],
        logits=classified.logits.tolist() if options.logits else None,
        model=name_of(classified.model),
        video=VideoFacts.model_validate(info, from_attributes=True),
        views=ViewsTaken(
            segments=options.segments or default.segments,
            crops=int(options.crops or default.crops),
            num_views=classified.num_views,
        ),
        timings=Timings(
            upload_ms=1000 * (uploaded - started),
            decode_wait_ms=classified.decode_wait_ms,
            decode_ms=classified.decode_ms,
            queue_ms=classified.answer.queue_ms,
            inference_ms=classified.answer.inference_ms,
            total_ms=1000 * (time.perf_counter() - started),
        ),
        request_id=request.state.request_id,
    )


@asynccontextmanager
async def admitted(request: Request, engine: Engine) -> AsyncIterator[None]:
    """A place among the requests in work; asked for before the body is read."""
    if engine.admission.full:
        await discard_rest(request)
        raise engine.admission.refusal()
    with engine.admission.slot():
        yield


async def _outcome(engine: Engine, upload: Upload, options: Options) -> Classified | Problem:
    try:
        return await engine.classify(upload, options)
    except Problem as problem:
        return problem


def _entry(index: int, upload: Upload, outcome: ClassificationAnswer | Problem) -> BatchEntry:
    if isinstance(outcome, Problem):
        document = ProblemDocument.model_validate(outcome.document())
        return BatchEntry(index=index, name=upload.name, status=document.status, result=None, problem=document)
    return BatchEntry(index=index, name=upload.name, status=HTTPStatus.OK, result=outcome, problem=None)


def upload_limits(engine: Engine, max_files: int) -> UploadLimits:
    """What a request's body may be."""
    return UploadLimits(engine.settings.max_upload_bytes, engine.settings.upload_timeout_s, max_files)
