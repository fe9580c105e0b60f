"""Target ``position``: displacements of tracked points (Sun et al. 2023, section 3.3, position changes)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mme.targets.drawing import PREDICTED_COLOUR, TRUE_COLOUR, TokenCanvas
from mme.targets.grid import CELLS_PER_TOKEN, HiddenTokens, TargetSpec


class Position:
    """Displacements ``(x, y)`` of a token's cells at each of L steps, clip pixels per frame, camera motion removed.

    With ``position_norm: patch_std`` they are in units of the token, see `patch_standardise`; with ``log`` their
    lengths are compressed, see `log_compress`.
    """

    name = "position"
    label = "displacements of tracked points"
    default_weight = 1.0
    inputs = ("tracks",)
    centre: Literal["zero"] = "zero"  # motion has no preferred direction

    def shape(self, spec: TargetSpec) -> tuple[int, ...]:
        """Shape ``[C, L, 2]`` of one token's target."""
        return CELLS_PER_TOKEN, spec.length, 2

    def compute(self, tokens: HiddenTokens) -> tuple[Float[Tensor, "B M C L 2"], Bool[Tensor, "B M C"]]:
        """Displacements of the hidden tokens, and the cells where they are valid."""
        tracks, spec = tokens.tracks, tokens.spec
        displacements = tracks.displacements
        if spec.position_norm == "patch_std":
            displacements = patch_standardise(displacements, tracks.valid, spec.patch_std_floor_px)
        elif spec.position_norm == "log":
            displacements = log_compress(displacements, spec.log_scale_px)
        return displacements, tracks.valid

    def draw(
        self, canvas: TokenCanvas, true: Float[np.ndarray, "M C L 2"], predicted: Float[np.ndarray, "M C L 2"] | None
    ) -> None:
        """Draw the tracks from the cells' centres, a pixel per unit of the target, see `drawn_units`."""
        for values, colour in ((true, TRUE_COLOUR), (predicted, PREDICTED_COLOUR)):
            if values is None:
                continue
            for start, steps in zip(canvas.cells[canvas.valid], values[canvas.valid], strict=True):
                path = np.vstack([start, start + steps.cumsum(axis=0)])  # (L + 1, 2)
                canvas.line(path, colour)
                canvas.dot(path[-1], colour)


def patch_standardise(
    displacements: Float[Tensor, "B M C L 2"], valid: Bool[Tensor, "B M C"], floor_px: float
) -> Float[Tensor, "B M C L 2"]:
    """Take a token's mean motion off and divide by its deviation (the published recipe).

    Mean and deviation are over the token's valid cells and all steps; the mean is one of x and one of y. The deviation
    is at least ``floor_px``, so that a token where nothing moves gives zeros and not noise of unit size.
    """
    weight = valid[..., None, None].float()  # (B, M, C, 1, 1)
    count = (weight.sum(dim=(2, 3), keepdim=True) * displacements.shape[3]).clamp(min=1)  # (B, M, 1, 1, 1)
    mean = (displacements * weight).sum(dim=(2, 3), keepdim=True) / count  # (B, M, 1, 1, 2)

    centred = displacements - mean
    variance = (centred.square() * weight).sum(dim=(2, 3, 4), keepdim=True) / (2 * count)
    return centred / variance.sqrt().clamp(min=floor_px)


def log_compress(displacements: Float[Tensor, "*S 2"], scale_px: float) -> Float[Tensor, "*S 2"]:
    """Compress the lengths of displacements, ``d -> log(1 + |d| / s) d / |d|``; directions stay.

    Lengths far below ``s`` become ``|d| / s``. Real motion has a heavy tail: without, the fastest hundredth of points
    decides most of a squared loss.
    """
    relative = torch.linalg.vector_norm(displacements, dim=-1, keepdim=True) / scale_px
    smallest = torch.finfo(relative.dtype).tiny  # log(1 + r) / r is 1 at r = 0, where the quotient is undefined
    factor = torch.where(relative > 0, torch.log1p(relative) / relative.clamp(min=smallest), 1.0)
    return displacements / scale_px * factor


def drawn_units(position_norm: str) -> str:
    """Return the words that a picture of displacements needs unless they are drawn in clip pixels.

    Compressed lengths are drawn as they are: a mean of compressed lengths, which is what a model predicts where it is
    unsure, would be nearly a point in pixels.
    """
    return {"patch_std": ", less the patch's mean, in its deviations", "log": ", lengths compressed"}.get(
        position_norm, ""
    )


MOVING_PX = 2.0
"""Length of its track, clip pixels, from which on a point moves: per frame more than the error of the flow."""

MotionSums = dict[str, Tensor]
"""Sums over points; `motion_scores` makes scores of them."""


def motion_sums(
    predicted: Float[Tensor, "B M C L 2"],
    target: Float[Tensor, "B M C L 2"],
    valid: Bool[Tensor, "B M C"],
    length_px: Float[Tensor, "B M C"],
) -> MotionSums:
    """Sum up errors and directions over the points that move.

    Args:
        predicted: displacements, in the units of the loss.
        target: true ones, in the same.
        valid: points that count.
        length_px: length of each true track, clip pixels.
    """
    moving = valid & (length_px >= MOVING_PX)
    predicted, target = predicted[moving].flatten(1).double(), target[moving].flatten(1).double()  # (P, 2 L)
    return {
        "error": (predicted - target).square().sum(),
        "power": target.square().sum(),
        "cosine": cosine_similarity(predicted, target, dim=1).sum(),
        "points": moving.sum().double(),
    }


def motion_scores(sums: MotionSums) -> dict[str, Tensor]:
    """Return what the errors and directions of moving points are worth.

    Returns:
        ``position_explained_moving``: share of their squared displacements that is predicted; a prediction of no motion
            has 0. ``position_cosine``: mean cosine between predicted and true displacements of a track; 1 is the same
            direction at every step, 0 none of it, as the most frequent points, which hardly move, do not count.
    """
    return {
        "position_explained_moving": 1 - sums["error"] / sums["power"],
        "position_cosine": sums["cosine"] / sums["points"],
    }


POSITION = Position()
