"""Rebuilds a session in memory from snapshot and log, and checks digests and chains on the way (law 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import structlog

from adamd.errors import AdamdError, Damaged, InternalError, SessionDeleted, StoreUnavailable
from adamd.wire import encodings
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import ITEMSIZE, Floats, storage
from adamd.wire.encodings import LAZY, RAW
from adamd.wire.layout import Layout
from adamd_service.advice import progress_of
from adamd_service.engine.cache import Hot, LoadedSession, is_finite
from adamd_service.optim import (
    BEST,
    NUMERICS_ID,
    Device,
    Encoded,
    Lazy,
    Settings,
    SettingsError,
    State,
    Update,
    assign,
    encoded,
    parse_settings,
    updates_from_json,
)
from adamd_service.records import Entry, Head, Record, SnapshotRef, Spec
from adamd_service.rules import digest_start, next_chain
from adamd_service.store import ChunkMissing, Reader, RedisStore, is_quick

TRIES = 5  # a reader that meets a missing chunk reloads the head and starts again
PAGE = 64  # records read at once
log = structlog.get_logger()


class Rebuilder:
    """Fills a hot session from the store. Synchronous: it runs in a worker thread, under the session's lock."""

    def __init__(self, store: RedisStore, device: Device, pool: BufferPool) -> None:
        self._store = store
        self._device = device
        self._pool = pool

    def current(self, hot: Hot, known: Head | None = None) -> LoadedSession:
        """Bring the session to where the store says that it stands, and return it.

        ``known``: its head, read since the caller's request came.

        Raises:
            UnknownSession, SessionDeleted, StoreUnavailable: and the cache is dropped.
            Damaged: what the store holds does not fold into the chain that it names.

        """
        if not hot.durable:
            if hot.loaded is None:  # deleted meanwhile, or a kernel error: no store can rebuild it
                raise SessionDeleted(f"the memory session {hot.id} is no more; create it again")
            return hot.loaded
        try:
            if hot.loaded is None:
                head: Head | None = known or self._store.load_head(hot.id)
            else:
                head = self._moved(hot.loaded.head)
            if head is not None:
                self._follow(hot, head)
        except BaseException:
            hot.drop()
            raise
        assert hot.loaded is not None
        return hot.loaded

    def _moved(self, cached: Head) -> Head | None:
        standing = self._store.standing(cached.spec.id)
        return None if standing.is_of(cached) else self._store.load_head(cached.spec.id)

    def head(self, hot: Hot) -> Head:
        """Return where the session stands, as `current` does, without its state."""
        return self._store.load_head(hot.id) if hot.durable else self.current(hot).head

    def _follow(self, hot: Hot, head: Head) -> None:
        """Fold what the head names. If a chunk is missing, the head may have moved meanwhile, and is read again."""
        lost = set[str]()
        for _ in range(TRIES):
            try:
                if is_quick(head):
                    reader = self._store.read_ahead(head) if hot.loaded is None else self._store
                    hot.loaded = self._fold(hot.loaded, head, lost, reader)
                    return
                with self._store.lease(hot.id):
                    hot.loaded = self._fold(hot.loaded, head, lost, self._store)
                return
            except ChunkMissing as missing:
                hot.drop()
                now = self._store.load_head(hot.id)
                if _names_the_same(now, head):  # so nobody has unlinked it
                    lost.add(missing.snapshot)
                    if not missing.snapshot or lost >= {ref.id for ref in head.snapshots}:
                        raise Damaged(
                            f"session {hot.id}: {missing.detail}, and is missing for good; {Damaged.ADVICE}"
                        ) from None
                head = now
            except Damaged:
                now = self._store.load_head(hot.id)
                if _names_the_same(now, head):
                    raise
                hot.drop()  # the head has moved, and what it named has become free and holds other bytes
                head = now
        raise StoreUnavailable("the session was changed each time while it was read; try again", retry_after=0.2)

    def _fold(self, cached: LoadedSession | None, head: Head, lost: set[str], reader: Reader) -> LoadedSession:
        """Return the session at ``head``: the log folded into the cached state, or into a snapshot's."""
        settings = settings_of(head)
        if head.parameters_missing:
            return LoadedSession(head, settings, None)
        progress_of(head)  # raises where it is none
        if cached is None or cached.head.settings != head.settings:  # the next step may be the event loop's
            self._device.prepare(settings, storage(head.spec.dtype))
        if cached is not None and cached.state is not None and self._continues(cached.head, head, reader):
            before: Head | None = cached.head
            state, chain, step, replaced = cached.state, cached.head.chain, cached.head.step, cached.replaced
        else:
            state, chain, step, replaced = self._snapshot(head, settings, lost, reader)
            before = None
        last: Record | None = None
        for last in self._records(head, step, reader):
            chain, state = self._replay(head, last, chain, state, reader)
        if chain != head.chain:
            raise Damaged(
                f"session {head.spec.id}: the log folds to chain {chain[:12]}…, the head says {head.chain[:12]}…"
            )
        self._check_before(head, last, before, reader)
        ring = self._ring(head, reader)
        self._device.fetch(state)
        return LoadedSession(head, settings, state, ring, diverged=not is_finite(state), replaced=replaced)

    def _ring(self, head: Head, reader: Reader) -> dict[int, Entry]:
        ring = {entry.step: entry for entry in reader.ring(head.spec.id)}
        last = ring.get(head.step)
        if last is not None and last.chain != head.chain:
            raise Damaged(f"session {head.spec.id}: the ring has another chain for step {head.step} than the head")
        return ring

    def _check_before(self, head: Head, last: Record | None, before: Head | None, reader: Reader) -> None:
        """Check the one field of a head that the log's chain does not cover: the chain before its step."""
        if last is None and head.step > head.snapshots[0].step and (before is None or before.step != head.step):
            records = reader.records(head.spec.id, head.step, head.step)
            if not records:
                raise ChunkMissing(f"the record of step {head.step} is not there")
            last = records[0]
        previous = last or before
        if (previous.prev_chain if previous is not None else "") != head.prev_chain:
            raise Damaged(f"session {head.spec.id}: the head names another chain before step {head.step} than the log")

    def _snapshot(self, head: Head, settings: Settings, lost: set[str], reader: Reader) -> tuple[State, str, int, str]:
        """Return the state of the newest whole snapshot, its chain and step, and the id of a damaged newer one, or "".

        The next snapshot takes the damaged one's place.
        """
        newest, why = head.snapshots[-1], list[str]()
        for ref in reversed(head.snapshots):
            try:
                if ref.damage or ref.id in lost:
                    raise Damaged(ref.damage or f"a chunk of snapshot {ref.id} is not there")
                state = self._read_snapshot(head.spec, settings, ref, reader)
            except ChunkMissing as missing:
                missing.snapshot = ref.id
                raise
            except Damaged as error:
                why.append(error.detail)
                continue
            if ref is not newest:
                log.warning("rebuilt from an older snapshot", session=head.spec.id, step=ref.step, damage=why)
            return state, ref.chain, ref.step, "" if ref is newest else newest.id
        raise Damaged(f"session {head.spec.id}: {'; '.join(why)}; {Damaged.ADVICE}")

    def _continues(self, cached: Head, head: Head, reader: Reader) -> bool:
        """Say whether a cached head is a place in the head's own history, from which the log goes on."""
        if cached.incarnation != head.incarnation or not head.snapshots[0].step <= cached.step <= head.step:
            return False
        if cached.step == head.step:
            return cached.chain == head.chain
        following = reader.records(head.spec.id, cached.step + 1, cached.step + 1)
        return bool(following) and following[0].prev_chain == cached.chain

    def _records(self, head: Head, after: int, reader: Reader) -> Iterator[Record]:
        for first in range(after + 1, head.step + 1, PAGE):
            last = min(first + PAGE - 1, head.step)
            page = reader.records(head.spec.id, first, last)
            if len(page) != last - first + 1:
                raise ChunkMissing(f"one of the records {first} to {last} is not there")
            yield from page

    def _read_snapshot(self, spec: Spec, settings: Settings, snapshot: SnapshotRef, reader: Reader) -> State:
        arrays = {}
        for ref in snapshot.arrays:
            flat = np.empty(spec.layout.size, storage(spec.dtype))
            reader.read_array(spec.id, snapshot.id, ref, flat.view(np.uint8))
            arrays[ref.name] = flat
        if "params" not in arrays or len(snapshot.counts) != len(spec.layout.tensors):
            raise Damaged(f"session {spec.id}: snapshot {snapshot.id} lacks parameters or counts")
        state = State.fresh(arrays["params"], len(snapshot.counts), settings)
        state.params = arrays.pop("params")
        if state.best is not None:  # step 0's has only parameters
            state.best = arrays.pop(BEST, state.best)
        if not arrays.keys() <= state.slots.keys():
            raise Damaged(f"session {spec.id}: snapshot {snapshot.id} has arrays of another optimizer")
        state.slots |= arrays
        state.counts = list(snapshot.counts)
        if snapshot.carried:
            try:
                state.carry(snapshot.carried)
            except ValueError as error:
                raise Damaged(f"session {spec.id}: snapshot {snapshot.id}: carried: {error}") from None
        return state

    def _replay(self, head: Head, record: Record, chain: str, state: State, reader: Reader) -> tuple[str, State]:
        """Apply one record; returns its chain, and the state, which is another object where tensors were assigned."""
        spec = head.spec
        expected = next_chain(chain, record.step, record.digest, record.updates, record.numerics)
        if record.prev_chain != chain or record.chain != expected:
            raise Damaged(f"session {spec.id}: the record of step {record.step} does not continue its chain")
        if record.numerics != NUMERICS_ID:  # no damage: the chain covers it
            raise InternalError(f"session {spec.id}: step {record.step} was made by numerics {record.numerics!r}")
        updates = updates_of(record, state)
        check_body(record, updates, spec.layout)
        body = self._pool.lease(record.nbytes)
        reader.read_body(spec.id, record, body)
        check_digest(record, updates, spec.layout, body)
        if record.best and state.best is not None:
            self._device.fetch(state)
            state.take_best()
        gradient = gradient_of(record, updates, spec, body[: body.nbytes - _assigned_bytes(record, spec.layout)])
        if record.assigned:
            values = assigned_values(body, record.assigned, spec)
            state = with_assigned(self._device, state, values, record.assigned, spec.layout.bounds)
        self._device.apply(state, gradient, updates, spec.layout.bounds, None)
        return record.chain, state


def settings_of(head: Head) -> Settings:
    """Return a head's settings.

    Raises:
        Damaged: they are none.

    """
    try:
        return parse_settings(head.settings)
    except SettingsError as error:
        raise Damaged(f"session {head.spec.id}: the settings in the store are damaged: {error.message}") from None


def _names_the_same(first: Head, second: Head) -> bool:
    """Say whether two heads name the same records and snapshots."""

    def names(head: Head) -> tuple[Any, ...]:
        return head.incarnation, head.step, head.chain, head.snapshots

    return names(first) == names(second)


def updates_of(record: Record, state: State) -> tuple[Update, ...]:
    """Return the updates of a record.

    Raises:
        Damaged: the state's optimizer could not have made them.

    """
    try:
        return updates_from_json(record.updates, state.optimizer, tuple(state.slots), state.params.dtype)
    except ValueError as error:
        raise Damaged(f"the record of step {record.step} is damaged: {error}") from None


def check_digest(record: Record, updates: tuple[Update, ...], layout: Layout, body: Bytes) -> None:
    """Refuse a record whose body is not the one that its digest, and so its chain, names.

    Raises:
        Damaged: the store's bytes have changed.

    """
    covered = _covered(updates)
    # The body of a lazy one says what it covers.
    present = None if len(covered) == len(layout.tensors) or record.encoding == LAZY else covered
    digest = digest_start(record.encoding, record.dtype, present, record.settings, record.assigned)
    digest.update(body)
    if digest.hexdigest() != record.digest:
        raise Damaged(f"the body of step {record.step} in the store is damaged: its digest does not match")


def check_body(record: Record, updates: tuple[Update, ...], layout: Layout) -> None:
    """Refuse a record whose body cannot be what its updates cover.

    Raises:
        Damaged: the lengths do not match.

    """
    if updates and updates[-1].last > len(layout.tensors):
        raise Damaged(f"the record of step {record.step} updates tensors that the layout does not have")
    if record.assigned:
        _check_assigned(record, updates, layout)
    covered = sum(layout.bounds[update.last] - layout.bounds[update.first] for update in updates)
    if record.encoding not in (RAW, LAZY) and covered != layout.size:
        raise Damaged(f"the record of step {record.step} is {record.encoding} and covers {covered} elements")
    size = covered if record.encoding == RAW else layout.size
    nbytes = record.nbytes - _assigned_bytes(record, layout)
    try:
        encodings.check_length(record.encoding, nbytes, size, record.dtype)
    except AdamdError as error:
        raise Damaged(f"the record of step {record.step} has another length: {error.detail}") from None


def _check_assigned(record: Record, updates: tuple[Update, ...], layout: Layout) -> None:
    places = list(record.assigned)
    inside = places == sorted(set(places)) and places[-1] < len(layout.tensors)
    if record.encoding != RAW or not inside or not set(places).isdisjoint(_covered(updates)):
        raise Damaged(f"the record of step {record.step} assigns tensors that it cannot")


def _assigned_bytes(record: Record, layout: Layout) -> int:
    return sum(layout.tensors[place].size for place in record.assigned) * ITEMSIZE[record.dtype]


def assigned_values(body: Bytes, assigned: Sequence[int], spec: Spec) -> Floats:
    """Return the parameters that a body has behind its gradient, in the session's dtype."""
    size = sum(spec.layout.tensors[place].size for place in assigned)
    values: Floats = body[body.nbytes - size * ITEMSIZE[spec.dtype] :].view(storage(spec.dtype))
    return values


def with_assigned(
    device: Device, state: State, values: Floats, assigned: Sequence[int], bounds: Sequence[int]
) -> State:
    """Set some tensors' parameters; returns the state, as another object: a device that has the old one forgets it."""
    device.fetch(state)
    state = state.copy(lambda array: array)
    assign(state, values, assigned, bounds)
    return state


def gradient_of(record: Record, updates: tuple[Update, ...], spec: Spec, body: Bytes) -> Encoded:
    """Return the gradient that a record's body is; an encoded one is checked again, since it says where to write.

    Raises:
        Damaged: it is none, or one of other tensors.

    """
    gradient = encoded(record.encoding, record.dtype, body, spec.layout.size, storage(spec.dtype))
    try:
        if record.encoding != RAW:
            gradient.check(body.nbytes)
    except AdamdError as error:
        raise Damaged(f"the body of step {record.step} in the store is damaged: {error.detail}") from None
    if isinstance(gradient, Lazy) and list(gradient.touched(spec.layout.bounds)) != _covered(updates):
        raise Damaged(f"the record of step {record.step} updates other tensors than its body names")
    return gradient


def _covered(updates: tuple[Update, ...]) -> list[int]:
    return [index for update in updates for index in range(update.first, update.last)]
