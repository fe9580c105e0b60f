"""Query parameters and answers of the service, as documented in its OpenAPI document."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mme.config import ModelPrecision
from mme.evaluation.classifier import Prediction
from serving.problems import ProblemDocument


class Crops(IntEnum):
    """Crops per frame: the centre, or three along the long side."""

    CENTRE = 1
    THREE = 3


class ViewOptions(BaseModel):
    """Query parameters of a classification."""

    model_config = ConfigDict(frozen=True)

    top_k: Annotated[int, Field(ge=1, le=1000, description="Number of labels in the answer.")] = 5
    segments: Annotated[int | None, Field(ge=1, description="Clips along the video; default: the model's.")] = None
    crops: Annotated[Crops | None, Field(description="Crops per frame; default: the model's.")] = None
    logits: Annotated[bool, Field(description="Add the logits of all labels.")] = False


class AnswerFormat(StrEnum):
    """Form of the answer for windows."""

    JSON = "json"
    CSV = "csv"
    VTT = "vtt"


class ClassifyOptions(ViewOptions):
    """Query parameters of the classification of one video, whole or window by window."""

    window_s: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Label windows of this many seconds along the video."),
    ] = None
    hop_s: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Seconds from one window to the next; default: window_s."),
    ] = None
    format: Annotated[
        AnswerFormat | None, Field(description="Of an answer for windows; default: by the header Accept, else JSON.")
    ] = None


class ModelName(BaseModel):
    """Name, version and content digest of a model."""

    name: str
    version: Annotated[str | None, Field(description="In the registry; null for a folder that was never registered.")]
    digest: str


class VideoFacts(BaseModel):
    """Metadata of a video; width and height of the upright picture."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    codec: str


class ViewsTaken(BaseModel):
    """Views whose logits were averaged; a short video has fewer than segments x crops."""

    segments: int
    crops: int
    num_views: int


class AnswerTimings(BaseModel):
    """Milliseconds: upload, wait for a decoder, decoding, wait for the model, the model, and the total."""

    upload_ms: float
    decode_wait_ms: float
    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


_VIDEO = {"num_frames": 32, "fps": 16.0, "width": 64, "height": 64, "duration_s": 2.0, "codec": "h264"}
_ANSWER: dict[str, Any] = {
    "predictions": [
        {"label": "rotate-left", "probability": 0.93},
        {"label": "orbit-left", "probability": 0.04},
    ],
    "logits": [-1.2, 2.9, 6.1],
    "model": {"name": "mme-motion-primitives", "version": "3", "digest": "4f1c2a90d7be6358"},
    "video": _VIDEO,
    "views": {"segments": 2, "crops": 1, "num_views": 2},
    "timings": {
        "upload_ms": 1.2, "decode_wait_ms": 0.3, "decode_ms": 9.1,
        "queue_ms": 0.4, "inference_ms": 14.8, "total_ms": 26.0,
    },
    "request_id": "9f8b6c1e0a4d4d1e8a53f1b2c7d60e94",
}  # fmt: skip


class ClassificationAnswer(BaseModel):
    """Labels of one video."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ANSWER]})

    predictions: Annotated[list[Prediction], Field(description="The most probable labels, best first.")]
    logits: Annotated[
        list[float] | None,
        Field(description="On request: one per label in the order of /labels, mean over the views."),
    ]
    model: ModelName
    video: VideoFacts
    views: ViewsTaken
    timings: AnswerTimings
    request_id: str


class WindowLabels(BaseModel):
    """Labels of one window."""

    start_s: Annotated[float, Field(description="From the beginning of the video.")]
    end_s: float
    predictions: Annotated[list[Prediction], Field(description="The most probable labels, best first.")]


class LabelSegment(BaseModel):
    """Neighbouring windows of one label."""

    start_s: Annotated[float, Field(description="Two windows that overlap meet in the middle of the overlap.")]
    end_s: float
    label: str
    probability: Annotated[float, Field(description="Mean over the windows.")]
    num_windows: int


class WindowTimings(BaseModel):
    """Milliseconds: upload, decoding, during which the model works, and the total."""

    upload_ms: float
    decode_ms: float
    total_ms: float


_WINDOWS: dict[str, Any] = {
    "window_s": 1.0,
    "hop_s": 0.5,
    "windows": [
        {"start_s": 0.0, "end_s": 1.0, "predictions": [{"label": "rotate-left", "probability": 0.93}]},
        {"start_s": 0.5, "end_s": 1.5, "predictions": [{"label": "rotate-left", "probability": 0.87}]},
        {"start_s": 1.0, "end_s": 2.0, "predictions": [{"label": "orbit-left", "probability": 0.71}]},
    ],
    "segments": [
        {"start_s": 0.0, "end_s": 1.25, "label": "rotate-left", "probability": 0.9, "num_windows": 2},
        {"start_s": 1.25, "end_s": 2.0, "label": "orbit-left", "probability": 0.71, "num_windows": 1},
    ],
    "model": _ANSWER["model"],
    "video": _VIDEO,
    "timings": {"upload_ms": 1.2, "decode_ms": 21.5, "total_ms": 48.0},
    "request_id": "9f8b6c1e0a4d4d1e8a53f1b2c7d60e94",
}


class WindowsAnswer(BaseModel):
    """Labels along one video."""

    model_config = ConfigDict(json_schema_extra={"examples": [_WINDOWS]})

    window_s: float
    hop_s: float
    windows: Annotated[list[WindowLabels], Field(description="In temporal order; the last one ends with the video.")]
    segments: Annotated[list[LabelSegment], Field(description="Neighbours of one label, joined.")]
    model: ModelName
    video: VideoFacts
    timings: WindowTimings
    request_id: str


class TrackWindow(BaseModel):
    """Points on a grid over one frame, tracked through the following frames."""

    start_frame: Annotated[int, Field(description="Position of that frame in the video at ``fps``.")]
    start_s: Annotated[float, Field(description="Time of that frame from the video's start.")]
    paths: Annotated[
        list[list[tuple[float, float]]],
        Field(
            description="A path per point: (x, y) at successive frames from the start frame on, as fractions of the "
            "upright frame's width and height. It ends where the point leaves the frame or cannot be tracked."
        ),
    ]


_TRACKS: dict[str, Any] = {
    "video": _VIDEO,
    "fps": 16.0,
    "num_steps": 12,
    "windows": [{"start_frame": 0, "start_s": 0.0, "paths": [[[0.03, 0.03], [0.05, 0.03]], [[0.1, 0.03]]]}],
    "total_ms": 101.0,
    "request_id": "9f8b6c1e0a4d4d1e8a53f1b2c7d60e94",
}


class TracksOptions(BaseModel):
    """Query parameters of tracks."""

    start_s: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Where the tracks begin; default: spread over the video."),
    ] = None


class TracksAnswer(BaseModel):
    """Trajectories of points, to be drawn over the video."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TRACKS]})

    video: VideoFacts
    fps: Annotated[float, Field(description="Steps of a path per second: the video is sampled by time at this rate.")]
    num_steps: Annotated[int, Field(description="Steps of a path that was tracked to its end.")]
    windows: Annotated[list[TrackWindow], Field(description="In temporal order, without overlap.")]
    total_ms: float
    request_id: str


class BatchEntry(BaseModel):
    """Outcome of one file: a result or a problem."""

    index: Annotated[int, Field(description="Position of the file in the form.")]
    name: Annotated[str | None, Field(description="File name given by the client.")]
    status: int
    result: ClassificationAnswer | None
    problem: ProblemDocument | None


class BatchAnswer(BaseModel):
    """One entry per file, in the order of the form."""

    results: list[BatchEntry]


_FEEDBACK: dict[str, Any] = {
    "label": "orbit-left",
    "answered": _ANSWER["predictions"][0],
    "former_label": None,
    "clip": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c",
    "model": _ANSWER["model"],
    "request_id": _ANSWER["request_id"],
}


class FeedbackAnswer(BaseModel):
    """What was kept: the clip with its right label, and the model's own answer to it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FEEDBACK]})

    label: str
    answered: Annotated[Prediction, Field(description="The most probable label of the model.")]
    former_label: Annotated[str | None, Field(description="Sent for the same file before; the new label replaces it.")]
    clip: Annotated[str, Field(description="SHA-256 of the file, under which it is kept.")]
    model: ModelName
    request_id: str


class Labels(BaseModel):
    """Labels in the order of the logits."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"labels": ["left", "right"]}]})

    labels: list[str]


class ClipFacts(BaseModel):
    """Input clip: ``snippets`` stretches of ``num_frames`` frames, one every ``stride_frames``, counted at ``fps``."""

    snippets: Annotated[int, Field(description="Stretches, spread over the whole video.")]
    num_frames: Annotated[int, Field(description="Frames of a stretch.")]
    stride_frames: int
    fps: Annotated[float, Field(description="Frames per second; any video is sampled by time at this rate.")]
    size: Annotated[int, Field(description="Pixels per side.")]


class DefaultViews(BaseModel):
    """Views that are averaged unless a request asks for others."""

    segments: int
    crops: int


class ModelCard(ModelName):
    """Description of the loaded model."""

    address: Annotated[str, Field(description="Address that the service loads models from.")]
    loaded_at: Annotated[str, Field(description="ISO 8601, UTC.")]
    num_labels: int
    precision: Annotated[ModelPrecision, Field(description="Numbers that the model computes in.")]
    clip: ClipFacts
    views: DefaultViews
    metrics: dict[str, float]
    provenance: dict[str, Any]


class Readiness(BaseModel):
    """Readiness to answer, and the model that answers."""

    status: Literal["ready"]
    model: ModelName
    last_load_error: Annotated[
        str | None,
        Field(description="Error of the last attempt to load another model; the model named here still answers."),
    ]
    feedback: Annotated[bool, Field(description="Whether POST /feedback exists.")]
