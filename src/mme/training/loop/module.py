"""One optimiser step, shared by pretraining and finetuning."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import ParallelStrategy
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mme.config import OptimisedParams, RuntimeParams
from mme.models.encoder import VideoEncoder

Batch = Mapping[str, Tensor]


class NonFiniteError(ValueError):
    """Raised if a loss or a gradient is infinite or not a number."""


class TrainingModule(lightning.LightningModule):
    """Model that takes one optimiser step per batch (manual optimisation).

    The loss of a step is a mean over the points of the *global* batch: valid hidden points in pretraining, clips in
    finetuning. That batch is spread over processes, and each process may split its share into ``accumulate`` parts. A
    part's mean is weighted by the part's share of all points, so the gradient is the same
    for any number of processes and parts.

    A step calls, in this order: `prepare` with the process's share of the batch, `num_points` with each of its parts,
    `losses` with each of its parts. Subclasses define the latter two.

    Args:
        optimised: section of this training.
        runtime: parts of a batch, checkpointing and compilation.
        model: model with an ``encoder``.
        steps_per_pass: optimiser steps in a pass over the data, for the schedule.
        seed: seed of everything that a step draws.

    Attributes:
        step_losses: losses of the last step over this process's share; their mean over processes is the global loss.
    """

    def __init__(
        self, optimised: OptimisedParams, runtime: RuntimeParams, model: nn.Module, steps_per_pass: int, seed: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimised = optimised
        self.runtime = runtime
        self.model = model
        self.steps_per_pass = steps_per_pass
        self.seed = seed
        self.ema = None if optimised.ema_decay is None else ModelEmaV3(model, optimised.ema_decay)
        encoder = model.encoder
        assert isinstance(encoder, VideoEncoder)
        encoder.gradient_checkpointing = runtime.gradient_checkpointing
        if runtime.compile:
            compile_blocks(model)
        self.step_losses: dict[str, Tensor] = {}

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and saved: the EMA model if there is one."""
        return self.model if self.ema is None else self.ema.module

    def prepare(self, batch: Batch) -> Batch:
        """Transform this process's whole share of a batch, before it is split into parts."""
        return batch

    def num_points(self, part: Batch) -> Tensor:
        """Count the points that the means of `losses` are over."""
        raise NotImplementedError

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Return means over the part's points: ``loss``, which is minimised, and others to record."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one optimiser step."""
        optimizer = self.optimizers()
        scheduler = self.lr_schedulers()
        assert isinstance(optimizer, lightning.core.optimizer.LightningOptimizer)
        assert isinstance(scheduler, CosineLRScheduler)

        seed_step(self.seed, self.global_step, self.global_rank)
        parts = split_batch(self.prepare(batch), self.runtime.accumulate)
        optimizer.zero_grad()
        self._backward(parts)
        optimizer.step()  # clips the gradients first, see `on_before_optimizer_step`
        scheduler.step_update(self.global_step)
        if self.ema is not None:
            self.ema.update(self.model)

        self.record("train", self.step_losses, len(next(iter(batch.values()))))
        self.log("loss", self.step_losses["loss"], prog_bar=True, on_step=True, on_epoch=False)

    def _backward(self, parts: list[Batch]) -> None:
        """Compute the gradient of the mean over the global batch."""
        counts = [self.num_points(part) for part in parts]
        total = self.trainer.strategy.reduce(torch.stack(counts).sum(), reduce_op="sum").clamp(min=1)
        self.step_losses = {}
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            weight = count * self.trainer.world_size / total  # DDP averages the gradients of the processes
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self._without_gradient_sync():
                losses = self.losses(part)
                self.manual_backward(losses["loss"] * weight)
            for name, value in losses.items():
                self.step_losses[name] = self.step_losses.get(name, 0) + value.detach() * weight

    def _without_gradient_sync(self) -> AbstractContextManager[None]:
        """Keep gradients from being averaged over processes."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients; stop if they or the losses are not finite.

        With fp16 gradients may overflow and the scaler skips such a step, so only losses are checked.

        Raises:
            NonFiniteError: the message names the step, the losses and the file with the state before the step.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optimised.clip_grad)
        checked = dict(self.step_losses)
        if self.optimised.precision != "16-mixed":
            checked["gradient norm"] = norm
        if torch.stack([value.detach().float() for value in checked.values()]).isfinite().all():
            return

        path = Path(self.trainer.default_root_dir) / f"nonfinite-{self.global_rank}.pt"
        state = {
            "step": self.global_step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": checked,
        }
        torch.save(state, path)
        found = ", ".join(f"{name} {float(value):g}" for name, value in checked.items())
        raise NonFiniteError(
            f"step {self.global_step} in epoch {self.current_epoch} is not finite: {found}. The state before it is in"
            f" {path}, the last whole epoch in last.ckpt beside it. A smaller lr or clip_grad may help, or precision 32"
        )

    def record(self, split: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Record the epoch's mean under ``split/name``; each batch is weighted by its size."""
        metrics = {f"{split}/{name}": value.detach() for name, value in losses.items()}
        # Lightning averages the processes' sizes in whole numbers and drops the remainder; multiplied by the world
        # size there is none.
        weight = batch_size * self.trainer.world_size
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=weight, sync_dist=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups for AdamW: weight decay on matrices, none on vectors (biases, norms, mask token)."""
        groups: list[dict[str, Any]] = param_groups_weight_decay(self.model, self.optimised.weight_decay)
        return groups

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]  # timm's scheduler is not torch's
        """Build AdamW with a linear warm-up and half a cosine, by the step."""
        optimised = self.optimised
        lr = optimised.scaled_lr
        # With fp16 a fused step would remove the scaler's scale only after the clipping.
        fused = optimised.precision != "16-mixed"
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=lr, betas=optimised.betas, fused=fused)

        scheduler = warmup_cosine(
            optimizer,
            lr,
            warmup_steps=optimised.warmup_epochs * self.steps_per_pass / optimised.epochs_per_pass,
            total_steps=optimised.epochs // optimised.epochs_per_pass * self.steps_per_pass,
            min_ratio=optimised.min_lr_ratio,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup_cosine(
    optimizer: torch.optim.Optimizer, lr: float, warmup_steps: float, total_steps: int, min_ratio: float
) -> CosineLRScheduler:
    """Build the schedule: linear from ``lr / (warmup_steps + 1)`` to ``lr``, then half a cosine to ``min_ratio * lr``.

    A group's learning rate is the schedule's times its ``lr_scale``.
    """
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total_steps - warmup_steps,  # type: ignore[arg-type]  # fractions of a step are fine
        lr_min=min_ratio * lr,
        warmup_t=warmup_steps,  # type: ignore[arg-type]
        warmup_lr_init=lr / (warmup_steps + 1),  # above 0, so that the first step learns
        warmup_prefix=True,
        t_in_epochs=False,
    )
    scheduler.step_update(0)
    return scheduler


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed what a step draws outside the data sets (drop path, mixup) from its number alone, so that runs resume."""
    state = np.random.SeedSequence((seed, step, rank) if rank else (seed, step)).generate_state(2)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - timm's Mixup draws from the global generator


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch into equal parts along its first axis."""
    chunks = {name: value.chunk(num_parts) for name, value in batch.items()}
    return [{name: chunk[number] for name, chunk in chunks.items()} for number in range(num_parts)]


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each transformer block in place.

    All blocks share one shape and so one compilation; masking, whose shapes vary, stays outside.
    """
    for module in model.modules():
        if type(module).__name__ == "Block":
            module.compile(backend=backend)
