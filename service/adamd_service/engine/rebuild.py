"""State is the fold of the log (law 1): from the store's snapshot and records back to arrays, checked on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adamd.errors import AdamdError, InternalError, SessionDeleted
from adamd.wire import encodings
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import storage
from adamd.wire.encodings import LAZY, RAW
from adamd.wire.layout import Layout
from adamd_service.engine.hot import Hot, is_finite
from adamd_service.optim import (
    BEST,
    NUMERICS_ID,
    Device,
    Encoded,
    Lazy,
    State,
    Update,
    encoded,
    parse_settings,
    updates_from_json,
)
from adamd_service.records import Head, Record, SnapshotRef, Spec
from adamd_service.session import digest_start, next_chain
from adamd_service.store import ChunkMissing, RedisStore

TRIES = 5  # a reader that meets a missing chunk reloads the head and starts again
PAGE = 64  # records read at once


class Rebuilder:
    """Fills a hot session from the store. Synchronous: it runs in a worker thread, under the session's lock."""

    def __init__(self, store: RedisStore, device: Device, pool: BufferPool) -> None:
        self._store = store
        self._device = device
        self._pool = pool

    def current(self, hot: Hot) -> Head:
        """Bring the session to where the store says that it stands, and return its head.

        Raises:
            UnknownSession, SessionDeleted, StoreUnavailable: and the cache is dropped.
            InternalError: what the store holds does not fold into the chain that it names.

        """
        if not hot.durable:
            if hot.head is None:  # deleted meanwhile, or a kernel error: no store can rebuild it
                raise SessionDeleted(f"the memory session {hot.id} is no more; create it again")
            return hot.head
        try:
            head = self._store.load_head(hot.id) if hot.head is None else self._moved(hot.head)
            if head is not None:
                self._follow(hot, head)
        except BaseException:
            hot.drop()
            raise
        assert hot.head is not None
        return hot.head

    def current_with_metrics(self, hot: Hot) -> tuple[Head, Mapping[str, Any] | None]:
        """Return what `current` does, and what its last step carried, where that is known here."""
        return self.current(hot), hot.metrics

    def _moved(self, known: Head) -> Head | None:
        standing = self._store.standing(known.spec.id)
        return None if standing.is_of(known) else self._store.load_head(known.spec.id)

    def _follow(self, hot: Hot, head: Head) -> None:
        for attempt in range(TRIES):
            try:
                with self._store.lease(hot.id):
                    self._fold(hot, head)
                return
            except ChunkMissing:
                hot.drop()
                if attempt == TRIES - 1:
                    raise
                head = self._store.load_head(hot.id)

    def _fold(self, hot: Hot, head: Head) -> None:
        if head.parameters_missing:
            hot.install(head, None, {}, diverged=False)
            return
        if hot.head is None or hot.head.settings != head.settings:  # the next step may be the event loop's
            self._device.prepare(parse_settings(head.settings), storage(head.spec.dtype))
        start = self._resume(hot, head)
        if start is None:
            snapshot = head.snapshots[-1]
            state, chain, step = self._read_snapshot(head, snapshot), snapshot.chain, snapshot.step
        else:
            state, chain, step = start
        for record in self._records(head, step):
            chain = self._replay(head, record, chain, state)
        if chain != head.chain:
            raise InternalError(
                f"session {hot.id}: the log folds to chain {chain[:12]}…, the head says {head.chain[:12]}…"
            )
        ring = {entry.step: entry for entry in self._store.ring(hot.id)}
        self._device.fetch(state)
        hot.install(head, state, ring, diverged=not is_finite(state))

    def _resume(self, hot: Hot, head: Head) -> tuple[State, str, int] | None:
        """Go on from the cache where it is a place in the head's own history."""
        known = hot.head
        if known is None or hot.state is None or known.incarnation != head.incarnation:
            return None
        if known.step > head.step or known.step < head.snapshots[0].step:
            return None
        if known.step == head.step and known.chain != head.chain:
            return None
        following = self._store.records(hot.id, known.step + 1, known.step + 1)
        if known.step < head.step and (not following or following[0].prev_chain != known.chain):
            return None
        return hot.state, known.chain, known.step

    def _records(self, head: Head, after: int) -> Iterator[Record]:
        for first in range(after + 1, head.step + 1, PAGE):
            last = min(first + PAGE - 1, head.step)
            page = self._store.records(head.spec.id, first, last)
            if len(page) != last - first + 1:
                raise ChunkMissing(f"session {head.spec.id}: records {first} to {last} are not all there")
            yield from page

    def _read_snapshot(self, head: Head, snapshot: SnapshotRef) -> State:
        spec = head.spec
        arrays = {}
        for ref in snapshot.arrays:
            flat = np.empty(spec.layout.size, storage(spec.dtype))
            self._store.read_array(spec.id, snapshot.id, ref, flat.view(np.uint8))
            arrays[ref.name] = flat
        if "params" not in arrays or len(snapshot.counts) != len(spec.layout.tensors):
            raise InternalError(f"session {spec.id}: snapshot {snapshot.id} lacks parameters or counts")
        settings = parse_settings(head.settings)
        state = State.fresh(arrays["params"], len(snapshot.counts), settings)
        state.params = arrays.pop("params")
        if state.best is not None:  # step 0's has only parameters
            state.best = arrays.pop(BEST, state.best)
        if not arrays.keys() <= state.slots.keys():
            raise InternalError(f"session {spec.id}: snapshot {snapshot.id} has arrays of another optimizer")
        state.slots |= arrays
        state.counts = list(snapshot.counts)
        if snapshot.carried:
            try:
                state.carry(snapshot.carried)
            except ValueError as error:
                raise InternalError(f"session {spec.id}: snapshot {snapshot.id}: carried: {error}") from None
        return state

    def _replay(self, head: Head, record: Record, chain: str, state: State) -> str:
        spec = head.spec
        if record.numerics != NUMERICS_ID:
            raise InternalError(f"session {spec.id}: step {record.step} was made by numerics {record.numerics!r}")
        expected = next_chain(chain, record.step, record.digest, record.updates, record.numerics)
        if record.prev_chain != chain or record.chain != expected:
            raise InternalError(f"session {spec.id}: the record of step {record.step} does not continue its chain")
        updates = updates_of(record, state)
        check_body(record, updates, spec.layout)
        body = self._pool.lease(record.nbytes)
        self._store.read_body(spec.id, record, body)
        check_digest(record, updates, spec.layout, body)
        if record.best and state.best is not None:
            self._device.fetch(state)
            state.take_best()
        self._device.apply(state, gradient_of(record, updates, spec, body), updates, spec.layout.bounds, None)
        return record.chain


def updates_of(record: Record, state: State) -> tuple[Update, ...]:
    """Return the updates of a record.

    Raises:
        InternalError: the state's optimizer could not have made them.

    """
    try:
        return updates_from_json(record.updates, state.optimizer, tuple(state.slots), state.params.dtype)
    except ValueError as error:
        raise InternalError(f"the record of step {record.step} is damaged: {error}") from None


def check_digest(record: Record, updates: tuple[Update, ...], layout: Layout, body: Bytes) -> None:
    """Refuse a record whose body is not the one that its digest, and so its chain, names.

    Raises:
        InternalError: the store's bytes have changed.

    """
    covered = _covered(updates)
    # What a lazy one covers is said by its body.
    present = None if len(covered) == len(layout.tensors) or record.encoding == LAZY else covered
    digest = digest_start(record.encoding, record.dtype, present, record.settings)
    digest.update(body)
    if digest.hexdigest() != record.digest:
        raise InternalError(f"the body of step {record.step} in the store is damaged: its digest does not match")


def check_body(record: Record, updates: tuple[Update, ...], layout: Layout) -> None:
    """Refuse a record whose body cannot be what its updates cover.

    Raises:
        InternalError: the lengths do not match.

    """
    if updates and updates[-1].last > len(layout.tensors):
        raise InternalError(f"the record of step {record.step} updates tensors that the layout does not have")
    covered = sum(layout.bounds[update.last] - layout.bounds[update.first] for update in updates)
    if record.encoding not in (RAW, LAZY) and covered != layout.size:
        raise InternalError(f"the record of step {record.step} is {record.encoding} and covers {covered} elements")
    size = covered if record.encoding == RAW else layout.size
    try:
        encodings.check_length(record.encoding, record.nbytes, size, record.dtype)
    except AdamdError as error:
        raise InternalError(f"the record of step {record.step} has another length: {error.detail}") from None


def gradient_of(record: Record, updates: tuple[Update, ...], spec: Spec, body: Bytes) -> Encoded:
    """Return the gradient that a record's body is; an encoded one is checked again, since it says where to write.

    Raises:
        InternalError: it is none, or one of other tensors.

    """
    gradient = encoded(record.encoding, record.dtype, body, spec.layout.size, storage(spec.dtype))
    try:
        if record.encoding != RAW:
            gradient.check(body.nbytes)
    except AdamdError as error:
        raise InternalError(f"the body of step {record.step} in the store is damaged: {error.detail}") from None
    if isinstance(gradient, Lazy) and list(gradient.touched(spec.layout.bounds)) != _covered(updates):
        raise InternalError(f"the record of step {record.step} updates other tensors than its body names")
    return gradient


def _covered(updates: tuple[Update, ...]) -> list[int]:
    return [index for update in updates for index in range(update.first, update.last)]
