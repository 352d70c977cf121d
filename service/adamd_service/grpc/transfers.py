"""Methods that transfer parameters and states, in pieces."""

from __future__ import annotations

import asyncio
from typing import Any

from adamd.errors import InvalidRequest
from adamd.wire import headers
from adamd.wire.pieces import Piece
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import bodies, checks
from adamd_service.codecs.documents import order_notice
from adamd_service.codecs.rounds import wait
from adamd_service.codecs.states import raw, state_pieces
from adamd_service.engine import Engine, RequestBody, to_its_end
from adamd_service.grpc import messages
from adamd_service.grpc.calls import Context, Guard
from adamd_service.grpc.sending import pieces, write_all


class TransferMethods:
    """Serves these methods over one engine."""

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard
        self._gap = engine.limits.upload_gap

    async def get_parameters(self, context: Context) -> None:
        """Return the current parameters."""
        request: pb.GetParametersRequest = await self._guard.first(context)
        ref, dtype = checks.session_ref(request.session), messages.dtype(request.dtype, "dtype")
        at = checks.at(request.at or None)
        if not await self._reached(ref, request):
            head = (await self._engine.view(ref)).head
            await write_all(context, messages.standing_of(head.spec, head.step, head.chain), [], self._gap)
            return
        answer = await self._engine.parameters(ref, dtype, at=at)
        views = [] if answer.parameters is None else [raw(answer.parameters)]
        standing = messages.standing(answer)
        del answer
        await write_all(context, standing, views, self._gap)

    async def _reached(self, ref: str, request: pb.GetParametersRequest) -> bool:
        """Wait for the step that is asked for; False where it has not come in time."""
        wait_s = wait(request.wait_s)
        if not request.min_step:
            if wait_s:
                raise InvalidRequest("wait_s: there is nothing to wait for without min_step", path="wait_s")
            return True
        if request.min_step > headers.MAX_STEP:
            raise InvalidRequest(f"min_step is {request.min_step}; wanted at most 2^53", path="min_step")
        with self._engine.waiting.seat(), self._guard.waiting.seat():
            return await self._engine.rounds.wait_for_step(ref, request.min_step, wait_s)

    async def export_state(self, context: Context) -> None:
        """Return the whole state as safetensors."""
        request: pb.ExportStateRequest = await self._guard.first(context)
        exported = await self._engine.export(checks.session_ref(request.session))
        head, views = exported.head, state_pieces(exported)
        del exported
        nbytes = sum(view.nbytes for view in views)
        standing = messages.standing_of(head.spec, head.step, head.chain, nbytes)
        await write_all(context, standing, views, self._gap)

    async def set_parameters(self, first: Piece[Any], context: Context) -> pb.SetParametersResponse:
        """Set the parameters, before step 1."""
        if first.head is None:
            raise InvalidRequest("session: missing; the first message names it", path="session")
        dtype = messages.dtype(first.head.dtype, "dtype")
        body = RequestBody(None, pieces(first, None, context))
        view = await self._engine.set_parameters(checks.session_ref(first.head.session), body, dtype, None)
        return pb.SetParametersResponse(session=messages.session(view.head, view.settings, diverged=view.diverged))

    async def restore(self, first: Piece[Any], context: Context) -> pb.RestoreSessionResponse:
        """Make a session from safetensors."""
        if first.head is None:
            raise InvalidRequest("nbytes: missing; the first message tells the length of the whole", path="nbytes")
        key, nbytes = messages.key(first.head.idempotency_key), first.head.nbytes
        body = RequestBody(nbytes, pieces(first, nbytes, context), weight=bodies.SAFETENSORS_WEIGHT)
        async with self._engine.read_body(body) as read:
            call = await to_its_end(asyncio.ensure_future(asyncio.to_thread(bodies.create_from_safetensors, read, key)))
            view = await self._engine.create(call)
        session = messages.session(view.head, view.settings, diverged=view.diverged)
        session.warnings.extend(pb.Stall(**notice) for notice in order_notice(call.sent_order, call.layout))
        return pb.RestoreSessionResponse(session=session, replayed=view.repeated)


def read_parameters(raw: bytes) -> Piece[Any]:
    """Read a message of SetParameters; its head is the message itself where it names a session."""
    message = pb.SetParametersRequest.FromString(raw)
    return Piece(message if message.session or message.dtype else None, message.offset, message.data)


def read_state(raw: bytes) -> Piece[Any]:
    """Read a message of RestoreSession; its head is the message itself where it tells a key or a length."""
    message = pb.RestoreSessionRequest.FromString(raw)
    return Piece(message if message.nbytes or message.idempotency_key else None, message.offset, message.data)
