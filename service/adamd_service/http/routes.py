"""The routes of DESIGN section 5. Each decodes, calls the engine and encodes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from adamd.errors import InvalidRequest, UnknownSession
from adamd.wire import headers
from adamd_service.engine import Body, Engine, StepCall
from adamd_service.engine.intake import receive_all
from adamd_service.http import answers, bodies, documents, negotiation

router = APIRouter(prefix="/v1")
MAX_JSON = 64 * 1024 * 1024  # JSON takes ten times its length in memory; programs send octet-stream
_REF = re.compile(r"[a-z0-9-]{1,63}|[sm]_[a-z0-9_]{1,61}")
Ref = Annotated[str, Path(alias="session", description="a session's id or name")]
Number = Annotated[str, Path(description="the step's number, from 1", json_schema_extra=documents.NUMBER)]


def engine_of(request: Request) -> Engine:
    """Return this application's engine."""
    engine: Engine = request.app.state.engine
    return engine


def _ref(given: str) -> str:
    if _REF.fullmatch(given) is None:
        raise UnknownSession(f"{given[:80]!r} is neither a session's id nor a name ([a-z0-9-], at most 63)")
    return given


def _body(request: Request) -> Body:
    return Body(negotiation.declared_length(request), _chunks(request))


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


async def _small(request: Request, limit: int) -> memoryview:
    """Read a whole body of a kind that is not streamed."""
    engine = engine_of(request)
    body = _body(request)
    limit = min(limit, engine.limits.body)
    with engine.in_flight.hold(min(limit, limit if body.declared is None else body.declared)):
        read = await receive_all(body, limit, engine.pool, engine.limits.upload_gap, lambda: engine.draining)
    return memoryview(read)


@router.post("/sessions", status_code=201, openapi_extra=documents.CREATE, responses=documents.SESSION)
async def create_session(request: Request) -> Response:
    """Create a session from parameters, from a layout, or from an exported state."""
    kind = negotiation.media_type(request, headers.JSON, (headers.JSON, headers.SAFETENSORS))
    key = negotiation.idempotency_key(request)
    engine = engine_of(request)
    if kind == headers.JSON:
        call = bodies.create_from_json(await _small(request, MAX_JSON), key)
    else:
        call = bodies.create_from_safetensors(await _small(request, engine.limits.body), key)
    return answers.session(await engine.create(call), 201)


@router.get("/sessions", responses=documents.PAGE)
async def list_sessions(
    request: Request,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """List sessions, page by page."""
    heads, token = await engine_of(request).list(page_size, page_token or None)
    return JSONResponse({"sessions": [documents.summary(head) for head in heads], "next_page_token": token})


@router.get("/sessions/{session}", responses=documents.SESSION)
async def get_session(request: Request, session: Ref) -> Response:
    """Return a session's settings, step and layout."""
    return answers.session(await engine_of(request).view(_ref(session)))


@router.patch("/sessions/{session}", openapi_extra=documents.PATCH, responses=documents.SESSION)
async def patch_session(request: Request, session: Ref) -> Response:
    """Change settings (they count from the next step) or labels."""
    negotiation.media_type(request, headers.JSON, (headers.JSON,))
    patch = documents.patch(negotiation.parse_json(await _small(request, 1 << 20)))
    return answers.session(await engine_of(request).patch(_ref(session), patch.optimizer, patch.labels))


@router.delete("/sessions/{session}", status_code=204, responses=documents.EMPTY)
async def delete_session(request: Request, session: Ref) -> Response:
    """Delete a session: 410 for a day, then 404."""
    await engine_of(request).delete(_ref(session))
    return Response(status_code=204)


@router.get("/sessions/{session}/parameters", responses=documents.PARAMETERS)
async def get_parameters(request: Request, session: Ref) -> Response:
    """Return the current parameters."""
    kind = negotiation.accepted_type(request, headers.JSON)
    return answers.parameters(await engine_of(request).parameters(_ref(session)), kind)


@router.put("/sessions/{session}/parameters", openapi_extra=documents.TENSORS, responses=documents.SESSION)
async def put_parameters(request: Request, session: Ref) -> Response:
    """Set the parameters, before step 1."""
    kind = negotiation.media_type(request, headers.OCTETS)
    dtype = request.headers.get(headers.DTYPE)

    def decode(raw: memoryview, spec: Any, given: str | None) -> Any:
        return bodies.parameters_from(kind, raw, spec, given)

    view = await engine_of(request).set_parameters(_ref(session), _body(request), dtype, decode)
    return answers.session(view)


@router.get("/sessions/{session}/state", responses=documents.STATE)
async def get_state(request: Request, session: Ref) -> Response:
    """Export the whole state as safetensors; POST it to /v1/sessions to restore it as a new session."""
    return answers.state(await engine_of(request).export(_ref(session)))


@router.put("/sessions/{session}/steps/{number}", openapi_extra=documents.GRADIENT, responses=documents.STEPPED)
async def put_step(request: Request, session: Ref, number: Number) -> Response:
    """The gradient at step n-1's parameters in, the parameters at step n out."""
    return await _step(request, session, negotiation.step_number(number), None)


@router.post("/sessions/{session}/steps", openapi_extra=documents.POSTED, responses=documents.STEPPED)
async def post_step(request: Request, session: Ref) -> Response:
    """Apply at whatever step is next; for asynchronous clients."""
    key = negotiation.idempotency_key(request)
    if key is None:
        raise InvalidRequest("POST …/steps wants an Idempotency-Key, so that a retry cannot apply twice")
    return await _step(request, session, None, key)


async def _step(request: Request, session: str, number: int | None, key: str | None) -> Response:
    kind = negotiation.media_type(request, headers.OCTETS)
    wanted = negotiation.accepted_type(request, kind)
    decode = {headers.JSON: bodies.gradient_from_json, headers.SAFETENSORS: bodies.gradient_from_safetensors}
    call = StepCall(
        ref=_ref(session),
        number=number,
        body=_body(request),
        dtype=request.headers.get(headers.DTYPE) if kind == headers.OCTETS else None,
        decode=decode.get(kind),
        body_limit=MAX_JSON if kind == headers.JSON else None,
        if_match=negotiation.if_match(request),
        key=key,
        settings=negotiation.settings(negotiation.json_header(request, headers.SETTINGS)),
        metrics=negotiation.metrics(negotiation.json_header(request, headers.METRICS)) or {},
        minimal=negotiation.minimal(request),
    )
    return answers.parameters(await engine_of(request).step(call), wanted)
