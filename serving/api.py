"""Routes for classification, trajectories, labels and the model."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Query, Request, Security
from fastapi.responses import JSONResponse, Response

from mme.evaluation.windows import csv_text, joined, vtt_text, windows_document
from mme.video.windows import WindowPlan
from serving import schemas
from serving.decoding.tracks import LENGTH, windows
from serving.http.routes import DirectRoute, bearer
from serving.http.uploads import FILE_TYPES, Upload, discard_rest, received
from serving.inference.engine import Admission, Classified, InferenceEngine, while_connected
from serving.inference.model_reloader import LoadedModel
from serving.problems import Problem, ProblemDocument, documented

MAX_WINDOW_BYTES = 2**28
"""Pixels of one window as the model sees them, which a decoding process holds."""

MAX_NOTE = 1000
"""Characters of a note beside a label."""

PER_VIDEO = (
    "empty", "not-a-video", "no-video-stream", "zero-frames", "truncated", "too-short", "video-too-large",
    "undecodable", "decoding-timed-out", "deadline-exceeded",
)  # fmt: skip
PER_UPLOAD = (
    "no-file", "too-many-files", "malformed-body", "upload-timed-out", "upload-too-large", "unsupported-type",
    "storage-full",
)  # fmt: skip
PER_CALL = ("unauthorized", "rate-limited", "overloaded", "model-not-loaded", "internal")


def _form(file: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": file}}}


_BINARY = {"type": "string", "format": "binary"}
_BODY_ONE = {
    "required": True,
    "description": "A video file, as a form or as the body itself.",
    "content": {
        "multipart/form-data": _form(_BINARY),
        **{kind: {"schema": _BINARY} for kind in ("video/*", *FILE_TYPES)},
    },
}
_BODY_MANY = {
    "required": True,
    "description": "Several video files, each a field `file`.",
    "content": {"multipart/form-data": _form({"type": "array", "items": _BINARY, "minItems": 1})},
}

_BODY_FEEDBACK = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "label"],
                "properties": {
                    "file": _BINARY,
                    "label": {"type": "string", "description": "One of `GET /labels`."},
                    "note": {"type": "string", "maxLength": MAX_NOTE, "description": "Why, in your own words."},
                },
            }
        }
    },
}


def engine_of(request: Request) -> InferenceEngine:
    """Return the application's engine."""
    engine: InferenceEngine = request.app.state.engine
    return engine


def check_view_options(request: Request, options: schemas.ViewOptions) -> None:
    """Check the query parameters against the operator's limit on segments.

    Raises:
        Problem: they are above it.
    """
    max_segments = engine_of(request).settings.max_segments
    if options.segments is not None and options.segments > max_segments:
        errors = [{"location": ["query", "segments"], "message": f"must be at most {max_segments}"}]
        raise Problem("invalid-parameter", f"segments: {options.segments} is above {max_segments}", errors=errors)


def check_classify_options(request: Request, options: schemas.ClassifyOptions) -> None:
    """Check the query parameters against the operator's limits and those of the model.

    Raises:
        Problem: they contradict each other or exceed a limit.
    """
    check_view_options(request, options)
    if options.window_s is None:
        for name in ("hop_s", "format"):
            if getattr(options, name) is not None:
                raise _invalid(name, "needs window_s")
        return
    if options.logits:
        raise _invalid("logits", "cannot be combined with window_s")
    config = engine_of(request).model().classifier.config
    try:
        plan = WindowPlan(options.window_s, options.hop_s or options.window_s, config.fps)
    except ValueError as error:
        name, _, message = str(error).partition(": ")
        raise _invalid(name, message) from error
    if plan.length * (options.crops or config.views.crops) * 3 * config.clip.size**2 > MAX_WINDOW_BYTES:
        raise _invalid("window_s", f"{options.window_s:g} s need too much memory: ask for shorter windows")


def _invalid(name: str, message: str, place: str = "query") -> Problem:
    errors = [{"location": [place, name], "message": message}]
    return Problem("invalid-parameter", f"{name}: {message}", errors=errors)


@asynccontextmanager
async def admission_slot(request: Request, admission: Admission | None = None) -> AsyncIterator[None]:
    """Occupy one of the places for requests in progress; entered before the body is read."""
    admission = admission or engine_of(request).admission
    if admission.full:
        await discard_rest(request)
        raise admission.refusal()
    with admission.slot():
        yield


@asynccontextmanager
async def admitted_uploads(request: Request, max_files: int) -> AsyncIterator[list[Upload]]:
    """Admit a request, then receive its files; they are removed at the end of the block."""
    engine = engine_of(request)
    async with admission_slot(request), received(request, engine.settings, engine.temp_dir, max_files) as uploads:
        engine.metrics.upload_bytes.inc(sum(upload.num_bytes for upload in uploads))
        yield uploads


video_router = APIRouter(route_class=DirectRoute, dependencies=[Security(bearer)])


@video_router.post(
    "/classify",
    summary="Classify one video",
    response_model=schemas.ClassificationAnswer | schemas.WindowsAnswer,
    responses=documented(*PER_VIDEO, *PER_UPLOAD, *PER_CALL, "invalid-parameter", "too-many-windows")
    | {200: {"content": {"text/csv": {"schema": {"type": "string"}}, "text/vtt": {"schema": {"type": "string"}}}}},
    openapi_extra={"requestBody": _BODY_ONE},
)
async def classify_video(
    request: Request, options: Annotated[schemas.ClassifyOptions, Query()]
) -> schemas.ClassificationAnswer | Response:
    """Send one video, `curl -F file=@clip.mp4` or the bytes themselves with a `video/*` type; get the likely labels.

    With `window_s` and `hop_s`, get labels of windows along the video and segments of one label, as JSON, CSV (a row
    per window) or WebVTT (a cue per segment).
    """
    check_classify_options(request, options)
    if options.window_s is not None:
        return await _classify_windows(request, options, options.window_s)
    engine, started = engine_of(request), time.perf_counter()
    async with admitted_uploads(request, max_files=1) as (upload,):
        uploaded = time.perf_counter()
        classified = await while_connected(request, engine.classify(upload, options))
        return _classification_answer(options, classified, started, uploaded)


async def _classify_windows(request: Request, options: schemas.ClassifyOptions, window_s: float) -> Response:
    engine, started = engine_of(request), time.perf_counter()
    hop_s = options.hop_s or window_s
    form = options.format or _accepted_format(request)
    async with (
        admission_slot(request, engine.long_admission),
        received(request, engine.settings.for_long_videos, engine.temp_dir, 1) as (upload,),
    ):
        engine.metrics.upload_bytes.inc(upload.num_bytes)
        uploaded = time.perf_counter()
        classified = await while_connected(request, engine.classify_windows(upload, window_s, hop_s, options))
    if form == schemas.AnswerFormat.CSV:
        return Response(csv_text(classified.windows), media_type="text/csv; charset=utf-8; header=present")
    segments = joined(classified.windows)
    if form == schemas.AnswerFormat.VTT:
        return Response(vtt_text(segments), media_type="text/vtt; charset=utf-8")
    document = windows_document(classified.windows, segments, window_s, hop_s) | {
        "model": model_name(classified.model).model_dump(),
        "video": schemas.VideoFacts.model_validate(classified.info, from_attributes=True).model_dump(),
        "timings": {
            "upload_ms": 1000 * (uploaded - started),
            "decode_ms": classified.decode_ms,
            "total_ms": 1000 * (time.perf_counter() - started),
        },
        "request_id": correlation_id.get() or "",
    }
    return JSONResponse(document)  # not a pydantic model: validating thousands of windows stops the event loop


def _accepted_format(request: Request) -> schemas.AnswerFormat:
    """Return the format that the header Accept prefers; JSON if it names none."""
    weights: dict[str, float] = {}
    for entry in request.headers.get("accept", "").lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((part.removeprefix("q=") for part in parameters if part.startswith("q=")), "1")
        weights[kind] = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0
    kinds = {"application/json": schemas.AnswerFormat.JSON, "text/csv": schemas.AnswerFormat.CSV}
    kinds |= {"text/vtt": schemas.AnswerFormat.VTT}
    best = max(kinds, key=lambda kind: weights.get(kind, 0.0))
    return kinds[best] if weights.get(best, 0.0) > 0 else schemas.AnswerFormat.JSON


@video_router.post(
    "/classify/batch",
    summary="Classify several videos",
    responses=documented(*PER_UPLOAD, *PER_CALL, "invalid-parameter"),
    openapi_extra={"requestBody": _BODY_MANY},
)
async def classify_videos(request: Request, options: Annotated[schemas.ViewOptions, Query()]) -> schemas.BatchAnswer:
    """Each file has its own entry with a result or a problem; a bad file does not fail the others."""
    check_view_options(request, options)
    engine, started = engine_of(request), time.perf_counter()

    async def entry(index: int, upload: Upload, uploaded: float) -> schemas.BatchEntry:
        try:
            classified = await engine.classify(upload, options)
        except Problem as problem:
            document = ProblemDocument.model_validate(problem.document(request.app.root_path))
            return schemas.BatchEntry(
                index=index, name=upload.name, status=document.status, result=None, problem=document
            )
        answer = _classification_answer(options, classified, started, uploaded)
        return schemas.BatchEntry(index=index, name=upload.name, status=HTTPStatus.OK, result=answer, problem=None)

    async with admitted_uploads(request, engine.settings.max_files) as uploads:
        uploaded = time.perf_counter()
        entries = asyncio.gather(*(entry(index, upload, uploaded) for index, upload in enumerate(uploads)))
        return schemas.BatchAnswer(results=await while_connected(request, entries))


@video_router.post(
    "/trajectories",
    summary="Track points through a video",
    responses=documented(*PER_VIDEO, *PER_UPLOAD, *PER_CALL, "invalid-parameter")
    | {200: {"model": schemas.TracksAnswer}},
    openapi_extra={"requestBody": _BODY_ONE},
)
async def trajectories(request: Request, options: Annotated[schemas.TracksOptions, Query()]) -> JSONResponse:
    """Get tracks to draw over one video, sent as to `/classify`: the motion that pretraining predicts.

    They are spread over a long video; with `start_s`, they follow each other from there on.
    """
    engine, started = engine_of(request), time.perf_counter()
    async with admitted_uploads(request, max_files=1) as (upload,):
        tracks = await while_connected(request, engine.track(upload, options.start_s))
        # Not a pydantic model: validating tens of thousands of numbers takes longer than tracking them.
        document = {
            "video": schemas.VideoFacts.model_validate(tracks.info, from_attributes=True).model_dump(),
            "fps": tracks.fps,
            "num_steps": LENGTH,
            "windows": windows(tracks),
            "total_ms": 1000 * (time.perf_counter() - started),
            "request_id": correlation_id.get(),
        }
        return JSONResponse(document)


feedback_router = APIRouter(route_class=DirectRoute, dependencies=[Security(bearer)])


@feedback_router.post(
    "/feedback",
    summary="Tell the right label of one video",
    responses=documented(*PER_VIDEO, *PER_UPLOAD, *PER_CALL, "invalid-parameter", "unknown-label", "feedback-full"),
    openapi_extra={"requestBody": _BODY_FEEDBACK},
)
async def feedback(request: Request) -> schemas.FeedbackAnswer:
    """Send the video again with its right label, `curl -F file=@clip.mp4 -F label=LABEL`; it is kept to learn from.

    A later label of the same file replaces an earlier one.
    """
    engine = engine_of(request)
    texts = {"label": "", "note": ""}
    async with (
        admission_slot(request),
        received(request, engine.settings, engine.temp_dir, 1, texts) as (upload,),
    ):
        engine.metrics.upload_bytes.inc(upload.num_bytes)
        label, note = texts["label"].strip(), texts["note"].strip()
        if not label:
            raise _invalid("label", "the form has no field `label` with text in it", "body")
        if len(note) > MAX_NOTE:
            raise _invalid("note", f"{len(note)} characters; at most {MAX_NOTE} are allowed", "body")
        corrected = await while_connected(request, engine.correct(upload, label, note))
    return schemas.FeedbackAnswer(
        label=label,
        answered=corrected.answered,
        former_label=None if corrected.former is None else corrected.former.label,
        clip=corrected.sha256,
        model=model_name(corrected.model),
        request_id=correlation_id.get() or "",
    )


@video_router.get("/labels", summary="List the labels", responses=documented(*PER_CALL))
async def labels(request: Request) -> schemas.Labels:
    """All labels, in the order of the logits."""
    return schemas.Labels(labels=list(engine_of(request).model().classifier.labels))


@video_router.get("/model", summary="Describe the loaded model", responses=documented(*PER_CALL))
async def model(request: Request) -> schemas.ModelCard:
    """Name, version, digest, input clip, metrics and provenance."""
    loaded = engine_of(request).model()
    config = loaded.classifier.config
    return schemas.ModelCard(
        **model_name(loaded).model_dump(),
        address=loaded.address,
        loaded_at=loaded.loaded_at.isoformat(),
        num_labels=len(config.labels),
        precision=loaded.classifier.precision,
        clip=schemas.ClipFacts(
            **config.clip.model_dump(include={"snippets", "num_frames", "stride_frames", "size"}), fps=config.fps
        ),
        views=schemas.DefaultViews(**config.views.model_dump()),
        metrics=config.metrics,
        provenance=dict(config.provenance),
    )


def model_name(loaded: LoadedModel) -> schemas.ModelName:
    """Return the model's name as it stands in answers."""
    return schemas.ModelName(name=loaded.name, version=loaded.version, digest=loaded.digest)


def _classification_answer(
    options: schemas.ViewOptions, classified: Classified, started: float, uploaded: float
) -> schemas.ClassificationAnswer:
    """Build the answer; ``started`` and ``uploaded`` are when the request began and when its body was complete."""
    classifier = classified.model.classifier
    default = classifier.config.views
    return schemas.ClassificationAnswer(
        predictions=list(classifier.rank(classified.logits, options.top_k)),
        logits=classified.logits.tolist() if options.logits else None,
        model=model_name(classified.model),
        video=schemas.VideoFacts.model_validate(classified.info, from_attributes=True),
        views=schemas.ViewsTaken(
            segments=options.segments or default.segments,
            crops=int(options.crops or default.crops),
            num_views=classified.num_views,
        ),
        timings=schemas.AnswerTimings(
            upload_ms=1000 * (uploaded - started),
            decode_wait_ms=classified.decode_wait_ms,
            decode_ms=classified.decode_ms,
            queue_ms=classified.queue_ms,
            inference_ms=classified.inference_ms,
            total_ms=1000 * (time.perf_counter() - started),
        ),
        request_id=correlation_id.get() or "",
    )
