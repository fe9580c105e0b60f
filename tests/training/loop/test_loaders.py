from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.training.loop.loaders import EpochSampler, Rank


def parts(num_processes: int, num_samples: int, epoch: int = 4, **options: int) -> list[list[tuple[int, int]]]:
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
