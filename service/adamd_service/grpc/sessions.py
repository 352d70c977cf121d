"""Methods of sessions: create, get, list, update, watch, delete."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import xxhash

from adamd.errors import InvalidRequest
from adamd.wire.channel import UNARY
from adamd.wire.protobuf_tables import struct
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import bodies, checks
from adamd_service.codecs.documents import change, server_info
from adamd_service.engine import Engine
from adamd_service.grpc import messages, round_messages
from adamd_service.grpc.calls import Context, Guard
from adamd_service.grpc.sending import write
from adamd_service.optim import lr_at, parse_settings
from adamd_service.records import Head


class SessionMethods:
    """Serves the methods with one message each way over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(self, request: pb.CreateSessionRequest, _context: Context) -> pb.CreateSessionResponse:
        """Make a session, with its parameters or without."""
        key = messages.key(request.idempotency_key)
        parameters = request.parameters if request.HasField("parameters") else None
        digest = xxhash.xxh3_128_hexdigest(request.SerializeToString(deterministic=True))
        size = 0 if parameters is None else len(parameters)
        with self._engine.in_flight.hold(bodies.SAFETENSORS_WEIGHT * size):
            kind = messages.dtype(request.parameters_dtype, "parameters_dtype")
            call = bodies.create_from_vector(await _creation(request), parameters, kind, key, digest)
            view = await self._engine.create(call)
        session = messages.session(view.head, view.settings, diverged=view.diverged)
        return pb.CreateSessionResponse(session=session, replayed=view.repeated)

    async def get(self, request: pb.GetSessionRequest, _context: Context) -> pb.GetSessionResponse:
        """Return a session as it stands."""
        view = await self._engine.view(checks.session_ref(request.session))
        session = messages.session(view.head, view.settings, diverged=view.diverged)
        if view.head.spec.rounds is not None:
            task = await self._engine.rounds.task(view.head.spec.id)
            if task is not None:
                session.round.CopyFrom(round_messages.standing(task))
        return pb.GetSessionResponse(session=session)

    async def list(self, request: pb.ListSessionsRequest, _context: Context) -> pb.ListSessionsResponse:
        """Return a page of sessions."""
        size = request.page_size or checks.PAGE
        if size > checks.LONGEST_PAGE:
            raise InvalidRequest(f"page_size: {size}; at most {checks.LONGEST_PAGE}", path="page_size")
        if len(request.page_token) > checks.LONGEST_TOKEN:
            raise InvalidRequest("page_token: it comes from the page before, as it is", path="page_token")
        while True:
            heads, token = await self._engine.list(size, request.page_token or None)
            sessions = [messages.short(head) for head in heads]
            response = pb.ListSessionsResponse(sessions=sessions, next_page_token=token or "")
            if response.ByteSize() <= UNARY or size == 1:
                return response
            size = max(1, size // 2)  # long labels: the page ends where the message would be too long

    async def update(self, request: pb.UpdateSessionRequest, _context: Context) -> pb.UpdateSessionResponse:
        """Change settings, from the next step on, and labels."""
        ref = checks.session_ref(request.session)
        document: dict[str, Any] = {}
        if request.HasField("optimizer"):
            document["optimizer"] = await messages.unfolded(request.optimizer, "optimizer")
        if request.HasField("labels"):
            document["labels"] = messages.labels(request.labels.labels)
        if request.HasField("rounds"):
            document["rounds"] = await messages.unfolded(request.rounds, "rounds")
        patch = change(document)
        view = await self._engine.patch(ref, patch.optimizer, patch.labels, rounds=patch.rounds)
        return pb.UpdateSessionResponse(session=messages.session(view.head, view.settings, diverged=view.diverged))

    async def delete(self, request: pb.DeleteSessionRequest, _context: Context) -> pb.DeleteSessionResponse:
        """End a session."""
        chain = checks.chain(request.if_match, "if_match") if request.if_match else None
        await self._engine.delete(checks.session_ref(request.session), chain)
        return pb.DeleteSessionResponse()

    async def info(self, _request: pb.GetServerInfoRequest, _context: Context) -> pb.GetServerInfoResponse:
        """Tell the version, the numerics, the bounds, and what the store promises."""
        document = server_info(self._engine)
        limits, channel = document["limits"], document["grpc"]
        return pb.GetServerInfoResponse(
            version=document["version"],
            replica=document["replica"],
            numerics=document["numerics"],
            store=document["store"],
            max_message_bytes=channel["message_bytes"],
            max_body_bytes=limits["body_bytes"],
            max_in_flight_bytes=limits["in_flight_bytes"],
            max_concurrent_calls=channel["calls"],
            dtypes=document["dtypes"],
            optimizers=document["optimizers"],
            encodings=document["encodings"],
            settings=struct(document["settings"]),
            device=document["device"],
        )


async def _creation(request: pb.CreateSessionRequest) -> dict[str, Any]:
    """Return a creation as the JSON document would say it."""
    durability, labels = messages.durability(request.durability), messages.labels(request.labels)
    document: dict[str, Any] = {"durability": durability, "labels": labels}
    if request.name:
        document["name"] = request.name
    if request.HasField("optimizer"):
        document["optimizer"] = await messages.unfolded(request.optimizer, "optimizer")
    kind = messages.dtype(request.dtype, "dtype")
    if kind is not None:
        document["dtype"] = kind
    if request.HasField("rounds"):
        document["rounds"] = await messages.unfolded(request.rounds, "rounds")
    if request.HasField("layout"):
        document["vector"] = request.layout.vector
        document["layout"] = messages.layout(request.layout)
    return document


class WatchMethod:
    """Serves WatchSession over one engine."""

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard

    async def watch_session(self, context: Context) -> None:
        """Tell where a session stands until it is deleted, which ends the stream with NOT_FOUND."""
        request: pb.WatchSessionRequest = await self._guard.first(context)
        ref, gap = checks.session_ref(request.session), self._engine.limits.upload_gap
        if (await self._engine.view(ref)).head.spec.rounds is not None:
            async with aclosing(self._engine.rounds.events(ref)) as events:
                async for _event in events:
                    await write(context, await self._with_round(ref), gap)
            return
        async with aclosing(self._engine.watch(ref)) as states:
            async for state in states:
                await write(context, _watch_response(state.head, state.metrics, diverged=state.diverged), gap)

    async def _with_round(self, ref: str) -> pb.WatchSessionResponse:
        view, task = await self._engine.view(ref), await self._engine.rounds.task(ref)
        response = _watch_response(view.head, view.metrics, diverged=view.diverged)
        if task is not None:
            response.round.CopyFrom(round_messages.standing(task))
        return response


def _watch_response(head: Head, metrics: Mapping[str, Any], *, diverged: bool) -> pb.WatchSessionResponse:
    return pb.WatchSessionResponse(
        standing=messages.standing_of(head.spec, head.step, head.chain, diverged=diverged),
        optimizer=struct(head.settings),
        metrics=round_messages.numbers(metrics),
        lr=lr_at(parse_settings(head.settings), head.step + 1),
    )
