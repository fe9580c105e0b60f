"""A clip that is kept: encoded anew in a decoding process, so that no byte of an upload ever lies in the folder."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from mme.ingest.transcode import normal_size
from mme.video.codec import GOP_FRAMES, MAX_SIDE, VideoWriter
from mme.video.containers import VideoError
from mme.video.crop import resize
from mme.video.reader import OpenVideo
from serving.decoding.child import VideoLimits

CRF = 17
"""Below that of the presets: ingest may encode the clip once more, at its own size."""

MIN_SIDE = 16


@dataclass(frozen=True)
class NormalFormTask:
    """Encode one video in the normal form: at ``fps``, its short side ``max_side`` pixels at most."""

    path: Path
    fps: float
    max_side: int
    max_bytes: int
    limits: VideoLimits

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], memoryview]:
        """Decode and encode, into memory: the process may not write files.

        Raises:
            VideoError: the video cannot be decoded, or would have too many bytes or pixels.
        """
        info = video.info
        short_side = min(info.width * info.pixel_aspect, info.height, self.max_side)
        width, height = normal_size(
            info.width, info.height, info.pixel_aspect, max(MIN_SIDE, 2 * int(short_side / 2))
        )  # fmt: skip
        if max(width, height) > MAX_SIDE:
            raise VideoError("too-large", self.path, f"{info.width} x {info.height} pixels would be {width} x {height}")
        clip = BytesIO()
        with VideoWriter(clip, (width, height), self.fps, CRF, GOP_FRAMES) as writer:
            for frame in video.frames(self.fps):
                writer.write(resize(frame[None], height, width)[0])
                if clip.tell() > self.max_bytes:
                    raise VideoError("too-large", self.path, f"it would be kept in more than {self.max_bytes} bytes")
        return {}, clip.getbuffer()

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> bytes:
        """Return the bytes of the clip."""
        return bytes(payload)
