"""uvicorn server with JSON logs that drains before it stops."""

from __future__ import annotations

import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from serving.app import create_app
from serving.http.logs import configure_logging
from serving.settings import Settings

MAX_ACCEPTS = 32
"""Connections accepted per turn of the event loop. By default asyncio accepts as many as may wait for it; in a flood it
then takes seconds to refuse those of one turn, while admitted requests wait for theirs."""

MAX_WAITING = 4096
"""Connections that wait for the event loop in the kernel, if ``net.core.somaxconn`` allows."""


class DrainingServer(uvicorn.Server):
    """Server that, on the first SIGTERM, sets ``/ready`` to 503 and shuts down ``drain_s`` later.

    Requests accepted until then are answered.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections: ``MAX_ACCEPTS`` at a time, while ``MAX_WAITING`` may wait."""
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                with listener.dup() as duplicate:  # asyncio takes one number, uvicorn's backlog, for both
                    duplicate.listen(MAX_WAITING)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT; a second one shuts down at once."""
        if self._draining or not self._drain_s or not self.started:
            super().handle_exit(sig, frame)
            return

        self._draining = True
        self._app.state.engine.draining = True
        timer = threading.Timer(self._drain_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def make_server(settings: Settings) -> DrainingServer:
    """Return the server of an application with these settings; its ``run`` serves until SIGTERM or SIGINT."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http="h11",  # httptools, uvicorn's first choice, has no limit on the size of headers
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        backlog=MAX_ACCEPTS,
        server_header=False,
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=int(settings.upload_timeout_s + settings.deadline_s),
    )
    return DrainingServer(config, app, settings.drain_s)


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    configure_logging(settings.log_level)
    make_server(settings).run()
