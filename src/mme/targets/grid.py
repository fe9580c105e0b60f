"""Crops of the source frame, and the stored tracks at the cells of a clip's tokens.

Everything here works on the tokens of many clips at once: a clip of 64 px has so few that calls, and not numbers, would
take the time. Conventions of coordinates: see `mme.motion.tracking`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mme.config import CELLS_PER_PATCH_SIDE, ClipParams, ModelParams, PretrainParams
from mme.motion.camera import camera_shift
from mme.motion.tracking import TrackSlice
from mme.video.crop import Crop


@dataclass(frozen=True)
class TargetSpec:
    """What a clip's target looks like.

    Attributes:
        height, width: of the clip's frames, pixels.
        patch_size: side of a token, clip pixels; a cell is half of it.
        num_tubelets: tubelets in a clip.
        tubelet_stride: raw frames from the start of a tubelet to the start of the next.
        length: L, steps of a trajectory.
        position_norm, patch_std_floor_px: see `mme.targets.assemble.normalise_positions`.
        hog_steps: HOG at ``all`` steps of the trajectory or at the ``first`` only.
        hog_window_px: side of the HOG window, clip pixels.
        hog_norm_floor: see `mme.targets.hog.normalise`.
    """

    height: int
    width: int
    patch_size: int
    num_tubelets: int
    tubelet_stride: int
    length: int
    position_norm: Literal["none", "patch_std"]
    patch_std_floor_px: float
    hog_steps: Literal["all", "first"]
    hog_window_px: int
    hog_norm_floor: float

    @classmethod
    def from_params(cls, clip: ClipParams, model: ModelParams, pretrain: PretrainParams) -> TargetSpec:
        """The target that ``params.yaml`` describes."""
        return cls(
            height=clip.size,
            width=clip.size,
            patch_size=model.patch_size,
            num_tubelets=clip.num_frames // model.tubelet_frames,
            tubelet_stride=model.tubelet_frames * clip.stride_frames,
            length=pretrain.length,
            position_norm=pretrain.position_norm,
            patch_std_floor_px=pretrain.patch_std_floor_px,
            hog_steps=pretrain.hog_steps,
            hog_window_px=pretrain.hog_window_px,
            hog_norm_floor=pretrain.hog_norm_floor,
        )

    @property
    def cell(self) -> int:
        """Side of a cell, clip pixels."""
        return self.patch_size // CELLS_PER_PATCH_SIDE

    @property
    def num_hog_frames(self) -> int:
        """Raw frames of the clip that its target is made from, counted from the clip's first."""
        last_start = (self.num_tubelets - 1) * self.tubelet_stride
        return last_start + (self.length if self.hog_steps == "all" else 1)

    def starts(self, clip_start: int) -> list[int]:
        """Raw frames at which the trajectories of a clip start."""
        return [clip_start + tubelet * self.tubelet_stride for tubelet in range(self.num_tubelets)]


class TokenTracks(NamedTuple):
    """Tracks of the C = 4 cells of N tokens, in the pixels of their clips.

    Attributes:
        clip, tubelet: int64 ``[N]``, where the token is from.
        path: float32 ``[N, C, L + 1, 2]``, raw positions.
        residual: float32 ``[N, C, L, 2]``, displacements without the camera's motion.
        valid: bool ``[N, C]``, whether every step is valid and within the clip's frame.
    """

    clip: NDArray[np.int64]
    tubelet: NDArray[np.int64]
    path: NDArray[np.float32]
    residual: NDArray[np.float32]
    valid: NDArray[np.bool_]


def token_tracks(
    tracks: Sequence[TrackSlice], crops: Sequence[Crop], tokens: Sequence[NDArray[np.int64]], spec: TargetSpec
) -> TokenTracks:
    """Tracks of the chosen ``tokens`` of clips, one of each sequence a clip."""
    cells = token_cells(spec)
    parts = [
        _cells(stored, crop, spec, cells[:, chosen]) for stored, crop, chosen in zip(tracks, crops, tokens, strict=True)
    ]
    starts, displacements, num_valid = (np.concatenate(part) for part in zip(*parts, strict=True))
    clip = np.repeat(np.arange(len(tokens)), [len(chosen) for chosen in tokens])
    tubelet = np.concatenate([cells[0, chosen, 0] for chosen in tokens])
    path = np.empty((*num_valid.shape, spec.length + 1, 2), dtype=np.float32)
    path[..., 0, :] = starts
    path[..., 1:, :] = displacements
    np.cumsum(path, axis=2, out=path)
    homographies = np.stack([part.homographies[:, : spec.length] for part in tracks])  # (B, T, L, 3, 3)
    if (homographies != np.eye(3, dtype=np.float32)).any():
        residual = displacements - camera_shift(homographies[clip, tubelet][:, None], path[..., :-1, :])
    else:
        residual = displacements
    inside = _to_clip(path, residual, crops, clip, spec)
    return TokenTracks(clip, tubelet, path, residual, (num_valid >= spec.length) & inside)


def _to_clip(
    path: NDArray[np.float32],
    residual: NDArray[np.float32],
    crops: Sequence[Crop],
    clip: NDArray[np.int64],
    spec: TargetSpec,
) -> NDArray[np.bool_]:
    """Turn source pixels into clip pixels, in place; returns which cells ``[N, C]`` stay in the clip's frame."""
    size = np.array([spec.width, spec.height], dtype=np.float32)
    scale = np.array([(spec.width / crop.width, spec.height / crop.height) for crop in crops], dtype=np.float32)
    origin = np.array([(crop.left - 0.5, crop.top - 0.5) for crop in crops], dtype=np.float32)
    scale, origin = scale[clip][:, None, None], origin[clip][:, None, None]
    path -= origin
    path *= scale
    path -= np.float32(0.5)
    residual *= scale
    flipped = np.array([crop.flip for crop in crops])[clip]
    path[flipped, ..., 0] = spec.width - 1 - path[flipped, ..., 0]
    residual[flipped, ..., 0] *= -1
    return np.asarray(((path >= -0.5) & (path <= size - 0.5)).all(axis=(2, 3)))


@functools.lru_cache(maxsize=8)
def token_cells(spec: TargetSpec) -> NDArray[np.int64]:
    """Tubelet, row and column ``[3, N, C]`` of the cells of all tokens, which are in (tubelet, y, x) order."""
    side = CELLS_PER_PATCH_SIDE
    rows, columns = spec.height // spec.patch_size, spec.width // spec.patch_size
    places = np.indices((spec.num_tubelets, rows, columns, side, side)).reshape(5, -1, side * side)
    cells = np.stack([places[0], places[1] * side + places[3], places[2] * side + places[4]])
    cells.flags.writeable = False
    return cells


class _Nodes(NamedTuple):
    """Stored grid lines on either side of each of the clip's, and the weight of the second."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float32]


def _cells(
    tracks: TrackSlice, crop: Crop, spec: TargetSpec, cells: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.float32], NDArray[np.uint8]]:
    """Source positions ``[M, C, 2]``, displacements ``[M, C, L, 2]`` and valid steps ``[M, C]`` of cells of one clip.

    Stored tracks are interpolated bilinearly, linearly beyond the outermost nodes. A point has as many valid steps as
    the worst of the nodes that it is interpolated from.
    """
    grid_size = tracks.num_valid.shape[1:]
    centres_x, centres_y, columns, rows = _geometry(crop, spec, tracks.cell, grid_size)
    tubelet, y, x = cells
    steps = tracks.displacements.reshape(-1, *tracks.displacements.shape[3:])  # (T h w, L, 2)
    counts = tracks.num_valid.reshape(-1)
    top, bottom = ((tubelet * grid_size[0] + line[y]) * grid_size[1] for line in (rows.low, rows.high))

    def at(column: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        values, valid = steps.take(top + column, axis=0)[..., : spec.length, :], counts.take(top + column)
        if not rows.weight.any():  # all zero if the clip's rows are stored ones
            return values, valid
        below = steps.take(bottom + column, axis=0)[..., : spec.length, :]
        return _blend(values, below, rows.weight[y]), np.minimum(valid, counts.take(bottom + column))

    values, valid = at(columns.low[x])
    if columns.weight.any():
        right, right_valid = at(columns.high[x])
        values, valid = _blend(values, right, columns.weight[x]), np.minimum(valid, right_valid)
    return np.stack([centres_x[x], centres_y[y]], axis=-1), values, valid


def _blend(low: NDArray[np.float32], high: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """``low + (high - low) * weight``, in place."""
    high -= low
    high *= weight[..., None, None]
    low += high
    return low


@functools.lru_cache(maxsize=64)
def _geometry(
    crop: Crop, spec: TargetSpec, cell: int, grid_size: tuple[int, ...]
) -> tuple[NDArray[np.floating], NDArray[np.floating], _Nodes, _Nodes]:
    """Source x of each column and y of each row of cell centres, in the clip's (mirrored) order, and their nodes."""
    x = (np.arange(spec.width // spec.cell) + 0.5) * spec.cell  # distance from the clip's left edge
    y = (np.arange(spec.height // spec.cell) + 0.5) * spec.cell
    if crop.flip:
        x = spec.width - x
    source_x = crop.left - 0.5 + x * (crop.width / spec.width)
    source_y = crop.top - 0.5 + y * (crop.height / spec.height)
    rows, columns = grid_size
    return source_x, source_y, _nodes(source_x, cell, columns), _nodes(source_y, cell, rows)


def _nodes(centres: NDArray[np.floating], cell: int, num_nodes: int) -> _Nodes:
    """Twice the same node where a centre is on one, so that no neighbour can make it invalid."""
    place = (centres + 0.5) / cell - 0.5
    nearest = np.clip(np.rint(place), 0, num_nodes - 1)
    low = np.clip(np.floor(place), 0, max(num_nodes - 2, 0))
    on_node = (np.abs(place - nearest) < 1e-6) | (num_nodes == 1)
    low = np.where(on_node, nearest, low)
    high = np.where(on_node, low, low + 1)
    weight = np.where(on_node, 0.0, place - low)
    return _Nodes(low.astype(np.int64), high.astype(np.int64), weight.astype(np.float32))
