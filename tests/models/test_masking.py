from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.models.masking import draw_mask, num_hidden

Grid = tuple[int, int, int]

grids = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 6))


@given(grids, st.floats(0.01, 0.99), st.sampled_from(["tube", "random"]), st.integers(0, 1000))
def test_every_mask_hides_the_same_number_and_leaves_something_visible(
    grid: Grid, ratio: float, kind: Literal["tube", "random"], seed: int
) -> None:
    mask = draw_mask(np.random.default_rng(seed), grid, ratio, kind)
    assert mask.dtype == bool
    assert mask.shape == (np.prod(grid),)
    assert mask.sum() == num_hidden(grid, ratio, kind)
    assert 0 < mask.sum() < mask.size


@given(grids, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_a_tube_hides_the_same_positions_in_every_frame(grid: Grid, ratio: float, seed: int) -> None:
    mask = draw_mask(np.random.default_rng(seed), grid, ratio, "tube").reshape(grid)
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
