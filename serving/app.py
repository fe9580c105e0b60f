"""The application: ``create_app`` assembles settings, engine and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serving.api import engine_of, feedback_router, model_name, video_router
from serving.http.metrics import Metrics
from serving.http.middleware import EarlyRefusal, RequestContext, RootPath, is_request_id
from serving.http.open_inference import InferenceRequest, model_router, server_router
from serving.http.security import ApiKeys, RateLimit
from serving.inference.engine import InferenceEngine
from serving.problems import KINDS, MEDIA_TYPE, Problem, ProblemDocument, documented
from serving.schemas import Readiness
from serving.settings import Settings

STATIC = Path(__file__).parent / "static"

CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST"),
    "allow_headers": ("Authorization", "Content-Type", "X-Request-ID"),
    "expose_headers": ("Retry-After", "X-Request-ID"),
}
"""What pages of the allowed origins may send and read."""

DESCRIPTION = """Send a video, get the action it shows.

Every error is a problem document (RFC 9457) whose `type` names its cause; `GET /problems/NAME` explains one. Every
answer has the header `X-Request-ID`, with the caller's own id if the request had one.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the application, with settings from the environment unless given."""
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = InferenceEngine(settings, metrics)
        app.state.engine = engine
        try:
            await engine.start()
            yield
        finally:
            await engine.close()

    app = FastAPI(
        title="MME", summary="Action recognition as a service", description=DESCRIPTION, version=_package_version(),
        lifespan=lifespan, docs_url=None, redoc_url=None, root_path=settings.root_path,
    )  # fmt: skip
    app.state.api_keys = ApiKeys(settings.api_keys)
    app.state.rate_limit = RateLimit(settings.rate_per_minute)

    # The last middleware added is the outermost: the log and every answer of the inner ones have a request id.
    videos = [video_router] if settings.feedback_dir is None else [video_router, feedback_router]
    routes = [route for router in videos for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(EarlyRefusal, routes={route.path: route for route in routes if "POST" in (route.methods or ())})
    app.add_middleware(RequestContext, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    app.add_middleware(CorrelationIdMiddleware, validator=is_request_id, update_request_header=False)
    app.add_middleware(RootPath)

    _add_problem_handlers(app)
    for router in (*videos, server_router, model_router):
        app.include_router(router)
    _add_operations(app, metrics)
    _add_page(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _package_version() -> str:
    try:
        return version("mme")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


def _add_operations(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health", summary="Is the process alive?", tags=["operations"])
    async def health() -> dict[Literal["status"], Literal["ok"]]:
        return {"status": "ok"}

    @app.get(
        "/ready", summary="Are requests answered?", tags=["operations"],
        responses=documented("model-not-loaded", "draining", "internal"),
    )  # fmt: skip
    async def ready(request: Request) -> Readiness:
        engine = engine_of(request)
        loaded = engine.check_ready()
        return Readiness(
            status="ready",
            model=model_name(loaded),
            last_load_error=engine.reloader.last_error,
            feedback=engine.feedback is not None,
        )

    @app.get("/metrics", summary="Metrics for Prometheus", tags=["operations"], response_class=Response)
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get(
        "/problems/{name}", summary="Explain a problem's type", tags=["operations"],
        responses=documented("not-found"),
    )  # fmt: skip
    async def explain(request: Request, name: str) -> dict[str, Any]:
        if name not in KINDS:
            raise Problem("not-found", f"no problem is called {name}")
        kind = KINDS[name]
        address = f"{request.app.root_path}/problems/{name}"
        return {"type": address, "status": kind.status, "title": kind.title, "advice": kind.advice}


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def known(request: Request, problem: Problem) -> JSONResponse:
        return problem.response(request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"location": [str(part) for part in item["loc"]], "message": item["msg"]} for item in error.errors()]
        detail = "; ".join(f"{'.'.join(item['location'])}: {item['message']}" for item in errors)
        return Problem("invalid-parameter", detail, errors=errors).response(request.scope)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == KINDS["method-not-allowed"].status:
            allowed = [*error.headers["Allow"].split(", "), "OPTIONS"]  # type: ignore[index]
            if "GET" in allowed:
                allowed.append("HEAD")  # by RequestContext
            error.headers = {"Allow": ", ".join(allowed)}
            if request.method == "OPTIONS":
                return Response(status_code=HTTPStatus.NO_CONTENT, headers=error.headers)
            problem = Problem("method-not-allowed", f"{path} does not support {request.method}")
        elif error.status_code == KINDS["not-found"].status:
            problem = Problem("not-found", f"nothing exists at {path}")
        else:
            problem = Problem("malformed-body", error.detail)
        problem.headers |= error.headers or {}
        return problem.response(request.scope)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document, with the problem's schema in place of FastAPI's own errors, which are never sent."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )

        # Schemas that no route's signature names.
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (ProblemDocument, InferenceRequest):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {}) | {model.__name__: schema}

        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            for response in operation["responses"].values():
                for example in response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}).values():
                    example["value"]["type"] = app.root_path + example["value"]["type"]
        app.openapi_schema = document
    return app.openapi_schema
