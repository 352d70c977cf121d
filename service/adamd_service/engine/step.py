"""Takes a step in a fixed order: decide, commit (and resolve one without an answer), apply, answer.

`Engine` chooses where it runs, in a worker thread or on the event loop: small steps run on the loop, because a hop to a
thread and back costs as much as they do. A step is a coroutine that waits only through its `Io`. In a thread
(`_ThreadIo`) it never suspends. On the loop (`_LoopIo`) calls that wait for the store are moved to threads.

All of it happens under the session's lock. A replica that loses the compare-and-set reloads and decides again. A
replay or a refusal is answered only after the store was asked.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from numpy.typing import NDArray

from adamd.errors import (
    IdempotencyMismatch,
    InternalError,
    InvalidSettings,
    SettingsConflict,
    StoreUnavailable,
)
from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import ITEMSIZE, storage
from adamd_service.advice import advice_of, notes_of
from adamd_service.engine.answers import Copies, rounded
from adamd_service.engine.cache import Hot, LoadedSession
from adamd_service.engine.calls import Answer, StepCall
from adamd_service.engine.rebuilding import Rebuilder, assigned_values, with_assigned
from adamd_service.engine.workers import Workers
from adamd_service.optim import (
    NUMERICS_ID,
    WARM,
    Device,
    Encoded,
    Settings,
    SettingsError,
    State,
    Update,
    at_step,
    check_groups,
    check_scalars,
    merge_settings,
    plan,
    to_json,
    updates_to_json,
)
from adamd_service.records import (
    BulkRef,
    Commit,
    CommitOutcome,
    Committed,
    Entry,
    Head,
    IdempotencyKey,
    Lost,
    Record,
    RoundClosing,
)
from adamd_service.rules import Apply, Refuse, Replay, StepRequest, decide, next_chain
from adamd_service.store import RedisStore, Staging, UnknownOutcome

T = TypeVar("T")


class Io(Protocol):
    """What a step waits for. ``permit`` is held while the arrays change."""

    permit: AbstractContextManager[object]

    async def blocking(self, work: Callable[..., T], *args: Any) -> T:
        """Run work that may wait for the store."""

    async def commit(self, session_id: str, commit: Commit) -> CommitOutcome:
        """Commit a record."""


class _ThreadIo:
    """Waits where it is called."""

    def __init__(self, store: RedisStore, permit: AbstractContextManager[object]) -> None:
        self.permit = permit
        self._store = store

    async def blocking(self, work: Callable[..., T], *args: Any) -> T:
        return work(*args)

    async def commit(self, session_id: str, commit: Commit) -> CommitOutcome:
        return self._store.commit(session_id, commit)


class _LoopIo:
    """Keeps the event loop free: commits over the loop's own connections, and moves blocking work to a thread."""

    permit: AbstractContextManager[object] = nullcontext()  # the loop must not wait for one

    def __init__(self, store: RedisStore, workers: Workers) -> None:
        self._store = store
        self.blocking = workers.ask

    async def commit(self, session_id: str, commit: Commit) -> CommitOutcome:
        outcome = await self._store.commit_soon(session_id, commit)
        if outcome is None:  # no connection of the loop could take it
            return await self.blocking(self._store.commit, session_id, commit)
        return outcome


def run_here(step: Coroutine[Any, Any, T]) -> T:
    """Run a step that never suspends in this thread. Raises what it raises."""
    try:
        step.send(None)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
    step.close()
    raise AssertionError("a step over _ThreadIo suspended")


RACES = 64  # compare-and-set races lost in a row before a client is told to come back
KEYS = 4096  # Idempotency-Keys that a memory session remembers


class StepBody(Protocol):
    """The gradient that a step applies, whole and checked, and its bytes as the log keeps them."""

    encoding: str
    dtype: str
    buffer: Bytes
    gradient: Encoded

    def digest(self) -> str:
        """XXH3-128 (hex), as `rules.digest_start` says."""


@dataclass(slots=True, eq=False)
class ReceivedStep:
    """A step whose body is in.

    Attributes:
        call: as it was asked for; its settings and metrics may have come in the body.
        present: the tensors that the body has, by index; None: all of them.
        attempt: names this try in the store.
        bulk: where it was logged under the attempt's name, as far as it was.
        staging: keeps what was logged, as long as nothing names it.
        committed: what was logged must stay, as far as anyone knows.
        landed: the step that a POST was committed as, where only `resolve` knows it.
        closing: the round that this step closes.
        assigned: the tensors whose parameters it sets, by index; their values lie behind the gradient.

    """

    call: StepCall
    body: StepBody
    present: tuple[int, ...] | None
    attempt: str
    bulk: BulkRef | None = None
    staging: Staging | None = None
    committed: bool = False
    landed: int | None = None
    closing: RoundClosing | None = None
    assigned: tuple[int, ...] = ()

    @property
    def request(self) -> StepRequest:
        """The part that the rules decide by."""
        return StepRequest(self.call.number, self.body.digest(), self.call.if_match, self.call.base)


class Stepper:
    """Decides, commits, applies and answers steps. It holds no state of its own."""

    def __init__(
        self,
        store: RedisStore,
        rebuilder: Rebuilder,
        device: Device,
        updates: threading.Semaphore,
        copies: Copies,
        workers: Workers,
        inline: int,
    ) -> None:
        self._store = store
        self._rebuilder = rebuilder
        self._device = device
        self._copies = copies
        self._inline = inline
        self._in_thread = _ThreadIo(store, updates)
        self._in_turn = _ThreadIo(store, nullcontext())
        self._on_loop = _LoopIo(store, workers)

    def run(self, hot: Hot, step: ReceivedStep) -> Answer:
        """Take the step and answer it, in a worker thread.

        Raises:
            AdamdError: it was refused, or the store could not be asked; then nothing was applied here.

        """
        return run_here(self._take(hot, step, self._in_thread))

    def run_in_turn(self, hot: Hot, step: ReceivedStep) -> Answer:
        """Take a step of a memory session, which waits for nothing, in one turn of the event loop."""
        return run_here(self._take(hot, step, self._in_turn))

    async def run_on_loop(self, hot: Hot, step: ReceivedStep) -> Answer:
        """Take a step on the event loop; only what waits for the store, except for the commit, moves to a thread."""
        return await self._take(hot, step, self._on_loop)

    async def _take(self, hot: Hot, step: ReceivedStep, io: Io) -> Answer:
        try:
            return await self._run(hot, step, io)
        finally:
            if step.bulk is not None and not step.committed:
                self._discard(hot.id, step)

    async def _run(self, hot: Hot, step: ReceivedStep, io: Io) -> Answer:
        loaded, reloaded = hot.loaded, False
        for _ in range(RACES):
            if loaded is None:
                loaded, reloaded = await io.blocking(self._rebuilder.current, hot), True
            repeated = None if step.call.key is None else await io.blocking(self._by_key, hot, step)
            if repeated is not None:
                return repeated
            if step.landed is not None:  # its key was not kept, and it must not be applied again
                return replace(self._current(loaded, step, replayed=False), applied_step=step.landed)
            decision = decide(loaded.head, loaded.ring, step.request, diverged=loaded.diverged)
            if isinstance(decision, Apply):
                assert loaded.state is not None
                with self._device.ready(loaded.state):  # before the commit: memory must not run out after it
                    answer = await self._apply(hot, loaded, step, decision.step, io)
                if answer is not None:
                    return answer
            elif reloaded:
                return self._answer_known(loaded, step, decision)
            loaded = None  # or a state that was dropped stays in memory while it is rebuilt
        raise StoreUnavailable("other writers were faster every time; try again", retry_after=0.2)

    def _answer_known(self, loaded: LoadedSession, step: ReceivedStep, decision: Replay | Refuse) -> Answer:
        if isinstance(decision, Refuse):
            raise decision.error
        own = loaded.ring[decision.step].attempt == step.attempt
        return self._current(loaded, step, replayed=not own)

    def _by_key(self, hot: Hot, step: ReceivedStep) -> Answer | None:
        """Answer a repeated POST with the current parameters, and the step that its gradient was applied as.

        A PUT has its number, so there the key only has to agree with it.
        """
        assert step.call.key is not None
        earlier = self._store.idempotent(hot.id, step.call.key) if hot.durable else hot.keys.get(step.call.key)
        if earlier is None:
            return None
        digest, applied = earlier
        if digest != step.body.digest() or step.call.number not in (None, applied):
            raise IdempotencyMismatch(
                f"this Idempotency-Key was used for step {applied} with another request; use a new key",
                step=hot.loaded.head.step if hot.loaded else None,
            )
        if step.call.number is not None:
            return None
        loaded = self._rebuilder.current(hot)
        entry = loaded.ring.get(applied)
        own = entry is not None and entry.attempt == step.attempt
        return replace(self._current(loaded, step, replayed=not own), applied_step=applied)

    def _current(self, loaded: LoadedSession, step: ReceivedStep, *, replayed: bool) -> Answer:
        return self._copies.answer(
            loaded, minimal=step.call.minimal, replayed=replayed, answer_dtype=step.call.answer_dtype
        )

    async def _apply(self, hot: Hot, loaded: LoadedSession, step: ReceivedStep, number: int, io: Io) -> Answer | None:
        """Commit and apply; None where another writer was first and the decision must be made again."""
        head, state = loaded.head, loaded.state
        assert state is not None
        if hot.durable:
            self._store.require_kept()
        settings = settings_with(loaded.settings, step.call.settings, head)
        updates = _plan(settings, state, head, step, number)
        notes = notes_of(
            head, number, settings, state, step.body.gradient, step.call.metrics, updates, self._device.fetch
        )
        record = self._record(head, step, number, updates, best=notes.best)
        entry = Entry(number, record.digest, step.attempt, record.chain)
        after = replace(
            head,
            settings=to_json(settings),
            settings_revision=head.settings_revision + (settings != loaded.settings),
            progress=notes.progress.to_json(),
        )
        # Leased before the commit: nothing that could fail may come between it and the answer.
        dtype = step.call.answer_dtype or head.spec.dtype
        out = None if step.call.minimal else self._copies.lease(head.spec.layout.size, dtype)
        if hot.durable:
            if not await self._commit(hot, step, head, after, record, io):
                return None
        elif step.call.key is not None:
            hot.keys[step.call.key] = (record.digest, number)
            if len(hot.keys) > KEYS:
                hot.keys.popitem(last=False)
        overflowed = self._change(hot, loaded, step, updates, out, io.permit, best=notes.best)
        loaded.advance(entry, settings, after, record)
        advice = advice_of(after, settings, number)
        answer = Answer(head.spec, number, record.chain, out, loaded.diverged, advice=advice)
        return replace(answer, answer_dtype=step.call.answer_dtype, overflowed=overflowed)

    def _change(
        self,
        hot: Hot,
        loaded: LoadedSession,
        step: ReceivedStep,
        updates: tuple[Update, ...],
        out: NDArray[Any] | None,
        permit: AbstractContextManager[object],
        *,
        best: bool,
    ) -> int:
        """Apply what is committed; returns how many parameters the answer's dtype could not hold.

        An error in the middle leaves half-changed arrays, which are dropped.
        """
        state, spec = loaded.state, loaded.head.spec
        assert state is not None
        same = out is None or out.dtype == state.params.dtype  # then the kernel writes the answer in its own pass
        overflowed = 0
        try:
            with permit:
                if best:
                    self._device.fetch(state)
                    state.take_best()
                gradient, bounds = step.body.gradient, spec.layout.bounds
                if step.assigned:
                    values = assigned_values(step.body.buffer, step.assigned, spec)
                    state = loaded.state = with_assigned(self._device, state, values, step.assigned, bounds)
                diverged = self._device.apply(state, gradient, updates, bounds, out if same else None)
                if out is not None and not same:
                    self._device.fetch(state)
                    overflowed = rounded(state.params, step.call.answer_dtype or spec.dtype, out)
        except BaseException:
            hot.drop()
            raise
        loaded.diverged = loaded.diverged or diverged
        return overflowed

    def _record(
        self, head: Head, step: ReceivedStep, number: int, updates: tuple[Update, ...], *, best: bool
    ) -> Record:
        scalars = updates_to_json(updates)
        digest = step.body.digest()
        body = step.body.buffer
        inline = body.tobytes() if head.spec.durability == "committed" and body.nbytes <= self._inline else None
        if head.spec.durability == "committed" and inline is None and step.bulk is None:
            step.bulk = self._stage(head.spec.id, step)
        return Record(
            step=number,
            attempt=step.attempt,
            digest=digest,
            prev_chain=head.chain,
            chain=next_chain(head.chain, number, digest, scalars, NUMERICS_ID),
            dtype=step.body.dtype,
            encoding=step.body.encoding,
            updates=scalars,
            bulk=step.bulk or BulkRef(),
            inline=inline,
            settings=None if step.call.settings is None else dict(step.call.settings),
            metrics=dict(step.call.metrics),
            numerics=NUMERICS_ID,
            best=best,
            assigned=step.assigned,
        )

    def _stage(self, session_id: str, step: ReceivedStep) -> BulkRef:
        """Log a body that was not logged while it arrived: it looked like a replay, or came in another encoding."""
        body = step.body.buffer
        staging = step.staging = self._store.stage(session_id, step.attempt, body.nbytes)
        try:
            staging.write(memoryview(body))
            return staging.finish()
        except BaseException:
            staging.abort()
            raise

    async def _commit(self, hot: Hot, step: ReceivedStep, head: Head, after: Head, record: Record, io: Io) -> bool:
        key = None if step.call.key is None else IdempotencyKey(step.call.key, record.digest)
        commit = Commit(
            incarnation=head.incarnation,
            expect_revision=head.settings_revision,
            record=record,
            settings=after.settings,
            settings_revision=after.settings_revision,
            idempotency=key,
            progress=None if after.progress == head.progress else after.progress,
            closing=None if step.closing is None else replace(step.closing, config=_config_of(head)),
        )
        try:
            outcome = await io.commit(hot.id, commit)
        except UnknownOutcome:
            await io.blocking(self._drop_and_resolve, hot, step, record.step)
            return False
        except InternalError:  # no refusal that is known: it may have run, so its chunks stay (their TTL takes them)
            step.committed = True
            hot.drop()
            raise
        except BaseException:
            hot.drop()
            raise
        if isinstance(outcome, Committed):
            step.committed = True
            return True
        self._after_loss(step, outcome)
        return False

    def _after_loss(self, step: ReceivedStep, outcome: Lost) -> None:
        if outcome.reason == "thawed":
            raise SettingsConflict("the round was cancelled, or frozen anew, while its step was made")
        if outcome.reason == "fenced" or outcome.reason == "chunks":
            # The attempt is dead, or its chunks outlived their TTL: the next commit needs a new one.
            step.attempt, step.bulk = secrets.token_hex(8), None

    def _drop_and_resolve(self, hot: Hot, step: ReceivedStep, number: int) -> None:
        """Find out what became of a commit without an answer; the cache is rebuilt either way, by `_run` (law 2)."""
        hot.drop()
        step.committed = True  # as far as anyone knows: its chunks must not be unlinked
        verdict = self._store.resolve(hot.id, step.attempt, number)
        if verdict == "committed" and step.call.number is None:
            step.landed = number
        if verdict == "fenced":
            step.committed = False
            self._discard(hot.id, step)
            step.attempt, step.bulk = secrets.token_hex(8), None

    def _discard(self, session_id: str, step: ReceivedStep) -> None:
        """Unlink an attempt that can no longer commit. Its TTL does the same, later, where this fails."""
        try:
            self._store.discard(session_id, step.attempt, step.bulk or BulkRef())
        except StoreUnavailable:
            return


def _config_of(head: Head) -> Mapping[str, Any]:
    """Return what the next round begins with: a PATCH that this commit does not know of makes it fail."""
    config: Mapping[str, Any] = (head.spec.rounds or {}).get("config", {})
    return config


def settings_with(current: Settings, patch: Mapping[str, Any] | None, head: Head) -> Settings:
    """Return the settings that count from now on.

    Raises:
        InvalidSettings: with the path of what is wrong.

    """
    if not patch:
        return current
    return _checked(lambda: merge_settings(current, dict(patch)), head)


def _checked(make: Callable[[], Settings], head: Head) -> Settings:
    try:
        settings = make()
        check_groups(settings, head.spec.layout.names)
        check_scalars(settings, head.spec.layout.names, storage(head.spec.dtype))
    except SettingsError as error:
        raise InvalidSettings(error.message, step=head.step, path=error.path) from None
    return settings


def _plan(settings: Settings, state: State, head: Head, step: ReceivedStep, number: int) -> tuple[Update, ...]:
    layout, present, dtype = head.spec.layout, step.present, storage(head.spec.dtype)
    is_present = [True] * len(layout.tensors)
    if present is not None:
        is_present = [False] * len(layout.tensors)
        for index in present:
            is_present[index] = True
    try:
        at = at_step(settings, number, step.body.gradient, dtype)
        return plan(settings, layout.names, state.counts, is_present, dtype, state.carried, at)
    except SettingsError as error:  # of a later update than `check_scalars` looked at
        raise InvalidSettings(error.message, step=head.step, path=error.path) from None


SMALL_BYTES: Final = 512 * 1024  # bytes of a gradient, and of the parameters
TENSORS: Final = 64  # each may want an update, scalars and a place in the record of its own: 40 µs in Python
SAME_KERNEL: Final = {"lr", "schedule", "gradient_scale", "clip_norm"}  # settings whose change needs no other kernel
OTHER_KERNEL: Final = {
    "clip_value",
    "lower",
    "upper",
    "ema_decay",
    "groups",
}  # settings for which even Adam needs another kernel


def is_small(hot: Hot, step: ReceivedStep) -> bool:
    """Say whether a step is small enough for the event loop, and waits for no compiler."""
    if hot.loaded is None or may_compile(hot.loaded.settings, step):
        return False
    spec = hot.loaded.head.spec  # by the whole vector: the answer has all of it, however few tensors the gradient names
    if len(spec.layout.tensors) > TENSORS:
        return False
    return max(spec.layout.size * ITEMSIZE[spec.dtype], step.body.buffer.nbytes) <= SMALL_BYTES


def may_compile(settings: Settings, step: ReceivedStep) -> bool:
    """Say whether a step's settings may need a kernel that was not compiled with the session."""
    if not step.call.settings or step.call.settings.keys() <= SAME_KERNEL:
        return False
    return settings.optimizer.name not in WARM or not step.call.settings.keys().isdisjoint(OTHER_KERNEL)
