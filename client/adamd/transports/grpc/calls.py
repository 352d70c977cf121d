"""Call: one attempt over gRPC, with its limits and errors; every operation but the step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from adamd.errors import AdamdError, TransportError
from adamd.sansio import operations
from adamd.sansio.operations import Body, Operation, Received, Standing, Stepped, bad_answer, reference
from adamd.transports.cancellation import Cancellation
from adamd.transports.grpc import messages, round_messages
from adamd.transports.grpc.inactivity import FOREVER_SECONDS, InactivityMonitor, MonitoredCall
from adamd.transports.grpc.messages import refusal
from adamd.transports.grpc.stream import Advance, Filling, numbered
from adamd.transports.progress import Meter
from adamd.transports.silence import Attempt
from adamd.wire import channel, pieces
from adamd.wire.pieces import Codec
from adamd.wire.protobuf_tables import DTYPES
from adamd.wire.v1 import adamd_pb2 as pb

WATCH_SECONDS = 4.0  # that one look at a session waits for it to move
DETAILS = "grpc-status-details-bin"


class CallHandle:
    """Counts one call's bytes, and ends the call from any thread, even before it has begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: Any = None
        self._ended = False
        self.monitored: MonitoredCall | None = None
        self.bars: tuple[Advance, Advance] | None = None

    def begin(self, call: Any) -> Any:
        """Set the call; cancel it if it was ended before."""
        with self._lock:
            self._call = call
            ended = self._ended
        if ended:
            call.cancel()
        return call

    def end(self) -> None:
        """End it."""
        with self._lock:
            self._ended, call = True, self._call
        if call is not None:
            call.cancel()

    def sent(self, nbytes: int) -> None:
        """Count bytes that left."""
        self._moved(0, nbytes)

    def got(self, nbytes: int) -> None:
        """Count bytes that came."""
        self._moved(1, nbytes)

    def _moved(self, way: int, nbytes: int) -> None:
        if self.monitored is not None and self.bars is not None:
            self.monitored.moved()
            self.bars[way](nbytes)


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """The limits of an attempt: deadline, inactivity, cancellation."""

    deadline: float
    inactivity: float
    clock: Callable[[], float]
    stop: Cancellation
    monitor: InactivityMonitor
    meter: Meter
    attempt: Attempt

    @property
    def remaining(self) -> float:
        """Seconds that a small call may take.

        Raises:
            TransportError: none.

        """
        remaining = min(self.deadline - self.clock(), self.inactivity, FOREVER_SECONDS)
        if remaining <= 0:
            raise TransportError("the whole call's time is over", phase="timeout")
        return remaining

    @contextmanager
    def guarded(self, up: int, down: int) -> Iterator[CallHandle]:
        """Surround a call of ``up`` bytes sent and ``down`` received. Its errors end it, and become an AdamdError."""
        handle = CallHandle()
        with (
            self.stop.ends(handle.end),
            self.monitor.watch(handle.end, self.deadline, self.attempt) as monitored,
            self.meter(up, down) as bars,
        ):
            handle.monitored, handle.bars = monitored, bars
            try:
                yield handle
            except BaseException as error:
                if interrupted(error):  # gRPC's locks may be left locked: this thread must not wait for them
                    with suppress(RuntimeError):  # the process ends
                        threading.Thread(target=handle.end, name="adamd-left", daemon=True).start()
                    raise
                handle.end()
                if isinstance(error, grpc.FutureCancelledError):
                    raise TransportError("the call was cancelled", phase="silent") from None
                if isinstance(error, grpc.RpcError):
                    raise _refused(error) from error
                raise


def interrupted(error: BaseException) -> bool:
    """Say whether Ctrl-C came, perhaps inside gRPC's own code."""
    return not isinstance(error, Exception) or lost_a_lock(error)


def lost_a_lock(error: BaseException) -> bool:
    """Say whether Ctrl-C made gRPC release a lock that it no longer had."""
    return type(error) is RuntimeError and "lock" in str(error) and isinstance(error.__context__, KeyboardInterrupt)


def _refused(error: Any) -> AdamdError:
    """Return the error of an ended call; ``error`` is the call itself."""
    trailing = dict(error.trailing_metadata() or ())
    return refusal(error.code().name, error.details() or "", trailing.get(DETAILS))


class Call:
    """One attempt at one operation.

    Args:
        opened: the channel.
        limits: of the attempt.
        metadata: goes with the call.

    """

    def __init__(self, opened: grpc.Channel, limits: AttemptLimits, metadata: Any) -> None:
        self._channel = opened
        self._metadata = metadata
        self.limits = limits

    def method(self, kind: str, name: str, request: Codec[Any] | None, response: Codec[Any] | type[Any]) -> Any:
        """Return a method of the channel. A codec reads or writes bulk by hand, protobuf everything else."""
        write = _serialized if request is None else request.write
        read = response.read if isinstance(response, Codec) else response.FromString
        return getattr(self._channel, kind)(f"/{channel.SERVICE}/{name}", write, read)

    def unary(self, name: str, request: Any, response: type[Any]) -> Any:
        """Make a call with a small message each way."""
        method = self.method("unary_unary", name, None, response)
        with self.limits.guarded(0, 0) as handle:
            return handle.begin(method.future(request, timeout=self.limits.remaining, metadata=self._metadata)).result()

    def small(self, operation: Operation) -> Any:
        """Bring an operation without bulk to its result."""
        match operation:
            case operations.View(ref):
                response = self.unary("GetSession", pb.GetSessionRequest(session=reference(ref)), pb.GetSessionResponse)
                return messages.standing(response.session)
            case operations.ListSessions():
                return messages.page(self.unary("ListSessions", messages.listing(operation), pb.ListSessionsResponse))
            case operations.Update():
                response = self.unary("UpdateSession", messages.update(operation), pb.UpdateSessionResponse)
                return messages.standing(response.session)
            case operations.Delete(ref, chain):
                request = pb.DeleteSessionRequest(session=reference(ref), if_match=chain or "")
                self.unary("DeleteSession", request, pb.DeleteSessionResponse)
                return None
            case operations.Info():
                return messages.info(self.unary("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse))
            case _:
                return self._of_rounds(operation)

    def _of_rounds(self, operation: Operation) -> Any:
        """Bring an operation on rounds without bulk to its result."""
        match operation:
            case operations.AskTask(ref, client, wait):
                task = pb.GetTaskRequest(session=reference(ref), client=client, wait_s=wait)
                return round_messages.assignment(self.unary("GetTask", task, pb.GetTaskResponse))
            case operations.Evaluate():
                measured = round_messages.evaluation(operation)
                return round_messages.received(self.unary("Evaluate", measured, pb.EvaluateResponse))
            case operations.ReadRound(ref, number):
                read = pb.GetRoundRequest(session=reference(ref), round=number)
                return round_messages.round_(self.unary("GetRound", read, pb.GetRoundResponse).round)
            case operations.ListRounds():
                listing = round_messages.listing(operation)
                return round_messages.page(self.unary("ListRounds", listing, pb.ListRoundsResponse))
            case operations.CloseRound(ref, number):
                close = pb.CloseRoundRequest(session=reference(ref), round=number)
                return round_messages.round_(self.unary("CloseRound", close, pb.CloseRoundResponse).round)
            case operations.CancelRound(ref, number):
                cancel = pb.CancelRoundRequest(session=reference(ref), round=number)
                return round_messages.round_(self.unary("CancelRound", cancel, pb.CancelRoundResponse).round)
            case _:
                raise AssertionError(f"{operation} has bulk")

    def contribute(self, operation: operations.Contribute) -> Received:
        """Send a contribution, in pieces."""
        header, views = round_messages.contribution(operation)

        def requests(sent: Advance) -> Iterator[Any]:
            for piece in numbered(header, views):
                yield piece
                sent(len(piece.data))

        method = self.method("stream_unary", "Contribute", pieces.CONTRIBUTE_REQUEST, pb.ContributeResponse)
        with self.limits.guarded(header.nbytes, 0) as handle:
            response = handle.begin(method.future(requests(handle.sent), metadata=self._metadata)).result()
        return round_messages.received(response)

    def create(self, operation: operations.Create) -> Standing:
        """Make a session; many parameters follow it, unless an attempt before brought them."""
        request, rest = messages.creation(operation)
        standing = messages.standing(self.unary("CreateSession", request, pb.CreateSessionResponse).session)
        if rest is None or not standing.document["parameters_missing"]:
            return standing
        return self.set_parameters(standing.id, rest)

    def set_parameters(self, ref: str, body: Body) -> Standing:
        """Send the parameters."""
        dtype, views, _ = messages.flat(body)
        first = {"session": reference(ref), "dtype": DTYPES.get(dtype or "", pb.DTYPE_UNSPECIFIED)}
        response = self._upload("SetParameters", pb.SetParametersRequest, first, views, pb.SetParametersResponse)
        return messages.standing(response.session)

    def restore(self, operation: operations.Restore) -> Standing:
        """Send an exported state."""
        views = operation.pieces
        first = {"idempotency_key": operation.key, "nbytes": sum(view.nbytes for view in views)}
        response = self._upload("RestoreSession", pb.RestoreSessionRequest, first, views, pb.RestoreSessionResponse)
        return messages.standing(response.session)

    def _upload(
        self, name: str, request: Any, first: dict[str, Any], views: tuple[memoryview, ...], response: type[Any]
    ) -> Any:
        """Send bytes in pieces, the first with what only the first has; return the one answer."""

        def requests(sent: Advance) -> Iterator[Any]:
            fields = first
            for piece in numbered(None, views):
                yield request(offset=piece.offset, data=bytes(piece.data), **fields)
                fields = {}
                sent(len(piece.data))

        method = self.method("stream_unary", name, None, response)
        with self.limits.guarded(sum(view.nbytes for view in views), 0) as handle:
            return handle.begin(method.future(requests(handle.sent), metadata=self._metadata)).result()

    def read_parameters(self, operation: operations.ReadParameters) -> Stepped:
        """Read the parameters into the caller's memory."""
        dtype = DTYPES[operation.dtype] if operation.rounded else pb.DTYPE_UNSPECIFIED
        request = pb.GetParametersRequest(session=reference(operation.ref), dtype=dtype, at=operation.at or "")
        method = self.method("unary_stream", "GetParameters", None, pieces.PARAMETERS_RESPONSE)
        stepped, filling = None, Filling(operation.into)
        operation.on_sent()
        with self.limits.guarded(0, sum(view.nbytes for view in operation.into)) as handle:
            for piece in handle.begin(method(request, metadata=self._metadata)):
                stepped = stepped or messages.stepped(piece.head, operation)
                filling.put(piece.offset, piece.data)
                handle.got(len(piece.data))
        if stepped is None or not filling.full:
            raise bad_answer("parameters that end early")
        return stepped

    def export(self, operation: operations.Export) -> bytearray:
        """Read the whole state, into the file or into what is returned."""
        request = pb.ExportStateRequest(session=reference(operation.ref))
        method = self.method("unary_stream", "ExportState", None, pieces.STATE_RESPONSE)
        body, offset, expected, file = bytearray(), 0, -1, operation.into
        if file is not None:
            file.seek(0)  # an earlier attempt may have left something
            file.truncate()
        with self.limits.guarded(0, operation.expected) as handle:
            for piece in handle.begin(method(request, metadata=self._metadata)):
                expected = expected if piece.head is None else piece.head.nbytes
                if piece.offset != offset or offset + len(piece.data) > operation.limit:
                    raise bad_answer(f"a piece of {len(piece.data)} bytes of a state at {piece.offset}, after {offset}")
                if file is None:
                    body += piece.data
                else:
                    file.write(piece.data)
                offset += len(piece.data)
                handle.got(len(piece.data))
        if offset != expected:
            raise bad_answer(f"a state of {offset} bytes that should have {expected}")
        return body

    def watch(self, operation: operations.Watch) -> dict[str, Any] | None:
        """Wait until a session has moved; None where it has not, for a while."""
        request = pb.WatchSessionRequest(session=reference(operation.ref))
        method = self.method("unary_stream", "WatchSession", None, pb.WatchSessionResponse)
        try:
            with self.limits.guarded(0, 0) as handle:
                wait = min(self.limits.remaining, WATCH_SECONDS)
                for response in handle.begin(method(request, timeout=wait, metadata=self._metadata)):
                    document = messages.sight(response)
                    if document["chain"] != operation.since:
                        handle.end()
                        return document
        except TransportError as error:
            if error.extra.get("phase") != "timeout" or operation.since is None:
                raise
        return None


def _serialized(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
