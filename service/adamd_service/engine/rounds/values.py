"""Reads contributions as pseudo-gradients, slice by slice, so that a round is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from adamd.errors import Damaged
from adamd.wire import encodings
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import ITEMSIZE, Floats, storage, widen
from adamd.wire.encodings import INT8, RAW, SPARSE
from adamd.wire.layout import Layout
from adamd_service.aggregation import PartialValues, SentValues, Span, Values
from adamd_service.optim import Encoded, encoded
from adamd_service.records import Spec
from adamd_service.rounds import KeptContribution, MemberName
from adamd_service.rules import digest_start
from adamd_service.store import ChunkMissing, RedisStore

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredRaw:
    """A raw vector in the store, of which one slice at a time is read; an `Encoded` that was checked before."""

    store: RedisStore
    session_id: str
    contribution: KeptContribution
    size: int
    session_dtype: str
    exact: bool = False
    largest: float | None = None

    def check(self, end: int) -> None:
        """Check nothing: the contribution was refused otherwise."""

    def part(self, start: int, stop: int, into: Floats) -> Floats:
        """Read elements start…stop-1 and widen them."""
        dtype = self.contribution.dtype
        here, itemsize = into[: stop - start], ITEMSIZE[dtype]
        if dtype == self.session_dtype:
            self.store.rounds.read_part(self.session_id, self.contribution, start * itemsize, here.view(np.uint8))
            return here
        raw = np.empty((stop - start) * itemsize, np.uint8)
        self.store.rounds.read_part(self.session_id, self.contribution, start * itemsize, raw)
        return widen(raw.view(storage(dtype)), dtype, self.session_dtype, here)


@dataclass(frozen=True, slots=True)
class StoredInt8:
    """A vector of bytes with a scale for each block in the store; otherwise as `StoredRaw`."""

    store: RedisStore
    session_id: str
    contribution: KeptContribution
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
        self.store.rounds.read_part(self.session_id, self.contribution, start, into)
        return into


class Readings:
    """Opens the contributions of one session. Runs in a worker thread."""

    def __init__(self, store: RedisStore, pool: BufferPool, spec: Spec) -> None:
        self._store = store
        self._pool = pool
        self._spec = spec

    def values(self, one: KeptContribution, pulled: Floats | None) -> Values:
        """Return a contribution as a pseudo-gradient, once its bytes are seen to be those that came.

        ``pulled``: the parameters that it was made from, where it is of the kind "parameters".

        Raises:
            Damaged, ChunkMissing: they are not.

        """
        spec = self._spec
        spans = spans_of(spec.layout, one.present)
        size = spec.layout.size if spans is None else sum(span.stop - span.start for span in spans)
        body = self._pool.lease(one.nbytes)
        self._store.rounds.read_body(spec.id, one, body)
        digest = digest_start(one.encoding, one.dtype, one.present, None)
        digest.update(body)
        if digest.hexdigest() != one.body_digest:
            raise Damaged(f"the contribution {one.member.text} in the store is damaged: its digest does not match")
        sent: Encoded
        if one.encoding == RAW:
            del body
            sent = StoredRaw(self._store, spec.id, one, size, spec.dtype)
        elif one.encoding == INT8:
            del body
            sent = StoredInt8(self._store, spec.id, one, size)
        else:
            sent = encoded(one.encoding, one.dtype, body, size, storage(spec.dtype))
            sent.check(body.nbytes)
        if one.kind == "parameters" and pulled is not None and spans is not None:
            pulled = np.concatenate([pulled[span.start : span.stop] for span in spans])
        made = SentValues(sent, one.kind, pulled if one.kind == "parameters" else None)
        return made if spans is None else PartialValues(made, spans)

    def whole(self, members: Sequence[KeptContribution], pulled: Floats | None) -> dict[MemberName, Values]:
        """Return the values of every contribution that is not damaged; a damaged one is logged."""
        found = {}
        for one in members:
            try:
                found[one.member] = self.values(one, pulled)
            except (ChunkMissing, Damaged) as error:
                log.error("a contribution is damaged", session=self._spec.id, client=one.client, reason=error.detail)
        return found


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
