"""Open Inference Protocol, version 2: tensors in, logits out, for clients that decode and crop by themselves."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request, Security
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mme.config.base import faults
from mme.video.sampling import Views
from serving.api import PER_CALL, admission_slot, engine_of
from serving.http.routes import bearer, check_caller
from serving.http.uploads import body_bytes
from serving.inference.engine import while_connected
from serving.inference.model_reloader import LoadedModel
from serving.problems import Problem, documented

UNVERSIONED = "1"
"""Version, in the protocol's answers, of a model folder that was never registered."""


class InputTensor(BaseModel):
    """RGB frames, resized and cropped, not normalised; ``data`` flat in row-major order, or nested."""

    model_config = ConfigDict(extra="allow")

    name: Literal["frames"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=5, max_length=5)]
    datatype: Literal["UINT8"]
    data: list[Any]


class InferenceRequest(BaseModel):
    """Request of the protocol."""

    model_config = ConfigDict(extra="allow")

    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class OutputTensor(TensorMetadata):
    """Logits, one row per view."""

    data: list[float]


class InferenceResponse(BaseModel):
    """Answer of the protocol."""

    model_name: str
    model_version: str
    id: str | None
    outputs: list[OutputTensor]


class ClipParameters(BaseModel):
    """Frames of a view, for a client that samples by itself: one every ``stride_frames``, counted at ``fps``.

    With ``snippets`` above 1 the view has as many snippets of equal length, spread over the video.
    """

    fps: float
    stride_frames: int
    sampling: Literal["stride", "segments"]
    snippets: int


class ModelMetadata(BaseModel):
    """Inputs and outputs of the model; ``parameters`` are this service's own."""

    name: str
    versions: list[str]
    platform: Literal["pytorch"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: ClipParameters


class ServerMetadata(BaseModel):
    """Name, version and extensions of the service."""

    name: Literal["mme"]
    version: str
    extensions: list[str]


async def requested_model(request: Request, name: str, version: str | None = None) -> LoadedModel:
    """Return the loaded model, if it is the one that the path names."""
    loaded = engine_of(request).model()
    if name != loaded.name or version not in (None, loaded.version or UNVERSIONED):
        detail = f"loaded is {loaded.name}, version {loaded.version or UNVERSIONED}"
        raise Problem("not-found", detail, error=detail)
    return loaded


RequestedModel = Annotated[LoadedModel, Depends(requested_model)]

_TAGS: list[str | Any] = ["Open Inference Protocol"]
server_router = APIRouter(prefix="/v2", tags=_TAGS)
model_router = APIRouter(
    prefix="/v2/models/{name}",
    tags=_TAGS,
    dependencies=[Security(bearer), Depends(check_caller)],
    responses=documented("not-found", *PER_CALL),
)


@server_router.get("", summary="Describe the service")
async def server_metadata(request: Request) -> ServerMetadata:
    """Name, version and extensions."""
    return ServerMetadata(name="mme", version=request.app.version, extensions=[])


@server_router.get("/health/live", summary="Is the process alive?")
async def live() -> dict[Literal["live"], bool]:
    """Same as /health."""
    return {"live": True}


@server_router.get(
    "/health/ready",
    summary="Are requests answered?",
    responses=documented("model-not-loaded", "draining", "internal"),
)
async def ready(request: Request) -> dict[Literal["ready"], bool]:
    """Same as /ready."""
    engine_of(request).check_ready()
    return {"ready": True}


@model_router.get("", summary="Describe a model")
@model_router.get("/versions/{version}", summary="Describe a version")
async def model_metadata(loaded: RequestedModel) -> ModelMetadata:
    """Name, versions, inputs and outputs."""
    clip = loaded.classifier.config.clip
    frames = TensorMetadata(name="frames", datatype="UINT8", shape=[-1, clip.total_frames, clip.size, clip.size, 3])
    logits = TensorMetadata(name="logits", datatype="FP32", shape=[-1, len(loaded.classifier.labels)])
    return ModelMetadata(
        name=loaded.name,
        versions=[loaded.version or UNVERSIONED],
        platform="pytorch",
        inputs=[frames],
        outputs=[logits],
        parameters=ClipParameters(
            fps=loaded.classifier.config.fps,
            stride_frames=clip.stride_frames,
            sampling=clip.sampling,
            snippets=clip.snippets,
        ),
    )


@model_router.get("/ready", summary="Is the model loaded?")
@model_router.get("/versions/{version}/ready", summary="Is the version loaded?")
async def model_ready(_loaded: RequestedModel) -> dict[Literal["ready"], bool]:
    """Readiness of this model."""
    return {"ready": True}


_INFER: dict[str, Any] = {
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


@model_router.post("/infer", summary="Logits of views", **_INFER)
@model_router.post("/versions/{version}/infer", summary="Logits of views", **_INFER)
async def infer(request: Request, loaded: RequestedModel) -> InferenceResponse:
    """Logits of each view; the client averages the views of a video."""
    engine = engine_of(request)
    async with admission_slot(request):
        body = await body_bytes(request, engine.settings)
        tensors, frames = await asyncio.to_thread(_parse_request, body, loaded, engine.settings.max_batch)
        views = [Views(view[None], None, 0.0) for view in frames]
        rows = await while_connected(request, engine.predict(loaded, views))

    data = np.stack([row.logits for row in rows])  # (V, K)
    logits = OutputTensor(name="logits", datatype="FP32", shape=list(data.shape), data=data.ravel().tolist())
    return InferenceResponse(
        model_name=loaded.name,
        model_version=loaded.version or UNVERSIONED,
        id=tensors.id,
        outputs=[logits],
    )


def _parse_request(
    body: bytes, loaded: LoadedModel, max_views: int
) -> tuple[InferenceRequest, UInt8[np.ndarray, "V T S S 3"]]:
    try:
        request = InferenceRequest.model_validate_json(body)
    except ValidationError as error:
        if any(fault["type"] == "json_invalid" for fault in error.errors()):
            raise Problem("malformed-body", "not JSON", error="not JSON") from error
        raise _invalid_tensor(faults(error)) from error

    (tensor,) = request.inputs
    clip = loaded.classifier.config.clip
    num_views, *shape = tensor.shape
    if shape != [clip.total_frames, clip.size, clip.size, 3] or num_views > max_views:
        expected = f"[1 to {max_views}, {clip.total_frames}, {clip.size}, {clip.size}, 3]"
        raise _invalid_tensor(f"inputs.0.shape: {tensor.shape} must be {expected}")

    try:
        values = np.asarray(tensor.data)
    except ValueError as error:
        raise _invalid_tensor("inputs.0.data: the nested lists have different lengths") from error
    if values.dtype.kind not in "iu" or values.size != num_views * np.prod(shape):
        raise _invalid_tensor(f"inputs.0.data: {values.size} values of {values.dtype} are not {tensor.shape} of UINT8")
    if values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
        raise _invalid_tensor(f"inputs.0.data: [{values.min()}, {values.max()}] is not within [0, 255]")
    return request, values.astype(np.uint8).reshape(tensor.shape)


def _invalid_tensor(detail: str) -> Problem:
    return Problem("invalid-parameter", detail, error=detail)  # the protocol's own member for errors is `error`
