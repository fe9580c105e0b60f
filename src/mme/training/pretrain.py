"""Masked motion encoding as a Lightning module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from mme.config import Params
from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest
from mme.models.encoder import gather_tokens, model_input
from mme.models.losses import masked_mse
from mme.models.masked_motion import MotionModel
from mme.motion.store import TrackStore
from mme.training.loop.callbacks import Curves, LogMetrics, Throughput
from mme.training.loop.loaders import training_loader, validation_loader
from mme.training.loop.module import Batch, TrainingModule
from mme.training.loop.trainer import build_trainer, fit, rank_of

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


class PretrainModule(TrainingModule):
    """The masked motion model with its losses, in units of each target's variance.

    Args:
        params: the whole of ``params.yaml``.
        statistics: of `target_statistics`; kept in checkpoints.
        steps_per_epoch: optimiser steps, for the schedule.
    """

    model: MotionModel

    def __init__(self, params: Params, statistics: dict[str, tuple[Tensor, Tensor]], steps_per_epoch: int) -> None:
        model = MotionModel(params.model, params.clip, params.pretrain)
        super().__init__(params.pretrain, params.runtime, model, steps_per_epoch, params.seed)
        self.params = params
        for name, (mean, deviation) in statistics.items():
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_deviation", deviation)
        self.weights = {
            "position": params.pretrain.weights.get("position", 1.0),
            "shape": params.pretrain.weights.get("hog", 1.0),
            "pixel": params.pretrain.weights.get("pixel", 1.0),
        }

    def standardise(self, name: str, target: Tensor) -> Tensor:
        """A target in the units of the loss."""
        standard: Tensor = (target - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_deviation")
        return standard

    def num_points(self, part: Batch) -> Tensor:
        """Valid cells of hidden tokens; for pixels, hidden tokens."""
        return (part["valid"] if "valid" in part else part["hidden"]).sum()

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Loss of each target and their weighted sum ``loss``, of the model that is trained."""
        return self._losses(self.model, part)

    def _losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        clip, hidden = model_input(batch["clip"], self.params.clip), batch["hidden"]
        predictions = model(clip, hidden)
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

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses on held-out clips; batches weigh their points, so that it does not matter how the clips are cut."""
        self.record("val", self._losses(self.eval_model, batch), max(1, int(self.num_points(batch))))

    def record(self, split: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Record the losses, and how much of the displacements' variance is explained."""
        if "position_loss" in losses:
            losses = {**losses, "position_explained": 1 - losses["position_loss"]}
        super().record(split, losses, batch_size)


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
        The trained module, whose model has the averaged weights if they were, and the metrics of each epoch.
    """
    pretrain, seed = params.pretrain, params.seed
    curves = Curves(work / "curves.csv", log_metrics)
    trainer = build_trainer(work, params.runtime, pretrain, [Throughput(log_metrics), curves, *callbacks])
    training = PretrainDataset(params, manifest, tracks, pretrain.splits)
    held_out = held_out_dataset(params, manifest, tracks)
    batches = training_loader(training, pretrain, params.runtime, seed, rank_of(trainer))
    held_out_batches = None
    if held_out is not None:
        held_out_batches = validation_loader(held_out, pretrain.batch_size, rank_of(trainer))
    torch.manual_seed(seed)
    module = PretrainModule(params, target_statistics(training), len(batches))
    fit(trainer, module, batches, held_out_batches, work)
    module.model.load_state_dict(module.eval_model.state_dict())
    return module, curves
