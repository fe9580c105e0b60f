"""uvicorn, told to log as we do and to finish what it has taken when it must stop."""

from __future__ import annotations

import logging
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from serving.app import create_app
from serving.http import logs
from serving.settings import Settings

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """On the first SIGTERM, ``/ready`` says no; ``drain_s`` later no more is taken, and what was taken is answered."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app, self._drain_s, self._told = app, drain_s, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal."""
        if self._told or not self._drain_s or not self.started:
            super().handle_exit(sig, frame)
            return
        self._told = self._app.state.engine.draining = True
        timer = threading.Timer(self._drain_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def run(settings: Settings) -> None:
    """Serve until told to stop."""
    logs.configure(settings.log_level)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http="h11",  # httptools, which uvicorn prefers where it is installed, takes headers of any size
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.upload_timeout_s + settings.deadline_s),
    )
    Server(config, app, settings.drain_s).run()
