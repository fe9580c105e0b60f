"""Which tokens the encoder must not see.

Polarity, everywhere in this project: a mask is boolean and ``True`` means *hidden*.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def num_hidden(grid: tuple[int, int, int], ratio: float, kind: Literal["tube", "random"]) -> int:
    """How many tokens of a clip a mask hides: the same number in every clip, so that batches stack.

    At least one position (tube) or token (random) stays visible and at least one is hidden.
    """
    frames, height, width = grid
    places, repeats = (height * width, frames) if kind == "tube" else (frames * height * width, 1)
    if places < 2:
        raise ValueError(f"grid {grid} has {places} position: nothing can be hidden and something seen")
    return min(max(round(ratio * places), 1), places - 1) * repeats


def draw_mask(
    rng: np.random.Generator, grid: tuple[int, int, int], ratio: float, kind: Literal["tube", "random"]
) -> Bools:
    """Draw a mask over the tokens of one clip.

    Args:
        rng: source of randomness.
        grid: tokens in (time, height, width).
        ratio: share of hidden tokens.
        kind: ``tube`` hides the same positions in every frame (Sun et al. 2023 follow VideoMAE's tube masking);
            ``random`` draws tokens independently of their time.

    Returns:
        [N] in (time, y, x) order, ``True`` = hidden, with exactly ``num_hidden(grid, ratio, kind)`` true entries.
    """
    frames, height, width = grid
    count = num_hidden(grid, ratio, kind)
    if kind == "random":
        mask = np.zeros(frames * height * width, np.bool_)
        mask[rng.permutation(len(mask))[:count]] = True
        return mask
    places = np.zeros(height * width, np.bool_)
    places[rng.permutation(len(places))[: count // frames]] = True
    return np.tile(places, frames)
