"""Settings of the service, from environment variables with the prefix ``MME_``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

_SHA256_DIGITS = 64


def available_cpus() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """What an operator may change; ``MME_MAX_QUEUE=16`` sets ``max_queue``.

    Attributes:
        model: a model folder, or ``models:/NAME@alias`` in the MLflow registry.
        poll_s: how often the folder or the alias is looked at for another version.
        max_upload_bytes: a request's whole body.
        upload_timeout_s: a body must have arrived within this time.
        max_files: files of one ``POST /classify/batch``.
        max_seconds, max_frames, max_pixels: a video's length and picture size, read from its header before decoding.
        max_segments: clips that a request may ask for.
        deadline_s: from the end of the upload to the answer.
        decode_timeout_s: wall and CPU time for one video; its process is killed after it.
        decode_memory_mb: address space that a decoding process may take beyond what it has at its start.
        max_queue: requests in work or waiting; one more is answered with 503.
        max_batch: views in the model at a time, in all forward passes that run side by side.
        max_wait_ms: how long the first view of a batch waits for others.
        num_decode_workers, torch_threads: 0 = chosen by the number of cores.
        temp_dir: where uploads are kept while they are decoded.
        api_keys: SHA-256 (hexadecimal, comma-separated) of the keys that may call; none = open to all.
        rate_per_minute: requests of one key or address; 0 = unlimited.
        drain_s: after SIGTERM, how long ``/ready`` says no while requests are still taken.
    """

    model_config = SettingsConfigDict(env_prefix="MME_", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    model: Annotated[str, Field(min_length=1)] = "models/export"
    poll_s: PositiveFloat = 15.0

    max_upload_bytes: Positive = 64 * 2**20
    upload_timeout_s: PositiveFloat = 60.0
    max_files: Positive = 16
    max_seconds: PositiveFloat = 600.0
    max_frames: Positive = 36_000
    max_pixels: Positive = 4096 * 2304
    max_segments: Positive = 16

    deadline_s: PositiveFloat = 30.0
    decode_timeout_s: PositiveFloat = 10.0
    decode_memory_mb: Positive = 1024
    max_queue: Positive = 64
    max_batch: Positive = 32
    max_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    num_decode_workers: Annotated[int, Field(ge=0)] = 0
    torch_threads: Annotated[int, Field(ge=0)] = 0
    temp_dir: Path = Path(tempfile.gettempdir())

    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    rate_per_minute: Annotated[int, Field(ge=0)] = 0
    drain_s: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip().lower() for part in value.split(",") if part.strip())

    @field_validator("api_keys")
    @classmethod
    def _keys_are_hashes(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for position, key in enumerate(keys):
            if len(key) != _SHA256_DIGITS or set(key) - set("0123456789abcdef"):
                raise ValueError(f"key {position} is not a SHA-256 in hexadecimal; write the hash, never the key")
        return keys

    @property
    def num_decoders(self) -> int:
        """Decoding processes: as many as cores, unless set."""
        return self.num_decode_workers or available_cpus()

    @property
    def num_threads(self) -> int:
        """Threads of the model, all forward passes together: as many as cores, unless set."""
        return self.torch_threads or available_cpus()
