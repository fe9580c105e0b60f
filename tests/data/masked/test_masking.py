from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.config import MaskKind
from mme.data.masked.masking import draw_mask, num_hidden

Grid = tuple[int, int, int]

grids = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 6))


@given(grids, st.floats(0.01, 0.99), st.sampled_from(["tube", "random", "motion"]), st.integers(0, 1000))
def test_every_mask_hides_the_same_number_and_leaves_something_visible(
    grid: Grid, ratio: float, kind: MaskKind, seed: int
) -> None:
    motion = np.random.default_rng(seed).random(grid[1:])
    mask = draw_mask(np.random.default_rng(seed), grid, ratio, kind, motion)
    assert mask.dtype == bool
    assert mask.shape == (np.prod(grid),)
    assert mask.sum() == num_hidden(grid, ratio, kind)
    assert 0 < mask.sum() < mask.size


@given(grids, st.floats(0.01, 0.99), st.sampled_from(["tube", "motion"]), st.integers(0, 1000))
def test_a_tube_hides_the_same_positions_in_every_frame(grid: Grid, ratio: float, kind: MaskKind, seed: int) -> None:
    mask = draw_mask(np.random.default_rng(seed), grid, ratio, kind, np.ones(grid[1:])).reshape(grid)
    assert (mask == mask[:1]).all()


def test_random_masks_differ_between_frames_and_true_means_hidden() -> None:
    mask = draw_mask(np.random.default_rng(0), (4, 8, 8), 0.75, "random").reshape(4, 8, 8)
    assert (mask != mask[:1]).any()
    assert mask.mean() == 0.75


def test_every_position_is_hidden_equally_often() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([draw_mask(rng, (2, 4, 4), 0.75, "tube") for _ in range(4000)], axis=0)
    assert abs(share - 0.75).max() < 0.04


def test_a_grid_of_one_position_cannot_be_masked() -> None:
    with pytest.raises(ValueError, match="grid"):
        draw_mask(np.random.default_rng(0), (4, 1, 1), 0.5, "tube")


@given(grids, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_half_of_a_motion_mask_lies_where_most_moves(grid: Grid, ratio: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    motion = rng.permutation(grid[1] * grid[2]).reshape(grid[1:]).astype(np.float32)
    hidden = draw_mask(rng, grid, ratio, "motion", motion).reshape(grid)[0]
    lively = motion >= np.sort(motion, axis=None)[motion.size // 2]
    assert (hidden & lively).sum() >= hidden.sum() // 2


def test_a_motion_mask_hides_what_moves_more_often_and_the_rest_too() -> None:
    motion = np.zeros((4, 4), np.float32)
    motion[1:3, 1:3] = 1.0
    rng = np.random.default_rng(0)
    share = np.mean([draw_mask(rng, (1, 4, 4), 0.5, "motion", motion) for _ in range(4000)], axis=0).reshape(4, 4)
    moving, resting = share[1:3, 1:3], np.r_[share[0], share[3], share[1:3, 0], share[1:3, 3]]
    assert moving.min() > resting.max() + 0.2
    assert resting.min() > 0.2


def test_where_nothing_moves_a_motion_mask_is_a_tube() -> None:
    rng = np.random.default_rng(0)
    still = np.zeros((4, 4), np.float32)
    share = np.mean([draw_mask(rng, (2, 4, 4), 0.75, "motion", still) for _ in range(4000)], axis=0)
    assert abs(share - 0.75).max() < 0.04


def test_a_motion_mask_follows_from_its_generator_and_needs_motion() -> None:
    motion = np.random.default_rng(1).random((4, 4))
    first, second = (draw_mask(np.random.default_rng(5), (2, 4, 4), 0.5, "motion", motion) for _ in range(2))
    assert (first == second).all()
    with pytest.raises(ValueError, match="motion: None"):
        draw_mask(np.random.default_rng(0), (2, 4, 4), 0.5, "motion")
    with pytest.raises(ValueError, match=r"motion: \(4, 3\)"):
        draw_mask(np.random.default_rng(0), (2, 4, 4), 0.5, "motion", motion[:, :3])
