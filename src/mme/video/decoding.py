"""Decode what decodes: packets that do not are skipped and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mme.video.containers import Reason, VideoError, VideoSource

MAX_MISSING = 0.1
"""Largest share of a video's time that may lack its pictures. The picture before is held: more than this is no longer
the video that the label was given to."""

_MAX_MISSING_PICTURES = 2
"""Pictures that may always be missing: headers round, and some writers count an empty last packet."""


_MAX_BEFORE_KEYFRAME = 1000
"""Packets after which a stream is decoded from its beginning, because it marks no keyframes."""


class PictureDecoder:
    """Decoder of one stream that goes on after a packet that does not decode.

    Attributes:
        failed: timestamps of the packets after the first picture that did not decode.
        fault: FFmpeg's words for the first fault; None if there was none.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._context = stream.codec_context
        self._has_picture = False
        self.failed: list[int | None] = []
        self.fault: str | None = None

    def decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        """Return the pictures that one more packet completes, in the order in which they are shown."""
        return self._receive(packet, packet.pts)

    def flush(self) -> list[VideoFrame]:
        """Return the pictures that the decoder still holds; it takes no more packets before ``jump``."""
        return self._receive(None, None)

    def pictures(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Decode packets to the end of the stream."""
        for packet in packets:
            yield from self.decode(packet)
        yield from self.flush()

    def jump(self) -> None:
        """Forget all packets so far: the next one is a keyframe from elsewhere."""
        self._context.flush_buffers()

    def no_picture(self, source: VideoSource) -> VideoError:
        """Return the error for a file of which nothing decoded."""
        if self.fault is None:
            return VideoError("zero-frames", source, "its video stream holds no picture that decodes")
        return VideoError("undecodable", source, f"no picture decodes: {self.fault}")

    def _receive(self, packet: Packet[VideoStream] | None, timestamp: int | None) -> list[VideoFrame]:
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.fault = self.fault or error.strerror
            if self._has_picture:
                self.failed.append(timestamp)
            return []
        self._has_picture = self._has_picture or bool(frames)
        return frames


def check_missing(
    source: VideoSource, missing_s: float, total_s: float, interval_s: float, fault: str | None, where: str = ""
) -> None:
    """Check the share of a video's time that has no picture of its own.

    Args:
        source: the file, named in errors.
        missing_s: seconds for which pictures are missing.
        total_s: seconds that the video should have.
        interval_s: seconds from one picture to the next.
        fault: FFmpeg's words for the first fault.
        where: words for the part of the file that was read.

    Raises:
        VideoError: ``truncated``.
    """
    if missing_s > max(MAX_MISSING * total_s, (_MAX_MISSING_PICTURES + 0.5) * interval_s):
        cause = f": {fault}" if fault else ""
        raise VideoError(
            "truncated", source, f"pictures are missing for {missing_s:.3g} of {total_s:.3g} s{where}{cause}"
        )


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a stream from its first keyframe up to the first packet that cannot be read.

    Some decoders (MPEG-4) make grey pictures of what comes before a keyframe. Empty packets are left out: AVI has one
    for a picture that was dropped, and a decoder would take it for the end.
    """
    packets = _packets(container, stream)
    early = []
    for packet in packets:
        early.append(packet)
        if packet.is_keyframe:
            early = [packet]
            break
        if len(early) == _MAX_BEFORE_KEYFRAME:
            break
    yield from early
    yield from packets


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            return
        if packet.size:
            yield packet


def is_shown(stream: VideoStream, packet: Packet[VideoStream]) -> bool:
    """Return whether a packet is a picture that is shown: no edit list hides it, nor does its own mark (VP8)."""
    if packet.is_discard:
        return False
    return stream.codec_context.name not in {"vp8", "libvpx"} or bool(bytes(packet)[0] & 0x10)


def decode_stream(source: VideoSource, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode all pictures of a file that must be whole, in the order in which they are shown, as they are stored.

    Raises:
        VideoError: at the first packet that does not decode: ``undecodable`` before the first frame, else
            ``truncated``.
    """
    num_frames = 0
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.error.FFmpegError as error:
            reason: Reason = "truncated" if num_frames else "undecodable"
            raise VideoError(reason, source, f"frame {num_frames}: {error.strerror}") from error
        num_frames += len(decoded)
        yield from decoded
