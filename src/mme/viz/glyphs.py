"""Pictures of what a target is made of: histograms of gradients as stars, hidden tokens and their motion."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mme.motion.tracking import cell_centres
from mme.targets.grid import TargetSpec, token_cells
from mme.targets.hog import NUM_BINS, hog_along, luma
from mme.viz.drawing import SUBPIXEL_BITS, Picture, dimmed, draw_dot, draw_polyline, fixed_point

TRUE_COLOUR, PREDICTED_COLOUR = (61, 220, 132), (255, 95, 162)

_HIDDEN_BRIGHTNESS = 0.35
_MIN_STAR_PX = 14
_LOST = (200, 40, 40)
_GREY = np.array([235, 235, 235])


def draw_hog(frame: Picture, window: int, norm_floor: float, height_px: int) -> Picture:
    """A star in each square of ``window`` pixels: a ray a bin, along the edges that it counts, as long as its share.

    Args:
        frame: RGB ``[H, W, 3]``.
        window: side of the histogram's window, pixels of the frame.
        norm_floor: mean gradient, grey levels, below which a star fades.
        height_px: of the picture.
    """
    scale = height_px / frame.shape[0]
    canvas = dimmed(_enlarged(frame, scale))
    spacing = window * max(1, int(np.ceil(_MIN_STAR_PX / (window * scale))))
    points = cell_centres(frame.shape[0], frame.shape[1], spacing).reshape(-1, 2)
    histograms = hog_along(luma(frame[None]), points, np.zeros(len(points), np.int64), window, norm_floor)  # (P, 9)
    angles = np.radians(90 + 180 / NUM_BINS * np.arange(NUM_BINS))  # an edge is across its gradient
    rays = histograms[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1) * spacing * scale * 0.55
    centres = (points + 0.5) * scale - 0.5
    for centre, star, shares in zip(centres, rays, histograms, strict=True):
        for ray, share in zip(star, shares, strict=True):
            if share > 0.05:
                colour = tuple(int(value) for value in _GREY * min(1.0, 0.35 + share))
                ends = fixed_point(centre - ray), fixed_point(centre + ray)
                cv2.line(canvas, *ends, colour, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas


def draw_validity(frame: Picture, share_valid: NDArray[np.floating], cell: int, height_px: int) -> Picture:
    """The frame, each cell the redder the sooner its track stops being valid.

    Args:
        frame: RGB ``[H, W, 3]``.
        share_valid: valid steps over all, 0 to 1, ``[h, w]``.
        cell: side of a cell, pixels of the frame.
        height_px: of the picture.
    """
    scale = height_px / frame.shape[0]
    canvas = _enlarged(frame, scale)
    share = np.ones(frame.shape[:2])
    cells = share_valid.repeat(cell, 0).repeat(cell, 1)
    share[: cells.shape[0], : cells.shape[1]] = cells
    size = (canvas.shape[1], canvas.shape[0])
    lost = 0.75 * (1 - cv2.resize(share, size, interpolation=cv2.INTER_NEAREST))[..., None]
    return np.asarray(canvas * (1 - lost) + np.array(_LOST) * lost, dtype=np.uint8)


def draw_hidden(
    frame: Picture,
    hidden: NDArray[np.bool_],
    paths: list[tuple[NDArray[np.float32], tuple[int, int, int]]],
    spec: TargetSpec,
    height_px: int,
) -> Picture:
    """One tubelet of a clip: hidden tokens darkened, and displacements of their cells as lines from their centres.

    Args:
        frame: of the clip, uint8 ``[S, S, 3]``.
        hidden: bool ``[tokens of a tubelet]``.
        paths: displacements ``[M, C, L, 2]`` of the hidden tokens, clip pixels, NaN where there is none; and a colour.
        spec: the target's form.
        height_px: of the picture.
    """
    scale = height_px / spec.height
    rows, columns, patch = spec.height // spec.patch_size, spec.width // spec.patch_size, spec.patch_size
    shade = np.where(hidden.reshape(rows, columns).repeat(patch, 0).repeat(patch, 1), _HIDDEN_BRIGHTNESS, 1.0)
    canvas = _enlarged((frame * shade[..., None]).astype(np.uint8), scale)
    _, y, x = token_cells(spec)[:, : rows * columns][:, hidden]
    starts = (np.stack([x, y], axis=-1).astype(np.float32) + 0.5) * spec.cell - 0.5  # (M, C, 2)
    for displacements, colour in paths:
        ends = starts[:, :, None] + np.cumsum(displacements, axis=2)
        lines = np.concatenate([starts[:, :, None], ends], axis=2).reshape(-1, spec.length + 1, 2)
        for line in (lines[np.isfinite(lines).all(axis=(1, 2))] + 0.5) * scale - 0.5:
            draw_polyline(canvas, line, colour)
            draw_dot(canvas, line[-1], 1.5, colour)
    return canvas


def _enlarged(frame: Picture, scale: float) -> Picture:
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
