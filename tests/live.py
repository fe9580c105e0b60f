"""A file served in real time, as a camera sends: MPEG-TS over TCP."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8


@dataclass
class Camera:
    """A camera: its address, when clients connected (by ``time.monotonic``), and what the last one was sent."""

    address: str
    connected: list[float] = field(default_factory=list)
    sent: bytes = b""


class _Sender:
    """A file for PyAV whose content goes to a socket."""

    def __init__(self, camera: Camera, connection: socket.socket) -> None:
        self._camera, self._connection = camera, connection

    def write(self, content: bytes) -> int:
        self._camera.sent += content
        self._connection.sendall(content)
        return len(content)


@contextmanager
def camera(
    frames: UInt8[np.ndarray, "T H W 3"], fps: int, breaks: Sequence[int | None] = (None,), speed: float = 1.0
) -> Iterator[Camera]:
    """Serve pictures in real time at an address, to one client after the other.

    Args:
        frames: the pictures.
        fps: their rate.
        breaks: per connection, the number of pictures after which it breaks; None for an orderly end. Then nobody
            listens any more.
        speed: times real time.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        camera = Camera(f"tcp://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            for number_of_pictures in breaks:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                camera.connected.append(time.monotonic())
                camera.sent = b""
                with connection:
                    try:
                        _send(_Sender(camera, connection), frames, fps, number_of_pictures, speed)
                    except OSError:
                        continue  # the client is gone
                    if number_of_pictures is not None:  # a reset, as when the network is gone
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            listener.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield camera
        listener.close()


def _send(sender: Any, frames: UInt8[np.ndarray, "T H W 3"], fps: int, breaks_after: int | None, speed: float) -> None:
    began_s = time.monotonic()
    container = av.open(sender, "w", format="mpegts", options={"flush_packets": "1"})
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.gop_size = fps
    stream.options = {"tune": "zerolatency", "preset": "ultrafast", "crf": "10"}
    for index, picture in enumerate(frames[:breaks_after]):
        time.sleep(max(0.0, began_s + index / fps / speed - time.monotonic()))
        frame = VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, fps)
        container.mux(stream.encode(frame))
    if breaks_after is None:
        container.mux(stream.encode(None))
        container.close()
