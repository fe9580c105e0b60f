"""A correction's clip: its views, and the clip itself encoded anew, so that no byte of an upload lies in the folder."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mme.ingest.transcode import normal_size
from mme.video.codec import GOP_FRAMES, MAX_SIDE, VideoWriter
from mme.video.containers import VideoError
from mme.video.crop import resize
from mme.video.reader import OpenVideo
from mme.video.sampling import Views, cut_views, sample_open_video, view_indices
from serving.decoding.child import VideoLimits, ViewsTask

CRF = 17
"""Below that of the presets: ingest may encode the clip once more, at its own size."""

MIN_SIDE = 16


@dataclass(frozen=True)
class CorrectionTask:
    """Decode the views of one video and encode it in the normal form, its short side ``max_side`` pixels at most."""

    views: ViewsTask
    max_side: int
    max_clip_bytes: int

    @property
    def path(self) -> Path:
        """The video."""
        return self.views.path

    @property
    def limits(self) -> VideoLimits:
        """Limits on the video."""
        return self.views.limits

    @property
    def max_bytes(self) -> int:
        """Bytes of the views and of the clip."""
        return self.views.max_bytes + self.max_clip_bytes

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], bytes]:
        """Decode once, and encode into memory: the process may not write files.

        Raises:
            VideoError: the video cannot be decoded, or would have too many bytes or pixels.
        """
        task, info = self.views, video.info
        short_side = min(info.width * info.pixel_aspect, info.height, self.max_side)
        width, height = normal_size(
            info.width, info.height, info.pixel_aspect, max(MIN_SIDE, 2 * int(short_side / 2))
        )  # fmt: skip
        if max(width, height) > MAX_SIDE:
            raise VideoError("too-large", self.path, f"{info.width} x {info.height} pixels would be {width} x {height}")

        num_frames, number = video.num_frames(task.fps), 0
        indices = view_indices(num_frames, task.clip, task.segments)
        needed, positions = np.unique(indices, return_inverse=True)
        wanted = set(needed.tolist())
        seen: list[UInt8[np.ndarray, "H W 3"]] = []
        clip = BytesIO()
        with VideoWriter(clip, (width, height), task.fps, CRF, GOP_FRAMES) as writer:
            for number, frame in enumerate(video.frames(task.fps), start=1):
                writer.write(resize(frame[None], height, width)[0])
                if clip.tell() > self.max_clip_bytes:
                    detail = f"it would be kept in more than {self.max_clip_bytes} bytes"
                    raise VideoError("too-large", self.path, detail)
                if number - 1 in wanted:
                    seen.append(frame)
        decode_ms = 1000 * (time.perf_counter() - video.opened_s)
        if number == num_frames:
            squares = cut_views(
                np.stack(seen), positions.reshape(indices.shape), task.clip.size, task.crops, info.pixel_aspect
            )
            views = Views(squares, info, decode_ms)
        else:  # damage, which is known at the end only, moves the views
            views = sample_open_video(video, task.clip, task.fps, task.segments, task.crops)
        header, payload = task.answer(views)
        return header, bytes(payload) + clip.getvalue()

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> tuple[Views, bytes]:
        """Return the views, and the bytes of the clip."""
        num_bytes = math.prod(header["shape"])
        return self.views.parse(header, payload[:num_bytes]), bytes(payload[num_bytes:])
