"""What routes have in common: strict queries, bodies as the engine reads them, conditions, and waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from adamd.wire import headers
from adamd_service.codecs import bodies
from adamd_service.codecs.documents import MAX_JSON
from adamd_service.engine import Engine, RequestBody
from adamd_service.engine.calls import Decode
from adamd_service.http import responses
from adamd_service.http.api import openapi, request_headers
from adamd_service.http.server import direct_bodies

T = TypeVar("T")
JSON_WEIGHT = 14  # bytes of memory for each byte of JSON at worst, while it becomes an array
INLINE_BYTES = 64 * 1024  # a longer body is parsed in a thread
Ref = Annotated[
    str,
    Path(alias="session", description="a session's id or name", json_schema_extra={"pattern": openapi.REF}),
]
Wait = Annotated[float, Query(ge=0, le=headers.LONGEST_WAIT, description="seconds that the answer may wait")]


class StrictRoute(APIRoute):
    """A route that refuses query members that the OpenAPI document does not list."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what serves a request."""
        handle = super().get_route_handler()
        query_names = [parameter.alias for parameter in self.dependant.query_params]
        query_names += [
            parameter["name"]
            for parameter in (self.openapi_extra or {}).get("parameters", ())
            if parameter["in"] == "query"
        ]

        async def handled(request: Request) -> Response:
            if request.scope["query_string"]:
                request_headers.check_query(request, query_names)
            return await handle(request)

        return handled


def engine_of(request: Request) -> Engine:
    """Return this application's engine."""
    engine: Engine = request.app.state.engine
    return engine


def arriving(request: Request, kind: str) -> RequestBody:
    """Return a body of a media type as the engine reads it: octet-stream straight from the socket."""
    declared = request_headers.declared_length(request)
    if kind == headers.JSON:
        return RequestBody(declared, _chunks(request), MAX_JSON, JSON_WEIGHT)
    return RequestBody(declared, _chunks(request), fill=direct_bodies.filler(request, declared))


async def _chunks(request: Request) -> AsyncGenerator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


@dataclass(frozen=True, slots=True)
class SentVector:
    """A vector on its way: a step's gradient, or a contribution. ``decode`` is None for octet-stream."""

    media_type: str
    body: RequestBody
    dtype: str | None
    decode: Decode | None
    encoding: str


def vector(request: Request, decoders: Mapping[str, Decode]) -> SentVector:
    """Return the vector that a request brings, by its headers alone.

    Raises:
        MediaType, WrongDtype: a header says what there is not.

    """
    kind = request_headers.media_type(request, headers.OCTETS)
    dtype = request_headers.dtype(request)
    return SentVector(
        kind,
        arriving(request, kind),
        dtype if kind == headers.OCTETS else None,
        decoders.get(kind),
        request_headers.encoding(request),
    )


@asynccontextmanager
async def complete_body(request: Request, kind: str, limit: int | None = None) -> AsyncIterator[memoryview]:
    """Read a complete body of a kind that is not streamed; its memory is held until the context ends."""
    body = arriving(request, kind)
    if kind == headers.SAFETENSORS:
        body = replace(body, weight=bodies.SAFETENSORS_WEIGHT)
    if limit is not None:
        body = replace(body, limit=limit)
    async with engine_of(request).read_body(body) as read:
        yield read


async def parsed(parse: Callable[..., T], body: memoryview, *args: Any) -> T:
    """Parse a body: a short one here, a longer one in a thread."""
    return parse(body, *args) if body.nbytes <= INLINE_BYTES else await run_in_threadpool(parse, body, *args)


async def if_match(request: Request, ref: str, number: int | None = None) -> str | None:
    """Return the chain that the session, or step ``number`` - 1 of it, has to have; of several the one that it has."""
    chains = request_headers.if_match(request)
    if len(chains) < 2:
        return chains[0] if chains else None
    head = (await engine_of(request).view(ref)).head
    now = head.prev_chain if number == head.step else head.chain
    return now if now in chains else chains[0]


async def while_it_stays(request: Request, wait: Coroutine[Any, Any, T]) -> T:
    """Wait for something that may come late, but no longer than the client does.

    Raises:
        ClientDisconnect: it has gone away.

    """
    work = asyncio.ensure_future(wait)
    gone = asyncio.ensure_future(responses.disconnected(request.receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
