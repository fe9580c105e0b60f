"""The Lightning trainer of pretraining and finetuning, and resuming."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
import torch.distributed
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

from mme.config import OptimisedParams, RuntimeParams
from mme.models.precision import has_bf16, unfuse_attention
from mme.training.loop.loaders import EpochSampler, Rank

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # silence Lightning's usage tips

_logger = logging.getLogger(__name__)

_IGNORED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 with torch 2.13
    r"Checkpoint directory .* exists and is not empty.*",  # it holds the checkpoint that is resumed
    "You defined a `validation_step` but have no `val_dataloader`.*",  # pretraining may have nothing held out
    r"Found \d+ module\(s\) in eval mode.*",  # the EMA model always is
    r"The '\w+' does not have many workers.*",  # with the frame cache small data sets need none
)


def build_trainer(
    work: Path, runtime: RuntimeParams, optimised: OptimisedParams, callbacks: Sequence[Callback]
) -> lightning.Trainer:
    """Build a trainer that saves ``last.ckpt`` in ``work`` after each pass over the data and shows a progress bar.

    Gradients are clipped by `mme.training.loop.module.TrainingModule`, which optimises manually.

    Raises:
        ValueError: fp16 without a GPU.
    """
    on_gpu = runtime.device != "cpu" and torch.cuda.is_available()
    if optimised.precision == "16-mixed" and not on_gpu:
        raise ValueError("precision: 16-mixed needs a GPU; on a CPU there are 32 and bf16-mixed")
    checkpoint = ModelCheckpoint(dirpath=work, filename="last", save_top_k=1, enable_version_counter=False)
    single = runtime.num_processes == 1 and not torch.distributed.is_torchelastic_launched()
    return lightning.Trainer(
        default_root_dir=work,
        accelerator=runtime.device if runtime.device != "cuda" else "gpu",
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        # Buffers are constants; broadcasting them would hang where processes have unequally many batches.
        strategy="auto" if single else DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True),
        max_epochs=optimised.epochs // optimised.epochs_per_pass,
        precision=optimised.precision,
        callbacks=[*callbacks, checkpoint, RichProgressBar()],
        logger=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def is_main_process() -> bool:
    """Return whether this process has rank 0, which records the training and writes its results."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def rank_of(trainer: lightning.Trainer) -> Rank:
    """Return rank and world size of this process."""
    return Rank(trainer.global_rank, trainer.world_size)


def fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    work: Path,
) -> None:
    """Train, and resume from ``last.ckpt`` in ``work`` if an interrupted run left one."""
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu":
        unfuse_attention(module)
        if not has_bf16():
            _logger.warning("precision bf16-mixed: this processor has no instructions for it; 32 takes less time")
    last = work / "last.ckpt"
    resume = last if last.exists() else None
    if resume is not None:
        # Lightning starts the loader's workers, which load at once, before it sets the sampler's epoch.
        state = torch.load(resume, map_location="cpu", mmap=True, weights_only=False)
        assert isinstance(training.sampler, EpochSampler)
        training.sampler.set_epoch(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    with warnings.catch_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, training, validation, ckpt_path=resume, weights_only=False if resume else None)
