"""The order of samples, a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from mme.data.transforms import SEED_ORDER


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)``, so that a data set can draw each sample's randomness from its place in the run.

    Every process of a distributed run walks the same permutation and takes each ``num_replicas``-th *batch-aligned*
    element from its rank on, so that the global batch is the same whatever the number of processes.

    Args:
        num_samples: samples of the data set.
        seed: seed of the order.
        shuffle: permute anew in each epoch, or keep the order.
        rank, num_replicas: this process among all.
    """

    def __init__(self, num_samples: int, seed: int, shuffle: bool, rank: int = 0, num_replicas: int = 1) -> None:
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.rank, self.num_replicas = rank, num_replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = np.random.default_rng((SEED_ORDER, self.seed, self.epoch)).permutation(self.num_samples)
        for index in order[self.rank :: self.num_replicas]:
            yield self.epoch, int(index)

    def __len__(self) -> int:
        return len(range(self.rank, self.num_samples, self.num_replicas))
