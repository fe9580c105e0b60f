"""Order of the samples and the loaders of a training, for any number of processes."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mme.config import OptimisedParams, RuntimeParams
from mme.data.frames import SEED_BALANCE, SEED_ORDER
from mme.system.parent import end_with_parent


@dataclass(frozen=True)
class Rank:
    """Rank and world size of a process among those that share every batch."""

    rank: int
    world_size: int


SINGLE_PROCESS = Rank(rank=0, world_size=1)

_NICENESS = 10
"""Niceness of loader processes beside a GPU: a tenth of the weight of the process that starts its kernels."""


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield ``(draw, index)``: the data set derives a sample's randomness from its draw.

    The order is a function of (seed, epoch) alone. A video is drawn ``repeats`` times in a row in each epoch: the
    number of a draw is ``epoch * repeats + repeat``. Every process of a distributed run walks the same permutation and
    takes each ``world_size``-th group of ``together`` elements from its rank on. So equally many consecutive
    elements of every process make up the same global batch, whatever the number of processes.

    Args:
        num_samples: samples of the data set.
        seed: seed of the order.
        shuffle: permute anew in each epoch, or keep the order.
        rank: this process.
        repeats: draws of a sample per epoch (Hoffer et al. 2020).
        multiple_of: the epoch is shortened to a multiple of it, so that all processes have equally many samples.
        together: consecutive draws that one process takes, so that it decodes their video once.
        classes: class of each sample, if an epoch is to have equally many of each, see `balanced_draws`.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        shuffle: bool,
        rank: Rank = SINGLE_PROCESS,
        repeats: int = 1,
        multiple_of: int = 1,
        together: int = 1,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.repeats = repeats
        self.classes = None if classes is None else np.asarray(classes)
        self.num_kept = num_samples * repeats // multiple_of * multiple_of
        self.together = together
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls this before each one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, passes = np.arange(self.num_samples), np.full(self.num_samples, self.epoch)
        if self.classes is not None:
            num_drawn = -(-self.num_kept // self.repeats)
            order, passes = balanced_draws(self.classes, self.epoch * num_drawn, num_drawn, self.seed)
        if self.shuffle:
            shuffled = np.random.default_rng((SEED_ORDER, self.seed, self.epoch)).permutation(len(order))
            order, passes = order[shuffled], passes[shuffled]
        for place in self._places():
            sample = place // self.repeats
            yield int(passes[sample]) * self.repeats + place % self.repeats, int(order[sample])

    def __len__(self) -> int:
        return len(self._groups()) * self.together

    def _groups(self) -> range:
        """Numbers of this process's groups of draws in the epoch."""
        return range(self.rank.rank, self.num_kept // self.together, self.rank.world_size)

    def _places(self) -> Iterator[int]:
        """Places of this process's draws in the epoch."""
        for group in self._groups():
            yield from range(group * self.together, (group + 1) * self.together)


def balanced_draws(
    classes: NDArray[np.integer], first: int, count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return draws ``first`` to ``first + count - 1`` of a training in which classes take turns.

    Of K classes draw t takes class ``t mod K``, and within it the next sample of a permutation that is drawn anew when
    all have had their turn. So any K consecutive draws have each class once, and the samples of a class are drawn
    equally often; both within one draw.

    Args:
        classes: class of each sample ``[N]``; those that have no sample take no turn.
        first: number of draws before, over all epochs.
        count: draws to return.
        seed: seed of the permutations.

    Returns:
        Index of each drawn sample, and how often it has been drawn before.
    """
    present = np.unique(classes)
    draws = np.arange(first, first + count)
    indices, passes = np.empty(count, np.int64), np.empty(count, np.int64)
    for number, wanted in enumerate(present):
        members = np.flatnonzero(classes == wanted)
        turns = np.flatnonzero(draws % len(present) == number)
        passes[turns], places = np.divmod(draws[turns] // len(present), len(members))
        for done in np.unique(passes[turns]):
            chosen = passes[turns] == done
            order = np.random.default_rng((SEED_BALANCE, seed, number, int(done))).permutation(members)
            indices[turns[chosen]] = order[places[chosen]]
    return indices, passes


def training_loader(
    dataset: Dataset[Any],
    optimised: OptimisedParams,
    runtime: RuntimeParams,
    seed: int,
    rank: Rank = SINGLE_PROCESS,
    repeats: int = 1,
    classes: Sequence[int] | None = None,
) -> DataLoader[dict[str, Tensor]]:
    """Build the loader of this process's share of full batches, shuffled anew in each pass over the data set.

    Samples become a batch by the data set's ``collate_fn`` if it has one.

    A pass draws each sample ``repeats`` times `OptimisedParams.epochs_per_pass` times, the latter in one process. A
    batch is at most as large as a pass. ``classes`` as in `EpochSampler`.

    Raises:
        ValueError: the data set has fewer samples than a batch has parts.
    """
    size: int = len(dataset)  # type: ignore[arg-type]
    together = optimised.epochs_per_pass
    draws = repeats * together
    parts = rank.world_size * math.lcm(runtime.accumulate, together)
    batch_size = min(optimised.batch_size, size * draws) // parts * parts
    if batch_size == 0:
        raise ValueError(f"{size} videos are too few for {rank.world_size} processes x {runtime.accumulate} parts")
    sampler = EpochSampler(size, seed, True, rank, draws, batch_size, together, classes)
    return _loader(dataset, sampler, batch_size // rank.world_size, runtime.num_loader_workers)


def validation_loader(
    dataset: Dataset[Any], batch_size: int, rank: Rank = SINGLE_PROCESS
) -> DataLoader[dict[str, Tensor]]:
    """Build the loader of this process's share of all samples, in order; together the processes see each one once.

    Raises:
        ValueError: there are fewer samples than processes.
    """
    size: int = len(dataset)  # type: ignore[arg-type]
    if size < rank.world_size:
        raise ValueError(f"{size} videos to validate on are too few for {rank.world_size} processes")
    local_size = max(1, min(batch_size, size) // rank.world_size)
    return _loader(dataset, EpochSampler(size, 0, False, rank), local_size, 0)


def _loader(dataset: Dataset[Any], sampler: EpochSampler, batch_size: int, num_workers: int) -> DataLoader[Any]:
    on_gpu = torch.cuda.is_available()
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=getattr(dataset, "collate_fn", None),
        persistent_workers=num_workers > 0,
        pin_memory=on_gpu,
        worker_init_fn=_give_way if on_gpu else prepare_worker,
    )


def prepare_worker(worker: int) -> None:
    """Tie a loader process to the one that trains, and keep it to one thread.

    PyTorch has one thread there already; OpenCV would start one per core. What the process inherited is kept from the
    garbage collector, which would look through it again and again, and by that copy its pages.
    """
    # PyTorch's own watchdog asks for the parent's id: below a fork server that is the server, which outlives training.
    end_with_parent()
    cv2.setNumThreads(0)  # 1 would wait for the threads of the process that was forked, which are not there
    gc.freeze()


def _give_way(worker: int) -> None:
    """Let the process that starts the GPU's kernels run first: with a loader process per core it waits for a core."""
    prepare_worker(worker)
    os.nice(_NICENESS)
