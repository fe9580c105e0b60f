"""The order of samples, a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from mme.data.frames import SEED_ORDER


@dataclass(frozen=True)
class Share:
    """Which process this is among those that share every batch."""

    rank: int
    num_processes: int


ALONE = Share(rank=0, num_processes=1)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(draw, index)``, so that a data set can draw each sample's randomness from its place in the run.

    A video is drawn ``repeats`` times in a row in each epoch, its draws being numbered through all epochs (without
    repeats a draw's number is the epoch's). Every process of a distributed run walks the same permutation and takes
    each ``num_processes``-th element from its rank on, so that equally many in a row from every process make up the
    same global batch whatever the number of processes.

    Args:
        num_samples: samples of the data set.
        seed: seed of the order.
        shuffle: permute anew in each epoch, or keep the order.
        share: this process among all.
        repeats: draws of a sample in an epoch (Hoffer et al. 2020).
        multiple_of: what is over after the last multiple of it is left out, so that all processes have equally many.
    """

    def __init__(
        self, num_samples: int, seed: int, shuffle: bool, share: Share = ALONE, repeats: int = 1, multiple_of: int = 1
    ) -> None:
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.share, self.repeats = share, repeats
        self.num_kept = num_samples * repeats // multiple_of * multiple_of
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = np.random.default_rng((SEED_ORDER, self.seed, self.epoch)).permutation(self.num_samples)
        for place in self._places():
            yield self.epoch * self.repeats + place % self.repeats, int(order[place // self.repeats])

    def __len__(self) -> int:
        return len(self._places())

    def _places(self) -> range:
        return range(self.share.rank, self.num_kept, self.share.num_processes)
