"""One optimiser step, which pretraining and finetuning share: parts, global mean, guard, clipping, moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mme.config import OptimisedParams, Params
from mme.models.encoder import VideoEncoder
from mme.training.loop.optim import schedule
from mme.training.loop.trainer import seed_step

Batch = Mapping[str, Tensor]


class NonFiniteError(ValueError):
    """A loss or a gradient is infinite or not a number."""


class SteppedModule(lightning.LightningModule):
    """A model that takes one optimiser step a batch.

    The loss of a step is a mean over the points of the *global* batch (valid hidden points in pretraining, clips in
    finetuning). That batch is spread over processes, and each process may cut its share into ``accumulate`` parts;
    every part's mean enters with the part's share of all points, so that neither changes the gradient.

    Subclasses give `prepare`, `num_points`, `losses` and `parameter_groups`.

    Args:
        params: the whole of ``params.yaml``.
        optimised: the section that this training follows.
        model: what is trained.
        steps_per_epoch: optimiser steps, for the schedule.

    Attributes:
        measured: the model that is validated and kept: the moving average where there is one.
        terms: the last step's losses over this process's share; over all processes their mean is the global loss.
    """

    def __init__(self, params: Params, optimised: OptimisedParams, model: nn.Module, steps_per_epoch: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.params, self.optimised, self.steps_per_epoch = params, optimised, steps_per_epoch
        self.model = model
        self.ema = None if optimised.ema_decay is None else ModelEmaV3(model, optimised.ema_decay)
        encoder = model.encoder
        assert isinstance(encoder, VideoEncoder)
        encoder.gradient_checkpointing = optimised.gradient_checkpointing
        if optimised.compile:
            compile_blocks(model)
        self.terms: dict[str, Tensor] = {}

    @property
    def measured(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.model if self.ema is None else self.ema.module

    def prepare(self, batch: Batch) -> Batch:
        """What is done to this process's whole share of a batch before it is cut into parts."""
        return batch

    def num_points(self, part: Batch) -> Tensor:
        """How many points the means of `losses` are over."""
        raise NotImplementedError

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Means over the part's points: ``loss``, which is minimised, and what else is to be recorded."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW, each with its ``lr_scale``."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step."""
        seed_step(self.params.run.seed, self.global_step, self.global_rank)
        prepared = self.prepare(batch)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, lightning.core.optimizer.LightningOptimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        optimizer.step(closure=lambda: self._backward(optimizer.optimizer, prepared))
        scheduler.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.record("train", self.terms, len(prepared["clip"]))
        self.log("loss", self.terms["loss"], prog_bar=True, on_step=True, on_epoch=False)

    def _backward(self, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        """Gradients of the mean over the global batch."""
        optimizer.zero_grad()
        parts = list(cut(batch, self.optimised.accumulate))
        counts = [self.num_points(part) for part in parts]
        total = self.trainer.strategy.reduce(torch.stack(counts).sum(), reduce_op="sum").clamp(min=1)
        self.terms = {}
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            share = count * self.trainer.world_size / total  # processes' gradients are averaged
            with self._alone(number < len(parts) - 1):
                losses = self.losses(part)
                self.manual_backward(losses["loss"] * share)
            for name, value in losses.items():
                self.terms[name] = self.terms.get(name, 0) + value.detach() * share

    def _alone(self, alone: bool) -> AbstractContextManager[None]:
        """Keeps gradients from being averaged over processes before the last part."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if alone and isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients; stop where they or the losses are not finite.

        With fp16 gradients may overflow: the scaler skips such a step, so losses alone are looked at.

        Raises:
            NonFiniteError: the message names the step, the losses and the file with the state and the batch's losses.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.optimised.clip_grad)
        watched = dict(self.terms) if self.optimised.precision == "16-mixed" else {**self.terms, "gradient norm": norm}
        if torch.stack([value.detach().float() for value in watched.values()]).isfinite().all():
            return
        path = Path(self.trainer.default_root_dir) / f"nonfinite-{self.global_rank}.pt"
        state = {"step": self.global_step, "model": self.model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "terms": watched}, path)
        found = ", ".join(f"{name} {float(value):g}" for name, value in watched.items())
        raise NonFiniteError(
            f"step {self.global_step} in epoch {self.current_epoch} is not finite: {found}. The state before it is in"
            f" {path}, the last whole epoch in last.ckpt beside it. A smaller lr or clip_grad may help, or precision 32"
        )

    def record(self, split: str, terms: Mapping[str, Tensor], batch_size: int) -> None:
        """Let an epoch's mean be recorded under ``split/name``, each batch weighing its size."""
        metrics = {f"{split}/{name}": value.detach() for name, value in terms.items()}
        # Lightning averages the processes' sizes as whole numbers and drops the rest; times their number none is left.
        weight = batch_size * self.trainer.world_size
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up and cosine by the step."""
        optimised = self.optimised
        fused = optimised.precision != "16-mixed"  # where it would take the scaler's scale off only after the clipping
        optimizer = torch.optim.AdamW(
            self.parameter_groups(), lr=optimised.scaled_lr, betas=optimised.betas, fused=fused
        )
        scheduler = schedule(
            optimizer,
            optimised.scaled_lr,
            optimised.warmup_epochs * self.steps_per_epoch,
            optimised.epochs * self.steps_per_epoch,
            optimised.min_lr_ratio,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def cut(batch: Batch, num_parts: int) -> Iterator[Batch]:
    """Equal parts of a batch along its first axis."""
    pieces = {name: value.chunk(num_parts) for name, value in batch.items()}
    for number in range(num_parts):
        yield {name: piece[number] for name, piece in pieces.items()}


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each transformer block in place: they share one shape and one compilation, and masks stay outside."""
    for module in model.modules():
        if type(module).__name__ == "Block":
            module.compile(backend=backend)
