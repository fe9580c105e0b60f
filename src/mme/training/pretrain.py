"""Masked motion encoding as a Lightning module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchmetrics import SumMetric

from mme.config import Params, frames_needed
from mme.config.paths import start_weights
from mme.data.masked.clips import PretrainDataset, TrackedVideos
from mme.data.masked.masking import num_hidden
from mme.manifest import Manifest
from mme.models.checkpoints import fill_module, read_state
from mme.models.encoder import token_input
from mme.models.masked_motion import MaskedMotionModel
from mme.motion.store import TrackStore
from mme.targets.base import compute_targets, luma_frames, objective_targets
from mme.targets.grid import HiddenTokens, MaskedBatch
from mme.targets.position import POSITION, motion_scores, motion_sums
from mme.training.loop.callbacks import Curves, LogMetrics, Throughput
from mme.training.loop.loaders import training_loader, validation_loader
from mme.training.loop.module import Batch, TrainingModule
from mme.training.loop.trainer import build_trainer, fit, rank_of

NUM_STATISTICS_SAMPLES = 256
"""Clips that means and deviations of targets are measured on: at the default size about 40,000 points, of which the
deviation is known to a percent even with the heavy tail of motion; it only scales the loss."""

_STATISTICS_BATCH = 32

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean, per component, and deviation, one number, of each target that is not standardised by itself."""


def target_statistics(dataset: PretrainDataset) -> Statistics:
    """Measure mean and deviation of each target over the valid hidden points of the first videos, drawn as in epoch 0.

    Losses are in units of the target's variance, so that targets of different units can be added: always predicting the
    mean scores 1. See `mme.targets.base.Target.centre`.

    Raises:
        ValueError: no point is valid, or all values are equal.
    """
    count = min(NUM_STATISTICS_SAMPLES, len(dataset))
    targets = [target for target in objective_targets(dataset.pretrain.objective) if target.centre is not None]
    if not targets:
        return {}
    collected: dict[str, list[Tensor]] = {target.name: [] for target in targets}
    for begin in range(0, count, _STATISTICS_BATCH):
        batch = default_collate([dataset[0, index] for index in range(begin, min(begin + _STATISTICS_BATCH, count))])
        tokens = HiddenTokens(batch, dataset.spec, dataset.num_hidden)
        for name, (values, valid) in compute_targets(targets, tokens).items():
            collected[name].append(values[valid].flatten(0, -2))  # (points, components)

    statistics: Statistics = {}
    for target in targets:
        name = target.name
        values = torch.cat(collected[name])
        if not len(values):
            raise ValueError(f"no valid points in the {name} targets of {count} clips: nothing to learn from")
        mean = values.mean(dim=0) if target.centre == "mean" else torch.zeros(values.shape[-1])
        deviation = (values - mean).square().mean().sqrt()
        if deviation == 0:
            raise ValueError(f"the {name} targets of {count} clips are all equal: nothing to learn from")
        statistics[name] = (mean, deviation)
    return statistics


class PretrainModule(TrainingModule):
    """The masked motion model with its losses, in units of each target's variance.

    Args:
        params: the whole of ``params.yaml``.
        statistics: of `target_statistics`; kept in checkpoints.
        steps_per_pass: optimiser steps in a pass over the videos, for the schedule.
    """

    model: MaskedMotionModel
    seen: Tensor

    def __init__(self, params: Params, statistics: Statistics, steps_per_pass: int) -> None:
        model = MaskedMotionModel(params.model, params.clip, params.pretrain)
        super().__init__(params.pretrain, params.runtime, model, steps_per_pass, params.seed)
        self.params = params
        self.standardised = list(statistics)
        spec, pretrain = self.model.spec, params.pretrain
        self.num_hidden = num_hidden(spec.grid, pretrain.mask_ratio, pretrain.mask)
        read = luma_frames(self.model.targets, spec)
        seen = torch.tensor([read.index(frame) for frame in spec.seen_frames])
        self.register_buffer("seen", seen, persistent=False)  # places of the frames that the model sees
        self.moving = nn.ModuleDict({name: SumMetric() for name in ("error", "power", "cosine", "points")})
        for name, (mean, deviation) in statistics.items():
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_deviation", deviation)

    def statistics(self) -> Statistics:
        """Mean and deviation of each target that has them."""
        return {name: (getattr(self, f"{name}_mean"), getattr(self, f"{name}_deviation")) for name in self.standardised}

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Normalise the pixels of the visible tokens and compute the standardised targets of a batch.

        Args:
            batch: fields of `mme.targets.grid.MaskedBatch`.

        Returns:
            ``tubelets``, ``hidden``, and for each target ``NAME`` and ``NAME_valid``.
        """
        hidden = batch["hidden"]
        with torch.autocast(self.device.type, enabled=False):  # targets keep their precision whatever the model has
            tokens = HiddenTokens(
                cast(MaskedBatch, batch),
                self.model.spec,
                self.num_hidden,
                lambda: self._pixels(batch, hidden, self.num_hidden),
            )
            prepared = {"tubelets": self.visible_pixels(batch), "hidden": hidden}
            for name, (values, valid) in compute_targets(self.model.targets, tokens).items():
                prepared[name] = values
                if name in self.standardised:
                    prepared[name] = (values - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_deviation")
                prepared[f"{name}_valid"] = valid
            if POSITION in self.model.targets:
                prepared["length_px"] = tokens.tracks.displacements.norm(dim=-1).sum(dim=-1)  # (B, M, C)
        return prepared

    def visible_pixels(self, batch: Batch) -> Tensor:
        """Return the normalised pixels of the visible tokens ``[B, V, P]``."""
        hidden = batch["hidden"]
        return self._pixels(batch, ~hidden, hidden.shape[1] - self.num_hidden)

    def _pixels(self, batch: Batch, chosen: Tensor, count: int) -> Tensor:
        luma = batch["luma"]
        if luma.shape[1] > len(self.seen):
            luma = luma.index_select(1, self.seen)
        return token_input(luma, batch["chroma"], chosen, count, self.params.clip, self.params.model)

    def unstandardise(self, name: str, values: Tensor) -> Tensor:
        """Values of a target in its own units, from those of the loss."""
        if name not in self.standardised:
            return values
        restored: Tensor = values * getattr(self, f"{name}_deviation") + getattr(self, f"{name}_mean")
        return restored

    def num_points(self, part: Batch) -> Tensor:
        """Count the valid cells of hidden tokens (for pixels: the tokens); targets of an objective share them."""
        return part[f"{self.model.targets[0].name}_valid"].sum()

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Losses of the model that is trained."""
        return self._losses(self.model(part["tubelets"], part["hidden"]), part)

    def _losses(self, predictions: Mapping[str, Tensor], part: Batch) -> dict[str, Tensor]:
        targets = {name: (part[name], part[f"{name}_valid"]) for name in predictions}
        return self.model.forward_loss(predictions, targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses on held-out clips; batches weigh their points, so that it does not matter how the clips are cut."""
        prepared = self.prepare(batch)
        predictions = self.eval_model(prepared["tubelets"], prepared["hidden"])
        self.record("val", self._losses(predictions, prepared), max(1, int(self.num_points(prepared))))
        if POSITION.name in predictions:
            predicted, target = predictions[POSITION.name].float(), prepared[POSITION.name]
            sums = motion_sums(predicted, target, prepared[f"{POSITION.name}_valid"], prepared["length_px"])
            for name, value in sums.items():
                self.moving_sums[name].update(value)

    @property
    def moving_sums(self) -> dict[str, SumMetric]:
        """Sums of `motion_sums` over the held-out clips so far."""
        return cast("dict[str, SumMetric]", dict(self.moving.items()))

    def on_validation_epoch_end(self) -> None:
        """Record the scores of moving points; they are ratios of sums over all batches and processes."""
        if POSITION not in self.model.targets:
            return
        sums = {name: metric.compute() for name, metric in self.moving_sums.items()}
        for metric in self.moving_sums.values():
            metric.reset()
        if sums["points"] > 0:
            self.log_dict({f"val/{name}": value.float() for name, value in motion_scores(sums).items()})

    def record(self, split: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Record the losses, and the explained share of the variance of each target that has one."""
        explained = {f"{name}_explained": 1 - losses[f"{name}_loss"] for name in self.standardised}
        super().record(split, {**losses, **explained}, batch_size)


def pretrain_dataset(params: Params, manifest: Manifest, tracks: TrackStore, splits: Sequence[str]) -> PretrainDataset:
    """Masked clips of some splits, as ``params`` say."""
    return PretrainDataset(
        TrackedVideos(manifest, tracks, splits, span_frames(params), params.runtime.frame_cache_mb),
        params.clip,
        params.model,
        params.pretrain,
        seed=params.seed,
    )


def span_frames(params: Params) -> int:
    """Return the number of frames that a clip and its trajectories span; shorter videos are left out."""
    return frames_needed(params.clip, params.model, params.pretrain.length)


def held_out_dataset(params: Params, manifest: Manifest, tracks: TrackStore) -> PretrainDataset | None:
    """Clips of the split ``val``; None where there are none that are long enough, or no trajectories of them."""
    if not manifest.videos("val", span_frames(params)) or "val" not in params.trajectories.splits:
        return None
    return pretrain_dataset(params, manifest, tracks, ["val"])


def load_start(path: Path, model: MaskedMotionModel) -> list[str]:
    """Start from the weights of another model, whose clips may have other sizes.

    The encoder must fit. Norm, decoder and heads are taken where they fit, such as of a model with the same objective.

    Args:
        path: safetensors file of a pretrained, finetuned or converted model.
        model: model to fill.

    Returns:
        Names of the parts that keep their random weights, in whole or in part.

    Raises:
        ValueError: the file cannot be read, or its encoder does not fit; the message lists every key at fault.
    """
    state = read_state(path)
    fill_module(model.encoder, state, path, prefix="encoder.")
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    model.load_state_dict({**own, **fitting})
    return sorted({key.removeprefix("heads.").split(".")[0] for key in own.keys() - fitting.keys()})


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
        params: the whole of ``params.yaml``; ``pretrain.init`` names the weights to start from.
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
    training = pretrain_dataset(params, manifest, tracks, pretrain.splits)
    held_out = held_out_dataset(params, manifest, tracks)
    batches = training_loader(training, pretrain, params.runtime, seed, rank_of(trainer))
    held_out_batches = None
    if held_out is not None:
        held_out_batches = validation_loader(held_out, pretrain.batch_size, rank_of(trainer))
    torch.manual_seed(seed)
    module = PretrainModule(params, target_statistics(training), len(batches))
    start = start_weights(pretrain.init)
    if start is not None:
        anew = load_start(start, module.model)
        module.eval_model.load_state_dict(module.model.state_dict())
        rank_zero_info(f"starts from {start}" + (f"; drawn anew: {', '.join(anew)}" if anew else ""))
    fit(trainer, module, batches, held_out_batches, work)
    module.model.load_state_dict(module.eval_model.state_dict())
    return module, curves
