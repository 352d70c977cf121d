"""Methods Step and StepStream: take a gradient, and return the parameters after the step."""

from __future__ import annotations

from contextlib import suppress

from adamd.errors import AdamdError, InvalidRequest
from adamd.wire import headers
from adamd.wire.channel import UNARY
from adamd.wire.pieces import Piece
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import checks
from adamd_service.codecs.states import raw
from adamd_service.engine import Engine, RequestBody, StepCall
from adamd_service.grpc import messages
from adamd_service.grpc.calls import Context, Guard
from adamd_service.grpc.sending import INLINE, Sender, pieces
from adamd_service.records import Base

Message = Piece[pb.StepHeader]


class StepMethods:
    """Serves both methods over one engine."""

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard

    async def step(self, message: Message, context: Context) -> Piece[pb.Standing]:
        """Take one step that fits into one message, and so does its answer."""
        header = _header(message)
        if header.nbytes not in (0, len(message.data)):
            raise InvalidRequest(f"nbytes: {header.nbytes} are told, {len(message.data)} came", path="nbytes")
        body = RequestBody(len(message.data), pieces(message, len(message.data), context), whole=message.data)
        answer = await self._engine.step(await step_call(header, body, UNARY))
        if answer.parameters is None:
            return Piece(messages.standing(answer), 0, b"")
        if answer.parameters.nbytes > INLINE:
            # It keeps its share of the bytes in flight until it has left; gRPC keeps the callback for longer.
            answers = [answer.parameters]
            context.add_done_callback(lambda _context: answers.clear())
        return Piece(messages.standing(answer), 0, raw(answer.parameters))

    async def step_stream(self, context: Context) -> None:
        """Take steps as they come. The next one is received while the last answer is on its way: no more than that."""
        sender = Sender(context, self._engine.limits.upload_gap)
        try:
            while (first := await sender.unless_stuck(self._guard.idle(context))) is not None:
                header = _header(first)
                data = first.data if len(first.data) == header.nbytes and first.offset == 0 else None
                body = RequestBody(header.nbytes, pieces(first, header.nbytes, context), whole=data)
                answer = await sender.unless_stuck(self._engine.step(await step_call(header, body, None)))
                await sender.send(answer)
                del answer, first, data, body  # a stream may be idle for ever, and keeps no message meanwhile
            await sender.done()
        except AdamdError:
            with suppress(AdamdError):  # the first fault is told; what was answered before it arrives first
                await sender.done()
            raise
        finally:
            sender.give_up()


def _header(message: Message) -> pb.StepHeader:
    if message.head is None:
        raise InvalidRequest("header: missing; the first message of a step has it", path="header")
    return message.head


def _base(header: pb.StepHeader) -> Base:
    base = header.base
    if base.step > headers.MAX_STEP:
        raise InvalidRequest(f"base.step is {base.step}; wanted at most 2^53", path="base.step")
    chain = checks.chain(base.chain, "base.chain") if base.chain else None
    return Base(base.step, chain, base.most if base.HasField("most") else None)


async def step_call(header: pb.StepHeader, body: RequestBody, answer_limit: int | None) -> StepCall:
    """Read a step's header.

    Raises:
        AdamdError: what no session could take.

    """
    if header.step == 0 and not header.idempotency_key:
        raise InvalidRequest(
            "step 0 (whatever is next) wants an idempotency_key, so that a retry cannot apply twice",
            path="idempotency_key",
        )
    settings = await messages.unfolded(header.settings, "settings") if header.HasField("settings") else None
    return StepCall(
        ref=checks.session_ref(header.session),
        number=checks.step_number(header.step) if header.step else None,
        body=body,
        dtype=messages.dtype(header.dtype, "dtype"),
        encoding=messages.encoding(header.encoding),
        answer_dtype=messages.dtype(header.answer_dtype, "answer_dtype"),
        if_match=checks.chain(header.if_match, "if_match") if header.if_match else None,
        base=_base(header) if header.HasField("base") and not header.step else None,
        key=messages.key(header.idempotency_key),
        settings=checks.settings(settings),
        metrics=checks.metrics(dict(header.metrics)) or {},
        minimal=header.minimal,
        tensors=tuple(header.tensors),
        answer_limit=answer_limit,
    )
