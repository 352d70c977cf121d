"""The asynchronous shell: admission, locks, threads and tasks around the synchronous work.

A call's critical section is a task of its own, shielded from the caller's cancellation: a client that goes away
after its record was committed leaves a session that is whole.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from adamd.errors import (
    AdamdError,
    SessionExists,
    ShuttingDown,
    TooLarge,
    UnknownSession,
    WrongLength,
    WrongReplica,
)
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import ITEMSIZE, check_widens
from adamd_service.engine.admission import Budget
from adamd_service.engine.calls import Answer, Body, CreateCall, Exported, Floats, Gradient, StepCall, View
from adamd_service.engine.hot import Hot, HotSessions
from adamd_service.engine.intake import INLINE, Reception, receive_all, receive_exactly
from adamd_service.engine.lifecycle import Lifecycle, check_create, first_head, memory_hot, state_of
from adamd_service.engine.rebuild import Rebuilder
from adamd_service.engine.snapshots import Copy, Snapshots
from adamd_service.engine.steps import Step, Stepper
from adamd_service.optim import FusedKernel, Kernel, State
from adamd_service.records import Head, IdempotencyKey, Spec
from adamd_service.session import digest_start, foresee
from adamd_service.store import RedisStore

T = TypeVar("T")
TENANT = "default"
INLINE_BODY = 256 * 1024  # a body up to this travels inside the commit; larger ones are staged in chunks
SMALL_STEP = 64 * 1024  # a memory step up to this is done on the event loop: a thread's hop would cost more
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of law 7, in bytes unless named otherwise."""

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


class Engine:
    """Serves sessions. One per process; any number of processes share one store.

    Args:
        store: where everything durable lies.
        limits: the bounds.
        replica: this process's id; it is part of its memory sessions' ids.

    """

    def __init__(self, store: RedisStore, limits: Limits, replica: str, kernel: Kernel | None = None) -> None:
        self.store = store
        self.limits = limits
        self.replica = replica
        self.pool = BufferPool(limits.idle_buffers)
        self.in_flight = Budget(limits.in_flight, "bodies and answers in flight")
        self.hot = HotSessions(limits.hot, limits.memory_sessions)
        self.draining = False
        chosen = kernel or FusedKernel()
        self._threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="adamd")
        self._rebuilder = Rebuilder(store, chosen, self.pool)
        self._stepper = Stepper(
            store, self._rebuilder, chosen, threading.Semaphore(limits.kernels), self.pool, INLINE_BODY
        )
        self._lifecycle = Lifecycle(store, self._rebuilder)
        self._snapshots = Snapshots(
            store,
            self.pool,
            ratio=limits.snapshot_ratio,
            records=limits.snapshot_records,
            pace=limits.snapshot_pace,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._memory_names: dict[str, str] = {}

    # -- sessions

    async def create(self, call: CreateCall) -> View:
        """Make a session; see `Lifecycle.create` for what is refused."""
        self._refuse_when_draining()
        settings = check_create(call)
        self._check_size(call, settings.amsgrad)
        state = await self._thread(state_of, call, settings)
        if call.durability == "memory":
            head = first_head(call, settings, state, f"m_{self.replica}_{_token()}")
            return await self._create_memory(head, state)
        head = first_head(call, settings, state, f"s_{_token()}")
        if call.name is not None and call.name in self._memory_names:
            raise SessionExists(
                f"the name {call.name!r} is taken by a memory session", id=self._memory_names[call.name]
            )
        key = None if call.key is None else IdempotencyKey(call.key, call.digest)
        return await self._guard(self._thread(self._lifecycle.create, head, state, key))

    async def view(self, ref: str) -> View:
        """Return a session as it stands in the store."""
        async with self._current(ref) as hot:
            assert hot.head is not None
            return View(hot.head, hot.diverged)

    async def list(self, page_size: int, after: str | None) -> tuple[list[Head], str | None]:
        """Return a page of heads, and the token of the next page; the first page begins with memory sessions."""
        heads, token = await self._thread(self.store.list_sessions, TENANT, page_size, after)
        if after is None:
            heads = [hot.head for hot in self.hot.memory_sessions() if hot.head is not None] + heads
        return heads, token

    async def patch(self, ref: str, optimizer: Mapping[str, Any] | None, labels: Mapping[str, str] | None) -> View:
        """Change settings from the next step on, and labels."""
        self._refuse_when_draining()
        with self._use(await self._resolve(ref)) as hot:
            return await self._locked(hot, self._lifecycle.patch, hot, optimizer, labels)

    async def delete(self, ref: str) -> None:
        """End a session; its name is free, it answers 410 for a day."""
        self._refuse_when_draining()
        session_id = await self._resolve(ref)
        with self._use(session_id) as hot:
            if hot.durable:
                await self._locked(hot, self.store.delete, session_id)
                self._spawn(self._thread(self.store.collect, session_id))
            self._memory_names = {n: i for n, i in self._memory_names.items() if i != session_id}
            self.hot.forget(hot)

    async def set_parameters(self, ref: str, body: Body, dtype: str | None, decode: Callable[..., Floats]) -> View:
        """Set the parameters before step 1."""
        self._refuse_when_draining()
        with self._use(await self._resolve(ref)) as hot:
            spec = (await self._known(hot)).spec
            with self.in_flight.hold(self._declared(body)):
                raw = await receive_all(body, self.limits.body, self.pool, self.limits.upload_gap, self._is_draining)
                flat = await self._thread(decode, memoryview(raw), spec, dtype)
            return await self._locked(hot, self._lifecycle.set_parameters, hot, flat)

    async def parameters(self, ref: str) -> Answer:
        """Return a copy of the current parameters."""
        async with self._current(ref) as hot:
            assert hot.head is not None
            blocked = foresee(hot.head, None, None)
            if blocked is not None:
                raise blocked
            return await self._thread(self._stepper.answer, hot)

    async def export(self, ref: str) -> Exported:
        """Return a copy of the whole state."""
        async with self._current(ref) as hot:
            head = hot.head
            assert head is not None
            blocked = foresee(head, None, None)
            if blocked is not None:
                raise blocked
            copied = await self._thread(self._snapshots.copy, hot)
            assert copied is not None
            return Exported(head, tuple(copied.state.counts), copied.state.arrays)

    # -- steps

    async def step(self, call: StepCall) -> Answer:
        """Take one step: refuse what can be refused, receive, then decide, commit, apply and answer.

        Raises:
            AdamdError: any of the tree's; nothing has changed.

        """
        self._refuse_when_draining()
        with self._use(await self._resolve(call.ref)) as hot:
            head = await self._foreseen(hot, call)
            expected = self._expected(head, call)
            with self.in_flight.hold(expected + head.spec.layout.size * ITEMSIZE[head.spec.dtype]):
                step = await self._receive(hot, head, call, expected)
                answer = await self._finish(hot, step)
            self._snapshot_if_due(hot)
            return answer

    async def _foreseen(self, hot: Hot, call: StepCall) -> Head:
        """Refuse before the body is read; but never on the word of a cache that may be behind the store."""
        head = await self._known(hot)
        if foresee(head, call.number, call.if_match, diverged=hot.diverged) is not None:
            head = await self._locked(hot, self._rebuilder.current, hot)
            error = foresee(head, call.number, call.if_match, diverged=hot.diverged)
            if error is not None:
                raise error
        return head

    def _expected(self, head: Head, call: StepCall) -> int:
        """Return the body's length in bytes, where it must be known; else the most that it may have."""
        spec, declared = head.spec, call.body.declared
        if call.decode is not None:
            limit = min(self.limits.body, call.body_limit or self.limits.body)
            if declared is not None and declared > limit:
                raise TooLarge(f"a body of {declared} bytes; at most {limit} are accepted here", step=head.step)
            return limit if declared is None else declared
        dtype = call.dtype or spec.dtype
        check_widens(dtype, spec.dtype)
        expected = spec.layout.size * ITEMSIZE[dtype]
        if expected > self.limits.body:
            raise TooLarge(f"a gradient of {expected} bytes; at most {self.limits.body} are accepted", step=head.step)
        if declared is not None and declared != expected:
            raise WrongLength(_explain(declared, dtype, spec, expected), step=head.step)
        return expected

    async def _receive(self, hot: Hot, head: Head, call: StepCall, expected: int) -> Step:
        attempt = secrets.token_hex(8)
        if call.decode is not None:
            raw = await receive_all(call.body, expected, self.pool, self.limits.upload_gap, self._is_draining)
            gradient = await self._decode(call.decode, raw, head.spec)
            return await self._taken(hot, head, call, gradient, attempt)
        dtype = call.dtype or head.spec.dtype
        staging = None
        if hot.durable and expected > INLINE_BODY and call.number in (None, head.step + 1):
            staging = await self._thread(self.store.stage, hot.id, attempt, expected)
        reception = Reception(
            head.spec, dtype, self.pool.lease(expected), digest_start(dtype, None, call.settings), staging
        )
        chunks = None
        try:
            await receive_exactly(call.body, reception, self._threads, self.limits.upload_gap, self._is_draining)
            if staging is not None:
                chunks = await self._thread(staging.finish)
        except BaseException as error:
            if staging is not None:
                staging.abort()
            if isinstance(error, AdamdError) and error.step is None:
                error.step = head.step
            raise
        return _step(call, reception, None, call.settings, call.metrics, attempt, chunks)

    async def _decode(self, decode: Callable[[memoryview, Spec], Gradient], raw: Bytes, spec: Spec) -> Gradient:
        if raw.nbytes <= INLINE:
            return decode(memoryview(raw), spec)
        return await self._thread(decode, memoryview(raw), spec)

    async def _taken(self, hot: Hot, head: Head, call: StepCall, gradient: Gradient, attempt: str) -> Step:
        """Hash and check a gradient that had to be decoded first; it is logged when it is committed."""
        check_widens(gradient.dtype, head.spec.dtype)
        settings = call.settings if gradient.settings is None else gradient.settings
        metrics = call.metrics if gradient.metrics is None else gradient.metrics
        digest = digest_start(gradient.dtype, gradient.present, settings)
        reception = Reception(head.spec, gradient.dtype, gradient.data, digest, None)
        if gradient.data.nbytes <= INLINE:
            reception.take(gradient.data.nbytes)
        else:
            await self._thread(reception.take, gradient.data.nbytes)
        return _step(call, reception, gradient.present, settings, metrics, attempt, None)

    async def _finish(self, hot: Hot, step: Step) -> Answer:
        small = not hot.durable and step.reception.buffer.nbytes <= SMALL_STEP
        if small and not hot.lock.locked():
            async with hot.lock:  # free, so this does not wait: the whole step happens in this turn of the loop
                return self._stepper.run(hot, step)
        return await self._locked(hot, self._stepper.run, hot, step)

    # -- snapshots

    def _snapshot_if_due(self, hot: Hot) -> None:
        if self._snapshots.due(hot) and not self.draining:
            hot.snapshotting = True
            self._spawn(self._snapshot(hot))

    async def _snapshot(self, hot: Hot) -> None:
        try:
            copied: Copy | None = None
            async with hot.lock:
                copied = await self._thread(self._snapshots.copy, hot)
            if copied is None:
                return
            if await self._thread(self._snapshots.write, copied, self._is_draining):
                hot.snapshot_step = copied.head.step
                hot.log_bytes -= copied.covered
        except (AdamdError, InterruptedError) as error:
            log.warning("snapshot given up", session=hot.id, reason=str(error))
        finally:
            hot.snapshotting = False

    # -- finding, locking, threads

    async def _resolve(self, ref: str) -> str:
        """Turn an id or a name into an id. Ids have an underscore, names cannot."""
        if ref in self._memory_names:
            return self._memory_names[ref]
        if ref.startswith("m_"):
            if self.hot.find(ref) is None:
                await self._elsewhere(ref)
            return ref
        if ref.startswith("s_") and ref[2:].isalnum() and ref.isascii() and len(ref) <= 64:
            return ref
        return await self._thread(self.store.find, TENANT, ref)

    async def _elsewhere(self, ref: str) -> None:
        replica = ref.split("_")[1]
        if replica != self.replica and await self._thread(self.store.replica_alive, replica):
            raise WrongReplica(f"session {ref} lives in the memory of replica {replica}; this is {self.replica}")
        raise UnknownSession(f"there is no session {ref!r}; a memory session ends with its process")

    def _use(self, session_id: str) -> Any:
        return self.hot.use(session_id)

    async def _known(self, hot: Hot) -> Head:
        """Return the head that the cache knows; fill the cache first where it is empty."""
        if hot.head is None:
            return await self._locked(hot, self._load, hot)
        return hot.head

    def _load(self, hot: Hot) -> Head:
        return self._rebuilder.current(hot)

    @asynccontextmanager
    async def _current(self, ref: str) -> AsyncIterator[Hot]:
        """Hold a session's lock with its cache as new as the store."""
        with self._use(await self._resolve(ref)) as hot:
            await self._room(hot)
            async with hot.lock:
                await self._guard(self._thread(self._rebuilder.current, hot))
                yield hot

    async def _locked(self, hot: Hot, work: Callable[..., T], *args: Any) -> T:
        """Run ``work`` in a thread under the session's lock, to its end even if the caller goes away."""
        await self._room(hot)

        async def section() -> T:
            async with hot.lock:
                return await self._thread(work, *args)

        return await self._guard(section())

    async def _room(self, hot: Hot) -> None:
        """Charge a session's state before it is loaded (law 6)."""
        if hot.durable and not hot.charged:
            spec, settings = await self._thread(self.store.load_spec, hot.id)
            self.hot.charge(hot, _state_bytes(spec.layout.size, spec.dtype, settings.get("amsgrad") is True))

    async def _guard(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_observed)
        return await asyncio.shield(task)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_observed)

    async def _thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    # -- bounds and shutdown

    def _declared(self, body: Body) -> int:
        if body.declared is not None and body.declared > self.limits.body:
            raise TooLarge(f"a body of {body.declared} bytes; at most {self.limits.body} are accepted")
        return self.limits.body if body.declared is None else body.declared

    def _check_size(self, call: CreateCall, amsgrad: bool) -> None:
        nbytes = _state_bytes(call.layout.size, call.dtype, amsgrad)
        limit = self.limits.memory_sessions if call.durability == "memory" else self.limits.hot
        if nbytes > limit:
            raise TooLarge(f"a state of {nbytes} bytes; this server keeps at most {limit} in memory")

    async def _create_memory(self, head: Head, state: State | None) -> View:
        spec = head.spec
        if spec.name is not None:
            await self._name_is_free(spec.name)
        hot = memory_hot(head, state)
        amsgrad = head.settings.get("amsgrad") is True
        self.hot.add_memory(hot, _state_bytes(spec.layout.size, spec.dtype, amsgrad))
        if spec.name is not None:
            self._memory_names[spec.name] = hot.id
        return View(head, hot.diverged)

    async def _name_is_free(self, name: str) -> None:
        taken = self._memory_names.get(name)
        if taken is None:
            with suppress(AdamdError):
                taken = await self._thread(self.store.find, TENANT, name)
        if taken is not None:
            raise SessionExists(f"the name {name!r} is taken by session {taken}", id=taken)

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise ShuttingDown("the server is shutting down; try again, at this address", retry_after=1.0)

    def _is_draining(self) -> bool:
        return self.draining

    async def ready(self) -> None:
        """Raise where sessions cannot be served: the server is draining, or the store does not answer."""
        self._refuse_when_draining()
        await self._thread(self.store.ping)

    async def announce(self, ttl: float) -> None:
        """Tell the other replicas that this one lives for ``ttl`` seconds more."""
        await self._thread(self.store.announce, self.replica, ttl)

    async def close(self) -> None:
        """Finish what was committed, give up what was not begun, and let the store go."""
        self.draining = True
        for group in (self._tasks, self._background):
            if group:
                await asyncio.wait(group)
        self._threads.shutdown(wait=True)
        self.store.close()


def _step(
    call: StepCall,
    reception: Reception,
    present: tuple[int, ...] | None,
    settings: Mapping[str, Any] | None,
    metrics: Mapping[str, Any],
    attempt: str,
    chunks: tuple[int, ...] | None,
) -> Step:
    return Step(
        number=call.number,
        reception=reception,
        present=present,
        settings=settings,
        metrics=metrics,
        if_match=call.if_match,
        key=call.key,
        minimal=call.minimal,
        attempt=attempt,
        chunks=chunks,
    )


def _state_bytes(size: int, dtype: str, amsgrad: bool) -> int:
    return max(1, size * ITEMSIZE[dtype] * (4 if amsgrad else 3))


def _explain(declared: int, dtype: str, spec: Spec, expected: int) -> str:
    came = f"{declared} bytes"
    for other in ("float64", "float32", "float16"):
        if declared == spec.layout.size * ITEMSIZE[other]:
            came = f"{declared} bytes = {spec.layout.size} {other}"
            break
    size = spec.layout.size
    return f"{came}; this session is {spec.dtype} and a {dtype} gradient has {size} elements ({expected} bytes)"


def _token() -> str:
    return secrets.token_hex(10)


def _observed(task: asyncio.Task[Any]) -> None:
    """Look at the outcome, so that asyncio does not complain where the caller went away."""
    if not task.cancelled():
        task.exception()
