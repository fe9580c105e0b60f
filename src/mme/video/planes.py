"""Read the planes of normal-form videos as they are decoded: brightness at full size, colour at half size.

Nothing is converted. A plane is cut and resized where it is used, and becomes RGB on the device that trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from jaxtyping import UInt8

from mme.video.containers import VideoError, open_stream
from mme.video.crop import Crop, resize_rule

_FOREIGN = "not in the normal form; ingest the video again"


class YuvFrame(NamedTuple):
    """Planes of one frame in the normal form's coding: BT.709, limited range, 4:2:0.

    Attributes:
        y: brightness, 16 (black) to 235 (white).
        u, v: blue and red less brightness, 128 = none.
    """

    y: UInt8[np.ndarray, "H W"]
    u: UInt8[np.ndarray, "H/2 W/2"]
    v: UInt8[np.ndarray, "H/2 W/2"]

    def copy(self) -> YuvFrame:
        """Copy the planes out of the decoder's memory."""
        return YuvFrame(*(np.ascontiguousarray(plane) for plane in self))


def iter_planes(path: Path, start: int = 0, stop: int | None = None) -> Iterator[YuvFrame]:
    """Decode the frames ``start`` to ``stop - 1`` of a normal-form video, from the keyframe before ``start`` on.

    The planes are the decoder's own memory: copy what is kept beyond the next frame.

    Args:
        path: a file in the normal form, whose frames are equally long and stored in their order.
        start: first frame.
        stop: frame to stop before; None for the end of the file.

    Raises:
        VideoError: the file cannot be decoded, or is not in the normal form.
        ValueError: the file has fewer than ``stop`` frames.
    """
    with open_stream(path, probe_pictures=False) as (container, stream):
        if not stream.average_rate or stream.time_base is None:
            raise VideoError("undecodable", path, _FOREIGN)
        begin = stream.start_time or 0
        step = 1 / (stream.average_rate * stream.time_base)  # units of time stamps per frame
        earliest = math.ceil(begin + (start - Fraction(1, 2)) * step)
        next_frame = start
        try:
            if start:
                container.seek(begin + round(start * step), stream=stream)
            for frame in container.decode(stream):
                assert frame.pts is not None
                if frame.pts < earliest:
                    continue
                if frame.format.name != "yuv420p":
                    raise VideoError("undecodable", path, _FOREIGN)
                yield _planes(frame)
                next_frame += 1
                if next_frame == stop:
                    return
        except av.error.FFmpegError as error:
            raise VideoError("truncated", path, f"frame {next_frame}: {error.strerror}") from error
    if stop is not None:
        raise ValueError(f"{path}: frame {stop - 1} is out of range, the video has {next_frame} frames")


def _planes(frame: VideoFrame) -> YuvFrame:
    """View the planes of a frame, without the padding of their rows."""
    y, u, v = (_plane(plane) for plane in frame.planes)
    return YuvFrame(y, u, v)


def _plane(plane: VideoPlane) -> UInt8[np.ndarray, "h w"]:
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # type: ignore[call-overload]
    return np.asarray(rows[:, : plane.width])


def cut_plane(plane: UInt8[np.ndarray, "h w"], crop: Crop, scale: int, out: UInt8[np.ndarray, "s s"]) -> None:
    """Cut a crop out of a plane, resize it into ``out`` and flip it.

    Args:
        plane: a plane of a frame.
        crop: in pixels of the frame, edges divisible by ``scale``.
        scale: pixels of the frame per pixel of the plane.
        out: where the result goes.
    """
    top, left, height, width = (int(edge) // scale for edge in (crop.top, crop.left, crop.height, crop.width))
    cut = plane[top : top + height, left : left + width]
    if cut.shape == out.shape:
        out[:] = cut
    else:
        cv2.resize(cut, out.shape[::-1], dst=out, interpolation=resize_rule(cut.shape, out.shape))
    if crop.flip:
        cv2.flip(out, 1, dst=out)
