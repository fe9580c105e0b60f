"""Pretraining on clips made of noise, small enough for a step to take milliseconds, and watched step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from mme.config import Params
from mme.targets.grid import TargetSpec
from mme.training.loop.loaders import training_loader
from mme.training.loop.module import TrainingModule
from mme.training.loop.trainer import build_trainer, fit
from mme.training.pretrain import PretrainModule
from tests.small_data import small_params, split_options

NUM_CLIPS, NUM_CLASSES = 8, 4
STATISTICS = {"position": (torch.zeros(2), torch.tensor(0.3)), "hog": (torch.zeros(9), torch.tensor(1.0))}


class Noise(Dataset[dict[str, Tensor]]):
    """Clips, masks, targets and labels; each clip has another number of valid points, and takes ``seconds``."""

    def __init__(self, params: Params, bad: int | None = None, seconds: float = 0.0) -> None:
        self.seconds = seconds
        generator = torch.Generator().manual_seed(1)
        spec = TargetSpec.from_params(params.clip, params.model, params.pretrain)
        grid = (spec.num_tubelets, 8, 8)  # one node of tracks per cell
        self.samples = [
            {
                "hidden": torch.arange(32) < 20,
                "luma": torch.randint(
                    16, 236, (len(spec.dense_frames), 32, 32), dtype=torch.uint8, generator=generator
                ),
                "chroma": torch.randint(96, 160, (4, 2, 16, 16), dtype=torch.uint8, generator=generator),
                "clip": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator),
                "displacements": 0.3 * torch.randn(*grid, spec.length, 2, generator=generator),
                "num_valid": spec.length * (torch.arange(8)[:, None] <= index).expand(grid).to(torch.uint8),
                "homographies": torch.eye(3).repeat(spec.num_tubelets, spec.length, 1, 1),
                "grid": torch.tensor([8, 8]),
                "node_px": torch.tensor(4),
                "crop": torch.tensor([0.0, 0.0, 32.0, 32.0], dtype=torch.float64),
                "flip": torch.tensor(False),
                "label": torch.tensor(index % NUM_CLASSES),
            }
            for index in range(NUM_CLIPS)
        ]
        if bad is not None:
            self.samples[bad]["homographies"][:] = math.nan

    def __len__(self) -> int:
        return NUM_CLIPS

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        return self.samples[key[1]]


class Watch(Callback):
    """Keeps the losses and the weights after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.losses.append(float(pl_module.step_losses["loss"]))
        self.weights.append(flat(pl_module.model))


class Stop(Callback):
    """Ends the process's training in the middle of an epoch, as a killed machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def flat(model: torch.nn.Module) -> Tensor:
    """All parameters in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def params_with(device: str = "cpu", **options: Any) -> Params:
    """Return parameters for three epochs of one step; ``options`` of ``runtime`` and ``pretrain`` change them."""
    runtime, pretrain = split_options(options)
    return small_params(runtime={"device": device, **runtime}, pretrain={"epochs": 3, "batch_size": 8, **pretrain})


def train(
    work: Path, params: Params, bad: int | None = None, callbacks: Sequence[Callback] = (), seconds: float = 0.0
) -> tuple[PretrainModule, Watch]:
    """Pretraining on noise, from ``last.ckpt`` in ``work`` on if there is one."""
    watch = Watch()
    trainer = build_trainer(work, params.runtime, params.pretrain, [watch, *callbacks])
    batches = training_loader(Noise(params, bad, seconds), params.pretrain, params.runtime, params.seed)
    torch.manual_seed(0)
    module = PretrainModule(params, STATISTICS, len(batches))
    fit(trainer, module, batches, None, work)
    return module, watch
