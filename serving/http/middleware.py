"""Middleware: access log, metrics and security headers of every request, and early refusal under overload."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.metrics import Metrics
from serving.http.uploads import discard_rest
from serving.problems import Problem

log = logging.getLogger("serving.access")

CLIENT_CLOSED_REQUEST = 499
"""Status in logs and metrics of a request whose client closed the connection before the answer."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_request_id(text: str) -> bool:
    """Return whether a client's request id is short and safe to log."""
    return _REQUEST_ID.fullmatch(text) is not None


class RootPath:
    """Begin every path with the prefix, whether the proxy removes it or not: Starlette expects it for files."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request."""
        prefix = scope.get("root_path", "")  # set by the application
        if prefix and scope["type"] == "http" and not f"{scope['path']}/".startswith(f"{prefix}/"):
            scope["path"] = prefix + scope["path"]
        await self.app(scope, receive, send)


class RequestContext:
    """Log and count every request, and answer any exception with a problem document without a stack trace."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves the body out; monitors ask so
        started = time.perf_counter()
        status: int | None = None  # None until the answer begins

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except Exception:  # the client gets the request id only; the log gets the cause
            log.exception("request failed")
            if status is None:
                problem = Problem("internal", "An unexpected error occurred; it has been logged.")
                await problem.response(scope)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            self._record(scope, method, status or HTTPStatus.INTERNAL_SERVER_ERROR, seconds)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        # The route, not the path, and known methods only: otherwise clients could create any number of series.
        route = getattr(scope.get("route"), "path", "unmatched")
        counted = method if method in _METHODS else "other"
        self.metrics.requests.labels(counted, route, str(int(status))).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)

        client = scope["client"][0] if scope.get("client") else None
        fields = {"method": method, "path": scope["path"], "status": int(status)}
        log.info("request", extra=fields | {"duration_ms": round(1000 * seconds, 2), "client": client})


class EarlyRefusal:
    """Refuse requests before routing and parameter parsing while the service is full.

    A refusal here takes a third of the time that it takes behind the router. At ten times the service's capacity,
    refusals behind the router would leave no processor time for the admitted requests.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, BaseRoute]) -> None:
        """Wrap an application; ``routes``, by path, are the POST routes that admission applies to."""
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse or pass on one request."""
        route = None
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self.routes.get(scope["path"].removeprefix(scope["root_path"]))
        if route is None or not scope["app"].state.engine.admission.full:
            await self.app(scope, receive, send)
            return

        scope["route"] = route  # as the router would set it: metrics read it
        await discard_rest(Request(scope, receive))
        await scope["app"].state.engine.admission.refusal().response(scope)(scope, receive, send)
