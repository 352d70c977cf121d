"""Reads contributions as pseudo-gradients, slice by slice, so that a round is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import structlog

from adamd.errors import Damaged
from adamd.wire import encodings
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import ITEMSIZE, Floats, storage, widen
from adamd.wire.encodings import INT8, RAW, SPARSE
from adamd.wire.layout import Layout
from adamd_service.aggregation import Lanes, PartialValues, SentValues, Span, Values
from adamd_service.optim import Encoded, encoded
from adamd_service.records import Spec
from adamd_service.rounds import KeptContribution, MemberName
from adamd_service.rules import digest_start
from adamd_service.store import ChunkMissing, RedisStore
from adamd_service.store.bulk.reading import ExtentReader

Read: TypeAlias = Callable[[int, Bytes], None]  # fills the second with a body's bytes from the first on
PIECE_BYTES: Final = 256 * 1024  # read at once to be hashed: it stays in the cache meanwhile
MOST_OPEN: Final = 128  # files of one round at once; the others are opened for each slice
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredRaw:
    """A raw vector in the store, of which one slice at a time is read; an `Encoded` that was checked before."""

    read: Read
    dtype: str
    size: int
    session_dtype: str
    exact: bool = False
    largest: float | None = None

    def check(self, end: int) -> None:
        """Check nothing: the contribution was refused otherwise."""

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """Read elements start…stop-1 and widen them."""
        dtype = self.dtype
        here, itemsize = into[: stop - start], ITEMSIZE[dtype]
        if dtype == self.session_dtype:
            self.read(start * itemsize, here.view(np.uint8))
            return here
        raw = np.empty((stop - start) * itemsize, np.uint8)
        self.read(start * itemsize, raw)
        return widen(raw.view(storage(dtype)), dtype, self.session_dtype, here)


@dataclass(frozen=True, slots=True)
class StoredInt8:
    """A vector of bytes with a scale for each block in the store; otherwise as `StoredRaw`."""

    read: Read
    size: int
    exact: bool = False
    largest: float | None = None

    def check(self, end: int) -> None:
        """Check nothing: the contribution was refused otherwise."""

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """Read the blocks that have elements start…stop-1, and decode these."""
        here, first = into[: stop - start], start // encodings.BLOCK
        scales = self._read(first * encodings.INDEX, encodings.scales_of(stop) * encodings.INDEX).view("<f4")
        begin = encodings.scales_of(self.size) * encodings.INDEX
        quantized = self._read(begin + first * encodings.BLOCK, begin + stop).view(np.int8)
        encodings.decode_int8(scales, quantized, start - first * encodings.BLOCK, here)
        return here

    def _read(self, start: int, stop: int) -> Bytes:
        into = np.empty(stop - start, np.uint8)
        self.read(start, into)
        return into


class Body:
    """A contribution's bytes, hashed while they are first read in order.

    So they are read once for their digest and for what is made of them. Nothing of that may count before `check`. One
    thread reads at a time until then, several at once afterwards.
    """

    def __init__(self, one: KeptContribution, read: Read) -> None:
        self._one = one
        self._read = read
        self._digest = digest_start(one.encoding, one.dtype, one.present, None)
        self._hashed = 0
        self._error: ChunkMissing | Damaged | None = None
        self._checked = False

    def read(self, start: int, into: Bytes) -> None:
        """Fill ``into`` with the bytes from ``start`` on, before `check` with zeros where they cannot be read."""
        if self._checked:
            self._read(start, into)
            return
        try:
            self._read(start, into)
        except (ChunkMissing, Damaged) as error:  # those who read the others beside it go on: `check` raises it
            self._error = self._error or error
            into[:] = 0
        if start == self._hashed:
            self._digest.update(into)
            self._hashed += into.nbytes

    def check(self) -> None:
        """Read what was not read yet, and see that the bytes are those that came.

        Raises:
            Damaged, ChunkMissing: they are not.

        """
        into = np.empty(min(PIECE_BYTES, self._one.nbytes - self._hashed), np.uint8)
        while self._hashed < self._one.nbytes and self._error is None:
            self.read(self._hashed, into[: self._one.nbytes - self._hashed])
        if self._error is not None:
            raise self._error
        if self._digest.hexdigest() != self._one.body_digest:
            name = self._one.member.text
            raise Damaged(f"the contribution {name} in the store is damaged: its digest does not match")
        self._checked = True


@dataclass(frozen=True, slots=True)
class Opened:
    """A contribution as a pseudo-gradient, and the bytes that it is read from."""

    values: Values
    body: Body


class DamagedMembers(Exception):
    """Some bytes are not those that came: without them the aggregate is another one, and is made again."""


class Readings:
    """Opens the contributions of one session, until it is closed. Runs in worker threads."""

    def __init__(self, store: RedisStore, pool: BufferPool, spec: Spec) -> None:
        self._store = store
        self._pool = pool
        self._spec = spec
        self._readers = list[ExtentReader]()

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()

    def open(self, one: KeptContribution, pulled: Floats | None) -> Opened:
        """Return a contribution as a pseudo-gradient. Raw bytes are still to be checked, once they were read in order.

        ``pulled``: the parameters that it was made from, where it is of the kind "parameters".

        Raises:
            Damaged, ChunkMissing: its bytes are not those that came.

        """
        spec = self._spec
        spans = spans_of(spec.layout, one.present)
        size = spec.layout.size if spans is None else sum(span.stop - span.start for span in spans)
        body = Body(one, self._reader(one))
        sent: Encoded
        if one.encoding == RAW:
            sent = StoredRaw(body.read, one.dtype, size, spec.dtype)
        elif one.encoding == INT8:
            body.check()  # its scales and values are not read in the order of its bytes
            sent = StoredInt8(body.read, size)
        else:
            held = self._pool.lease(one.nbytes)
            body.read(0, held)
            body.check()
            sent = encoded(one.encoding, one.dtype, held, size, storage(spec.dtype))
            sent.check(held.nbytes)
        if one.kind == "parameters" and pulled is not None and spans is not None:
            pulled = np.concatenate([pulled[span.start : span.stop] for span in spans])
        made = SentValues(sent, one.kind, pulled if one.kind == "parameters" else None)
        return Opened(made if spans is None else PartialValues(made, spans), body)

    def whole(
        self, members: Sequence[KeptContribution], pulled: Floats | None, lanes: Lanes
    ) -> dict[MemberName, Opened]:
        """Return every contribution that is not seen to be damaged; one that is, is logged."""
        found: list[Opened | None] = [None] * len(members)

        def work(place: int) -> None:
            try:
                found[place] = self.open(members[place], pulled)
            except (ChunkMissing, Damaged) as error:
                self._tell(members[place].member, error)

        lanes.each(len(members), lambda: work)
        return {one.member: opened for one, opened in zip(members, found, strict=True) if opened is not None}

    def check(self, opened: dict[MemberName, Opened]) -> None:
        """Take out those whose bytes, which were all read, are not those that came.

        Raises:
            DamagedMembers: there are some.

        """
        before = len(opened)
        for name, one in list(opened.items()):
            try:
                one.body.check()
            except (ChunkMissing, Damaged) as error:
                self._tell(name, error)
                del opened[name]
        if len(opened) < before:
            raise DamagedMembers

    def _tell(self, name: MemberName, error: ChunkMissing | Damaged) -> None:
        log.error("a contribution is damaged", session=self._spec.id, client=name.client, reason=error.detail)

    def _reader(self, one: KeptContribution) -> Read:
        """Return what reads parts of a contribution. Of `MOST_OPEN` the file stays open; threads may pass it by one."""
        if len(self._readers) < MOST_OPEN:
            reader = self._store.rounds.reader(self._spec.id, one)
            if reader is not None:
                self._readers.append(reader)
                return reader.read
        return partial(self._store.rounds.read_part, self._spec.id, one)


def held_bytes(members: Sequence[KeptContribution]) -> int:
    """Return the bytes of those members that are in memory as a whole while their round closes: the sparse ones."""
    return sum(one.nbytes for one in members if one.encoding == SPARSE)


def spans_of(layout: Layout, present: Sequence[int] | None) -> tuple[Span, ...] | None:
    """Return where these tensors lie, joined where they touch; None for all of them."""
    if present is None:
        return None
    spans = list[Span]()
    for place in present:
        start, stop = layout.bounds[place], layout.bounds[place + 1]
        if spans and spans[-1].stop == start:
            spans[-1] = Span(spans[-1].start, stop)
        elif start < stop:
            spans.append(Span(start, stop))
    return tuple(spans)
