"""The routes of the HTTP API (docs/protocol.md). Each decodes, calls the engine and encodes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import Match, Route
from starlette.types import Scope

from adamd.errors import InvalidRequest
from adamd.wire import headers
from adamd.wire.encodings import RAW
from adamd_service.codecs import bodies, checks
from adamd_service.codecs.checks import session_ref as _ref
from adamd_service.codecs.documents import patch as patch_document
from adamd_service.codecs.documents import summary
from adamd_service.engine import StepCall
from adamd_service.http import responses
from adamd_service.http.api import openapi, request_headers
from adamd_service.http.api.requests import (
    Ref,
    StrictRoute,
    Wait,
    arriving,
    complete_body,
    engine_of,
    if_match,
    parsed,
    vector,
    while_it_stays,
)

router = APIRouter(prefix="/v1", tags=["sessions"], route_class=StrictRoute)
MAX_PATCH_BYTES = 1024 * 1024
GRADIENTS = {headers.JSON: bodies.gradient_from_json, headers.SAFETENSORS: bodies.gradient_from_safetensors}
Number = Annotated[str, Path(description="the step's number, from 1", json_schema_extra=openapi.NUMBER)]


@router.post("/sessions", status_code=201, openapi_extra=openapi.CREATE, responses=openapi.CREATED)
async def create_session(request: Request) -> Response:
    """Create a session from parameters, from a layout, or from an exported state."""
    kind = request_headers.media_type(request, headers.JSON, (headers.JSON, headers.SAFETENSORS))
    key = request_headers.idempotency_key(request)
    parse = bodies.create_from_json if kind == headers.JSON else bodies.create_from_safetensors
    async with complete_body(request, kind) as body:
        call = await parsed(parse, body, key)
        return responses.created(
            await engine_of(request).create(call), call.sent_order, request.scope.get("root_path", "")
        )


@router.get("/sessions", responses=openapi.PAGE)
async def list_sessions(
    request: Request,
    page_size: Annotated[int, Query(ge=1, le=checks.LONGEST_PAGE)] = checks.PAGE,
    page_token: Annotated[str | None, Query(max_length=checks.LONGEST_TOKEN)] = None,
) -> Response:
    """List sessions, page by page."""
    heads, token = await engine_of(request).list(page_size, page_token or None)
    return JSONResponse({"sessions": [summary(head) for head in heads], "next_page_token": token})


@router.get("/sessions/{session}", responses=openapi.SESSION)
async def get_session(request: Request, session: Ref) -> Response:
    """Return a session's settings, step and layout, and where its open round stands."""
    engine = engine_of(request)
    view = await engine.view(_ref(session))
    standing = None if view.head.spec.rounds is None else await engine.rounds.task(view.head.spec.id)
    return responses.session(view, standing=standing)


@router.patch("/sessions/{session}", openapi_extra=openapi.PATCH, responses=openapi.SESSION)
async def patch_session(request: Request, session: Ref) -> Response:
    """Change settings (they count from the next step) or labels."""
    kind = request_headers.media_type(request, headers.JSON, (headers.JSON,))
    ref = _ref(session)
    async with complete_body(request, kind, MAX_PATCH_BYTES) as body:
        patch = await parsed(patch_document, body)
        match = await if_match(request, ref)
        changed = await engine_of(request).patch(ref, patch.optimizer, patch.labels, match, patch.rounds)
        return responses.session(changed)


@router.delete("/sessions/{session}", status_code=204, openapi_extra=openapi.MATCHED, responses=openapi.EMPTY)
async def delete_session(request: Request, session: Ref) -> Response:
    """Delete a session: 410 for a day, then 404."""
    ref = _ref(session)
    await engine_of(request).delete(ref, await if_match(request, ref))
    return Response(status_code=204)


@router.get(
    "/sessions/{session}/parameters",
    response_class=Response,
    openapi_extra=openapi.READ,
    responses=openapi.PARAMETERS,
)
async def get_parameters(
    request: Request,
    session: Ref,
    min_step: Annotated[int, Query(ge=0, le=headers.MAX_STEP, description="wait until this step is made")] = 0,
    wait_s: Wait = 0.0,
) -> Response:
    """Return the current parameters, or those to evaluate; wait for a step first, where one is asked for."""
    kind = request_headers.accepted_type(request, headers.JSON)
    dtype, at = request_headers.answer_dtype(request, kind), checks.at(request.query_params.get("at"))
    ref, engine = _ref(session), engine_of(request)
    if wait_s and not min_step:
        raise InvalidRequest("wait_s: there is nothing to wait for without min_step", path="wait_s")
    if min_step:
        with engine.waiting.seat():
            if not await while_it_stays(request, engine.rounds.wait_for_step(ref, min_step, wait_s)):
                return responses.not_yet()
    return responses.parameters(await engine.parameters(ref, dtype, at=at), kind)


@router.put("/sessions/{session}/parameters", openapi_extra=openapi.TENSORS, responses=openapi.SESSION)
async def put_parameters(request: Request, session: Ref) -> Response:
    """Set the parameters, before step 1."""
    kind = request_headers.media_type(request, headers.OCTETS)
    dtype = request_headers.dtype(request)
    if request_headers.encoding(request) != RAW:
        raise InvalidRequest(f"{headers.ENCODING}: parameters are sent as they are; encodings are for gradients")
    decode = {headers.JSON: bodies.parameters_from_json, headers.SAFETENSORS: bodies.parameters_from_safetensors}
    view = await engine_of(request).set_parameters(_ref(session), arriving(request, kind), dtype, decode.get(kind))
    return responses.session(view)


@router.get("/sessions/{session}/state", response_class=Response, responses=openapi.STATE)
async def get_state(request: Request, session: Ref) -> Response:
    """Export the whole state as safetensors; POST it to /v1/sessions to restore it as a new session."""
    return responses.state(await engine_of(request).export(_ref(session)))


@router.put(
    "/sessions/{session}/steps/{number}",
    openapi_extra=openapi.GRADIENT,
    response_class=Response,
    responses=openapi.STEPPED,
)
async def put_step(request: Request, session: Ref, number: Number) -> Response:
    """The gradient at step n-1's parameters in, the parameters at step n out."""
    return await _step(request, session, request_headers.step_number(number), request_headers.idempotency_key(request))


class StepRoute(Route):
    """`put_step` without FastAPI's parameters and exit stacks, which took a sixth of a small step's time.

    It is registered before `put_step`, which documents it.
    """

    def __init__(self) -> None:
        super().__init__("/v1/sessions/{session}/steps/{number}", _put_step, methods=["PUT"], include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match, and note the route in the scope, as FastAPI's routes do: the telemetry counts by route."""
        match, child = super().matches(scope)
        return match, {**child, "route": self}


async def _put_step(request: Request) -> Response:
    if request.scope["query_string"]:
        request_headers.check_query(request, ())
    return await put_step(request, request.path_params["session"], request.path_params["number"])


@router.post(
    "/sessions/{session}/steps", openapi_extra=openapi.POSTED, response_class=Response, responses=openapi.STEPPED
)
async def post_step(request: Request, session: Ref) -> Response:
    """Apply at whatever step is next; for asynchronous clients."""
    key = request_headers.idempotency_key(request)
    if key is None:
        raise InvalidRequest("POST …/steps wants an Idempotency-Key, so that a retry cannot apply twice")
    return await _step(request, session, None, key)


async def _step(request: Request, session: str, number: int | None, key: str | None) -> Response:
    sent = vector(request, GRADIENTS)
    answer_kind = request_headers.accepted_type(request, sent.media_type)
    call = StepCall(
        ref=_ref(session),
        number=number,
        body=sent.body,
        dtype=sent.dtype,
        decode=sent.decode,
        encoding=sent.encoding,
        answer_dtype=request_headers.answer_dtype(request, answer_kind),
        if_match=await if_match(request, _ref(session), number),
        base=request_headers.base(request) if number is None else None,
        key=key,
        settings=checks.settings(request_headers.json_header(request, headers.SETTINGS)),
        metrics=checks.metrics(request_headers.json_header(request, headers.METRICS)) or {},
        minimal=request_headers.minimal(request),
    )
    return responses.parameters(await engine_of(request).step(call), answer_kind)
