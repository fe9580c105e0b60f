"""What was read of a file for counting its frames, kept for decoding them."""

from __future__ import annotations

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

MAX_BYTES = 16 * 2**20
"""Of packets that are kept. Beyond it a file is read a second time, so that memory does not grow with its length."""

_PACKET_BYTES = 1024
"""What a packet costs beside its content, about: a file may consist of empty ones."""


class Backlog:
    """The first frames of a stream, decoded, and the packets after them, up to ``MAX_BYTES``."""

    def __init__(self) -> None:
        self.frames: list[VideoFrame] = []
        self.packets: list[Packet[VideoStream]] = []
        self.complete = True
        self._num_bytes = 0

    def add(self, packet: Packet[VideoStream]) -> None:
        """Keep one more packet, or none at all if that is too much."""
        self._num_bytes += packet.size + _PACKET_BYTES
        if self._num_bytes > MAX_BYTES:
            self.drop()
        if self.complete:
            self.packets.append(packet)

    def drop(self) -> None:
        """Keep nothing."""
        self.complete = False
        self.frames, self.packets = [], []
