"""Colours of the normal form: BT.709 in limited range."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

BLACK, WHITE = 16, 235
"""Brightness of black and white."""

CHROMA_ZERO, CHROMA_SPAN = 128, 224
"""Value of no colour, and distance of the two extremes."""

LUMA_WEIGHTS = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in brightness."""


def luma_of(frames: UInt8[np.ndarray, "*T H W 3"]) -> UInt8[np.ndarray, "*T H W"]:
    """Brightness of RGB frames as the normal form stores it: BT.709, 16 (black) to 235 (white)."""
    *num_frames, height, width, _ = frames.shape
    to_luma = np.append(np.array(LUMA_WEIGHTS) * ((WHITE - BLACK) / 255), BLACK)[None]  # (1, 4)
    luma = cv2.transform(frames.reshape(-1, width, 3), to_luma)
    return np.asarray(luma, dtype=np.uint8).reshape(*num_frames, height, width)
