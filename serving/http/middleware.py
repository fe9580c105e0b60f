"""Around every request: its id, its log line, its metrics, headers that keep a browser safe, and refusal in a flood."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http import logs
from serving.http.metrics import Metrics
from serving.http.uploads import discard_rest
from serving.problems import Problem

log = logging.getLogger("serving.access")

CLIENT_CLOSED_REQUEST = 499
"""In logs and metrics only: nobody was left to answer."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RequestContext:
    """The outermost layer, so that whatever fails below is answered with a problem, and without a stack trace."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        logs.request_id.set(request_id)
        exchange = _Exchange(scope, send, request_id)
        try:
            await self.app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_CLOSED_REQUEST
        except Exception:  # the client learns that it failed and the id to ask about; the log learns why
            log.exception("request failed")
            if not exchange.started:
                problem = Problem("internal", "Something unexpected happened; it has been logged.")
                await problem.response(request_id)(scope, receive, exchange.send)
        finally:
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.since
        route = getattr(scope.get("route"), "path", "unmatched")  # not the path: clients would invent series
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(method, route, str(exchange.status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        facts = {"method": scope["method"], "path": scope["path"], "status": exchange.status}
        client = scope["client"][0] if scope.get("client") else None
        log.info("request", extra=facts | {"duration_ms": round(1000 * seconds, 2), "client": client})


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Exchange:
    """One request's answer on its way out."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._send, self._request_id, self._path = send, request_id, scope["path"]
        self.since = time.perf_counter()
        self.started = False
        self.status: int = HTTPStatus.INTERNAL_SERVER_ERROR

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


class EarlyRefusal:
    """Turns requests away while all places are taken, before they are routed and their parameters are read.

    A refusal costs a third of the time that it would take behind the router: in a flood of ten times what the service
    can do, refusing would else leave no processor for what was admitted.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, BaseRoute]) -> None:
        """``routes`` that take a place among the requests in work, by their paths."""
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        route = self.routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None or not scope["app"].state.engine.admission.full:
            await self.app(scope, receive, send)
            return
        scope["route"] = route  # as the router would: metrics name it
        await discard_rest(Request(scope, receive))
        refusal = scope["app"].state.engine.admission.refusal()
        await refusal.response(scope["state"]["request_id"])(scope, receive, send)
