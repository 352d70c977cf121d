"""The engine: admission, locks and tasks; it decides whether a step runs on the event loop or in a thread.

A call's critical section is a task of its own, shielded from the caller's cancellation: a client that goes away
after its record was committed leaves a session that is whole.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import structlog

from adamd.errors import (
    AdamdError,
    Busy,
    RoundsOnly,
    SessionExists,
    ShuttingDown,
    StoreUnavailable,
    TooLarge,
    Unavailable,
)
from adamd.wire.buffers import BufferPool
from adamd_service.engine import admission
from adamd_service.engine.admission import Budget, Limits, WaitingRoom
from adamd_service.engine.answers import Copies
from adamd_service.engine.cache import Hot, HotSessions, LoadedSession, is_finite
from adamd_service.engine.calls import (
    Answer,
    CreateCall,
    Exported,
    Floats,
    RequestBody,
    SessionView,
    StepCall,
    step_in_errors,
)
from adamd_service.engine.directory import Directory
from adamd_service.engine.lifecycle import Lifecycle, check_create, first_head, memory_hot, require_unfixed, state_of
from adamd_service.engine.readiness import LIFE, Readiness
from adamd_service.engine.rebuilding import Rebuilder, settings_of
from adamd_service.engine.receiving import receive_all
from adamd_service.engine.rounds import RoundsService
from adamd_service.engine.rounds.surroundings import Surroundings
from adamd_service.engine.snapshots import Snapshots
from adamd_service.engine.step import ReceivedStep, Stepper, is_small
from adamd_service.engine.uploads import INLINE_BODY_BYTES, Uploads, flat_parameters
from adamd_service.engine.watching import Watchers, WatchEvent
from adamd_service.engine.workers import Workers
from adamd_service.optim import Cpu, Device, Settings, State
from adamd_service.records import Broken, Head, IdempotencyKey, Spec
from adamd_service.rules import foresee
from adamd_service.store import RedisStore

T = TypeVar("T")
TENANT = "default"
READY = 2.0  # seconds that the store may take for an answer to whoever asks about readiness
SNAPSHOTS = 2  # written at once: each is a second copy of a state, and takes a thread
log = structlog.get_logger()


class Engine:
    """Serves sessions. One per process; any number of processes share one store.

    Args:
        store: where everything durable lies.
        limits: the bounds.
        replica: this process's id; it is part of its memory sessions' ids.
        device: where states live and are updated; the CPU, if None.

    """

    def __init__(self, store: RedisStore, limits: Limits, replica: str, device: Device | None = None) -> None:
        self.store = store
        self.limits = limits
        self.replica = replica
        self.pool = BufferPool(limits.idle_buffers)
        self.in_flight = Budget(limits.in_flight, "bodies and answers in flight")
        self.waiting = WaitingRoom(limits.waiting)
        self.hot = HotSessions(limits.hot, limits.memory_sessions)
        self.draining = False
        self.out_of_descriptors = False
        self._snapshotting = 0
        self.device = device or Cpu()
        updates = threading.Semaphore(self.device.parallel or limits.kernels)
        self._workers = Workers(limits.threads)
        self._directory = Directory(store, self.hot, self._workers, replica, TENANT)
        self._rebuilder = Rebuilder(store, self.device, self.pool)
        self._copies = Copies(self.pool, self.device)
        self._stepper = Stepper(
            store, self._rebuilder, self.device, updates, self._copies, self._workers, INLINE_BODY_BYTES
        )
        self._lifecycle = Lifecycle(store, self._rebuilder, self.device)
        self._snapshots = Snapshots(
            store,
            self.pool,
            self.device,
            ratio=limits.snapshot_ratio,
            records=limits.snapshot_records,
            pace=limits.snapshot_pace,
        )
        self._readiness = Readiness(partial(self._workers.look, store.ready, replica, LIFE))
        self._watchers = Watchers(store, self.hot, self._workers, self._refuse_when_draining)
        self._uploads = Uploads(store, self.pool, self._workers, limits, self._is_draining)
        self.rounds = RoundsService(
            Surroundings(
                store=store,
                replica=replica,
                workers=self._workers,
                hot=self.hot,
                pool=self.pool,
                in_flight=self.in_flight,
                device=self.device,
                rebuilder=self._rebuilder,
                stepper=self._stepper,
                uploads=self._uploads,
                watchers=self._watchers,
                lanes=limits.kernels,
                locked=self._locked,
                stepped=self._snapshot_if_due,
                draining=self._is_draining,
                refuse_when_draining=self._refuse_when_draining,
            ),
            self._directory,
        )

    # -- sessions

    async def create(self, call: CreateCall) -> SessionView:
        """Make a session; see `Lifecycle.create` for what is refused."""
        self._refuse_when_draining()
        settings = check_create(call)
        admission.check_state_size(call, settings, self.limits)
        key = None if call.key is None else IdempotencyKey(call.key, call.digest)
        repeated = self._directory.repeated(key)
        if repeated is not None:
            return repeated
        state = await self._workers.run(state_of, call, settings, self.device)
        if call.durability == "memory":
            head = first_head(call, settings, state, f"m_{self.replica}_{secrets.token_hex(10)}")
            return _created(await self._create_memory(head, settings, state, key))
        self._directory.require_free(call.name)
        head = first_head(call, settings, state, f"s_{secrets.token_hex(10)}")
        create = partial(self._lifecycle.create, restored=call.saved is not None)
        view = await self._workers.guard(self._workers.ask(create, head, state, key))
        if state is not None and not view.repeated:
            self._keep(view, state, diverged=not await self._workers.run(is_finite, state))
        return _created(view)

    def _keep(self, view: SessionView, state: State, *, diverged: bool) -> None:
        """Keep a new session in memory where there is room, so that its first step reads nothing back."""
        spec = view.head.spec
        with suppress(Busy, TooLarge), self.hot.use(spec.id) as hot:
            if hot.loaded is None and not hot.lock.locked():  # else somebody was quicker
                self.hot.charge(hot, admission.state_bytes(spec, view.settings))
                hot.loaded = LoadedSession(view.head, view.settings, state, diverged=diverged)

    async def _create_memory(
        self, head: Head, settings: Settings, state: State | None, key: IdempotencyKey | None
    ) -> SessionView:
        spec = head.spec
        hot, loaded = await self._workers.run(memory_hot, head, settings, state)
        try:
            await self._directory.claim(spec.name)
        except SessionExists:
            repeated = self._directory.repeated(key)  # the same creation, sent twice at once
            if repeated is None:
                raise
            return repeated
        repeated = self._directory.repeated(key)
        if repeated is not None:
            return repeated
        self.hot.add_memory(hot, admission.state_bytes(spec, settings))
        self._directory.add(hot, spec.name, key)
        return SessionView(head, settings, loaded.diverged)

    async def view(self, ref: str) -> SessionView:
        """Return a session as it stands in the store."""
        with self.hot.use(await self._directory.resolve(ref)) as hot:
            # A copy, made under the lock: the next step changes all of it.
            loaded = await self._locked(hot, lambda: replace(self._rebuilder.current(hot)))
            metrics = loaded.metrics
            if metrics is None:  # the step was not taken here
                metrics = await self._watchers.measured(loaded.head) if hot.durable else {}
            return SessionView(loaded.head, loaded.settings, loaded.diverged, metrics=metrics)

    async def list(self, page_size: int, after: str | None) -> tuple[list[Head | Broken], str | None]:
        """Return a page of heads, oldest first, and the token of the next page; of `memory` sessions this replica's."""
        heads, token = await self._workers.ask(self.store.list_sessions, TENANT, page_size, after)
        return self._directory.with_memory(heads, page_size, after, token)

    async def patch(
        self,
        ref: str,
        optimizer: Mapping[str, Any] | None,
        labels: Mapping[str, str] | None,
        if_match: str | None = None,
        rounds: object = None,
    ) -> SessionView:
        """Change settings from the next step on, labels, and ``rounds["config"]``.

        See `Lifecycle.patch` for what is refused.
        """
        self._refuse_when_draining()
        with self.hot.use(await self._directory.resolve(ref)) as hot:
            view = await self._locked(hot, self._lifecycle.patch, hot, optimizer, labels, if_match, rounds)
            self._watchers.moved(hot.id)
            log.debug("session changed", session=hot.id, step=view.head.step, revision=view.head.settings_revision)
            return view

    async def delete(self, ref: str, if_match: str | None = None) -> None:
        """End a session; its name is free, it answers 410 for a day. See `Lifecycle.end` for what is refused."""
        self._refuse_when_draining()
        session_id = await self._directory.resolve(ref)
        with self.hot.use(session_id) as hot:
            await self._locked(hot, self._lifecycle.end, hot, if_match, charged=False)  # a damaged session cannot be
            if hot.durable:
                self._workers.spawn(self._collect(session_id))
            self._directory.forget(hot)
            self.hot.forget(hot)
            self._watchers.moved(session_id)
            log.debug("session deleted", session=session_id)

    async def _collect(self, session_id: str) -> None:
        try:
            await self._workers.ask(self.store.collect, session_id)
        except AdamdError as error:
            log.warning("garbage is left for later", session=session_id, reason=error.detail)

    async def set_parameters(
        self, ref: str, body: RequestBody, dtype: str | None, decode: Callable[[memoryview, Spec], Floats] | None
    ) -> SessionView:
        """Set the parameters before step 1. Without ``decode`` the body is the flat vector itself, in ``dtype``."""
        self._refuse_when_draining()
        with self.hot.use(await self._directory.resolve(ref)) as hot:
            head = (await self._loaded(hot)).head
            if head.step > 0:  # refused before the body is read, but not on the word of a cache
                require_unfixed((await self._locked(hot, self._rebuilder.current, hot)).head)
            with step_in_errors(head):
                limit = self._uploads.most_parameters(head.spec, body, dtype, flat=decode is None)
                with self.in_flight.hold(body.weight * (limit if body.declared is None else body.declared)):
                    raw = await receive_all(body, limit, self.pool, self.limits.upload_gap, self._is_draining)
                    read = decode or partial(flat_parameters, dtype=dtype)
                    flat = await self._workers.run(read, memoryview(raw), head.spec)
                view = await self._locked(hot, self._lifecycle.set_parameters, hot, flat)
                if hot.durable:  # the parameters before these are garbage now
                    self._workers.spawn(self._collect(hot.id))
                self._watchers.moved(hot.id)
                return view

    async def parameters(self, ref: str, answer_dtype: str | None = None, at: str | None = None) -> Answer:
        """Return a copy of the current parameters, rounded to ``answer_dtype`` where one is given.

        ``at``: "average" asks for those to evaluate, where the optimizer has them beside those to step from.

        Raises:
            WrongDtype: it is wider than the session's.
            InvalidRequest: the session's optimizer has none ``at`` that.

        """

        def copy(hot: Hot) -> Answer:
            loaded = self._require_parameters(hot)
            spec = loaded.head.spec
            nbytes = admission.parameter_bytes(spec, answer_dtype)
            if at is not None:  # made in the session's dtype before it is rounded
                nbytes += admission.parameter_bytes(spec, None)
            with self.in_flight.hold(nbytes) as hold:
                answer = self._copies.answer(loaded, answer_dtype=answer_dtype, at=at)
                hold.leave(answer.parameters)
                return answer

        with self.hot.use(await self._directory.resolve(ref)) as hot:
            return await self._locked(hot, copy, hot)

    async def export(self, ref: str) -> Exported:
        """Return a copy of the whole state."""

        def copy(hot: Hot) -> Exported:
            loaded = self._require_parameters(hot)
            with self.in_flight.hold(admission.state_bytes(loaded.head.spec, loaded.settings)) as hold:
                copied = self._snapshots.copy(hot)
                for array in copied.state.kept.values():
                    hold.leave(array)
                return Exported(
                    copied.head, loaded.settings, tuple(copied.state.counts), copied.state.numbers, copied.state.kept
                )

        with self.hot.use(await self._directory.resolve(ref)) as hot:
            exported = await self._locked(hot, copy, hot)
            if exported.head.spec.rounds is None:
                return exported
            spec = await self._workers.ask(self.rounds.exported, exported.head)
            return replace(exported, head=replace(exported.head, spec=spec))

    @asynccontextmanager
    async def read_body(self, body: RequestBody) -> AsyncGenerator[memoryview]:
        """Receive a whole body; its share of the budget is held while it is used.

        Raises:
            TooLarge: by what is declared, or by counting.

        """
        most = min(body.limit or self.limits.body, self.limits.body)
        if body.declared is not None and body.declared > most:
            raise TooLarge(f"a body of {body.declared} bytes; at most {most} are accepted here")
        with self.in_flight.hold(body.weight * (most if body.declared is None else body.declared)):
            read = await receive_all(body, most, self.pool, self.limits.upload_gap, self._is_draining)
            yield memoryview(read)

    def _require_parameters(self, hot: Hot) -> LoadedSession:
        """Bring the cache up to the store; raise ParametersMissing where there are none yet."""
        loaded = self._rebuilder.current(hot)
        blocked = foresee(loaded.head, None, None)
        if blocked is not None:
            raise blocked
        return loaded

    # -- steps

    async def step(self, call: StepCall) -> Answer:
        """Take one step: refuse what can be refused, receive, then decide, commit, apply and answer.

        Raises:
            AdamdError: any of the tree's; nothing has changed.

        """
        self._refuse_when_draining()
        with self.hot.use(await self._directory.resolve(call.ref)) as hot:
            head = await self._foreseen(hot, call)
            with step_in_errors(head):
                expected = self._uploads.expected(head, call)
                answer_nbytes = admission.answer_bytes(head.spec, call)
                with self.in_flight.hold(expected * call.body.weight + answer_nbytes) as hold:
                    step = await self._uploads.receive(hot, head, call, expected)
                    answer = await self._run_on_loop_or_in_thread(hot, step)
                    hold.leave(answer.parameters)
            self._watchers.moved(hot.id)
            self._snapshot_if_due(hot)
            return answer

    async def _foreseen(self, hot: Hot, call: StepCall) -> Head:
        """Refuse before the body is read; but never on the word of a cache that may be behind the store."""

        def refusal(loaded: LoadedSession) -> AdamdError | None:
            if loaded.head.spec.rounds is not None:
                return RoundsOnly(
                    "this session takes contributions to rounds, no plain steps: ask for a task as one of its clients "
                    "(GET …/rounds/current; in the SDK client.federation)",
                    step=loaded.head.step,
                )
            if call.number is None:  # a repeated POST is answered by its key, whatever has become of the session
                return foresee(loaded.head, None, None)
            return foresee(loaded.head, call.number, call.if_match, diverged=loaded.diverged)

        loaded = await self._loaded(hot)
        if refusal(loaded) is not None:
            loaded = await self._locked(hot, self._rebuilder.current, hot)
            error = refusal(loaded)
            if error is not None:
                raise error
        return loaded.head

    async def _run_on_loop_or_in_thread(self, hot: Hot, step: ReceivedStep) -> Answer:
        if hot.lock.locked() or not (self.device.inline and is_small(hot, step)):
            return await self._locked(hot, self._stepper.run, hot, step)
        if hot.durable:
            return await self._workers.guard(self._run_on_loop(hot, step))
        async with hot.lock:  # free, so this does not wait: the whole step happens in this turn of the loop
            return self._stepper.run_in_turn(hot, step)

    async def _run_on_loop(self, hot: Hot, step: ReceivedStep) -> Answer:
        if self.store.lines.should_grow:
            self._workers.spawn(self.store.lines.grow(self._workers.ask))
        async with hot.lock:
            # Checked again under the lock: another step may have changed the session. A step that needs a thread (for
            # its key, or to commit) waits for it now, before it holds a record.
            if step.call.key is None and is_small(hot, step) and self.store.lines.at_hand:
                return await self._stepper.run_on_loop(hot, step)
            return await self._workers.ask(self._stepper.run, hot, step)

    async def watch(self, ref: str) -> AsyncGenerator[WatchEvent]:
        """Yield where a session stands: at once, and whenever it has moved; steps in quick succession make one event.

        Raises:
            UnknownSession, SessionDeleted: there is none, or no more.
            ShuttingDown: the server goes down.

        """
        async with aclosing(self._watchers.watch(await self._directory.resolve(ref))) as events:
            async for event in events:
                yield event

    # -- snapshots

    def _snapshot_if_due(self, hot: Hot) -> None:
        # A session that finds no place is due again at its next step.
        if self._snapshotting < SNAPSHOTS and self._snapshots.due(hot) and not self.draining:
            hot.snapshotting = True
            self._snapshotting += 1
            self._workers.spawn(self._snapshot(hot))

    async def _snapshot(self, hot: Hot) -> None:
        try:
            with self.hot.use(hot.id) as same:
                if same is hot and await self._locked(hot, self._snapshots.still_due, hot):
                    copied = await self._locked(hot, self._snapshots.copy, hot)
                    await self._workers.ask(self._snapshots.write, copied, partial(self._pointless, hot))
                    await self._locked(hot, self._snapshots.still_due, hot)  # what the store says now
        except (AdamdError, InterruptedError) as error:
            log.warning("snapshot given up", session=hot.id, reason=str(error))
        finally:
            hot.snapshotting = False
            self._snapshotting -= 1

    def _pointless(self, hot: Hot) -> str:
        """Return the reason to give up a snapshot under way; "" if there is none."""
        if self.draining:
            return "the server is shutting down"
        return "" if self.hot.find(hot.id) is hot else "the session is deleted"  # pinned, so not evicted

    # -- locking

    async def _loaded(self, hot: Hot) -> LoadedSession:
        """Return what the cache has; fill it first where it is empty."""
        if hot.loaded is not None:
            return hot.loaded
        head = await self._room(hot)
        return await self._locked(hot, self._rebuilder.current, hot, head)

    async def _locked(self, hot: Hot, work: Callable[..., T], *args: Any, charged: bool = True) -> T:
        """Run ``work`` in a thread under the session's lock, to its end even if the caller goes away."""
        run = self._workers.ask if hot.durable else self._workers.run

        async def section() -> T:
            async with hot.lock:
                return await run(work, *args)

        if charged:
            await self._room(hot)
        if hot.lock.locked():
            return await self._workers.guard(section())
        await hot.lock.acquire()  # free: without a task of its own, which takes several turns of the loop
        return await run(work, *args, after=hot.lock.release)

    async def _room(self, hot: Hot) -> Head | None:
        """Charge a session's state before it is loaded (law 6); returns its head, where it was read for that."""
        if not hot.durable or hot.charged:
            return None
        head = await self._workers.ask(self.store.load_head, hot.id)
        self.hot.charge(hot, admission.state_bytes(head.spec, settings_of(head)))
        return head

    # -- bounds and shutdown

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise ShuttingDown("the server is shutting down; try again, at this address", retry_after=1.0)

    def _is_draining(self) -> bool:
        return self.draining

    async def ready(self) -> None:
        """Raise where a step could not be committed: the server drains, or the store takes no write or promises less.

        What the last `readiness.FRESH` seconds said counts; else a key is written: the sign of life to other replicas.
        """
        self._refuse_when_draining()
        if self.out_of_descriptors:
            raise Unavailable(
                "file descriptors are used up, new connections are refused; raise their limit", retry_after=1.0
            )
        try:
            async with asyncio.timeout(READY):
                await self._readiness.check()
        except TimeoutError:
            raise StoreUnavailable(f"the store has not answered for {READY:g} s", retry_after=1.0) from None

    @property
    def bulk_bytes(self) -> tuple[int, int]:
        """The bytes of all extents in the bulk directory, and of the free ones among them."""
        files = self.store.bulk.files
        return (0, 0) if files is None else (files.total_bytes, files.free_bytes)

    async def keep_house(self) -> None:
        """Give a sign of life, and raise as `ready`; sweep what deleted sessions left."""
        await self._workers.ask(self.store.give_back)  # first: the sign of life needs room
        await self._readiness.check()
        await self._workers.ask(self.store.sweep, TENANT)
        await self.rounds.keep_house(TENANT)

    async def close(self) -> None:
        """Wait for the work that has begun, and close the store."""
        self.draining = True
        self.rounds.stop()
        await self._workers.close()
        self.store.close()


def _created(view: SessionView) -> SessionView:
    spec = view.head.spec
    log.debug(
        "session created",
        session=spec.id,
        name=spec.name,
        durability=spec.durability,
        elements=spec.layout.size,
        dtype=spec.dtype,
        repeated=view.repeated,
    )
    return view
