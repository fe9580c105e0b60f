"""Canvas on which targets draw hidden tokens: numpy and OpenCV only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from mme.targets.grid import TargetSpec

Colour = tuple[int, int, int]

TRUE_COLOUR: Colour = (61, 220, 132)
PREDICTED_COLOUR: Colour = (255, 95, 162)

_FRACTION_BITS = 4
"""OpenCV draws at sixteenths of a pixel."""


@dataclass(frozen=True)
class Canvas:
    """An enlarged frame that is drawn on in place.

    Attributes:
        picture: RGB.
        scale: pixels of the picture per clip pixel.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    scale: float

    def line(self, points: Float[np.ndarray, "P 2"], colour: Colour) -> None:
        """Draw a polyline through points in clip pixels."""
        cv2.polylines(self.picture, [self._fixed(points)], False, colour, 1, cv2.LINE_AA, _FRACTION_BITS)

    def dot(self, point: Float[np.ndarray, " 2"], colour: Colour, radius_px: float = 1.5) -> None:
        """Draw a disc whose radius is in pixels of the picture."""
        x, y = self._fixed(point).tolist()
        radius = round(radius_px * 2**_FRACTION_BITS)
        cv2.circle(self.picture, (x, y), radius, colour, -1, cv2.LINE_AA, _FRACTION_BITS)

    def _fixed(self, points: Float[np.ndarray, "*S 2"]) -> Int32[np.ndarray, "*S 2"]:
        """Clip pixels in the fixed point of OpenCV on the picture."""
        return np.rint(((points + 0.5) * self.scale - 0.5) * (1 << _FRACTION_BITS)).astype(np.int32)


@dataclass(frozen=True)
class TokenCanvas(Canvas):
    """A frame and the hidden tokens of its tubelet.

    Attributes:
        cells: centres ``(x, y)`` of the tokens' cells, clip pixels.
        valid: cells that are drawn.
        spec: geometry of the tokens.
    """

    cells: Float[np.ndarray, "M C 2"]
    valid: Bool[np.ndarray, "M C"]
    spec: TargetSpec
