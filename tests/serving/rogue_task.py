"""Task that makes a decoding process misbehave. The process imports it, so it imports little."""

from __future__ import annotations

import math
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mme.video.reader import OpenVideo
from serving.decoding.child import SIZES, VideoLimits


class RogueAnswer:
    """Task of a process that a malicious file has taken over: it sends arbitrary bytes."""

    def __init__(self, path: Path, header: bytes, payload: bytes, delay_s: float = 0.0) -> None:
        self.path, self.limits, self.max_bytes = path, VideoLimits(math.inf, 10**9, 10**9, 60.0), 1000
        self._message = SIZES.pack(len(header), len(payload)) + header + payload
        self._delay_s = delay_s

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], bytes]:
        """Send the bytes before the regular answer, or ``delay_s`` after it."""
        if self._delay_s:
            threading.Timer(self._delay_s, self._send).start()
        else:
            self._send()
        return {"shape": [2]}, b"ok"

    def _send(self) -> None:
        for descriptor in range(3, 64):  # one of them leads to the parent
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family == socket.AF_UNIX:
                    connection.sendall(self._message)

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> bytes:
        """Parse the regular answer, in the parent."""
        return np.frombuffer(payload, np.uint8).reshape(header["shape"]).tobytes()
