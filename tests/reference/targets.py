"""A clip's target cell by cell: slow, and plainly what `mme.targets` says it computes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mme.motion.tracking import TrackSlice
from mme.targets.grid import TargetSpec
from mme.video.crop import Crop
from tests.reference.hog import hog_at


def target_of(
    tracks: TrackSlice, crop: Crop, frames: NDArray[np.uint8], spec: TargetSpec, token: int, cell: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Displacements ``[L, 2]`` before normalisation, HOG ``[L or 1, 9]`` and validity of one cell of one token."""
    columns = spec.width // spec.patch_size
    tubelet, place = divmod(token, columns * (spec.height // spec.patch_size))
    token_y, token_x = divmod(place, columns)
    cell_y, cell_x = divmod(cell, 2)
    side = spec.patch_size / 2
    clip_x = token_x * spec.patch_size + (cell_x + 0.5) * side - 0.5
    clip_y = token_y * spec.patch_size + (cell_y + 0.5) * side - 0.5

    x, y = to_source(clip_x, clip_y, crop, spec)
    steps, num_valid = interpolate(tracks, tubelet, x, y)
    valid = num_valid >= spec.length
    residual, shape = np.zeros((spec.length, 2)), []
    for step in range(spec.length):
        at_x, at_y = to_clip(x, y, crop, spec)
        if spec.hog_steps == "all" or step == 0:
            frame = frames[tubelet * spec.tubelet_stride + step]
            held_x, held_y = min(max(at_x, -0.5), spec.width - 0.5), min(max(at_y, -0.5), spec.height - 0.5)
            shape.append(hog_at(frame, held_x, held_y, spec.hog_window_px, spec.hog_norm_floor))
        moved = tracks.homographies[tubelet, step].astype(np.float64) @ [x, y, 1]
        camera = moved[:2] / moved[2] - [x, y]
        factors = [spec.width / crop.width * (-1 if crop.flip else 1), spec.height / crop.height]
        residual[step] = (steps[step] - camera) * factors
        x, y = x + steps[step][0], y + steps[step][1]
        valid &= _inside(*to_clip(x, y, crop, spec), spec)
    return residual, np.array(shape), bool(valid)


def to_source(x: float, y: float, crop: Crop, spec: TargetSpec) -> tuple[float, float]:
    """Clip pixels to source pixels."""
    if crop.flip:
        x = spec.width - 1 - x
    return (
        crop.left + (x + 0.5) * crop.width / spec.width - 0.5,
        crop.top + (y + 0.5) * crop.height / spec.height - 0.5,
    )


def to_clip(x: float, y: float, crop: Crop, spec: TargetSpec) -> tuple[float, float]:
    """Source pixels to clip pixels."""
    clip_x = (x + 0.5 - crop.left) * spec.width / crop.width - 0.5
    clip_y = (y + 0.5 - crop.top) * spec.height / crop.height - 0.5
    return (spec.width - 1 - clip_x if crop.flip else clip_x), clip_y


def interpolate(tracks: TrackSlice, start: int, x: float, y: float) -> tuple[NDArray[np.float64], int]:
    """Displacements ``[L, 2]`` at a source position, bilinear or extrapolated, and valid steps of the worst node."""
    rows, columns = tracks.num_valid.shape[1:]
    total = np.zeros(tracks.displacements.shape[3:])
    worst = 255
    for row, weight_y in _nodes((y + 0.5) / tracks.cell - 0.5, rows):
        for column, weight_x in _nodes((x + 0.5) / tracks.cell - 0.5, columns):
            total += weight_y * weight_x * tracks.displacements[start, row, column].astype(np.float64)
            worst = min(worst, int(tracks.num_valid[start, row, column]))
    return total, worst


def _nodes(place: float, num_nodes: int) -> list[tuple[int, float]]:
    if abs(place - round(place)) < 1e-6 and 0 <= round(place) < num_nodes:
        return [(round(place), 1.0)]
    low = min(max(math.floor(place), 0), num_nodes - 2)
    return [(low, 1 - (place - low)), (low + 1, place - low)]


def _inside(x: float, y: float, spec: TargetSpec) -> bool:
    return -0.5 <= x <= spec.width - 0.5 and -0.5 <= y <= spec.height - 0.5
