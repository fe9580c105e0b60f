from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from mme.data.masked.motion_map import motion_map
from mme.motion.tracking import TrackSlice
from mme.targets.grid import TargetSpec, stored_tracks
from mme.video.crop import Crop

SPEC = TargetSpec(
    height=32,
    width=48,
    patch_size=16,
    tubelet_frames=2,
    num_tubelets=2,
    tubelet_stride=4,
    length=3,
    position_norm="none",
    patch_std_floor_px=1.0,
    log_scale_px=0.25,
    hog_steps="first",
    hog_window_px=8,
    hog_norm_floor=8.0,
)  # tokens 2 x 3 a tubelet, cells of 8 px


def tracks(displacements: np.ndarray, flip: bool = False, num_valid: int = 3) -> dict[str, Tensor]:
    """Tracks of a 32 x 48 video, [rows, columns, 2] the same at every start and step, without camera motion."""
    shape = (2, *displacements.shape[:2], 3, 2)
    found = TrackSlice(
        displacements=np.broadcast_to(displacements[None, :, :, None], shape).astype(np.float32),
        num_valid=np.full(shape[:3], num_valid, np.uint8),
        homographies=np.broadcast_to(np.eye(3, dtype=np.float32), (2, 3, 3, 3)).copy(),
        starts=np.array([0, 4]),
        cell=8,
        height=32,
        width=48,
    )
    return stored_tracks(found, Crop(0, 0, 32, 48, flip=flip), (4, 6), camera=True)


def test_a_position_moves_as_its_points_do_in_clip_pixels() -> None:
    steps = np.zeros((4, 6, 2))
    steps[0:2, 2:4] = (0.3, -0.4)  # the points of the token in row 0, column 1
    expected = np.zeros((2, 3))
    expected[0, 1] = 0.5
    assert motion_map(tracks(steps), SPEC) == pytest.approx(expected, abs=1e-6)
    steps[0:2, 2:4], steps[2:4, 0:2] = 0, (0.3, -0.4)
    flipped = motion_map(tracks(steps, flip=True), SPEC)
    assert list(np.unravel_index(flipped.argmax(), flipped.shape)) == [1, 2]


def test_points_without_a_valid_track_count_as_still() -> None:
    steps = np.full((4, 6, 2), 0.5)
    assert (motion_map(tracks(steps, num_valid=2), SPEC) == 0).all()
