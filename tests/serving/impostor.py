"""A task that makes a decoding process misbehave. Imported there, so it needs little."""

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


class Answers:
    """Stands in for a task in a process that a crafted file has taken over: it says what it likes."""

    def __init__(self, path: Path, header: bytes, payload: bytes, delay_s: float = 0.0) -> None:
        self.path, self.limits, self.max_bytes = path, VideoLimits(math.inf, 10**9, 10**9, 60.0), 1000
        self._told = SIZES.pack(len(header), len(payload)) + header + payload
        self._delay_s = delay_s

    def work(self, video: OpenVideo) -> tuple[dict[str, Any], bytes]:
        """Say it now, and what is expected too late; or what is expected first."""
        if self._delay_s:
            threading.Timer(self._delay_s, self._say).start()
        else:
            self._say()
        return {"shape": [2]}, b"ok"

    def _say(self) -> None:
        for descriptor in range(3, 64):  # whichever leads to the parent
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family == socket.AF_UNIX:
                    connection.sendall(self._told)

    def parse(self, header: dict[str, Any], payload: bytes | bytearray) -> bytes:
        """In the parent."""
        return np.frombuffer(payload, np.uint8).reshape(header["shape"]).tobytes()
