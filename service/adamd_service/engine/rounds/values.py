"""Reads contributions as pseudo-gradients, slice by slice, so that a round is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import structlog
import xxhash

from adamd.errors import Damaged
from adamd.wire import encodings
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import ITEMSIZE, SLICE, Floats, storage, widen
from adamd.wire.encodings import INT8, RAW, SPARSE
from adamd.wire.layout import Layout
from adamd_service.aggregation import Lanes, PartialValues, RunningNorm, SentValues, Span, Values
from adamd_service.optim import Encoded, encoded
from adamd_service.records import Spec
from adamd_service.rounds import KeptContribution, MemberName
from adamd_service.rules import digest_start
from adamd_service.store import ChunkMissing, RedisStore
from adamd_service.store.bulk.reading import ExtentReader

Read: TypeAlias = Callable[[int, Bytes], None]  # fills the second with a body's bytes from the first on
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


@dataclass(frozen=True, slots=True)
class Opened:
    """A contribution whose bytes are those that came. ``norm``: None where it is still to be found."""

    values: Values
    norm: float | None = None


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
        """Return a contribution as a pseudo-gradient, once its bytes are seen to be those that came.

        ``pulled``: the parameters that it was made from, where it is of the kind "parameters".

        Raises:
            Damaged, ChunkMissing: they are not.

        """
        spec = self._spec
        spans = spans_of(spec.layout, one.present)
        size = spec.layout.size if spans is None else sum(span.stop - span.start for span in spans)
        read = self._reader(one)
        sent: Encoded
        norm: float | None = None
        if one.encoding == RAW:
            plain = spans is None and one.dtype == spec.dtype
            norm = self._check(one, read, plain, pulled if one.kind == "parameters" else None)
            sent = StoredRaw(read, one.dtype, size, spec.dtype)
        elif one.encoding == INT8:
            self._check(one, read)
            sent = StoredInt8(read, size)
        else:
            body = self._pool.lease(one.nbytes)
            read(0, body)
            _compare(one, _digest(one, body))
            sent = encoded(one.encoding, one.dtype, body, size, storage(spec.dtype))
            sent.check(body.nbytes)
        if one.kind == "parameters" and pulled is not None and spans is not None:
            pulled = np.concatenate([pulled[span.start : span.stop] for span in spans])
        made = SentValues(sent, one.kind, pulled if one.kind == "parameters" else None)
        return Opened(made if spans is None else PartialValues(made, spans), norm)

    def whole(
        self, members: Sequence[KeptContribution], pulled: Floats | None, lanes: Lanes
    ) -> dict[MemberName, Opened]:
        """Return every contribution that is not damaged; a damaged one is logged."""
        found: list[Opened | None] = [None] * len(members)

        def work(place: int) -> None:
            one = members[place]
            try:
                found[place] = self.open(one, pulled)
            except (ChunkMissing, Damaged) as error:
                log.error("a contribution is damaged", session=self._spec.id, client=one.client, reason=error.detail)

        lanes.each(len(members), lambda: work)
        return {one.member: opened for one, opened in zip(members, found, strict=True) if opened is not None}

    def _reader(self, one: KeptContribution) -> Read:
        """Return what reads parts of a contribution. Of `MOST_OPEN` the file stays open; threads may pass it by one."""
        if len(self._readers) < MOST_OPEN:
            reader = self._store.rounds.reader(self._spec.id, one)
            if reader is not None:
                self._readers.append(reader)
                return reader.read
        return partial(self._store.rounds.read_part, self._spec.id, one)

    def _check(
        self, one: KeptContribution, read: Read, plain: bool = False, pulled: Floats | None = None
    ) -> float | None:
        """Compare a body with its digest, slice by slice.

        Return its norm where it is ``plain``, a whole vector in the session's dtype, from ``pulled`` if that is given:
        so its bytes are read once for both.
        """
        kind, running = storage(self._spec.dtype), RunningNorm()
        step = SLICE * kind.itemsize
        digest, into = _digest(one), np.empty(min(step, one.nbytes), np.uint8)
        for start in range(0, one.nbytes, step):
            part = into[: min(step, one.nbytes - start)]
            read(start, part)
            digest.update(part)
            if plain:
                values, first = part.view(kind), start // kind.itemsize
                if pulled is not None:
                    np.subtract(pulled[first : first + len(values)], values, out=values)
                running.add(values)
        _compare(one, digest)
        return running.norm if plain else None


def _digest(one: KeptContribution, body: Bytes | None = None) -> xxhash.xxh3_128:
    digest = digest_start(one.encoding, one.dtype, one.present, None)
    if body is not None:
        digest.update(body)
    return digest


def _compare(one: KeptContribution, digest: xxhash.xxh3_128) -> None:
    if digest.hexdigest() != one.body_digest:
        raise Damaged(f"the contribution {one.member.text} in the store is damaged: its digest does not match")


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
