"""Bounds on memory: the limits, budgets of bytes, and how many bytes each thing takes.

A request that cannot be held is refused before its body is read (laws 6 and 7).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from adamd.errors import Busy, TooLarge
from adamd.wire.buffers import when_gone
from adamd.wire.dtypes import ITEMSIZE, check_narrows
from adamd_service.engine.calls import CreateCall, StepCall
from adamd_service.optim import Settings
from adamd_service.records import Spec


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound that the engine upholds; in bytes unless named otherwise."""

    body: int
    in_flight: int
    hot: int
    memory_sessions: int
    idle_buffers: int
    upload_gap: float  # seconds without a byte
    threads: int
    kernels: int
    snapshot_ratio: float
    snapshot_records: int
    snapshot_pace: float  # bytes a second
    calls: int = 512  # gRPC calls at once
    streams: int = 128  # of them on one connection
    waiting: int = 1024  # requests at once that wait for a task, a step or events
    sessions: int = 100_000
    store: int | None = None  # that the private store may hold; None: it is not ours
    bulk_spare: int | None = None  # of free extents that are kept; None: bulk lies in the store


class Budget:
    """A bound on bytes held at once."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.used = 0
        self._what = what
        # An answer's share comes back from whichever thread lets go of it last, the garbage collector's turn included.
        self._lock = threading.RLock()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[Hold]:
        """Hold ``nbytes`` for the duration; `Hold.leave` lets an answer keep its share longer.

        Raises:
            TooLarge: more than there is altogether.
            Busy: more than there is now.

        """
        self.take(nbytes)
        hold = Hold(self, nbytes)
        try:
            yield hold
        finally:
            self.give(hold.nbytes)

    def take(self, nbytes: int) -> None:
        """Hold ``nbytes`` until `give`; raises as `hold` does."""
        if nbytes > self.limit:
            raise TooLarge(f"{nbytes} bytes of {self._what}; this server holds at most {self.limit}")
        with self._lock:
            used = self.used
            if used + nbytes <= self.limit:
                self.used = used + nbytes
                return
        raise Busy(f"{used} of {self.limit} bytes of {self._what} are taken; try again", retry_after=0.5)

    def give(self, nbytes: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= nbytes


class WaitingRoom:
    """A bound on how many requests wait at once: for a task, for a step, for events. They hold no bytes in flight."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def take(self) -> Seat:
        """Take a seat until `Seat.leave`.

        Raises:
            Busy: all are taken.

        """
        if self.taken >= self.limit:
            raise Busy(f"{self.limit} requests wait already, as many as this server lets; try again", retry_after=1.0)
        self.taken += 1
        return Seat(self)

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Hold a seat for the duration; raises as `take` does."""
        seat = self.take()
        try:
            yield
        finally:
            seat.leave()


class Seat:
    """One request's seat among those that wait."""

    def __init__(self, room: WaitingRoom) -> None:
        self._room: WaitingRoom | None = room

    def leave(self) -> None:
        """Give it back, once."""
        room, self._room = self._room, None
        if room is not None:
            room.taken -= 1


class Hold:
    """The bytes of a budget that one call holds."""

    def __init__(self, budget: Budget, nbytes: int) -> None:
        self.nbytes = nbytes
        self._budget = budget

    def leave(self, array: NDArray[Any] | None) -> None:
        """Leave an array its share of the budget until its last view is gone: a slow reader holds memory."""
        if array is not None and 0 < array.nbytes <= self.nbytes:
            self.nbytes -= array.nbytes
            when_gone(array, partial(self._budget.give, array.nbytes))


OVERHEAD_BYTES, TENSOR_OVERHEAD_BYTES = (
    128 * 1024,
    1024,
)  # bytes: head, ring, keys; a tensor's name, shape, place and count


def check_state_size(call: CreateCall, settings: Settings, limits: Limits) -> None:
    """Raise TooLarge if the state of a new session exceeds what this server keeps in memory."""
    nbytes = state_bytes(call, settings)
    limit = limits.memory_sessions if call.durability == "memory" else limits.hot
    if nbytes > limit:
        raise TooLarge(f"a state of {nbytes} bytes; this server keeps at most {limit} in memory")


def answer_bytes(spec: Spec, call: StepCall) -> int:
    """Return the bytes of the parameters that answer a step.

    Raises:
        TooLarge: they could not be sent: once the step is applied, that is too late.
        WrongDtype: they cannot have the dtype that was asked for.

    """
    nbytes = parameter_bytes(spec, call.answer_dtype)
    if call.answer_limit is not None and not call.minimal and nbytes > call.answer_limit:
        raise TooLarge(
            f"the answer has {nbytes} bytes; a single message takes at most {call.answer_limit}: use StepStream, "
            "or ask for no parameters"
        )
    return nbytes


def parameter_bytes(spec: Spec, answer_dtype: str | None) -> int:
    """Return the bytes of a session's parameters; raises WrongDtype where they cannot have that dtype."""
    if answer_dtype is not None:
        check_narrows(answer_dtype, spec.dtype)
    return spec.layout.size * ITEMSIZE[answer_dtype or spec.dtype]


def state_bytes(spec: Spec | CreateCall, settings: Settings) -> int:
    """Return what a session takes in memory: its arrays, or what surrounds them where that is more."""
    arrays = 1 + len(settings.arrays) + settings.keep_best  # the parameters, the optimizer's own, the best parameters
    return max(
        spec.layout.size * ITEMSIZE[spec.dtype] * arrays,
        OVERHEAD_BYTES + TENSOR_OVERHEAD_BYTES * len(spec.layout.tensors),
    )
