"""Section ``runtime``: values that change no result, only where and how fast it is computed."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mme.config.base import NonNegative, Positive, PositiveFloat, Ratio, Section


class RuntimeParams(Section):
    """Processes, devices, memory, limits and storage.

    The only section with defaults. No stage of ``dvc.yaml`` depends on it, and unfinished work is found whatever its
    values are. It holds for all stages: a value for one stage alone goes on the command line, as in
    ``dvc exp run finetune -S runtime.accumulate=2``.

    Attributes:
        experiment: MLflow experiment of the runs.
        num_workers: processes that encode, decode and track.
        device: of training and evaluation.
        devices: training processes per node, one per device.
        num_nodes: machines that train together.
        executor: processes of this machine, or the workers of a Ray cluster, for ingest and trajectories.
        deadline_s: seconds after which the decoder of a file is killed.
        max_bad_ratio: share of bad files above which ingest and trajectories fail.
        videos_per_shard: videos per file of tracks.
        accumulate: parts that a device cuts its share of a batch into, one forward and backward pass each.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: apply ``torch.compile`` to the transformer blocks.
        num_loader_workers: processes that load batches while a step runs; 0 = the step waits for its batch.
        frame_cache_mb: decoded frames kept in memory.
        eval_batch_size: views or clips per forward pass of evaluation and probes.
        sweep_storage: journal file, or the address of a PostgreSQL database for trials on several hosts.
        sweep_heartbeat_s: PostgreSQL: a trial whose host is silent for twice as long is tried again.
    """

    experiment: Annotated[str, Field(min_length=1)] = "mme"
    num_workers: Positive = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive = 1
    num_nodes: Positive = 1
    executor: Literal["local", "ray"] = "local"
    deadline_s: PositiveFloat = 60.0
    max_bad_ratio: Ratio = 0.0
    videos_per_shard: Positive = 256
    accumulate: Positive = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    num_loader_workers: Annotated[int, Field(ge=0)] = 1
    frame_cache_mb: NonNegative = 2048
    eval_batch_size: Positive = 32
    sweep_storage: Annotated[str, Field(min_length=1)] = "optuna.journal"
    sweep_heartbeat_s: Positive = 60

    @property
    def num_processes(self) -> int:
        """Processes that train together, one per device."""
        return self.devices * self.num_nodes

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if re.match(r"[^:/]+://[^/@]*:[^/@]*@", self.sweep_storage):
            raise ValueError(
                "sweep_storage: holds a password; give it by PGPASSWORD or ~/.pgpass, parameters are recorded"
            )
        return self


DEFAULT_RUNTIME = RuntimeParams()
