"""Callbacks of a training: curves, throughput, and a probe of the encoder every few epochs."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from mme.models.encoder import VideoEncoder
from mme.system.files import atomic_path
from mme.training.loop.module import TrainingModule

MAX_WAITING_RATIO = 0.5
"""`Throughput` warns if data loading takes more than this share of an epoch."""

LogMetrics = Callable[[Mapping[str, float], int], None]
"""Receives the metrics of an epoch and its number."""

_log = logging.getLogger(__name__)


def finished_epochs(trainer: lightning.Trainer, module: lightning.LightningModule) -> int:
    """Return the epochs after the present pass over the data, which may count as several."""
    return (trainer.current_epoch + 1) * _epochs_per_pass(module)


def _epochs_per_pass(module: lightning.LightningModule) -> int:
    assert isinstance(module, TrainingModule)
    return module.optimised.epochs_per_pass


class Curves(Callback):
    """Write the metrics of each epoch to a CSV file and pass them on.

    The rows are part of the checkpoint, so the file of a resumed run holds the whole curve.
    """

    def __init__(self, path: Path, log_metrics: LogMetrics) -> None:
        self.path = path
        self.log_metrics = log_metrics
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Collect the metrics of an epoch, validation included; rank 0 records them."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        epoch = finished_epochs(trainer, pl_module) - 1
        self.rows.append({"epoch": epoch, **metrics})
        if trainer.is_global_zero:
            self._write()
            self.log_metrics(metrics, epoch)

    def _write(self) -> None:
        names = ["epoch", *sorted({name for row in self.rows for name in row if name != "epoch"})]
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of an interrupted run."""
        self.rows = list(state_dict["rows"])


class Throughput(Callback):
    """Pass on the clips per second of each epoch and the share of it spent waiting for batches.

    The names begin with ``system/``, as MLflow's own metrics of the machine do. They are not results: they stay out of
    the curves and are not compared when a run is reproduced.
    """

    def __init__(self, log_metrics: LogMetrics) -> None:
        self.log_metrics = log_metrics
        self._epoch_start = 0.0
        self._step_end = 0.0
        self._waited = 0.0
        self._num_clips = 0
        self._warned = False

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = self._step_end = time.perf_counter()
        self._waited = 0.0
        self._num_clips = 0

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Count the wait for the batch."""
        self._waited += time.perf_counter() - self._step_end
        self._num_clips += len(next(iter(batch.values())))

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the end of the step; it reads its losses, so a GPU has finished as well."""
        self._step_end = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Pass the figures on; validation is not counted."""
        seconds = self._step_end - self._epoch_start
        if not trainer.is_global_zero or seconds <= 0:
            return
        waiting = self._waited / seconds
        clips_per_second = self._num_clips * trainer.world_size / seconds
        metrics = {"system/clips_per_second": clips_per_second, "system/waiting": waiting}
        self.log_metrics(metrics, finished_epochs(trainer, pl_module) - 1)

        # The first epoch fills the frame cache.
        if waiting > MAX_WAITING_RATIO and trainer.current_epoch > 0 and not self._warned:
            self._warned = True
            _log.warning(
                "%.0f %% of an epoch is spent waiting for batches: see runtime.num_loader_workers", 100 * waiting
            )


class PeriodicProbe(Callback):
    """Probe the encoder every few epochs and after the last one.

    The rows are part of the checkpoint, so a resumed run keeps those of before.

    Args:
        every_epochs: epochs from one probe to the next.
        measure: returns the metrics of an encoder.
        log_metrics: receives the metrics and the number of finished epochs; it may end the training by an exception.

    Attributes:
        rows: for each probe ``epoch`` (finished epochs), ``seconds`` of training so far without probes, and metrics.
        seconds: seconds of training so far.
    """

    def __init__(
        self, every_epochs: int, measure: Callable[[VideoEncoder], dict[str, float]], log_metrics: LogMetrics
    ) -> None:
        self.every_epochs = every_epochs
        self.measure = measure
        self.log_metrics = log_metrics
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._epoch_start = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock, and probe if it is time."""
        self.seconds += time.perf_counter() - self._epoch_start
        epoch = finished_epochs(trainer, pl_module)
        passed = epoch // self.every_epochs > (epoch - _epochs_per_pass(pl_module)) // self.every_epochs
        if not passed and trainer.current_epoch + 1 != trainer.max_epochs:
            return
        encoder = pl_module.model.encoder  # type: ignore[union-attr]
        metrics = self.measure(encoder)  # type: ignore[arg-type]
        self.rows.append({"epoch": epoch, "seconds": round(self.seconds, 1), **metrics})
        self.log_metrics(metrics, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the seconds so far."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of an interrupted run."""
        self.rows = list(state_dict["rows"])
        self.seconds = state_dict["seconds"]
