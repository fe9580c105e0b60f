"""Masks of tokens that are hidden from the encoder.

Polarity, everywhere in this project: a mask is boolean and ``True`` means *hidden*.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mme.config import MaskKind

Bools = NDArray[np.bool_]


def num_hidden(grid: tuple[int, int, int], ratio: float, kind: MaskKind) -> int:
    """Return the number of tokens that a mask hides: the same in every clip, so that batches stack.

    At least one position (tube, motion) or token (random) stays visible and at least one is hidden.
    """
    frames, height, width = grid
    places, repeats = (frames * height * width, 1) if kind == "random" else (height * width, frames)
    if places < 2:
        raise ValueError(f"grid {grid} has {places} position: nothing can be hidden and something seen")
    return min(max(round(ratio * places), 1), places - 1) * repeats


def draw_mask(
    rng: np.random.Generator,
    grid: tuple[int, int, int],
    ratio: float,
    kind: MaskKind,
    motion: Float[np.ndarray, "H W"] | None = None,
) -> Bools:
    """Draw a mask over the tokens of one clip.

    Args:
        rng: source of randomness.
        grid: tokens in (time, height, width).
        ratio: share of hidden tokens, rounded to whole positions (tube, motion) or tokens (random).
        kind: ``tube`` hides the same positions in every frame (Sun et al. 2023 follow VideoMAE's tube masking);
            ``random`` draws tokens independently of their time; ``motion`` is a tube: half of its positions are
            drawn from the half of the clip that moves most (in the spirit of Huang et al. 2023, MGMAE), the others from
            all that are left.
        motion: for ``motion``, how much each position moves, in any unit; equal ones take turns at random.

    Returns:
        [N] in (time, y, x) order, ``True`` = hidden, with exactly ``num_hidden(grid, ratio, kind)`` true entries.
    """
    frames, height, width = grid
    count = num_hidden(grid, ratio, kind)
    if kind == "random":
        mask = np.zeros(frames * height * width, np.bool_)
        mask[rng.permutation(len(mask))[:count]] = True
        return mask
    num_places = count // frames
    places = np.zeros(height * width, np.bool_)
    if kind == "motion":
        if motion is None or motion.shape != (height, width):
            found = None if motion is None else motion.shape
            raise ValueError(f"motion: {found}; a motion mask needs the motion of {(height, width)} positions")
        lively = _most_moving(rng, motion.ravel(), (len(places) + 1) // 2)
        places[rng.permutation(lively)[: num_places // 2]] = True
        num_places -= num_places // 2
    remaining = np.flatnonzero(~places)
    places[rng.permutation(remaining)[:num_places]] = True
    return np.tile(places, frames)


def _most_moving(rng: np.random.Generator, motion: Float[np.ndarray, " P"], count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest entries; which of equal ones is drawn."""
    order: NDArray[np.int64] = np.lexsort((rng.random(len(motion)), -motion))
    return order[:count]
