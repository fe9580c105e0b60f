"""What the service answers with, as it stands in the OpenAPI document."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.problems import ProblemDocument


class Crops(IntEnum):
    """Squares cut from a frame: the centre, or three along the long side."""

    CENTRE = 1
    THREE = 3


class Options(BaseModel):
    """How a video is looked at and what the answer holds."""

    model_config = ConfigDict(frozen=True)

    top_k: int = 5
    segments: int | None = None
    crops: Crops | None = None
    logits: bool = False


class Prediction(BaseModel):
    """A label and its probability."""

    label: str
    probability: Annotated[float, Field(ge=0, le=1)]


class ModelName(BaseModel):
    """Which model answered. The digest names its content wherever it came from."""

    name: str
    version: Annotated[str | None, Field(description="In the registry; null for a folder that was never registered.")]
    digest: str


class VideoFacts(BaseModel):
    """What the file holds; width and height after rotation."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    codec: str


class ViewsTaken(BaseModel):
    """The views whose logits were averaged. A short video has fewer than segments x crops."""

    segments: int
    crops: int
    num_views: int


class Timings(BaseModel):
    """Milliseconds: receiving, waiting for and doing the decoding, waiting for and in the model, all together."""

    upload_ms: float
    decode_wait_ms: float
    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


_ANSWER: dict[str, Any] = {
    "predictions": [
        {"label": "rotate-left", "probability": 0.93},
        {"label": "orbit-left", "probability": 0.04},
    ],
    "logits": [-1.2, 2.9, 6.1],
    "model": {"name": "mme-motion-primitives", "version": "3", "digest": "4f1c2a90d7be6358"},
    "video": {"num_frames": 32, "fps": 16.0, "width": 64, "height": 64, "duration_s": 2.0, "codec": "h264"},
    "views": {"segments": 2, "crops": 1, "num_views": 2},
    "timings": {
        "upload_ms": 1.2, "decode_wait_ms": 0.3, "decode_ms": 9.1,
        "queue_ms": 0.4, "inference_ms": 14.8, "total_ms": 26.0,
    },
    "request_id": "9f8b6c1e0a4d4d1e8a53f1b2c7d60e94",
}  # fmt: skip


class ClassificationAnswer(BaseModel):
    """The answer for one video."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ANSWER]})

    predictions: Annotated[list[Prediction], Field(description="The most probable labels, best first.")]
    logits: Annotated[
        list[float] | None,
        Field(description="If asked for: of every label in the order of /labels, mean over the views."),
    ]
    model: ModelName
    video: VideoFacts
    views: ViewsTaken
    timings: Timings
    request_id: str


class TrackWindow(BaseModel):
    """Points on a grid over one frame, followed through the frames after it."""

    start_frame: int
    start_s: Annotated[float, Field(description="Of that frame, from the video's start.")]
    paths: Annotated[
        list[list[tuple[float, float]]],
        Field(
            description="A path for each point: (x, y) at successive frames from the start frame on, as shares of the "
            "upright picture's width and height. It ends where the point leaves the picture or cannot be followed."
        ),
    ]


_TRACKS: dict[str, Any] = {
    "video": {"num_frames": 32, "fps": 16.0, "width": 64, "height": 64, "duration_s": 2.0, "codec": "h264"},
    "num_steps": 12,
    "windows": [{"start_frame": 0, "start_s": 0.0, "paths": [[[0.03, 0.03], [0.05, 0.03]], [[0.1, 0.03]]]}],
    "total_ms": 101.0,
    "request_id": "9f8b6c1e0a4d4d1e8a53f1b2c7d60e94",
}


class TracksAnswer(BaseModel):
    """How points move, to be drawn over the video."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TRACKS]})

    video: VideoFacts
    num_steps: Annotated[int, Field(description="Steps of a path that could be followed to its end.")]
    windows: Annotated[list[TrackWindow], Field(description="In the order of time; they do not overlap.")]
    total_ms: float
    request_id: str


class BatchEntry(BaseModel):
    """What became of one file: an answer or a problem."""

    index: Annotated[int, Field(description="Position of the file in the form.")]
    name: Annotated[str | None, Field(description="The file name that the client gave.")]
    status: int
    result: ClassificationAnswer | None
    problem: ProblemDocument | None


class BatchAnswer(BaseModel):
    """One entry a file, in the order of the form."""

    results: list[BatchEntry]


class Labels(BaseModel):
    """The labels in the order of the logits."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"labels": ["left", "right"]}]})

    labels: list[str]


class ClipFacts(BaseModel):
    """What the model sees of a video at a time."""

    num_frames: int
    stride_frames: int
    size: Annotated[int, Field(description="Pixels a side.")]


class DefaultViews(BaseModel):
    """Views that are averaged unless a request asks for others."""

    segments: int
    crops: int


class ModelCard(ModelName):
    """The model that answers now."""

    address: Annotated[str, Field(description="What the service was told to load.")]
    loaded_at: Annotated[str, Field(description="ISO 8601, UTC.")]
    num_labels: int
    clip: ClipFacts
    views: DefaultViews
    metrics: dict[str, float]
    provenance: dict[str, Any]


class Health(BaseModel):
    """The process runs."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether requests are answered, and by which model."""

    status: Literal["ready"]
    model: ModelName
    last_load_error: Annotated[
        str | None,
        Field(description="Why the last look for another model failed; the one named here goes on answering."),
    ]
