"""Settings of the service, from environment variables with the prefix ``MME_``."""

from __future__ import annotations

import re
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import joblib  # type: ignore[import-untyped]
from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mme.config import ModelPrecision
from mme.config.base import NonNegative, Positive, PositiveFloat, Ratio

_SHA256_DIGITS = 64
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d+)?")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings of the service; ``MME_MAX_QUEUE=16`` sets ``max_queue``.

    Attributes:
        model: a model folder, or ``models:/NAME@alias`` in the MLflow registry.
        precision: numbers that the model computes in, ``32`` or ``bf16``, for processors that have instructions for it.
        poll_s: interval at which the folder or the alias is checked for another version.
        max_upload_bytes: size of a request's whole body.
        upload_timeout_s: time within which a body must arrive.
        max_files: files of one ``POST /classify/batch``.
        max_seconds, max_frames, max_pixels: a video's length and frame size, read from its header before decoding.
        max_segments: clips that a request may ask for.
        max_windows: windows along one video, see ``POST /classify?window_s=``.
        long_max_upload_bytes, long_upload_timeout_s, long_max_seconds, long_deadline_s: the same limits for videos that
            are classified window by window; ``max_frames`` grows with the seconds.
        long_max_queue: such videos in progress or waiting; one more is answered with 503.
        deadline_s: time from the end of the upload to the answer.
        decode_timeout_s: wall and CPU time of decoding one video; its process is killed after it.
        decode_memory_mb: address space that a decoding process may take beyond its size at start.
        max_queue: requests in progress or waiting; one more is answered with 503.
        max_batch: views in the model at a time, over all concurrent forward passes.
        max_wait_ms: time for which the first view of a batch waits for others.
        num_decode_workers, torch_threads: 0 = the number of cores that this process may use, container limits included.
        temp_dir: folder of uploads while they are decoded.
        api_keys: SHA-256 (hexadecimal, comma-separated) of the accepted keys; none = open to all.
        rate_per_minute: requests per key or address; 0 = unlimited.
        cors_origins: origins (comma-separated, such as ``https://app.example``) whose pages may call; ``*`` = all.
        trusted_proxies: addresses or networks (comma-separated) of proxies whose ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` are believed; ``*`` = every peer.
        root_path: prefix under which a proxy shows the service, such as ``/motion``.
        drain_s: time after SIGTERM in which ``/ready`` answers 503 while requests are still accepted.
        drift_window: latest answers that are compared with the evaluation; at least ten per label are.
        shadow_model: another model that is compared with ``model``, such as ``models:/NAME@challenger``; None = none.
        shadow_share: share of the videos that it answers, too.
        feedback_dir: folder of the clips whose right labels callers send; None = ``POST /feedback`` does not exist.
        feedback_max_bytes: of that folder.
        feedback_max_days: age from which a clip is removed, counted from its latest label.
        feedback_short_side: pixels of the short side of a kept clip, at most.
    """

    model_config = SettingsConfigDict(env_prefix="MME_", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    model: Annotated[str, Field(min_length=1)] = "models/export"
    precision: ModelPrecision = "32"
    poll_s: PositiveFloat = 15.0

    max_upload_bytes: Positive = 64 * 2**20
    upload_timeout_s: PositiveFloat = 60.0
    max_files: Positive = 16
    max_seconds: PositiveFloat = 600.0
    max_frames: Positive = 36_000
    max_pixels: Positive = 4096 * 2304
    max_segments: Positive = 16
    max_windows: Positive = 3600
    long_max_upload_bytes: Positive = 2**30
    long_upload_timeout_s: PositiveFloat = 600.0
    long_max_seconds: PositiveFloat = 3600.0
    long_deadline_s: PositiveFloat = 600.0
    long_max_queue: Positive = 4

    deadline_s: PositiveFloat = 30.0
    decode_timeout_s: PositiveFloat = 10.0
    decode_memory_mb: Positive = 1024
    max_queue: Positive = 64
    max_batch: Positive = 32
    max_wait_ms: NonNegative = 5.0
    num_decode_workers: Annotated[int, Field(ge=0)] = 0
    torch_threads: Annotated[int, Field(ge=0)] = 0
    temp_dir: Path = Path(tempfile.gettempdir())

    api_keys: CommaSeparated = ()
    rate_per_minute: Annotated[int, Field(ge=0)] = 0
    cors_origins: CommaSeparated = ()
    trusted_proxies: CommaSeparated = ("127.0.0.1", "::1")
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    drain_s: NonNegative = 0.0
    drift_window: Positive = 500

    shadow_model: Annotated[str, Field(min_length=1)] | None = None
    shadow_share: Ratio = 0.1

    feedback_dir: Path | None = None
    feedback_max_bytes: Positive = 2**30
    feedback_max_days: PositiveFloat = 90.0
    feedback_short_side: Annotated[int, Field(ge=16, multiple_of=2)] = 256

    @field_validator("api_keys")
    @classmethod
    def _keys_are_hashes(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        keys = tuple(key.lower() for key in keys)
        for position, key in enumerate(keys):
            if len(key) != _SHA256_DIGITS or set(key) - set("0123456789abcdef"):
                raise ValueError(f"key {position} is not a SHA-256 in hexadecimal; write the hash, never the key")
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write scheme, host and port alone: https://app.example")
        return origins

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            if proxy != "*":
                ip_network(proxy)  # its error names the address; uvicorn would take anything and trust nobody
        return proxies

    def prepare_folders(self) -> None:
        """Make the folder of feedback, and write to it and to that of uploads.

        Raises:
            OSError: one of them cannot be written.
        """
        if self.feedback_dir is not None:
            self.feedback_dir.mkdir(parents=True, exist_ok=True)
        for folder in filter(None, (self.temp_dir, self.feedback_dir)):
            with tempfile.TemporaryDirectory(prefix="mme-serving-", dir=folder):
                pass

    @property
    def for_long_videos(self) -> Settings:
        """The settings with the limits of videos that are classified window by window."""
        return self.model_copy(
            update={
                "max_upload_bytes": self.long_max_upload_bytes,
                "upload_timeout_s": self.long_upload_timeout_s,
                "max_seconds": self.long_max_seconds,
                "max_frames": round(self.max_frames * self.long_max_seconds / self.max_seconds),
                "deadline_s": self.long_deadline_s,
            }
        )

    @property
    def num_decoders(self) -> int:
        """Number of decoding processes."""
        return self.num_decode_workers or joblib.cpu_count()

    @property
    def num_threads(self) -> int:
        """Threads of the model, over all concurrent forward passes."""
        return self.torch_threads or joblib.cpu_count()


def stated_faults(error: ValidationError) -> str:
    """Return in one line which environment variables have values that are no settings."""
    return "; ".join(
        f"MME_{'_'.join(map(str, fault['loc'][:1])).upper()}"
        # What was given for a hash of a key may be the key.
        + (f"={fault['input']}" if fault["loc"][:1] != ("api_keys",) else "")
        + f": {fault['msg']}"
        for fault in error.errors(include_url=False)
    )
