"""The FastAPI application: routes, operations, and problem documents for every error."""

from __future__ import annotations

import time
from importlib.metadata import version

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adamd.errors import AdamdError, InternalError, InvalidRequest
from adamd.wire import headers
from adamd.wire.layout import shown
from adamd_service.codecs.checks import LONGEST_PAGE
from adamd_service.codecs.documents import server_info
from adamd_service.codecs.rounds import CLIENT_WORDS
from adamd_service.engine import Engine
from adamd_service.http import responses
from adamd_service.http.api import docs_page, openapi, rounds, routes
from adamd_service.http.api.event_stream import HEAD
from adamd_service.http.api.requests import StrictRoute
from adamd_service.http.server.host_and_origin_check import Doors, add_checks
from adamd_service.http.server.unread_bodies import Leftovers
from adamd_service.telemetry import Telemetry

QUERY_WANTED = {
    "page_size": f"a whole number from 1 to {LONGEST_PAGE}",
    "page_token": "the next_page_token of an earlier answer",
    "from": "a round's number, from 1",
    "wait_s": f"seconds from 0 to {headers.LONGEST_WAIT:g}",
    "min_step": "a step's number, from 0",
    "client": CLIENT_WORDS,
}
log = structlog.get_logger()


class NoRoute(AdamdError):
    """A path that this server does not have."""

    code, status = "no_route", 404


class MethodNotAllowed(AdamdError):
    """A method that this path does not have; Allow tells those that it has."""

    code, status = "method_not_allowed", 405


def application(engine: Engine, telemetry: Telemetry, doors: Doors, root_path: str = "") -> FastAPI:
    """Return the application that serves ``engine`` to those whom ``doors`` let in.

    ``root_path`` is where a proxy has it, as in "/adamd": requests come with that prefix or without it.
    """
    app = FastAPI(
        title="adamd",
        version=version("adamd"),
        summary="Adam as a daemon: optimization as a service.",
        description="PUT a gradient, get parameters. A step is applied exactly as often as it was acknowledged.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=lambda route: route.name,  # generated clients get these names
        docs_url=None,
        redoc_url=None,
        root_path=root_path,
        redirect_slashes=False,  # a redirect is no answer to a program that put 40 MB there
    )
    app.state.engine = engine
    app.router.routes.append(routes.StepRoute())
    app.include_router(routes.router)
    app.include_router(rounds.router)
    _operations(app, engine, telemetry)
    docs_page.add(app)
    app.add_exception_handler(AdamdError, _adamd_error)
    app.add_exception_handler(RequestValidationError, _invalid_query)
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected_error)
    add_checks(app, doors)
    app.add_middleware(Measured, telemetry=telemetry)
    # Outside the measuring: the rest of a body is not our time.
    app.add_middleware(Leftovers, gap=engine.limits.upload_gap, most=engine.limits.body)
    return app


def _operations(app: FastAPI, engine: Engine, telemetry: Telemetry) -> None:
    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Say that the process turns."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "draining, or the store takes no write now"}})
    async def readyz() -> dict[str, str]:
        """Say whether a step could be committed: not while draining, nor while the store would not write or keep it."""
        await engine.ready()
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(telemetry.render(), media_type=telemetry.content_type)

    info_router = APIRouter(route_class=StrictRoute)

    @info_router.get("/v1/info", response_class=JSONResponse, responses=openapi.INFO)
    async def info() -> Response:
        """Tell the version, the numerics, the bounds, and what the store promises."""
        return JSONResponse(server_info(engine))

    app.include_router(info_router)


async def _adamd_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AdamdError)
    if isinstance(error, InternalError):
        log.error("internal error", **_request_fields(request), detail=error.detail, exc_info=error)
    else:
        tell = log.info if error.status >= 500 else log.debug
        tell("refused", **_request_fields(request), code=error.code, detail=error.detail)
    return responses.problem(error)


def _request_fields(request: Request) -> dict[str, str]:
    """Return what a request was about, for the log: its method, its route, and its session."""
    route = getattr(request.scope.get("route"), "path", request.url.path[:200])
    session = request.path_params.get("session")
    return {"method": request.method, "route": route} | ({} if session is None else {"session": shown(session)})


async def _invalid_query(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = str(fault["loc"][-1])
    return responses.problem(
        InvalidRequest(f"{where} is {shown(fault['input'])}; wanted {QUERY_WANTED[where]}", path=where)
    )


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    request_line = f"{request.method} {request.url.path[:200]}"
    if error.status_code != 405:
        return responses.problem(NoRoute(f"{request_line}: there is no such path; see /docs"))
    # Starlette tells the methods of one route only; a path has several.
    all_routes = [*request.app.routes, *routes.router.routes, *rounds.router.routes]
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    matching = [route for route in all_routes if isinstance(route, Route) and route.path_regex.match(path)]
    methods = {method for route in matching for method in route.methods or ()}
    allowed = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
    response = responses.problem(MethodNotAllowed(f"{request_line}: this path has {allowed}; see /docs"))
    response.headers["Allow"] = allowed
    return response


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("unexpected error", method=request.method, path=request.url.path, exc_info=error)
    return responses.problem(InternalError(f"{type(error).__name__}; the server's log has the rest"))


class Measured:
    """Counts requests and their time, by route, without touching their bodies.

    A HEAD is answered as the GET that it stands for; the connection leaves the body out.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", HEAD: True}
        started, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "unknown")
            self._telemetry.request(scope["method"], path, status, time.perf_counter() - started)
