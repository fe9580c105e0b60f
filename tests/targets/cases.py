"""Parameters, exact tracks of a known motion, and targets through the batched path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mme.config import TrajectoriesParams, load_params
from mme.motion.tracking import TrackSlice, cell_centres
from mme.targets.base import Target, compute_targets
from mme.targets.grid import HiddenTokens, MaskedBatch, TargetSpec, stored_tracks
from mme.targets.hog import HOG
from mme.targets.position import POSITION
from mme.video.crop import Crop
from tests.reference.hog import luma
from tests.reference.moving_scene import MovingScene

DEFAULTS = load_params(Path(__file__).parents[2] / "params.yaml")


def trajectories_params(**changes: Any) -> TrajectoriesParams:
    """Everything switched on; no matter what ``params.yaml`` says at the moment."""
    values: dict[str, Any] = {
        "splits": ("train",),
        "flow": "medium",
        "median_px": 3,
        "compensate_camera": True,
        "camera_threshold_px": 0.5,
        "camera_min_inliers": 0.35,
        "forward_backward": True,
        "cell": 4,
        "max_length": 8,
    }
    return TrajectoriesParams(**(values | changes))


def target_spec(**changes: Any) -> TargetSpec:
    """A small, non-square target without position normalisation."""
    values: dict[str, Any] = {
        "height": 48,
        "width": 64,
        "patch_size": 16,
        "tubelet_frames": 2,
        "num_tubelets": 2,
        "tubelet_stride": 3,
        "length": 4,
        "hog_steps": "all",
        "position_norm": "none",
        "patch_std_floor_px": 1.0,
        "log_scale_px": 0.25,
        "hog_window_px": 8,
        "hog_norm_floor": 8.0,
    }
    return TargetSpec(**(values | changes))


def exact_tracks(scene: MovingScene, starts: list[int], length: int, cell: int) -> TrackSlice:
    """Tracks of the scene's background as its closed form has them, the camera taken as static."""
    grid = cell_centres(scene.height, scene.width, cell)
    displacements = []
    for start in starts:
        origin = scene.camera.matrix(start, scene.centre)
        at_zero = (grid - origin[:, 2]) @ np.linalg.inv(origin[:, :2]).T
        path = scene.background_path(at_zero, start + length)[..., start:, :]
        displacements.append(np.diff(path, axis=-2))
    shape = (len(starts), *grid.shape[:2])
    return TrackSlice(
        displacements=np.stack(displacements).astype(np.float32),
        num_valid=np.full(shape, length, dtype=np.uint8),
        homographies=np.broadcast_to(np.eye(3, dtype=np.float32), (len(starts), length, 3, 3)).copy(),
        starts=np.array(starts),
        cell=cell,
        height=scene.height,
        width=scene.width,
    )


@dataclass(frozen=True)
class Computed:
    """Targets of hidden tokens of a clip: displacements ``[M, C, L, 2]``, HOG ``[M, C, S, 9]``, valid ``[M, C]``."""

    position: NDArray[np.float32]
    hog: NDArray[np.float32]
    valid: NDArray[np.bool_]


def compute_batch(
    tracks: Sequence[TrackSlice],
    crops: Sequence[Crop],
    frames: Sequence[NDArray[np.uint8]] | None,
    spec: TargetSpec,
    hidden: Sequence[NDArray[np.bool_]],
) -> list[Computed]:
    """Position and HOG of several clips at once; without frames there is no HOG."""
    grids = [part.num_valid.shape[1:] for part in tracks]
    largest = max(rows for rows, _ in grids), max(columns for _, columns in grids)
    samples = [
        stored_tracks(part, crop, largest, camera=True) | {"hidden": torch.from_numpy(mask)}
        for part, crop, mask in zip(tracks, crops, hidden, strict=True)
    ]
    if frames is not None:
        for sample, view in zip(samples, frames, strict=True):
            # The reference's: OpenCV's single precision rounds a few of all colours to the level beside.
            sample["luma"] = torch.from_numpy(luma(view[spec.dense_frames]).astype(np.uint8))
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    targets: list[Target] = [POSITION] if frames is None else [POSITION, HOG]
    tokens = HiddenTokens(cast(MaskedBatch, batch), spec, int(hidden[0].sum()))
    computed = compute_targets(targets, tokens)
    position, valid = (part.numpy() for part in computed["position"])
    hog = np.zeros((*valid.shape, 0, 9), np.float32)
    if frames is not None:
        hog, same = (part.numpy() for part in computed["hog"])
        np.testing.assert_array_equal(same, valid)
    return [Computed(*parts) for parts in zip(position, hog, valid, strict=True)]


def compute(
    tracks: TrackSlice,
    crop: Crop,
    frames: NDArray[np.uint8] | None,
    spec: TargetSpec,
    hidden: NDArray[np.bool_] | None = None,
) -> Computed:
    """Position and HOG of one clip, of all tokens unless some are chosen."""
    mask = np.ones(int(np.prod(spec.grid)), np.bool_) if hidden is None else hidden
    return compute_batch([tracks], [crop], None if frames is None else [frames], spec, [mask])[0]
