"""Masked motion encoding as a Lightning module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mme.config import Params
from mme.data.datasets import PretrainDataset
from mme.data.manifest import Manifest
from mme.models.encoder import gather_tokens
from mme.models.losses import masked_mse
from mme.models.motion_model import MotionModel
from mme.targets.store import TrackStore
from mme.training.loop import Curves, LogMetrics, build_trainer, fit, loader, model_input, seed_step
from mme.training.optim import parameter_groups, schedule

NUM_STATISTICS_SAMPLES = 256


def target_statistics(dataset: PretrainDataset) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of each target over valid hidden points of the first samples of epoch 0.

    Losses are measured in units of the target's variance: 1 is what a constant guess reaches, and position and shape
    weigh alike. The mean of positions is taken as zero (motion has no preferred direction); shapes have a mean for each
    orientation bin; each target has one deviation.
    """
    count = min(NUM_STATISTICS_SAMPLES, len(dataset))
    samples = [dataset[0, index] for index in range(count)]
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("position", "shape"):
        if name not in samples[0]:
            continue
        values = torch.cat([sample[name][sample["valid"]].flatten(0, -2) for sample in samples])  # (points, 2 or 9)
        if not len(values):
            raise ValueError(f"no valid points in the {name} targets of {count} clips: nothing to learn from")
        mean = values.mean(dim=0) if name == "shape" else torch.zeros(values.shape[-1])
        deviation = (values - mean).square().mean().sqrt()
        if deviation == 0:
            raise ValueError(f"the {name} targets of {count} clips are all equal: nothing to learn from")
        statistics[name] = (mean, deviation)
    return statistics


def pixel_targets(tubelets: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
    """Normalised pixels (He et al. 2022): each tubelet less its mean, over its deviation."""
    mean = tubelets.mean(dim=-1, keepdim=True)
    return (tubelets - mean) / (tubelets.var(dim=-1, keepdim=True) + 1e-6).sqrt()


class PretrainModule(lightning.LightningModule):
    """The masked motion model with its losses, in units of each target's variance.

    Args:
        params: the whole of ``params.yaml``.
        statistics: of `target_statistics`; kept in checkpoints.
        steps_per_epoch: optimiser steps, for the schedule.
    """

    def __init__(self, params: Params, statistics: dict[str, tuple[Tensor, Tensor]], steps_per_epoch: int) -> None:
        super().__init__()
        self.params, self.steps_per_epoch = params, steps_per_epoch
        self.model = MotionModel(params.model, params.clip, params.pretrain)
        for name, (mean, deviation) in statistics.items():
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_deviation", deviation)
        self.weights = {
            "position": params.pretrain.position_weight,
            "shape": params.pretrain.shape_weight,
            "pixel": 1.0,
        }

    def standardise(self, name: str, target: Tensor) -> Tensor:
        """A target in the units of the loss."""
        standard: Tensor = (target - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_deviation")
        return standard

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of each target and their weighted sum ``loss``."""
        clip, hidden = model_input(batch["clip"], self.params.clip), batch["hidden"]
        predictions = self.model(clip, hidden)
        losses = {}
        for name, predicted in predictions.items():
            if name == "pixel":
                target = pixel_targets(gather_tokens(self.model.encoder.patchify(clip), hidden))
                valid = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
            else:
                target, valid = self.standardise(name, batch[name]), batch["valid"]
            losses[f"{name}_loss"] = masked_mse(predicted.float(), target, valid)
        total = torch.stack([self.weights[name] * losses[f"{name}_loss"] for name in predictions]).sum()
        return {"loss": total, **losses}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step."""
        seed_step(self.params.run.seed, self.global_step)
        losses = self.losses(batch)
        self._log("train", losses, len(batch["clip"]))
        return losses["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Losses on held-out clips."""
        self._log("val", self.losses(batch), len(batch["clip"]))

    def _log(self, split: str, losses: dict[str, Tensor], batch_size: int) -> None:
        metrics = {f"{split}/{name}": value.detach() for name, value in losses.items()}
        if "position_loss" in losses:
            metrics[f"{split}/position_explained"] = 1 - losses["position_loss"].detach()
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=batch_size)
        if split == "train":
            self.log("loss", losses["loss"].detach(), prog_bar=True, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up and cosine by the step."""
        pretrain = self.params.pretrain
        groups = parameter_groups(self.model.named_parameters(), pretrain.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=pretrain.lr, betas=pretrain.betas)
        scheduler = schedule(
            optimizer,
            pretrain.lr,
            pretrain.warmup_epochs * self.steps_per_epoch,
            pretrain.epochs * self.steps_per_epoch,
            pretrain.min_lr_ratio,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def held_out_dataset(params: Params, manifest: Manifest, tracks: TrackStore) -> PretrainDataset | None:
    """Clips of the split ``val``; None where there are none, or no trajectories of them."""
    if not manifest.videos("val") or "val" not in params.trajectories.splits:
        return None
    return PretrainDataset(params, manifest, tracks, ["val"])


def run_pretraining(
    params: Params,
    manifest: Manifest,
    tracks: TrackStore,
    work: Path,
    log_metrics: LogMetrics,
    callbacks: Sequence[Callback] = (),
) -> tuple[PretrainModule, Curves]:
    """Pretrain as ``params`` say, from ``last.ckpt`` in ``work`` on if an interrupted run left one.

    Args:
        params: the whole of ``params.yaml``.
        manifest: names the videos; those of ``val`` with trajectories are held out and measured after each epoch.
        tracks: trajectories of the videos.
        work: folder for checkpoints and ``curves.csv``; only runs with equal parameters and data may share one.
        log_metrics: receives the metrics of each epoch.
        callbacks: further ones of the trainer.

    Returns:
        The trained module and the metrics of each epoch.
    """
    pretrain, seed = params.pretrain, params.run.seed
    training = PretrainDataset(params, manifest, tracks, pretrain.splits)
    held_out = held_out_dataset(params, manifest, tracks)
    batches = loader(training, pretrain.batch_size, seed, True, pretrain.num_loader_workers)
    held_out_batches = None if held_out is None else loader(held_out, pretrain.batch_size, seed, False, 0)
    torch.manual_seed(seed)
    module = PretrainModule(params, target_statistics(training), len(batches))
    curves = Curves(work / "curves.csv", log_metrics)
    trainer = build_trainer(
        work,
        epochs=pretrain.epochs,
        precision=pretrain.precision,
        clip_grad=pretrain.clip_grad,
        device=params.run.device,
        callbacks=[curves, *callbacks],
    )
    fit(trainer, module, batches, held_out_batches, work)
    return module, curves
