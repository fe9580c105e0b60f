"""Orientation of a video: how its stored pictures are turned and mirrored to be upright."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from jaxtyping import UInt8

_MATRIX = struct.Struct("=9i")


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to show a picture: four quarter turns, each also mirrored.

    The steps are taken in the order of the attributes.

    Attributes:
        transposed: whether rows and columns are exchanged.
        flipped_x: whether left and right are exchanged.
        flipped_y: whether top and bottom are exchanged.
    """

    transposed: bool = False
    flipped_x: bool = False
    flipped_y: bool = False

    def apply(self, picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H_out W_out 3"]:
        """Return the upright picture."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1])


UPRIGHT = Orientation()
"""Orientation of a picture that is stored as it is shown."""


def stated_orientation(frame: VideoFrame) -> Orientation | None:
    """Return the orientation that a decoded frame states, or None if it states none.

    The container's display matrix (MP4, MOV, Matroska) is with every frame; one in the coded stream (display
    orientation of H.264 and HEVC) is with the frames that carry it, and holds for those after them.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return nearest_orientation(_MATRIX.unpack(bytes(matrix))) if isinstance(matrix, SideData) else None


def nearest_orientation(matrix: Sequence[int]) -> Orientation:
    """Return the orientation nearest to a display matrix.

    Args:
        matrix: ``a b u c d v x y w`` of FFmpeg: the stored point (p, q) is shown at (a p + c q + x, b p + d q + y).
            Scale and translation do not matter; a matrix that maps the picture to a line or a point is upright.
    """
    a, b, _, c, d = matrix[:5]
    if a * d == b * c:
        return UPRIGHT
    x_axis, y_axis = math.hypot(a, b), math.hypot(c, d)  # lengths of what the stored axes become
    if abs(b) / x_axis + abs(c) / y_axis > abs(a) / x_axis + abs(d) / y_axis:
        return Orientation(transposed=True, flipped_x=c < 0, flipped_y=b < 0)
    return Orientation(transposed=False, flipped_x=a < 0, flipped_y=d < 0)
