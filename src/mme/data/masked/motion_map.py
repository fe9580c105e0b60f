"""Where a clip moves, for masks that hide motion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mme.motion.tracking import TrackSlice
from mme.targets.grid import TargetSpec, token_cells, token_tracks
from mme.video.crop import Crop


def motion_map(tracks: TrackSlice, crop: Crop, spec: TargetSpec) -> NDArray[np.float32]:
    """How much each spatial position of a clip moves.

    Args:
        tracks: from the start frames of the clip's tubelets.
        crop: what part of the source frame the clip shows.
        spec: the clip's tokens, and the steps of a trajectory.

    Returns:
        float32 ``[rows, columns]``, one entry a token of a tubelet: mean length of the camera-compensated displacements
        of its valid points over all tubelets, clip pixels a frame; 0 where no point is valid.
    """
    tokens = np.arange(token_cells(spec).shape[1])
    found = token_tracks([tracks], [crop], [tokens], spec)
    speed = np.hypot(found.residual[..., 0], found.residual[..., 1]).mean(axis=-1) * found.valid  # (N, C)
    grid = (spec.num_tubelets, spec.height // spec.patch_size, spec.width // spec.patch_size, -1)
    total, count = speed.reshape(grid).sum(axis=(0, 3)), found.valid.reshape(grid).sum(axis=(0, 3))
    return np.asarray(total / np.maximum(count, 1), dtype=np.float32)
