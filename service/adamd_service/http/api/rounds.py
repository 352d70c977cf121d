"""The routes of rounds (docs/protocol.md, section 13). Each decodes, calls the engine and encodes."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from adamd.errors import InvalidRequest
from adamd.wire import headers
from adamd_service.codecs import bodies, checks
from adamd_service.codecs import rounds as codec
from adamd_service.codecs.checks import session_ref as _ref
from adamd_service.engine.calls import Decode
from adamd_service.engine.rounds import ContributeCall
from adamd_service.http import responses
from adamd_service.http.api import openapi_rounds as openapi
from adamd_service.http.api import request_headers
from adamd_service.http.api.event_stream import EventStream
from adamd_service.http.api.requests import (
    Ref,
    StrictRoute,
    Wait,
    complete_body,
    engine_of,
    if_match,
    parsed,
    vector,
    while_it_stays,
)

router = APIRouter(prefix="/v1/sessions/{session}", tags=["rounds"], route_class=StrictRoute)
MAX_EVALUATION_BYTES = 64 * 1024
DOCUMENTS = (headers.JSON, headers.CSV)
Round = Annotated[str, Path(alias="round", description="the round's number, from 1", json_schema_extra=openapi.NUMBER)]
Name = Annotated[str, Path(alias="client", description="whose it is", json_schema_extra=openapi.CLIENT)]


@router.get("/rounds/current", response_class=Response, responses=openapi.TASK)
async def get_task(
    request: Request,
    session: Ref,
    client: Annotated[str | None, Query(pattern=f"^{headers.CLIENT_PATTERN}$", description="who asks")] = None,
    wait_s: Wait = 0.0,
) -> Response:
    """Return what a client is to do now, and wait for it; without a client, the open round at once."""
    ref, engine = _ref(session), engine_of(request)
    if client is None and wait_s:
        raise InvalidRequest("wait_s: there is nothing to wait for without a client", path="wait_s")
    if wait_s:
        with engine.waiting.seat():
            task = await while_it_stays(request, engine.rounds.task(ref, client, wait_s))
    else:
        task = await engine.rounds.task(ref, client)
    return responses.task(task)


@router.put(
    "/rounds/{round}/contributions/{client}",
    status_code=202,
    openapi_extra=openapi.CONTRIBUTE,
    response_class=Response,
    responses=openapi.CONTRIBUTED,
)
async def put_contribution(request: Request, session: Ref, number: Round, client: Name) -> Response:
    """A client's contribution to a round: what training changed, the trained parameters, or a gradient."""
    kind = codec.kind(request_headers.only(request, headers.KIND), headers.KIND)
    decoders: dict[str, Decode] = {
        headers.JSON: partial(bodies.contribution_from_json, kind),
        headers.SAFETENSORS: bodies.gradient_from_safetensors,
    }
    sent = vector(request, decoders)
    ref, rank = _ref(session), request_headers.round_number(number)
    call = ContributeCall(
        ref=ref,
        round=rank,
        client=codec.client(client),
        body=sent.body,
        dtype=sent.dtype,
        decode=sent.decode,
        encoding=sent.encoding,
        kind=kind,
        num_examples=request_headers.num_examples(request),
        metrics=checks.metrics(request_headers.json_header(request, headers.METRICS)) or {},
        if_match=await if_match(request, ref, rank),
    )
    return responses.contributed(await engine_of(request).rounds.contribute(call))


@router.put(
    "/rounds/{round}/evaluations/{client}",
    status_code=202,
    openapi_extra=openapi.EVALUATE,
    response_class=Response,
    responses=openapi.EVALUATED,
)
async def put_evaluation(request: Request, session: Ref, number: Round, client: Name) -> Response:
    """What a client measured at the parameters that a round begins with."""
    kind = request_headers.media_type(request, headers.JSON, (headers.JSON,))
    ref, rank, name = _ref(session), request_headers.round_number(number), codec.client(client)
    async with complete_body(request, kind, MAX_EVALUATION_BYTES) as body:
        call = await parsed(codec.evaluation, body, ref, rank, name)
    return responses.contributed(await engine_of(request).rounds.evaluate(call))


@router.get("/rounds/{round}", response_class=Response, responses=openapi.ROUND)
async def get_round(request: Request, session: Ref, number: Round) -> Response:
    """Return what is known of a round: JSON, or CSV with a row for each contribution."""
    kind = request_headers.accepted_type(request, headers.JSON, DOCUMENTS)
    told = await engine_of(request).rounds.read(_ref(session), request_headers.round_number(number))
    return responses.round_told(told, kind)


@router.get("/rounds", response_class=Response, responses=openapi.ROUNDS)
async def list_rounds(
    request: Request,
    session: Ref,
    first: Annotated[
        int | None, Query(alias="from", ge=1, le=headers.MAX_STEP, description="the first round; default the oldest")
    ] = None,
    page_size: Annotated[int, Query(ge=1, le=checks.LONGEST_PAGE)] = checks.PAGE,
    page_token: Annotated[str | None, Query(max_length=checks.LONGEST_TOKEN)] = None,
) -> Response:
    """List rounds, oldest first, page by page: JSON, or CSV with a row for each contribution."""
    kind = request_headers.accepted_type(request, headers.JSON, DOCUMENTS)
    begin = codec.first_of_page(first, page_token)
    told, following = await engine_of(request).rounds.list(_ref(session), begin, page_size)
    return responses.rounds_told(told, following, page_size, kind)


@router.post("/rounds/{round}/close", response_class=Response, responses=openapi.CLOSED)
async def close_round(request: Request, session: Ref, number: Round) -> Response:
    """Close the open round with the contributions that there are."""
    told = await engine_of(request).rounds.close(_ref(session), request_headers.round_number(number))
    return responses.round_told(told, headers.JSON)


@router.post("/rounds/{round}/cancel", response_class=Response, responses=openapi.CLOSED)
async def cancel_round(request: Request, session: Ref, number: Round) -> Response:
    """Drop the contributions of the open round; it begins again."""
    told = await engine_of(request).rounds.cancel(_ref(session), request_headers.round_number(number))
    return responses.round_told(told, headers.JSON)


@router.get("/events", response_class=Response, responses=openapi.EVENTS)
async def get_events(request: Request, session: Ref) -> Response:
    """Tell what happens to a session as server-sent events, where it stands first; with or without rounds."""
    if request.scope["http_version"] == "1.0":
        raise InvalidRequest("events come in chunks, which HTTP/1.0 does not know; speak HTTP/1.1")
    engine = engine_of(request)
    seat = engine.waiting.take()
    try:
        events = engine.rounds.events(_ref(session))
        return EventStream(await while_it_stays(request, anext(events)), events, seat)
    except BaseException:
        seat.leave()
        raise
