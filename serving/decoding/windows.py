"""Windows along a video: cut in a decoding process and sent one by one while it decodes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mme.config import ClipParams
from mme.video.containers import VideoError
from mme.video.metadata import VideoInfo
from mme.video.reader import OpenVideo
from mme.video.sampling import Views
from mme.video.windows import Window, WindowPlan, cut_windows
from serving.decoding.child import VideoLimits


@dataclass(frozen=True)
class WindowsTask:
    """Decode all windows of one video, at most ``max_windows``."""

    path: Path
    clip: ClipParams
    plan: WindowPlan
    segments: int
    crops: int
    max_windows: int
    limits: VideoLimits

    @property
    def max_bytes(self) -> int:
        """Bytes of the views of one window."""
        return self.segments * self.crops * self.clip.total_frames * self.clip.size**2 * 3

    def work(self, video: OpenVideo) -> Iterator[tuple[dict[str, Any], bytes | memoryview]]:
        """Send a window as soon as its last frame is decoded, and the file's metadata at the end.

        Raises:
            VideoError: there are too many windows, or the video cannot be decoded.
        """
        self._check_number(self.plan.num_windows(video.num_frames(self.plan.fps)))
        windows = cut_windows(
            video.frames(self.plan.fps), self.plan, self.clip, self.segments, self.crops, video.info.pixel_aspect
        )
        for number, window in enumerate(windows, start=1):
            self._check_number(number)  # the times of a damaged file are known at its end only
            views = window.views
            header = {"more": True, "span": (window.start, window.end), "decode_ms": views.decode_ms}
            yield header | {"shape": views.frames.shape}, views.frames.data.cast("B")
        yield {"info": dataclasses.asdict(video.info), "seconds": time.perf_counter() - video.opened_s}, b""

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> Window | tuple[VideoInfo, float]:
        """Return a window, or at the end metadata and seconds of decoding."""
        if "info" in header:
            return VideoInfo(**header["info"]), float(header["seconds"])
        start, end = header["span"]
        frames = np.frombuffer(payload, dtype=np.uint8).reshape(header["shape"])  # (V, T, S, S, 3)
        return Window(int(start), int(end), Views(frames, None, float(header["decode_ms"])))

    def _check_number(self, number: int) -> None:
        if number > self.max_windows:
            detail = f"{number} windows; at most {self.max_windows} are allowed"
            raise VideoError("too-many-windows", self.path, detail)
