"""What pretraining and finetuning share: the trainer, its curves, its checkpoints."""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from jaxtyping import Float, UInt8
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mme.config import ClipParams, Precision
from mme.data.sampler import EpochSampler
from mme.files import atomic_path

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its tips are no news of a run

_IGNORED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 beside torch 2.13
    r"Checkpoint directory .* exists and is not empty.*",  # it holds what is resumed
    r"The '\w+' does not have many workers.*",  # the frame cache makes workers needless for small data sets
)

LogMetrics = Callable[[Mapping[str, float], int], None]
"""Receives the metrics of an epoch and its number."""


def model_input(frames: UInt8[Tensor, "B T H W 3"], clip: ClipParams) -> Float[Tensor, "B 3 T H W"]:
    """Normalise a batch of clips."""
    mean = torch.tensor(clip.mean, device=frames.device) * 255
    std = torch.tensor(clip.std, device=frames.device) * 255
    return ((frames.float() - mean) / std).permute(0, 4, 1, 2, 3).contiguous()


def loader(
    dataset: Dataset[Any], batch_size: int, seed: int, training: bool, num_workers: int
) -> DataLoader[dict[str, Tensor]]:
    """Batches in the order of `EpochSampler`; in training only full ones, of at most the data set's size."""
    size: int = len(dataset)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_size=min(batch_size, size),
        sampler=EpochSampler(size, seed, shuffle=training),
        drop_last=training,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def seed_step(seed: int, step: int) -> None:
    """Seed what a step draws outside the data sets (drop path, mixup) from its number alone, so that runs resume."""
    state = np.random.SeedSequence((seed, step)).generate_state(2)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - timm's Mixup draws from the global generator


class Curves(Callback):
    """Writes the metrics of each epoch to a CSV file and passes them on."""

    def __init__(self, path: Path, log_metrics: LogMetrics) -> None:
        self.path, self.log_metrics = path, log_metrics
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Collect an epoch (validation, if any, has ended before)."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        self._write()
        self.log_metrics(metrics, trainer.current_epoch)

    def _write(self) -> None:
        names = ["epoch", *sorted({name for row in self.rows for name in row if name != "epoch"})]
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, so that a resumed run writes the whole curve."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of an interrupted run."""
        self.rows = list(state_dict["rows"])


def nested(row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """A row of `Curves`, ``{"val/top1": x}``, as ``{"val": {"top1": x}}``, the form that DVC shows as a table."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        group, _, rest = name.partition("/")
        if rest:
            groups.setdefault(group, {})[rest] = value
    return groups


def build_trainer(
    work: Path, *, epochs: int, precision: Precision, clip_grad: float, device: str, callbacks: list[Callback]
) -> lightning.Trainer:
    """A Lightning trainer that saves ``last.ckpt`` in ``work`` after each epoch and shows a progress bar."""
    checkpoint = ModelCheckpoint(dirpath=work, filename="last", save_top_k=1, enable_version_counter=False)
    return lightning.Trainer(
        accelerator=device if device != "cuda" else "gpu",
        devices=1,
        max_epochs=epochs,
        precision=precision,
        gradient_clip_val=clip_grad,
        callbacks=[*callbacks, checkpoint, RichProgressBar()],
        logger=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    work: Path,
) -> None:
    """Train, from ``last.ckpt`` in ``work`` on if an interrupted run left one."""
    last = work / "last.ckpt"
    resume = last if last.exists() else None
    with warnings.catch_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, training, validation, ckpt_path=resume, weights_only=False if resume else None)
