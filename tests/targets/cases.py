"""What the tests of the targets share: parameters, and exact tracks of a known motion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mme.config import TrajectoriesParams, load_params
from mme.motion.tracking import TrackSlice, cell_centres
from mme.targets.grid import TargetSpec
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
        "num_tubelets": 2,
        "tubelet_stride": 3,
        "length": 4,
        "hog_steps": "all",
        "position_norm": "none",
        "patch_std_floor_px": 1.0,
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
