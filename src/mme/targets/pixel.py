"""Target ``pixel``: normalised pixels, the rival of He et al. (2022) and Tong et al. (2022)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mme.targets.drawing import TokenCanvas
from mme.targets.grid import HiddenTokens, TargetSpec

VARIANCE_FLOOR = 1e-6
"""Added to a tubelet's variance, as He et al. do: a flat tubelet gives zeros."""


class Pixel:
    """Pixels of a token, less the token's mean and over its deviation; in (channel, frame, y, x) order."""

    name = "pixel"
    label = "normalised pixels"
    default_weight = 1.0
    inputs = ()
    centre = None  # each token is standardised by itself

    def shape(self, spec: TargetSpec) -> tuple[int, ...]:
        """Shape ``[3 * tubelet_frames * patch_size^2]`` of one token's target."""
        return (3 * spec.tubelet_frames * spec.patch_size**2,)

    def compute(self, tokens: HiddenTokens) -> tuple[Float[Tensor, "B M P"], Bool[Tensor, "B M"]]:
        """Standardised tubelets of the hidden tokens; all are valid."""
        tubelets = tokens.tubelets  # (B, M, P)
        mean = tubelets.mean(dim=-1, keepdim=True)
        variance = tubelets.var(dim=-1, keepdim=True)
        valid = torch.ones(tubelets.shape[:2], dtype=torch.bool, device=tubelets.device)
        return (tubelets - mean) / (variance + VARIANCE_FLOOR).sqrt(), valid

    def draw(
        self, canvas: TokenCanvas, true: Float[np.ndarray, "M P"], predicted: Float[np.ndarray, "M P"] | None
    ) -> None:
        """Paste the first frame of each token: the prediction where there is one. Grey is the token's mean."""
        spec, values = canvas.spec, true if predicted is None else predicted
        side = round(spec.patch_size * canvas.scale)
        tubelets = values.reshape(len(values), 3, spec.tubelet_frames, spec.patch_size, spec.patch_size)
        patches = np.clip(128 + 50 * tubelets[:, :, 0].transpose(0, 2, 3, 1), 0, 255).astype(np.uint8)  # (M, p, p, 3)
        corners = np.round((canvas.cells.min(axis=1) + 0.5 - spec.cell / 2) * canvas.scale).astype(int)  # (M, 2)
        for patch, (x, y) in zip(patches, corners, strict=True):
            place = canvas.picture[y : y + side, x : x + side]
            place[:] = cv2.resize(patch, (place.shape[1], place.shape[0]), interpolation=cv2.INTER_NEAREST)


PIXEL = Pixel()
