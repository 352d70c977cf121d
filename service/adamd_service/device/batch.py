"""One slot's work: pieces of any sessions share one copy up, one launch a kernel and one copy down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import Floats
from adamd_service.device.runtime import Stream
from adamd_service.optim.kernels.cuda_source import WIDE, CudaKernel, blocks

ALIGNED = 256  # bytes: where each thing in a slot begins, and a little more where a row's arrays are aligned otherwise
FLAG = np.dtype(np.uint32)
Address: TypeAlias = int


@dataclass(slots=True, eq=False)
class Slot:
    """A stream, pinned memory each way, and as much of the device's beside it. grid: blocks that fill the device."""

    stream: Stream
    pinned_up: Bytes
    pinned_down: Bytes
    up: Address
    down: Address
    grid: int


class Piece(Protocol):
    """Work that fits into a slot. up, down: the most bytes that it takes there each way. diverged: afterwards, whether
    an update made something infinite.
    """

    diverged: bool

    @property
    def up(self) -> int:
        """See above."""

    @property
    def down(self) -> int:
        """See above."""


@dataclass(slots=True, eq=False)
class Row:
    """An update of `size` elements: a row of a kernel's table.

    function: the loaded kernel. addresses: of the slice's element 0, for each of the kernel's arrays but g. scalars: in
    the kernel's order, of its dtype. write: writes the gradient into an array of `size` elements. index: where they go,
    counted from the addresses (uint32), or None where they lie side by side. out: receives the new parameters.
    """

    kernel: CudaKernel
    function: Any
    addresses: tuple[Address, ...]
    size: int
    scalars: tuple[Any, ...]
    write: Callable[[Floats], None]
    index: NDArray[np.uint32] | None = None
    out: Floats | None = None
    diverged: bool = False

    @property
    def up(self) -> int:
        """Gradient, index, the row itself and its flag."""
        indices = 0 if self.index is None else self.index.nbytes
        return self.size * self.kernel.dtype.itemsize + indices + self.kernel.row.itemsize + 5 * ALIGNED

    @property
    def down(self) -> int:
        """Parameters and the flag."""
        return (0 if self.out is None else self.out.nbytes) + 3 * ALIGNED


@dataclass(slots=True, eq=False)
class Put:
    """Copy an array to the device."""

    source: NDArray[Any]
    address: Address
    diverged: bool = False
    down = 0

    @property
    def up(self) -> int:
        """The array."""
        return self.source.nbytes + ALIGNED


@dataclass(slots=True, eq=False)
class Get:
    """Copy from the device into an array."""

    into: NDArray[Any]
    address: Address
    diverged: bool = False
    up = 0

    @property
    def down(self) -> int:
        """The array."""
        return self.into.nbytes + ALIGNED


class Place(NamedTuple):
    """Bytes start..stop-1 of a slot's memory one way."""

    start: int
    stop: int

    def of(self, memory: Bytes) -> Bytes:
        """Return that part of it."""
        return memory[self.start : self.stop]


NOWHERE = Place(0, 0)


@dataclass(slots=True)
class _Cursor:
    """Gives places out of a slot's memory one way, and knows where the last one ends."""

    end: int = 0

    def take(self, nbytes: int, skew: int = 0) -> Place:
        """Return a place that begins `skew` bytes after an aligned one."""
        start = -(-self.end // ALIGNED) * ALIGNED + skew
        self.end = start + nbytes
        return Place(start, self.end)


@dataclass(slots=True)
class Batch:
    """Pieces on their way through a slot: `queue`, wait for the stream, `collect`."""

    slot: Slot
    pieces: Sequence[Piece]
    _rows: list[Row] = field(default_factory=list)
    _up: _Cursor = field(default_factory=_Cursor)
    _down: _Cursor = field(default_factory=_Cursor)
    _flags: Place = NOWHERE
    _outs: list[tuple[NDArray[Any], Place]] = field(default_factory=list)

    def queue(self) -> None:
        """Write pinned memory, and tell the stream what to do."""
        self._rows = sorted(
            (piece for piece in self.pieces if isinstance(piece, Row)), key=lambda row: id(row.function)
        )
        if self._rows:
            self._update(self._rows)
        for piece in self.pieces:
            if isinstance(piece, Put):
                place = self._up.take(piece.source.nbytes)
                place.of(self.slot.pinned_up)[:] = piece.source.view(np.uint8)
                self.slot.stream.upload(piece.address, place.of(self.slot.pinned_up))
            elif isinstance(piece, Get):
                place = self._down.take(piece.into.nbytes)
                self._outs.append((piece.into, place))
                self.slot.stream.download(place.of(self.slot.pinned_down), piece.address)

    def collect(self) -> None:
        """Copy out of pinned memory what came back."""
        flags = self._flags.of(self.slot.pinned_down).view(FLAG)
        for row, flag in zip(self._rows, flags, strict=True):
            row.diverged = bool(flag)
        for into, place in self._outs:
            into.view(np.uint8)[:] = place.of(self.slot.pinned_down)

    def _update(self, rows: Sequence[Row]) -> None:
        slot, stream = self.slot, self.slot.stream
        flags = self._up.take(len(rows) * FLAG.itemsize)
        flags.of(slot.pinned_up)[:] = 0
        groups = [list(group) for _, group in groupby(rows, key=lambda row: id(row.function))]
        launches = [(same, self._table(same)) for same in groups]
        gathered = Place(0, self._down.end)
        stream.upload(slot.up, slot.pinned_up[: self._up.end])
        done = 0
        for same, table in launches:
            kernel = same[0].kernel
            across = blocks(kernel, max(row.size for row in same), max(1, slot.grid))
            flag = slot.up + flags.start + done * FLAG.itemsize
            stream.launch(same[0].function, across, len(same), slot.up + table.start, flag)
            done += len(same)
        if gathered.stop:
            stream.download(gathered.of(slot.pinned_down), slot.down)
        self._flags = self._down.take(flags.stop - flags.start)
        stream.download(self._flags.of(slot.pinned_down), slot.up + flags.start)

    def _table(self, rows: Sequence[Row]) -> Place:
        """Write the table of rows that one launch updates, and their gradients."""
        kernel = rows[0].kernel
        place = self._up.take(len(rows) * kernel.row.itemsize)
        table = place.of(self.slot.pinned_up).view(kernel.row)
        for number, row in enumerate(rows):
            first, *others = row.addresses
            gradient = self._gradient(row)
            table[number] = (first, gradient, *others, self._out(row), self._index(row), row.size, *row.scalars)
        return place

    def _gradient(self, row: Row) -> Address:
        """Place g beside p: at the same distance from a 16-byte place, so that both are read in wide pieces."""
        place = self._up.take(row.size * row.kernel.dtype.itemsize, row.addresses[0] % WIDE)
        row.write(place.of(self.slot.pinned_up).view(row.kernel.dtype))
        return self.slot.up + place.start

    def _out(self, row: Row) -> Address:
        if row.out is None:
            return 0
        place = self._down.take(row.out.nbytes, row.addresses[0] % WIDE)
        self._outs.append((row.out, place))
        return self.slot.down + place.start

    def _index(self, row: Row) -> Address:
        if row.index is None:
            return 0
        place = self._up.take(row.index.nbytes)
        place.of(self.slot.pinned_up)[:] = row.index.view(np.uint8)
        return self.slot.up + place.start
