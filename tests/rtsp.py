"""A file behind an RTSP server, as a network camera sends: GStreamer's, with the Python of Debian."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PYTHON = "/usr/bin/python3"
"""GStreamer's bindings are no package of a virtual environment."""

IMPORTS = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("rtph264pay")
"""

SERVE = """
import sys
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(f'( filesrc location="{sys.argv[1]}" ! qtdemux ! rtph264pay config-interval=-1 name=pay0 pt=96 )')
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")  # any free port
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@cache
def is_installed() -> bool:
    """Return whether Debian's gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good and python3-gi are there."""
    if not Path(PYTHON).exists():
        return False
    return subprocess.run([PYTHON, "-c", IMPORTS], capture_output=True, check=False).returncode == 0


@contextmanager
def rtsp_server(clip: Path) -> Iterator[str]:
    """Serve an MP4 file of H.264 in real time; yield its address."""
    command = [PYTHON, "-c", IMPORTS + SERVE, str(clip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"rtsp://127.0.0.1:{int(process.stdout.readline())}/camera"
        finally:
            process.kill()
