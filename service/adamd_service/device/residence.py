"""Which states are on the device. The least recently used leaves when another needs its room.

A state's own arrays, in host memory that the engine has charged for it, are where it comes from and where it leaves to:
so an eviction needs no memory, and can always be made. What is updated on the device alone is `stale` on the host.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from adamd.errors import DeviceFull, TooLarge
from adamd.wire.dtypes import Floats
from adamd_service.device.batch import ALIGNED, Get, Put
from adamd_service.device.ring import Ring
from adamd_service.device.runtime import OutOfMemory, Runtime
from adamd_service.optim import State


@dataclass(slots=True, eq=False)
class Residence:
    """One state's place on the device. ``lock`` guards moving in and out; ``pins`` counts the calls that use it now."""

    state: weakref.ref[State]
    nbytes: int
    places: dict[str, int]  # the arrays' offsets in bytes
    address: int | None = None
    stale: bool = False
    pins: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, array: str) -> int:
        """Return the address of an array's element 0."""
        assert self.address is not None
        return self.address + self.places[array]


class Residences:
    """All of them on one device, least recently used first. Used from any thread.

    Args:
        runtime: the device.
        ring: what copies to and from it.
        limit: bytes that states may take of it.

    """

    def __init__(self, runtime: Runtime, ring: Ring, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.evictions = 0
        self._runtime = runtime
        self._ring = ring
        self._lock = threading.Lock()
        self._homes: OrderedDict[int, Residence] = OrderedDict()
        self._let_go: deque[tuple[int, Residence]] = deque()

    def knows(self, state: State) -> bool:
        """Say whether the state is on this device."""
        home = self._found(state)
        return home is not None and home.address is not None

    @contextmanager
    def pinned(self, state: State) -> Iterator[Residence]:
        """Bring a state to the device, where it stays meanwhile.

        Raises:
            TooLarge: it would not fit alone.
            DeviceFull: states in use take the room.

        """
        home = self._home(state)
        try:
            with home.lock:
                if home.address is None:
                    self._move_in(home, state)
            yield home
        finally:
            with self._lock:
                home.pins -= 1

    def fetch(self, state: State) -> None:
        """Bring the state's own arrays up to date; it stays where it is."""
        home = self._found(state)
        if home is not None:
            with home.lock:
                self._fetch(home, state)

    def close(self) -> None:
        """Give all memory back."""
        with self._lock:
            for home in self._homes.values():
                self._free(home)
            self._homes.clear()

    def _found(self, state: State) -> Residence | None:
        """Return the state's place, if it has one: not that of a state that is gone, whose id it got."""
        home = self._homes.get(id(state))
        return home if home is not None and home.state() is state else None

    def _home(self, state: State) -> Residence:
        """Return the state's place, pinned, as the most recently used one."""
        with self._lock:
            self._reap()
            home = self._homes.get(id(state))
            if home is None:
                places, end = {}, 0
                for name, array in state.arrays.items():
                    places[name], end = end, end + -(-array.nbytes // ALIGNED) * ALIGNED
                home = Residence(weakref.ref(state), end, places)
                if home.nbytes > self.limit:
                    raise TooLarge(f"a state of {home.nbytes} bytes; the device keeps at most {self.limit}")
                self._homes[id(state)] = home
                # From wherever the garbage collector runs, perhaps inside this lock: so it only leaves a note.
                weakref.finalize(state, self._let_go.append, (id(state), home)).atexit = False
            assert home.state() is state
            self._homes.move_to_end(id(state))
            home.pins += 1
            return home

    def _reap(self) -> None:
        """Give back the memory of states that nobody has any more."""
        while self._let_go:
            key, home = self._let_go.popleft()
            if self._homes.get(key) is home:
                del self._homes[key]
            self._free(home)

    def _free(self, home: Residence) -> None:
        if home.address is not None:
            self._runtime.release(home.address)
            home.address = None
            self.used -= home.nbytes

    def _move_in(self, home: Residence, state: State) -> None:
        while True:
            with self._lock:
                self._reap()
                room = self.used + home.nbytes <= self.limit
                if room:
                    self.used += home.nbytes
            if room:
                try:
                    home.address = self._runtime.allocate(home.nbytes)
                    break
                except OutOfMemory:  # others use the device too, or its memory is in pieces
                    with self._lock:
                        self.used -= home.nbytes
            self._evict_one()
        self._ring.run(
            [Put(part, at) for name, array in state.arrays.items() for part, at in self._cut(home, name, array)]
        )
        home.stale = False

    def _evict_one(self) -> None:
        """Move the least recently used one out that nobody uses.

        Raises:
            DeviceFull: there is none.

        """
        with self._lock:
            victim = next(
                (
                    one
                    for one in self._homes.values()
                    if one.address is not None and not one.pins and one.lock.acquire(False)
                ),
                None,
            )
        if victim is None:
            raise DeviceFull(
                f"sessions in use hold {self.used} of the device's {self.limit} bytes; try again", retry_after=0.5
            )
        try:
            state = victim.state()
            if state is not None:
                self._fetch(victim, state)
            with self._lock:
                self._free(victim)
                self.evictions += 1
        finally:
            victim.lock.release()

    def _fetch(self, home: Residence, state: State) -> None:
        if home.stale and home.address is not None:
            self._ring.run(
                [Get(part, at) for name, array in state.arrays.items() for part, at in self._cut(home, name, array)]
            )
            home.stale = False

    def _cut(self, home: Residence, name: str, array: Floats) -> Iterator[tuple[NDArray[Any], int]]:
        """Cut an array into pieces that fill a slot, each with its address."""
        length = (self._ring.capacity - ALIGNED) // array.itemsize
        for start in range(0, len(array), length):
            yield array[start : start + length], home.of(name) + start * array.itemsize
