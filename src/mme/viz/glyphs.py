"""Pictures of a clip: HOG as stars, validity of tracks, hidden tokens with their targets."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mme.motion.tracking import cell_centres
from mme.targets.base import Target
from mme.targets.drawing import Canvas, TokenCanvas
from mme.targets.grid import TargetSpec, cell_positions
from mme.targets.hog import draw_star, hog_at
from mme.video.colour import luma_of
from mme.viz.drawing import Picture, dimmed, scale_to_height

_HIDDEN_BRIGHTNESS = 0.35
_MIN_STAR_PX = 14
_LOST = (200, 40, 40)
_STAR = (235, 235, 235)


def draw_hog(frame: Picture, window: int, norm_floor: float, height_px: int) -> Picture:
    """Draw a star in each square of ``window`` pixels: one ray per bin, along its edges, as long as its share.

    Args:
        frame: RGB ``[H, W, 3]``.
        window: side of the histogram's window, pixels of the frame.
        norm_floor: mean gradient, grey levels, below which a star fades.
        height_px: of the picture.
    """
    scale = height_px / frame.shape[0]
    picture = dimmed(scale_to_height(frame, height_px))
    spacing = window * max(1, int(np.ceil(_MIN_STAR_PX / (window * scale))))
    points = cell_centres(frame.shape[0], frame.shape[1], spacing).reshape(-1, 2)  # (P, 2)
    frames = torch.zeros(len(points), dtype=torch.int64)
    histograms = hog_at(torch.from_numpy(luma_of(frame[None])), torch.from_numpy(points), frames, window, norm_floor)
    for centre, histogram in zip(points, histograms.numpy(), strict=True):
        draw_star(Canvas(picture, scale), centre, histogram, 0.55 * spacing, _STAR)
    return picture


def draw_validity(frame: Picture, share_valid: NDArray[np.floating], cell: int, height_px: int) -> Picture:
    """Draw the frame with red cells, the redder the earlier their tracks stop being valid.

    Args:
        frame: RGB ``[H, W, 3]``.
        share_valid: valid steps over all, 0 to 1, ``[h, w]``.
        cell: side of a cell, pixels of the frame.
        height_px: of the picture.
    """
    canvas = scale_to_height(frame, height_px)
    share = np.ones(frame.shape[:2])
    cells = share_valid.repeat(cell, 0).repeat(cell, 1)
    share[: cells.shape[0], : cells.shape[1]] = cells
    size = (canvas.shape[1], canvas.shape[0])
    lost = 0.75 * (1 - cv2.resize(share, size, interpolation=cv2.INTER_NEAREST))[..., None]
    return np.asarray(canvas * (1 - lost) + np.array(_LOST) * lost, dtype=np.uint8)


def draw_hidden(
    frame: Picture,
    hidden: NDArray[np.bool_],
    target: Target,
    values: tuple[NDArray[np.float32], NDArray[np.float32] | None],
    valid: NDArray[np.bool_],
    spec: TargetSpec,
    height_px: int,
) -> Picture:
    """Draw one tubelet of a clip: hidden tokens darkened, and on them their targets and predictions.

    Args:
        frame: of the clip, uint8 ``[S, S, 3]``.
        hidden: bool ``[tokens of a tubelet]``.
        target: draws itself.
        values: true values ``[M, *shape]`` of the hidden tokens, and predicted ones or None.
        valid: bool ``[M, C]``, cells that are drawn.
        spec: geometry of the tokens.
        height_px: of the picture.
    """
    scale = height_px / spec.height
    rows, columns, patch = spec.height // spec.patch_size, spec.width // spec.patch_size, spec.patch_size
    shade = np.where(hidden.reshape(rows, columns).repeat(patch, 0).repeat(patch, 1), _HIDDEN_BRIGHTNESS, 1.0)
    picture = scale_to_height((frame * shade[..., None]).astype(np.uint8), height_px)
    cells = cell_positions(spec)[: rows * columns].numpy()[hidden]  # (M, C, 2)
    true, predicted = values
    target.draw(TokenCanvas(picture, scale, cells, valid, spec), true, predicted)
    return picture
