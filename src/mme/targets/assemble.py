"""The target of a clip: tracks and frames of one crop made into what each token predicts.

Sun et al. 2023, section 3.2: ``z = (z_p, z_s)``, position changes and shape changes of each cell along its trajectory.
Conventions of coordinates: see `mme.motion.tracking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mme.motion.tracking import TrackSlice
from mme.targets.grid import TargetSpec, TokenTracks, token_cells, token_tracks
from mme.targets.hog import NUM_BINS, hog_along, luma
from mme.video.crop import Crop

_PIXELS_AT_ONCE = 2**18
"""Of frames whose HOG is taken together: many small clips at once, yet no more than a processor's cache holds."""


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
    return assemble_batch(
        [tracks], [crop], None if frames is None else [frames], spec, None if hidden is None else [hidden]
    )[0]


def assemble_batch(
    tracks: Sequence[TrackSlice],
    crops: Sequence[Crop],
    frames: Sequence[NDArray[np.uint8]] | None,
    spec: TargetSpec,
    hidden: Sequence[NDArray[np.bool_]] | None = None,
) -> list[MotionTarget]:
    """Targets of several clips, each of them what `assemble` gives: for small clips several times as fast."""
    for number, part in enumerate(tracks):
        _check(part, None if frames is None else frames[number], spec)
    if hidden is None:
        tokens = [np.arange(token_cells(spec).shape[1])] * len(tracks)
    else:
        tokens = [np.flatnonzero(choice) for choice in hidden]
    found = token_tracks(tracks, crops, tokens, spec)
    position = normalise_positions(found.residual, found.valid, spec)
    position *= found.valid[..., None, None]
    if frames is None:
        shape = np.zeros((*found.valid.shape, 0, NUM_BINS), dtype=np.float32)
    else:
        shape = _shape_changes(found, frames, spec)
        shape *= found.valid[..., None, None]
    ends = np.cumsum([len(chosen) for chosen in tokens])[:-1]
    parts = zip(*(np.split(values, ends) for values in (position, shape, found.valid)), strict=True)
    return [MotionTarget(*part) for part in parts]


def normalise_positions(
    residual: NDArray[np.float32], valid: NDArray[np.bool_], spec: TargetSpec
) -> NDArray[np.float32]:
    """Normalise displacements ``[N, C, L, 2]`` in clip pixels a frame; ``valid`` is ``[N, C]``.

    - ``none``: as they are.
    - ``patch_std``: the patch's mean motion (over its valid cells and steps, x and y apart) is taken off, and the rest
      divided by its deviation, at least ``patch_std_floor_px``; so a patch where nothing moves gives zeros, not noise.
    """
    if spec.position_norm == "none":
        return residual.copy()
    weight = valid[:, :, None, None].astype(np.float32)
    count = np.maximum(weight.sum(axis=(1, 2), keepdims=True) * residual.shape[2], 1)
    mean = (residual * weight).sum(axis=(1, 2), keepdims=True) / count  # (N, 1, 1, 2)
    centred = residual - mean
    variance = (np.square(centred) * weight).sum(axis=(1, 2, 3), keepdims=True) / (2 * count)
    deviation = np.maximum(np.sqrt(variance), np.float32(spec.patch_std_floor_px))
    return np.asarray(centred / deviation, dtype=np.float32)


def _check(tracks: TrackSlice, frames: NDArray[np.uint8] | None, spec: TargetSpec) -> None:
    if len(tracks.starts) != spec.num_tubelets:
        raise ValueError(f"{len(tracks.starts)} start frames for {spec.num_tubelets} tubelets")
    if tracks.displacements.shape[3] < spec.length:
        raise ValueError(f"tracks of {tracks.displacements.shape[3]} steps are shorter than length {spec.length}")
    if frames is not None and frames.shape[1:] != (spec.height, spec.width, 3):
        raise ValueError(f"frames must be [F, {spec.height}, {spec.width}, 3], got {list(frames.shape)}")
    if frames is not None and len(frames) < spec.num_hog_frames:
        raise ValueError(f"{len(frames)} frames are too few, hog_steps '{spec.hog_steps}' needs {spec.num_hog_frames}")


def _shape_changes(tracks: TokenTracks, frames: Sequence[NDArray[np.uint8]], spec: TargetSpec) -> NDArray[np.float32]:
    """HOG ``[N, C, L or 1, 9]`` at the raw positions of tokens, ``frames`` being one array a clip."""
    num_steps = 1 if spec.hog_steps == "first" else spec.length
    wanted = np.arange(spec.num_tubelets)[:, None] * spec.tubelet_stride + np.arange(num_steps)
    used, place = np.unique(wanted, return_inverse=True)  # a stride above L leaves frames that no trajectory passes
    index = (tracks.clip[:, None] * len(used) + place[tracks.tubelet])[:, None]  # (N, 1, L or 1)
    at_once = max(1, _PIXELS_AT_ONCE // (len(used) * spec.height * spec.width))
    shapes = []
    for begin in range(0, len(frames), at_once):
        levels = np.concatenate([luma(part[used]) for part in frames[begin : begin + at_once]])
        chosen = slice(*np.searchsorted(tracks.clip, [begin, begin + at_once]))
        points = tracks.path[chosen, :, :num_steps]
        shapes.append(
            hog_along(levels, points, index[chosen] - begin * len(used), spec.hog_window_px, spec.hog_norm_floor)
        )
    return np.concatenate(shapes)
