from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from mme.data.frames import SEED_ORDER
from mme.training.loop.loaders import EpochSampler, Rank, balanced_draws, training_loader
from tests.small_data import small_params


def parts(num_processes: int, num_samples: int, epoch: int = 4, **options: Any) -> list[list[tuple[int, int]]]:
    """What each process draws in an epoch."""
    samplers = [
        EpochSampler(num_samples, seed=3, shuffle=True, rank=Rank(rank, num_processes), **options)
        for rank in range(num_processes)
    ]
    drawn = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
        assert len(sampler) == len(drawn[-1])
    return drawn


def test_processes_share_an_epoch_without_overlap() -> None:
    drawn = parts(3, 11)
    assert sorted(key for part in drawn for key in part) == [(4, index) for index in range(11)]
    assert [len(part) for part in drawn] == [4, 4, 3]
    assert drawn[0] != sorted(drawn[0])


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_a_global_batch_is_the_same_for_any_number_of_processes(
    num_samples: int, num_processes: int, per_process: int, repeats: int
) -> None:
    batch = num_processes * per_process
    alone = parts(1, num_samples, repeats=repeats, multiple_of=batch)[0]
    drawn = parts(num_processes, num_samples, repeats=repeats, multiple_of=batch)
    assert len(alone) == num_samples * repeats // batch * batch
    for number in range(len(alone) // batch):
        shares = [part[number * per_process : (number + 1) * per_process] for part in drawn]
        assert sorted(key for share in shares for key in share) == sorted(alone[number * batch : (number + 1) * batch])


def test_repeats_draw_a_video_in_a_row_and_never_twice_alike() -> None:
    drawn = [key for epoch in range(3) for key in parts(1, 5, epoch, repeats=2)[0]]
    assert len(set(drawn)) == 30
    assert Counter(index for _, index in drawn) == dict.fromkeys(range(5), 6)
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert first[1] == second[1]
        assert second[0] == first[0] + 1


@pytest.mark.parametrize("epoch", [0, 3])
def test_order_is_a_function_of_seed_and_epoch(epoch: int) -> None:
    assert parts(1, 20, epoch) == parts(1, 20, epoch)
    assert [index for _, index in parts(1, 20, epoch)[0]] != [index for _, index in parts(1, 20, epoch + 1)[0]]


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_draws_of_one_decoding_stay_in_one_process_and_batches_are_the_same(
    num_samples: int, num_processes: int, together: int, more: int, groups: int
) -> None:
    repeats, share = together * more, together * groups
    batch = num_processes * share
    options = {"repeats": repeats, "multiple_of": batch, "together": together}
    alone = parts(1, num_samples, **options)[0]
    drawn = parts(num_processes, num_samples, **options)
    assert len(alone) == num_samples * repeats // batch * batch
    for part in drawn:
        for first in range(0, len(part), together):
            draws, indices = zip(*part[first : first + together], strict=True)
            assert len(set(indices)) == 1
            assert draws == tuple(range(draws[0], draws[0] + together))
            assert draws[0] % together == 0
    for number in range(len(alone) // batch):
        shares = [part[number * share : (number + 1) * share] for part in drawn]
        assert sorted(key for part in shares for key in part) == sorted(alone[number * batch : (number + 1) * batch])


def test_without_classes_the_order_is_one_permutation_of_the_epoch() -> None:
    order = np.random.default_rng((SEED_ORDER, 3, 4)).permutation(9)
    assert parts(1, 9, repeats=2)[0] == [(8 + repeat, index) for index in order for repeat in (0, 1)]


def slow_draws(classes: list[int], count: int) -> list[tuple[int, int]]:
    """Class and number of the pass of each draw: take classes in turn, and a class's samples without putting back."""
    present, drawn, found = sorted(set(classes)), Counter[int](), []
    for draw in range(count):
        wanted = present[draw % len(present)]
        found.append((wanted, drawn[wanted] // classes.count(wanted)))
        drawn[wanted] += 1
    return found


@given(st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=12), st.integers(0, 30), st.integers(1, 40))
def test_balanced_draws_take_classes_in_turn_and_samples_equally_often(
    classes: list[int], first: int, count: int
) -> None:
    indices, passes = balanced_draws(np.array(classes), 0, first + count, seed=1)
    assert [(classes[i], done) for i, done in zip(indices, passes, strict=True)] == slow_draws(classes, first + count)
    assert (
        len(set(zip(indices.tolist(), passes.tolist(), strict=True))) == first + count
    )  # no sample is seen twice alike
    later = balanced_draws(np.array(classes), first, count, seed=1)
    np.testing.assert_array_equal(later, (indices[first:], passes[first:]))  # whatever was drawn before


def test_an_epoch_has_equally_many_of_each_class() -> None:
    classes = [0] * 17 + [1] * 2 + [3] * 5  # no sample of class 2
    seen: Counter[int] = Counter()
    for epoch in range(4):
        drawn = parts(1, 24, epoch, classes=classes, multiple_of=6, repeats=2)[0]
        assert Counter(classes[index] for _, index in drawn) == {0: 16, 1: 16, 3: 16}
        assert len(set(drawn)) == 48
        assert [index for _, index in drawn] != sorted(index for _, index in drawn)
        seen.update(index for _, index in drawn)
    assert {seen[index] for index in (17, 18)} == {32}
    assert {seen[index] for index in range(17)} <= {2, 4}


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_a_balanced_batch_is_the_same_for_any_number_of_processes(
    num_processes: int, per_process: int, repeats: int, epoch: int
) -> None:
    batch, classes = num_processes * per_process, [0] * 9 + [1] * 3
    options = {"repeats": repeats, "multiple_of": batch, "classes": classes}
    alone, drawn = parts(1, 12, epoch, **options)[0], parts(num_processes, 12, epoch, **options)
    for number in range(len(alone) // batch):
        shares = [part[number * per_process : (number + 1) * per_process] for part in drawn]
        assert sorted(key for share in shares for key in share) == sorted(alone[number * batch : (number + 1) * batch])


def train_below_a_fork_server(done: Connection) -> None:
    """Load batches as a training of a sweep does, tell the loader process, and go on until killed."""
    params = small_params(runtime={"num_loader_workers": 1})
    loader = training_loader(Numbers(), params.pretrain, params.runtime, seed=0)
    batches = iter(loader)
    done.send(int(next(batches)[0]))
    done.recv()


class Numbers(Dataset[Tensor]):
    """The process that loads each sample."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor(os.getpid())


def test_loader_processes_end_with_a_training_that_is_killed() -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    training = context.Process(target=train_below_a_fork_server, args=(theirs,))
    training.start()
    theirs.close()
    loader = psutil.Process(ours.recv())
    assert loader.pid not in {os.getpid(), training.pid}
    training.kill()
    training.join()
    loader.wait(timeout=30)
