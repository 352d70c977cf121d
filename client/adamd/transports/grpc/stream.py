"""StepStream: sends steps in pieces, and receives their answers into the caller's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from adamd.errors import TransportError
from adamd.sansio.operations import Step, Stepped, bad_answer
from adamd.transports.grpc.messages import cut, stepped
from adamd.wire.pieces import Data, Piece
from adamd.wire.v1 import adamd_pb2 as pb

Advance = Callable[[int], None]


class StepStream:
    """One call, for one step after the other. Any error ends it.

    Args:
        method: gRPC's.
        metadata: goes with the call.

    """

    def __init__(self, method: Any, metadata: Any) -> None:
        self._requests: SimpleQueue[Piece[pb.StepHeader] | None] = SimpleQueue()
        self._sent: Advance = _nothing
        self.call = method(self._outgoing(), metadata=metadata)

    @property
    def alive(self) -> bool:
        """Neither end has ended it, as far as this end knows."""
        alive: bool = self.call.is_active()
        return alive

    def cancel(self) -> None:
        """End it; a thread that waits for an answer meets an error, at once."""
        self.call.cancel()
        self._requests.put(None)  # or gRPC's thread would wait for a piece for ever

    def exchange(
        self, operation: Step, header: pb.StepHeader, views: tuple[memoryview, ...], sent: Advance, got: Advance
    ) -> Stepped:
        """Send a step and take its answer.

        Raises:
            grpc.RpcError: the call has ended.
            TransportError: the answer is not the one to this.

        """
        self._sent = sent
        for piece in numbered(header, views):
            self._requests.put(piece)
        operation.on_sent()
        filling = Filling(operation.into)
        first = self._next()
        answer = stepped(first.head, operation)
        filling.put(first.offset, first.data)
        got(len(first.data))
        while not filling.full:
            piece = self._next()
            if piece.head is not None:
                raise bad_answer("the answer to another step")
            filling.put(piece.offset, piece.data)
            got(len(piece.data))
        return answer

    def _next(self) -> Any:
        piece = next(self.call, None)
        if piece is None:
            raise TransportError("the server ended the stream before the answer", phase="silent")
        return piece

    def _outgoing(self) -> Iterator[Piece[pb.StepHeader]]:
        """Yield the pieces to send; gRPC asks for the next one when one has left."""
        while (piece := self._requests.get()) is not None:
            yield piece
            self._sent(len(piece.data))


def numbered(head: Any, views: tuple[memoryview, ...]) -> Iterator[Piece[Any]]:
    """Yield a body's pieces with their offsets, the first with its head."""
    offset = 0
    for data in cut(views) if any(view.nbytes for view in views) else _EMPTY:
        yield Piece(head, offset, data)
        head, offset = None, offset + len(data)


_EMPTY: tuple[Data, ...] = (b"",)


def _nothing(_nbytes: int) -> None:
    return


class Filling:
    """Fills memory piece by piece, in order."""

    def __init__(self, into: tuple[memoryview, ...]) -> None:
        self._views = [view.cast("B") for view in into if view.nbytes]
        self._at = 0  # in the first of them
        self._offset = 0
        self._missing = sum(view.nbytes for view in self._views)

    @property
    def full(self) -> bool:
        """Nothing is missing."""
        return self._missing == 0

    def put(self, offset: int, data: Data) -> None:
        """Take the next piece.

        Raises:
            TransportError: it is not the next one, or too long.

        """
        if offset != self._offset or len(data) > self._missing:
            raise bad_answer(f"a piece of {len(data)} bytes at {offset}; {self._missing} are missing at {self._offset}")
        self._offset, self._missing = offset + len(data), self._missing - len(data)
        start = 0
        while start < len(data):
            view = self._views[0]
            count = min(view.nbytes - self._at, len(data) - start)
            view[self._at : self._at + count] = data[start : start + count]
            start, self._at = start + count, self._at + count
            if self._at == view.nbytes:
                del self._views[0]
                self._at = 0
