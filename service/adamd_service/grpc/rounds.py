"""Methods of rounds: tasks, contributions, evaluations, documents."""

from __future__ import annotations

from typing import Any

from adamd.errors import InvalidRequest
from adamd.wire import headers
from adamd.wire.channel import UNARY
from adamd.wire.pieces import Piece
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import checks
from adamd_service.codecs import rounds as codec
from adamd_service.engine import Engine, RequestBody
from adamd_service.engine.rounds import ContributeCall, EvaluateCall
from adamd_service.grpc import messages, round_messages
from adamd_service.grpc.calls import Context, Guard
from adamd_service.grpc.sending import pieces


class RoundMethods:
    """Serves these methods over one engine."""

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard

    async def get_task(self, request: pb.GetTaskRequest, _context: Context) -> pb.GetTaskResponse:
        """Return what a client is to do now, and wait for it."""
        ref, wait_s = checks.session_ref(request.session), codec.wait(request.wait_s)
        name = codec.client(request.client) if request.client else None
        if name is None and wait_s:
            raise InvalidRequest("wait_s: there is nothing to wait for without a client", path="wait_s")
        if not wait_s:
            return round_messages.task(await self._engine.rounds.task(ref, name))
        with self._engine.waiting.seat(), self._guard.waiting.seat():
            return round_messages.task(await self._engine.rounds.task(ref, name, wait_s))

    async def contribute(self, first: Piece[pb.ContributeHeader], context: Context) -> pb.ContributeResponse:
        """Take one client's contribution to a round."""
        if first.head is None:
            raise InvalidRequest("header: missing; the first message of a contribution has it", path="header")
        header = first.head
        data = first.data if len(first.data) == header.nbytes and first.offset == 0 else None
        body = RequestBody(header.nbytes, pieces(first, header.nbytes, context), whole=data)
        answer = await self._engine.rounds.contribute(_contribute_call(header, body))
        return pb.ContributeResponse(
            duplicate=answer.outcome == "duplicate",
            round=answer.round,
            received=answer.received,
            wanted=answer.wanted,
            step=answer.step,
        )

    async def evaluate(self, request: pb.EvaluateRequest, _context: Context) -> pb.EvaluateResponse:
        """Take what a client measured at the parameters that a round begins with."""
        call = EvaluateCall(
            ref=checks.session_ref(request.session),
            round=codec.round_number(request.round),
            client=codec.client(request.client),
            num_examples=codec.num_examples(request.num_examples, "num_examples"),
            metrics=codec.metrics(dict(request.metrics)),
        )
        answer = await self._engine.rounds.evaluate(call)
        return pb.EvaluateResponse(duplicate=answer.outcome == "duplicate", round=answer.round, step=answer.step)

    async def get_round(self, request: pb.GetRoundRequest, _context: Context) -> pb.GetRoundResponse:
        """Return what is known of a round; of the open one, where none is named."""
        ref, rounds = checks.session_ref(request.session), self._engine.rounds
        if request.round:
            number = codec.round_number(request.round)
        else:
            task = await rounds.task(ref)
            assert task is not None  # without a client it is told at once
            number = task.round
        return pb.GetRoundResponse(round=round_messages.told(await rounds.read(ref, number)))

    async def list_rounds(self, request: pb.ListRoundsRequest, _context: Context) -> pb.ListRoundsResponse:
        """Return a page of rounds, oldest first."""
        ref, size = checks.session_ref(request.session), request.page_size or checks.PAGE
        if size > checks.LONGEST_PAGE:
            raise InvalidRequest(f"page_size: {size}; at most {checks.LONGEST_PAGE}", path="page_size")
        if request.from_round > headers.MAX_STEP:
            raise InvalidRequest(f"from_round: {request.from_round}; wanted at most 2^53", path="from_round")
        first = codec.first_of_page(request.from_round or None, request.page_token)
        while True:
            told, following = await self._engine.rounds.list(ref, first, size)
            response = pb.ListRoundsResponse(
                rounds=[round_messages.told(one) for one in told],
                next_page_token="" if following is None else str(following),
            )
            if response.ByteSize() <= UNARY or size == 1:
                return response
            size = max(1, size // 2)  # many contributions: the page ends where the message would be too long

    async def close_round(self, request: pb.CloseRoundRequest, _context: Context) -> pb.CloseRoundResponse:
        """Close the open round with the contributions that there are."""
        told = await self._engine.rounds.close(*_named(request))
        return pb.CloseRoundResponse(round=round_messages.told(told))

    async def cancel_round(self, request: pb.CancelRoundRequest, _context: Context) -> pb.CancelRoundResponse:
        """Drop the contributions of the open round; it begins again."""
        told = await self._engine.rounds.cancel(*_named(request))
        return pb.CancelRoundResponse(round=round_messages.told(told))


def _named(request: Any) -> tuple[str, int]:
    return checks.session_ref(request.session), codec.round_number(request.round)


def _contribute_call(header: pb.ContributeHeader, body: RequestBody) -> ContributeCall:
    """Read a contribution's header.

    Raises:
        AdamdError: what no session could take.

    """
    examples = header.num_examples if header.HasField("num_examples") else 1.0
    return ContributeCall(
        ref=checks.session_ref(header.session),
        round=codec.round_number(header.round),
        client=codec.client(header.client),
        body=body,
        dtype=messages.dtype(header.dtype, "dtype"),
        encoding=messages.encoding(header.encoding),
        tensors=tuple(header.tensors),
        kind=round_messages.kind(header.kind),
        num_examples=codec.num_examples(examples, "num_examples"),
        metrics=checks.metrics(dict(header.metrics)) or {},
        if_match=checks.chain(header.if_match, "if_match") if header.if_match else None,
    )
