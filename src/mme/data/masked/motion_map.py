"""Motion of each position of a clip, for masks that hide motion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from mme.targets.grid import MaskedBatch, TargetSpec, token_tracks


def motion_map(tracks: Mapping[str, Tensor], spec: TargetSpec) -> Float32[np.ndarray, "H W"]:
    """Mean speed of each spatial position of a clip.

    Args:
        tracks: fields of `mme.targets.grid.stored_tracks`.
        spec: geometry of the clip's tokens.

    Returns:
        One entry per token of a tubelet: mean length of the camera-compensated displacements of its valid points over
        all tubelets, clip pixels per frame; 0 where no point is valid.
    """
    batch = {name: value[None] for name, value in tracks.items()}
    num_tokens = math.prod(spec.grid)
    batch["hidden"] = torch.ones((1, num_tokens), dtype=torch.bool)
    found = token_tracks(cast(MaskedBatch, batch), spec, num_tokens)

    speed = found.displacements.norm(dim=-1).mean(dim=-1) * found.valid  # (1, N, C)
    total = speed.view(*spec.grid, -1).sum(dim=(0, 3))  # (H, W)
    count = found.valid.view(*spec.grid, -1).sum(dim=(0, 3))
    return np.asarray((total / count.clamp(min=1)).numpy(), dtype=np.float32)
