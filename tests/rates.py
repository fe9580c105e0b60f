"""Files that show the same motion on screen at other frame rates."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8

FPS = 16


def held_pictures(num_frames: int, height: int = 64, width: int = 96) -> UInt8[np.ndarray, "T H W 3"]:
    """Return a moving pattern of which each picture is shown twice, so that half the rate loses nothing."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    moving = [127 + 110 * np.sin(0.2 * (x - 3 * (t // 2 * 2)) + 0.05 * y) for t in range(num_frames)]
    return np.repeat(np.stack(moving).round().astype(np.uint8)[..., None], 3, axis=-1)


def write_at(path: Path, pictures: Sequence[np.ndarray], times: Sequence[int], fps: Fraction) -> Path:
    """Write pictures without loss; each is shown from ``times / fps`` seconds on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"qp": "0", "bf": "0", "g": "8"}
        stream.codec_context.time_base = 1 / fps
        for picture, time in zip(pictures, times, strict=True):
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_twins(folder: Path, num_frames: int = 40) -> dict[str, Path]:
    """Write one motion at 16, 32, 64 and 8 frames per second and at a variable rate; all look the same."""
    pictures = held_pictures(num_frames)
    # Of the repetitions, every third is left out, and its picture is shown for longer.
    kept = [index for index in range(num_frames) if index % 6 != 1]
    files: dict[str, tuple[np.ndarray, Sequence[int], Fraction]] = {
        "same.mp4": (pictures, range(num_frames), Fraction(1)),
        "double.mp4": (np.repeat(pictures, 2, axis=0), range(2 * num_frames), Fraction(2)),
        "quadruple.mkv": (np.repeat(pictures, 4, axis=0), range(4 * num_frames), Fraction(4)),
        "half.mp4": (pictures[::2], range(num_frames // 2), Fraction(1, 2)),
        "variable.mkv": (pictures[kept], kept, Fraction(1)),
    }
    return {
        name: write_at(folder / name, list(shown), times, FPS * rate) for name, (shown, times, rate) in files.items()
    }
