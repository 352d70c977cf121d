"""Closes rounds: freezes the members, has them aggregated, and makes one ordinary step of it.

Any replica may close a round, and several at once: freezing fixes the members, so all of them make the same bits, and
the commit decides whose they are. A round that its replica left frozen is gone on with by another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog

from adamd.errors import (
    AdamdError,
    BadGradient,
    Busy,
    Damaged,
    Diverged,
    SessionDeleted,
    StoreUnavailable,
    TooFewContributions,
    UnknownSession,
)
from adamd.wire.dtypes import Floats, storage
from adamd_service.aggregation import distance_bytes
from adamd_service.engine.cache import Hot
from adamd_service.engine.rounds.aggregating import FrozenRound, aggregate
from adamd_service.engine.rounds.surroundings import Surroundings
from adamd_service.engine.rounds.tally import Tally
from adamd_service.engine.rounds.values import held_bytes
from adamd_service.engine.workers import Workers
from adamd_service.records import Head
from adamd_service.rounds import (
    Failure,
    Frozen,
    KeptContribution,
    RoundDocument,
    RoundsSettings,
    Standing,
)
from adamd_service.rounds.documents import ClosedBy
from adamd_service.rounds.rules import deadline, due, last_round, needed
from adamd_service.store import ChunkMissing

TAKE_OVER: Final = 30.0  # seconds that a replica which lives may take for a round that it froze
# What no second try at the same members changes.
HOPELESS: Final = (BadGradient, Diverged, TooFewContributions)
NOT_TOLD: Final = "no step can be made of what came"  # of a private round, whose numbers are nobody's
FIRST_RETRY, LAST_RETRY = 0.5, 60.0  # seconds after which a closing that failed is tried again
log = structlog.get_logger()


class Closer:
    """Closes the rounds that are due, in the background. Used on the event loop only."""

    def __init__(
        self,
        around: Surroundings,
        settings_of: Callable[[Head], RoundsSettings],
        head_of: Callable[[str], Coroutine[Any, Any, Head]],
        tally: Tally,
    ) -> None:
        self._around = around
        self._settings_of = settings_of
        self._head_of = head_of
        self._tally = tally
        self._locks = WeakValueDictionary[str, asyncio.Lock]()
        self._under_way = set[str]()
        self._again = set[str]()
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._failures: dict[str, int] = {}

    def consider(self, head: Head, settings: RoundsSettings, standing: Standing) -> None:
        """Close the open round in the background where it is due, or when it will be."""
        session_id = head.spec.id
        if due(standing, settings) is not None:
            self.begin(session_id)
            return
        until = deadline(standing, settings)
        if until is not None and until > standing.now:
            self._set_timer(session_id, until - standing.now)

    def begin(self, session_id: str) -> None:
        """Look at a session, and close its round where it is due."""
        if session_id in self._under_way:
            self._again.add(session_id)  # what it has looked at may be older than what happened now
        elif session_id not in self._failures and not self._around.draining():
            self._under_way.add(session_id)
            self._around.workers.spawn(self._in_background(session_id))

    def stop(self) -> None:
        """Forget every deadline: the server goes down."""
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    async def _is_anothers(self, frozen: Frozen | None, now: float) -> bool:
        """Say whether another replica, as far as is known, is closing the round just now."""
        around = self._around
        if frozen is None or frozen.replica == around.replica or around.store.bulk.is_private:
            return False
        alone = 0 <= now - frozen.at < TAKE_OVER  # below 0: the store's clock went back
        return alone and await around.workers.ask(around.store.replica_alive, frozen.replica)

    def _set_timer(self, session_id: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds + 0.005  # the store's clock decides, and may be a little behind
        known = self._timers.get(session_id)
        if known is not None:
            if known[0] <= when:
                return
            known[1].cancel()
        self._timers[session_id] = when, loop.call_at(when, self._time_is_up, session_id)

    def _time_is_up(self, session_id: str) -> None:
        self._timers.pop(session_id, None)
        self._around.watchers.moved(session_id)  # it may be overdue now
        self.begin(session_id)

    async def _in_background(self, session_id: str) -> None:
        try:
            again = await self._close_due(session_id)
            self._failures.pop(session_id, None)
        except (UnknownSession, SessionDeleted, *HOPELESS):  # the last are told by the round, which has begun again
            again = False
        except Exception as error:
            self._retry_later(session_id, error)
            again = False
        finally:
            self._under_way.discard(session_id)
        if session_id in self._again or again:
            self._again.discard(session_id)
            self.begin(session_id)

    def _retry_later(self, session_id: str, error: Exception) -> None:
        if isinstance(error, AdamdError):
            log.warning("a round could not be closed, and is tried again", session=session_id, reason=error.detail)
        else:
            log.error("closing a round failed, and is tried again", session=session_id, exc_info=error)
        count = self._failures[session_id] = self._failures.get(session_id, 0) + 1
        if not self._around.draining():
            busy = isinstance(error, Busy)  # no failure, and others must not keep a round open by being many
            pause = FIRST_RETRY if busy else min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(count - 1, 30))
            asyncio.get_running_loop().call_later(pause, self._retry, session_id)

    def _retry(self, session_id: str) -> None:
        count = self._failures.pop(session_id, 0)
        self.begin(session_id)
        if session_id in self._under_way:
            self._failures[session_id] = count

    async def _close_due(self, session_id: str) -> bool:
        """Close the open round where it is due; True where the next one may be due already."""
        head = await self._head_of(session_id)
        settings = self._settings_of(head)
        standing = (await self._around.workers.ask(self._around.store.rounds.look, head)).standing
        why = due(standing, settings)
        if why is None:
            self.consider(head, settings, standing)
            return False
        if await self._is_anothers(standing.frozen, standing.now):
            return False
        return await self.close(head, settings, standing.number, why) is not None

    async def close(self, head: Head, settings: RoundsSettings, number: int, why: ClosedBy) -> RoundDocument | None:
        """Close round ``number``; None where it was not to be closed, or somebody else has moved the session on.

        Raises:
            TooFewContributions: fewer have come than the round needs.
            BadGradient, Diverged: its step cannot be made; what it has is dropped, and it begins again.

        """
        lock = self._locks.get(head.spec.id) or asyncio.Lock()
        self._locks[head.spec.id] = lock
        async with lock:
            return await self._close(head, settings, number, why)

    async def _close(self, head: Head, settings: RoundsSettings, number: int, why: ClosedBy) -> RoundDocument | None:
        around, session_id = self._around, head.spec.id
        last = await last_of(around.workers, settings)
        if last is not None and number > last:
            return None
        with around.hot.use(session_id) as hot:  # what cannot be loaded here is another replica's to close
            await around.locked(hot, around.rebuilder.current, hot)
        least = max(needed(why, settings), 1)
        freeze = partial(around.store.rounds.freeze, head, number, why, least, settings.deadline_s or 0.0)
        verdict = await around.workers.ask(freeze, around.replica)
        if verdict.word == "few":
            raise TooFewContributions(
                f"round {number} has {verdict.received} contributions; it needs {least}", step=head.step
            )
        standing = (await around.workers.ask(around.store.rounds.look, head)).standing
        if verdict.word != "frozen" or standing.frozen is None or standing.number != number:
            return None
        try:
            return await self._made(session_id, settings, standing, standing.frozen)
        except AdamdError as error:
            if (await around.workers.ask(around.store.rounds.look, head)).standing.number != number:
                return None  # another replica was faster, and the contributions went under this one's hands
            if isinstance(error, HOPELESS):
                await self._begin_again(head, standing, standing.frozen, error)
            raise

    async def _begin_again(self, head: Head, standing: Standing, frozen: Frozen, error: AdamdError) -> None:
        """Drop the members of a round that cannot be made of them, say why, and let it begin again."""
        around, session_id, number = self._around, head.spec.id, standing.number
        detail = error.detail if self._settings_of(head).aggregation.privacy is None else NOT_TOLD
        work = partial(around.store.rounds.cancel, head, number, frozen, Failure(error.code, detail))
        if await around.workers.ask(work):
            self._tally.failed[error.code] += 1
            log.error("a round failed, and begins again", session=session_id, round=number, reason=error.detail)
            around.watchers.moved(session_id)
            around.workers.spawn(self.collect(session_id))

    async def _made(
        self, session_id: str, settings: RoundsSettings, standing: Standing, frozen: Frozen
    ) -> RoundDocument | None:
        """Aggregate the members of a frozen round, and make its step."""
        around = self._around
        with around.hot.use(session_id) as hot:
            loaded = await around.locked(hot, around.rebuilder.current, hot)
            head: Head = loaded.head
            if head.step != standing.step or head.incarnation != standing.incarnation:
                return None
            nbytes = head.spec.layout.size * storage(head.spec.dtype).itemsize
            settings = self._settings_of(head)
            members = await around.workers.ask(self._members, session_id, frozen)
            if len(members) != len(frozen.members):
                return None  # closed or cancelled meanwhile
            held = 2 * nbytes + held_bytes(members) + distance_bytes(settings.aggregation, len(members))
            with around.in_flight.hold(min(held, around.in_flight.limit)):
                pulled = await self._pulled(hot, settings, members)
                work = partial(aggregate, around, FrozenRound(head.spec, settings, standing, members, pulled))
                try:
                    with self._tally.aggregation():
                        made = await around.workers.ask(work)
                except ChunkMissing:
                    now = (await around.workers.ask(around.store.rounds.look, head)).standing
                    if now.number == standing.number:
                        raise
                    return None  # another replica was faster, and has unlinked what this one still read
                del work, pulled
                document = made.document
                step = await around.workers.ask(made.making.step, document.round, document.metrics, made.closing)
                await around.workers.ask(around.store.rounds.expect_garbage, head.spec)
                await around.locked(hot, around.stepper.run, hot, step)
            around.stepped(hot)
            around.watchers.moved(session_id)
            around.workers.spawn(self.collect(session_id))
            self._tally.closed[frozen.closed_by] += 1
            log.info("round closed", session=session_id, round=standing.number, by=frozen.closed_by)
            return document

    def _members(self, session_id: str, frozen: Frozen) -> list[KeptContribution]:
        try:
            return self._around.store.rounds.members(session_id, frozen)
        except Damaged as error:
            raise TooFewContributions(f"what is known of the contributions is damaged: {error.detail}") from None

    async def _pulled(self, hot: Hot, settings: RoundsSettings, members: Sequence[KeptContribution]) -> Floats | None:
        """Return the parameters that the round begins with, where they are needed for more than the step.

        They are the session's own. Only this round's step changes them, and nothing is made of them once another
        replica has made that: its commit is the one that counts.
        """
        beside = settings.averaged or settings.carry
        if not beside and not any(one.kind == "parameters" for one in members):
            return None
        params: Floats = await self._around.locked(hot, self._parameters, hot)
        return params

    def _parameters(self, hot: Hot) -> Floats:
        loaded = self._around.rebuilder.current(hot)
        if loaded.state is None:
            raise StoreUnavailable("the session is being reloaded; try again", retry_after=0.5)
        self._around.device.fetch(loaded.state)
        params = loaded.state.params.view()
        params.flags.writeable = False
        return params

    async def collect(self, session_id: str) -> None:
        """Unlink the contributions that nothing names any more."""
        try:
            await self._around.workers.ask(self._around.store.collect, session_id)
        except AdamdError as error:
            log.warning("garbage is left for later", session=session_id, reason=error.detail)


async def last_of(workers: Workers, settings: RoundsSettings) -> int | None:
    """Return a session's last round, as `last_round` says; an accountant is asked in a thread."""
    privacy = settings.aggregation.privacy
    if privacy is None or privacy.max_epsilon is None:
        return last_round(settings)
    return await workers.run(last_round, settings)
