"""The target of a clip: tracks and frames of one crop made into what each token predicts.

Sun et al. 2023, section 3.2: ``z = (z_p, z_s)``, position changes and shape changes of each cell along its trajectory.
Conventions of coordinates: see `mme.targets.trajectories`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mme.config import CELLS_PER_PATCH_SIDE, ClipParams, ModelParams, PretrainParams
from mme.targets.camera import camera_shift
from mme.targets.hog import NUM_BINS, hog_along
from mme.targets.trajectories import TrackSlice

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Crop:
    """A rectangle of the source frame that is resized to the clip's frame, and then mirrored if ``flip``.

    Edges in source pixels: the whole frame is ``Crop(0, 0, height, width, False)``.
    """

    top: float
    left: float
    height: float
    width: float
    flip: bool


@dataclass(frozen=True)
class TargetSpec:
    """What a clip's target looks like.

    Attributes:
        height, width: of the clip's frames, pixels.
        patch_size: side of a token, clip pixels; a cell is half of it.
        num_tubelets: tubelets in a clip.
        tubelet_stride: raw frames from the start of a tubelet to the start of the next.
        length: L, steps of a trajectory.
        shape: HOG ``along`` the trajectory or at its ``start`` only.
        position_norm, position_scale_px: see `normalise_positions`.
        hog_window: side of the HOG window, clip pixels.
    """

    height: int
    width: int
    patch_size: int
    num_tubelets: int
    tubelet_stride: int
    length: int
    shape: Literal["along", "start"]
    position_norm: Literal["none", "scale", "patch_std"]
    position_scale_px: float
    hog_window: int

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
            shape=pretrain.shape,
            position_norm=pretrain.position_norm,
            position_scale_px=pretrain.position_scale_px,
            hog_window=pretrain.hog_window,
        )

    @property
    def cell(self) -> int:
        """Side of a cell, clip pixels."""
        return self.patch_size // CELLS_PER_PATCH_SIDE

    @property
    def num_hog_frames(self) -> int:
        """Raw frames of the clip that `assemble` reads, counted from the clip's first."""
        last_start = (self.num_tubelets - 1) * self.tubelet_stride
        return last_start + (self.length if self.shape == "along" else 1)

    def starts(self, clip_start: int) -> list[int]:
        """Raw frames at which the trajectories of a clip start."""
        return [clip_start + tubelet * self.tubelet_stride for tubelet in range(self.num_tubelets)]


@dataclass(frozen=True)
class MotionTarget:
    """Target of one clip: N tokens in (tubelet, y, x) order, C = 4 cells a token in (y, x) order.

    Attributes:
        position: float32 ``[N, C, L, 2]``, normalised displacements ``(x, y)``.
        shape: float32 ``[N, C, L or 1, 9]``, HOG.
        valid: bool ``[N, C]``, whether every step is valid and within the clip's frame; elsewhere both are zero.
    """

    position: NDArray[np.float32]
    shape: NDArray[np.float32]
    valid: NDArray[np.bool_]


def assemble(
    tracks: TrackSlice,
    crop: Crop,
    frames: NDArray[np.uint8] | None,
    spec: TargetSpec,
    hidden: NDArray[np.bool_] | None = None,
) -> MotionTarget:
    """Target of one clip.

    Args:
        tracks: from the start frames of the clip's tubelets.
        crop: what part of the source frame the clip shows.
        frames: uint8 ``[F, H, W, 3]``, the clip's view of the raw frames (cropped, resized, flipped) from its first
            frame on, dense in time; at least ``spec.num_hog_frames``. None leaves ``shape`` zero-length.
        spec: the target's form.
        hidden: bool ``[N]``, ``True`` for the tokens whose target is wanted, in their order; None for all.

    Raises:
        ValueError: too few frames, steps or starts, or frames of another size.
    """
    _check(tracks, frames, spec)
    path, residual, valid = clip_tracks(tracks, crop, spec)  # (T, y, x, L + 1, 2), (T, y, x, L, 2), (T, y, x)
    path, residual, valid = _by_token(path), _by_token(residual), _by_token(valid)  # (N, C, ...)
    tubelet = np.repeat(np.arange(spec.num_tubelets), len(valid) // spec.num_tubelets)
    if hidden is not None:
        path, residual, valid, tubelet = path[hidden], residual[hidden], valid[hidden], tubelet[hidden]
    position = normalise_positions(residual, valid, spec)
    position *= valid[..., None, None]
    if frames is None:
        shape = np.zeros((*position.shape[:2], 0, NUM_BINS), dtype=np.float32)
    else:
        shape = _shape_changes(path, tubelet, frames, spec)
        shape *= valid[..., None, None]
    return MotionTarget(position, shape, valid)


def clip_tracks(
    tracks: TrackSlice, crop: Crop, spec: TargetSpec
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Tracks of the clip's cells in clip pixels.

    Returns:
        raw positions ``[T, y, x, L + 1, 2]``, camera-compensated displacements ``[T, y, x, L, 2]`` and validity
        ``[T, y, x]``, T tubelets, in the clip's (mirrored) arrangement.
    """
    centres_x, centres_y, nodes_x, nodes_y = _geometry(crop, spec, tracks.cell, tracks.num_valid.shape[1:])
    displacements, num_valid = _interpolate(tracks, nodes_x, nodes_y, spec.length)  # (T, y, x, L, 2), (T, y, x)
    num_tubelets, rows, columns = num_valid.shape
    path = np.empty((num_tubelets, rows, columns, spec.length + 1, 2), dtype=np.float32)
    path[..., 0, 0] = centres_x
    path[..., 0, 1] = centres_y[:, None]
    path[..., 1:, :] = displacements
    np.cumsum(path, axis=3, out=path)
    camera = camera_shift(tracks.homographies[:, None, None, : spec.length], path[..., :-1, :])
    residual = displacements - camera

    scale = np.array([spec.width / crop.width, spec.height / crop.height], dtype=np.float32)
    origin = np.array([crop.left - 0.5, crop.top - 0.5], dtype=np.float32)
    path -= origin
    path *= scale
    path -= np.float32(0.5)
    residual *= scale
    if crop.flip:
        path[..., 0] = spec.width - 1 - path[..., 0]
        residual[..., 0] *= -1
    low, high = path.min(axis=3), path.max(axis=3)  # (T, y, x, 2)
    inside = (low >= -0.5) & (high <= np.array([spec.width, spec.height], dtype=np.float32) - 0.5)
    return path, residual, (num_valid >= spec.length) & inside.all(axis=-1)


def normalise_positions(
    residual: NDArray[np.float32], valid: NDArray[np.bool_], spec: TargetSpec
) -> NDArray[np.float32]:
    """Normalise displacements ``[N, C, L, 2]`` in clip pixels a frame; ``valid`` is ``[N, C]``.

    - ``none``: as they are.
    - ``scale``: divided by ``position_scale_px``.
    - ``patch_std``: the patch's mean motion (over its valid cells and steps, x and y apart) is taken off, and the rest
      divided by its deviation, at least ``position_scale_px``; so a patch where nothing moves gives zeros, not noise.
    """
    if spec.position_norm == "none":
        return residual.copy()
    if spec.position_norm == "scale":
        return residual / np.float32(spec.position_scale_px)
    weight = valid[:, :, None, None].astype(np.float32)
    count = np.maximum(weight.sum(axis=(1, 2), keepdims=True) * residual.shape[2], 1)
    mean = (residual * weight).sum(axis=(1, 2), keepdims=True) / count  # (N, 1, 1, 2)
    centred = residual - mean
    variance = (np.square(centred) * weight).sum(axis=(1, 2, 3), keepdims=True) / (2 * count)
    deviation = np.maximum(np.sqrt(variance), np.float32(spec.position_scale_px))
    return np.asarray(centred / deviation, dtype=np.float32)


def _check(tracks: TrackSlice, frames: NDArray[np.uint8] | None, spec: TargetSpec) -> None:
    if len(tracks.starts) != spec.num_tubelets:
        raise ValueError(f"{len(tracks.starts)} start frames for {spec.num_tubelets} tubelets")
    if tracks.displacements.shape[3] < spec.length:
        raise ValueError(f"tracks of {tracks.displacements.shape[3]} steps are shorter than length {spec.length}")
    if frames is not None and frames.shape[1:] != (spec.height, spec.width, 3):
        raise ValueError(f"frames must be [F, {spec.height}, {spec.width}, 3], got {list(frames.shape)}")
    if frames is not None and len(frames) < spec.num_hog_frames:
        raise ValueError(f"{len(frames)} frames are too few, shape '{spec.shape}' needs {spec.num_hog_frames}")


class _Nodes(NamedTuple):
    """Stored grid lines on either side of each of the clip's, and the weight of the second."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float32]


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


def _interpolate(
    tracks: TrackSlice, columns: _Nodes, rows: _Nodes, length: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Stored tracks at the clip's cells: bilinear, linear beyond the outermost nodes.

    A point has as many valid steps as the worst of the nodes that it is interpolated from.
    """
    values, counts = tracks.displacements[:, :, :, :length], tracks.num_valid
    values = _blend(values, rows, rows.weight[:, None, None, None], 1)
    values = _blend(values, columns, columns.weight[:, None, None], 2)
    counts = np.minimum(counts.take(rows.low, axis=1), counts.take(rows.high, axis=1))
    return values, np.minimum(counts.take(columns.low, axis=2), counts.take(columns.high, axis=2))


def _blend(values: NDArray[np.float32], nodes: _Nodes, weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """``values[low] + (values[high] - values[low]) * weight`` along an axis."""
    low = values.take(nodes.low, axis=axis)
    if nodes.weight.any():  # all zero if the clip's cells are the stored ones
        step = values.take(nodes.high, axis=axis)
        step -= low
        step *= weight
        low += step
    return low


def _shape_changes(
    path: NDArray[np.float32], tubelet: NDArray[np.int64], frames: NDArray[np.uint8], spec: TargetSpec
) -> NDArray[np.float32]:
    """HOG ``[N, C, L or 1, 9]`` at raw positions ``[N, C, L + 1, 2]`` in clip pixels, from tubelets ``[N]`` on."""
    if spec.shape == "start":
        starts = np.arange(spec.num_tubelets) * spec.tubelet_stride
        return hog_along(frames[starts], path[:, :, :1], tubelet[:, None, None], spec.hog_window)
    index = tubelet[:, None, None] * spec.tubelet_stride + np.arange(spec.length)
    return hog_along(frames[: spec.num_hog_frames], path[:, :, :-1], index, spec.hog_window)


def _by_token(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """Cells ``[T, y, x, ...]`` to tokens and their cells ``[N, C, ...]``."""
    side = CELLS_PER_PATCH_SIDE
    num_tubelets, rows, columns, *rest = values.shape
    split = values.reshape(num_tubelets, rows // side, side, columns // side, side, *rest)
    split = split.swapaxes(2, 3)  # (T, token y, token x, cell y, cell x, ...)
    return split.reshape(-1, side * side, *rest)
