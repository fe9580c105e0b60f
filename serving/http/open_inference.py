"""The Open Inference Protocol, version 2: tensors in, logits out, for clients that decode and crop by themselves."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mme.config.base import faults
from mme.video.sampling import Views
from serving.api import PER_CALL, admitted, check_caller, engine_of, upload_limits
from serving.http.uploads import body_bytes
from serving.inference.engine import Engine, while_connected
from serving.inference.host import LoadedModel
from serving.problems import Problem, documented

INPUT, OUTPUT = "frames", "logits"
UNVERSIONED = "1"
"""What the protocol calls a model folder that was never registered."""


class InputTensor(BaseModel):
    """RGB frames, resized and cropped, not normalised; ``data`` flat in row-major order, or nested."""

    model_config = ConfigDict(extra="allow")

    name: Literal["frames"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=5, max_length=5)]
    datatype: Literal["UINT8"]
    data: list[Any]


class InferenceRequest(BaseModel):
    """The protocol's request."""

    model_config = ConfigDict(extra="allow")

    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]


class OutputTensor(BaseModel):
    """Logits, one row a view."""

    name: Literal["logits"]
    shape: list[int]
    datatype: Literal["FP32"]
    data: list[float]


class InferenceResponse(BaseModel):
    """The protocol's answer."""

    model_name: str
    model_version: str
    id: str | None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """What a tensor looks like; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: Literal["pytorch"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The service."""

    name: Literal["mme"]
    version: str
    extensions: list[str]


class Live(BaseModel):
    """The process runs."""

    live: Literal[True]


class Ready(BaseModel):
    """Requests are answered."""

    ready: Literal[True]


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.get("", summary="The service")
async def server_metadata(request: Request) -> ServerMetadata:
    """Name, version and extensions."""
    return ServerMetadata(name="mme", version=request.app.version, extensions=[])


@router.get("/health/live", summary="Is the process alive?")
async def live() -> Live:
    """As /health."""
    return Live(live=True)


@router.get(
    "/health/ready",
    summary="Are requests answered?",
    responses=documented("model-not-loaded", "draining", "internal"),
)
async def ready(request: Request) -> Ready:
    """As /ready."""
    engine_of(request).check_ready()
    return Ready(ready=True)


_PER_MODEL = documented("not-found", *PER_CALL)
_CHECKED = [Depends(check_caller)]


@router.get("/models/{name}", summary="A model", dependencies=_CHECKED, responses=_PER_MODEL)
@router.get("/models/{name}/versions/{version}", summary="A version", dependencies=_CHECKED, responses=_PER_MODEL)
async def model_metadata(request: Request, name: str, version: str | None = None) -> ModelMetadata:
    """What the model takes and gives."""
    loaded = _named(engine_of(request), name, version)
    clip = loaded.classifier.config.clip
    taken = [-1, clip.num_frames, clip.size, clip.size, 3]
    return ModelMetadata(
        name=loaded.name,
        versions=[_version_of(loaded)],
        platform="pytorch",
        inputs=[TensorMetadata(name=INPUT, datatype="UINT8", shape=taken)],
        outputs=[TensorMetadata(name=OUTPUT, datatype="FP32", shape=[-1, len(loaded.classifier.labels)])],
    )


@router.get("/models/{name}/ready", summary="Is the model loaded?", dependencies=_CHECKED, responses=_PER_MODEL)
@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Is the version loaded?",
    dependencies=_CHECKED,
    responses=_PER_MODEL,
)
async def model_ready(request: Request, name: str, version: str | None = None) -> Ready:
    """Whether this model answers."""
    _named(engine_of(request), name, version)
    return Ready(ready=True)


_INFER: dict[str, Any] = {
    "dependencies": _CHECKED,
    "responses": documented(
        "malformed-body", "invalid-parameter", "not-found", "upload-too-large", "upload-timed-out",
        "deadline-exceeded", *PER_CALL,
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}},
        }
    },
}  # fmt: skip


@router.post("/models/{name}/infer", summary="Logits of views", **_INFER)
@router.post("/models/{name}/versions/{version}/infer", summary="Logits of views", **_INFER)
async def infer(request: Request, name: str, version: str | None = None) -> InferenceResponse:
    """Logits of each view; the views of a video are to be averaged by the client."""
    engine = engine_of(request)
    loaded = _named(engine, name, version)
    async with admitted(request, engine):
        body = await body_bytes(request, upload_limits(engine, 1))
        wanted, frames = await asyncio.to_thread(_parse, body, loaded, engine.settings.max_batch)
        logits = await while_connected(request, _predict(engine, loaded, frames))
        shape = [len(logits), len(loaded.classifier.labels)]
        flat = [value for row in logits for value in row]
        output = OutputTensor(name=OUTPUT, shape=shape, datatype="FP32", data=flat)
        return InferenceResponse(
            model_name=loaded.name, model_version=_version_of(loaded), id=wanted.id, outputs=[output]
        )


async def _predict(engine: Engine, loaded: LoadedModel, frames: UInt8[np.ndarray, "V T S S 3"]) -> list[list[float]]:
    views = [Views(view[None], None, 0.0) for view in frames]
    answers = await engine.predict(loaded, views)
    return [answer.logits.tolist() for answer in answers]


def _parse(body: bytes, loaded: LoadedModel, max_views: int) -> tuple[InferenceRequest, UInt8[np.ndarray, "V T S S 3"]]:
    try:
        wanted = InferenceRequest.model_validate(json.loads(body))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise _refusal(faults(error)) from error
        raise Problem("malformed-body", "not JSON", error="not JSON") from error
    (tensor,) = wanted.inputs
    clip = loaded.classifier.config.clip
    num_views, *shape = tensor.shape
    if shape != [clip.num_frames, clip.size, clip.size, 3] or num_views > max_views:
        expected = f"[1 to {max_views}, {clip.num_frames}, {clip.size}, {clip.size}, 3]"
        raise _refusal(f"inputs.0.shape: {tensor.shape} must be {expected}")
    try:
        values = np.asarray(tensor.data)
    except ValueError as error:
        raise _refusal("inputs.0.data: the nested lists have different lengths") from error
    if values.dtype.kind not in "iu" or values.size != num_views * np.prod(shape):
        raise _refusal(f"inputs.0.data: {values.size} values of {values.dtype} are not {tensor.shape} of UINT8")
    if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
        raise _refusal(f"inputs.0.data: [{values.min()}, {values.max()}] is not within [0, 255]")
    return wanted, values.astype(np.uint8).reshape(tensor.shape)


def _refusal(detail: str) -> Problem:
    return Problem("invalid-parameter", detail, error=detail)  # the protocol's own member for errors is `error`


def _named(engine: Engine, name: str, version: str | None) -> LoadedModel:
    loaded = engine.model()
    if name != loaded.name or version not in (None, _version_of(loaded)):
        detail = f"loaded is {loaded.name}, version {_version_of(loaded)}"
        raise Problem("not-found", detail, error=detail)
    return loaded


def _version_of(loaded: LoadedModel) -> str:
    return loaded.version or UNVERSIONED
