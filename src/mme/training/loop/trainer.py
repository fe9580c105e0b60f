"""What pretraining and finetuning share: the trainer, its curves, its checkpoints."""

from __future__ import annotations

import csv
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
import torch.distributed
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mme.config import OptimisedParams, RunParams
from mme.system.files import atomic_path
from mme.training.loop.sampler import ALONE, EpochSampler, Share

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its tips are no news of a run

_IGNORED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 beside torch 2.13
    r"Checkpoint directory .* exists and is not empty.*",  # it holds what is resumed
    "You defined a `validation_step` but have no `val_dataloader`.*",  # pretraining may have nothing held out
    r"Found \d+ module\(s\) in eval mode.*",  # the moving average always is
    r"The '\w+' does not have many workers.*",  # the frame cache makes workers needless for small data sets
)

MUCH_WAITING = 0.5
"""Share of an epoch above which `Pace` speaks up."""

log = logging.getLogger(__name__)

LogMetrics = Callable[[Mapping[str, float], int], None]
"""Receives the metrics of an epoch and its number."""


def training_loader(
    dataset: Dataset[Any], optimised: OptimisedParams, seed: int, share: Share = ALONE, repeats: int = 1
) -> DataLoader[dict[str, Tensor]]:
    """This process's share of full batches, anew in each epoch; a batch is at most as large as the data set.

    Raises:
        ValueError: the data set has fewer samples than there are parts of a batch.
    """
    size: int = len(dataset)  # type: ignore[arg-type]
    parts = share.num_processes * optimised.accumulate
    batch_size = min(optimised.batch_size, size * repeats) // parts * parts
    if batch_size == 0:
        raise ValueError(
            f"{size} videos are too few for {share.num_processes} processes x {optimised.accumulate} parts"
        )
    sampler = EpochSampler(size, seed, True, share, repeats, multiple_of=batch_size)
    return _loader(dataset, sampler, batch_size // share.num_processes, optimised.num_loader_workers)


def validation_loader(dataset: Dataset[Any], batch_size: int, share: Share = ALONE) -> DataLoader[dict[str, Tensor]]:
    """This process's share of all samples, in order: together the processes see each of them once.

    Raises:
        ValueError: there are fewer samples than processes.
    """
    size: int = len(dataset)  # type: ignore[arg-type]
    if size < share.num_processes:
        raise ValueError(f"{size} videos to validate on are too few for {share.num_processes} processes")
    local_size = max(1, min(batch_size, size) // share.num_processes)
    return _loader(dataset, EpochSampler(size, 0, False, share), local_size, 0)


def _loader(dataset: Dataset[Any], sampler: EpochSampler, batch_size: int, num_workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed what a step draws outside the data sets (drop path, mixup) from its number alone, so that runs resume."""
    state = np.random.SeedSequence((seed, step, rank) if rank else (seed, step)).generate_state(2)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - timm's Mixup draws from the global generator


class Curves(Callback):
    """Writes the metrics of each epoch to a CSV file and passes them on."""

    def __init__(self, path: Path, log_metrics: LogMetrics) -> None:
        self.path, self.log_metrics = path, log_metrics
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Collect an epoch (validation, if any, has ended before); the first process alone records it."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        if trainer.is_global_zero:
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


class Pace(Callback):
    """Passes on how fast each epoch was and which share of it was spent waiting for batches, and says so if it is most.

    The names begin with ``system/``, as MLflow's own metrics of the machine do. They are no results: neither in the
    curves nor compared when a run is reproduced.
    """

    def __init__(self, log_metrics: LogMetrics) -> None:
        self.log_metrics = log_metrics
        self._begin = self._idle_since = self._waited = 0.0
        self._num_clips, self._told = 0, False

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._begin = self._idle_since = time.perf_counter()
        self._waited, self._num_clips = 0.0, 0

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """A batch is there."""
        self._waited += time.perf_counter() - self._idle_since
        self._num_clips += len(batch["clip"])

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is done: it looks at its losses, so a GPU has finished as well."""
        self._idle_since = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Pass on; validation does not count."""
        seconds = self._idle_since - self._begin
        if not trainer.is_global_zero or seconds <= 0:
            return
        share, rate = self._waited / seconds, self._num_clips * trainer.world_size / seconds
        self.log_metrics({"system/clips_per_second": rate, "system/waiting": share}, trainer.current_epoch)
        if share > MUCH_WAITING and trainer.current_epoch > 0 and not self._told:  # the first fills the frame cache
            self._told = True
            log.warning("%.0f %% of an epoch is spent waiting for batches: see num_loader_workers", 100 * share)


def nested(row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """A row of `Curves`, ``{"val/top1": x}``, as ``{"val": {"top1": x}}``, the form that DVC shows as a table."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        group, _, rest = name.partition("/")
        if rest:
            groups.setdefault(group, {})[rest] = value
    return groups


def build_trainer(
    work: Path, run: RunParams, optimised: OptimisedParams, callbacks: Sequence[Callback]
) -> lightning.Trainer:
    """A Lightning trainer that saves ``last.ckpt`` in ``work`` after each epoch and shows a progress bar.

    Gradients are clipped by `mme.training.loop.module.SteppedModule`, which steps by hand.

    Raises:
        ValueError: fp16 is asked for where there is no GPU.
    """
    on_gpu = run.device != "cpu" and torch.cuda.is_available()
    if optimised.precision == "16-mixed" and not on_gpu:
        raise ValueError("precision: 16-mixed needs a GPU; on a CPU there are 32 and bf16-mixed")
    checkpoint = ModelCheckpoint(dirpath=work, filename="last", save_top_k=1, enable_version_counter=False)
    alone = run.num_processes == 1 and not torch.distributed.is_torchelastic_launched()
    return lightning.Trainer(
        default_root_dir=work,
        accelerator=run.device if run.device != "cuda" else "gpu",
        devices=run.devices,
        num_nodes=run.num_nodes,
        # Buffers are constants: sending them round would only hang where processes have unequally many batches.
        strategy="auto" if alone else DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True),
        max_epochs=optimised.epochs,
        precision=optimised.precision,
        callbacks=[*callbacks, checkpoint, RichProgressBar()],
        logger=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def is_main_process() -> bool:
    """Whether this is the one process of a training that records it and writes its results."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def share_of(trainer: lightning.Trainer) -> Share:
    """Which process of the training this is."""
    return Share(trainer.global_rank, trainer.world_size)


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
    if resume is not None:
        # Lightning starts the loader's workers, which begin to load at once, before it tells the sampler the epoch.
        state = torch.load(resume, map_location="cpu", mmap=True, weights_only=False)
        assert isinstance(training.sampler, EpochSampler)
        training.sampler.set_epoch(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    with warnings.catch_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, training, validation, ckpt_path=resume, weights_only=False if resume else None)
