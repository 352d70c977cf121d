"""Serves rounds: tasks, contributions, evaluations, documents, and waiting for what comes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from adamd.errors import (
    AdamdError,
    Busy,
    Damaged,
    InvalidRequest,
    NoRounds,
    SessionDeleted,
    StoreUnavailable,
    UnknownRound,
    UnknownSession,
)
from adamd_service.engine.directory import Directory
from adamd_service.engine.rounds import reports
from adamd_service.engine.rounds.calls import (
    CLIENT,
    EXAMPLES_WORDS,
    LEAST_EXAMPLES,
    LONGEST_WAIT,
    MOST_EXAMPLES,
    ContributeCall,
    Contributed,
    EvaluateCall,
    Outcome,
    Task,
    TaskKind,
)
from adamd_service.engine.rounds.closing import Closer, last_of
from adamd_service.engine.rounds.contributing import Contributing
from adamd_service.engine.rounds.events import events_between, events_of
from adamd_service.engine.rounds.surroundings import Surroundings
from adamd_service.engine.rounds.tally import Tally
from adamd_service.optim import SettingsError
from adamd_service.records import Head, Spec
from adamd_service.rounds import RoundDocument, RoundEvent, RoundsSettings, Standing, parse_rounds
from adamd_service.rounds.rules import deadline, evaluation_refusal, is_over, is_selected, refusal, state_of
from adamd_service.rounds.selection import EVALUATE, TRAIN, drawn
from adamd_service.rounds.settings import with_clip
from adamd_service.store.keys import KEPT_ROUNDS
from adamd_service.store.rounds import Look

T = TypeVar("T")
POLL_SECONDS: Final = 1.0  # between two looks at the store of one that waits: other replicas move sessions too
MOST_PAGE: Final = 1000  # documents
KNOWN_SETTINGS: Final = 1024  # sessions whose parsed settings are kept
MEETINGS: Final = 8  # looks in a row that find the session moved on


@dataclass(frozen=True, slots=True)
class Open:
    """A session with rounds as it stands."""

    head: Head
    settings: RoundsSettings
    look: Look
    over: bool = False  # its last round has been made, by total or by the privacy that there is

    @property
    def standing(self) -> Standing:
        """Of the open round."""
        return self.look.standing


class RoundsService:
    """The rounds of this process's sessions: ``engine.rounds``. Used on the event loop only.

    Every method raises UnknownSession, SessionDeleted, and NoRounds where the session takes plain steps, but those that
    are for both kinds of sessions.
    """

    def __init__(self, around: Surroundings, directory: Directory) -> None:
        self._around = around
        self._contributing = Contributing(around)
        self._directory = directory
        self._parsed = OrderedDict[tuple[str, str, int], RoundsSettings]()
        self.tally = Tally()
        self._closer = Closer(around, self._settings_of, self._head_of, self.tally)

    # -- for clients

    async def task(self, ref: str, client: str | None = None, wait_s: float = 0.0) -> Task | None:
        """Return what a client is to do now; None if nothing came within ``wait_s`` seconds.

        A client is known from its first question on. Without a client the open round is told at once.
        """
        session_id = await self._directory.resolve(ref)
        if client is not None:
            _check_client(client)

        async def look() -> Task | None:
            found = await self._met(session_id, client) if client is not None else await self._open(session_id)
            self._closer.consider(found.head, found.settings, found.standing)
            return _task_of(found, client)

        return await self._waited(session_id, wait_s, look)

    async def contribute(self, call: ContributeCall) -> Contributed:
        """Take one contribution, and answer when it is durable. Closing goes on in the background.

        Raises:
            ContributionConflict, RoundClosed, StepGap, NotSelected, HistoryLost, Busy: by the round.
            RequestError: by the body, as a step.

        """
        with self.tally.refusals():
            answer = await self._contributed(call)
        self.tally.contributions[answer.outcome] += 1
        return answer

    async def _contributed(self, call: ContributeCall) -> Contributed:
        self._around.refuse_when_draining()
        _check_client(call.client)
        _check_examples(call.num_examples)
        session_id = await self._directory.resolve(call.ref)
        head = await self._head_of(session_id)
        settings = self._settings_of(head)
        last = await last_of(self._around.workers, settings)
        with self._around.hot.use(session_id) as hot:
            try:
                answer = await self._contributing.take(hot, head, settings, call, last)
            finally:
                self._around.watchers.moved(session_id)
                self._closer.begin(session_id)
            return answer

    async def evaluate(self, call: EvaluateCall) -> Contributed:
        """Take what a client measured at the parameters of the round's base step. Raises as `contribute`."""
        self._around.refuse_when_draining()
        _check_client(call.client)
        _check_examples(call.num_examples)
        session_id = await self._directory.resolve(call.ref)
        found = await self._open(session_id)
        rounds = self._around.store.rounds
        verdict = await self._around.workers.ask(
            rounds.evaluate, found.head, call.round, call.client, call.num_examples, call.metrics
        )
        if verdict.word not in ("accepted", "duplicate"):
            standing = replace(found.standing, number=verdict.open or found.standing.number)
            raise evaluation_refusal(verdict.word, standing, call.round, call.client)
        self._around.watchers.moved(session_id)
        word: Outcome = "accepted" if verdict.word == "accepted" else "duplicate"
        return Contributed(word, call.round, verdict.received, found.settings.evaluate, verdict.open - 1)

    # -- documents

    async def read(self, ref: str, number: int) -> RoundDocument:
        """Return a round's document.

        Raises:
            UnknownRound: it has not opened, or is no longer kept.

        """
        session_id = await self._directory.resolve(ref)
        for _ in range(MEETINGS):
            found = await self._open(session_id)
            self._closer.consider(found.head, found.settings, found.standing)
            if number == found.standing.number:
                document = reports.bounded(await self._open_document(found))
                if document.round == number:
                    return document
                continue
            if not 0 < number < found.standing.number:
                raise UnknownRound(
                    f"round {number} has not opened; round {found.standing.number} is open", step=found.standing.step
                )
            page = await self._around.workers.ask(self._around.store.rounds.documents, session_id, [number])
            if page.documents:
                return page.documents[0]
            if number < found.standing.number - 1:
                break
        raise UnknownRound(f"round {number} is no longer kept, or was made before the session was restored")

    async def list(self, ref: str, first: int = 1, page_size: int = 100) -> tuple[list[RoundDocument], int | None]:
        """Return documents from round ``first`` on, the open one last, and the number that the next page begins with.

        Rounds that are no longer kept are left out.
        """
        session_id = await self._directory.resolve(ref)
        found = await self._open(session_id)
        self._closer.consider(found.head, found.settings, found.standing)
        open_round, page_size = found.standing.number, max(1, min(page_size, MOST_PAGE))
        first = max(1, first, open_round - KEPT_ROUNDS)
        numbers = range(first, min(first + page_size, open_round))
        rounds = self._around.store.rounds
        page = await self._around.workers.ask(rounds.documents, session_id, numbers)
        documents = page.documents
        if page.following is not None:
            return documents, page.following
        if first + page_size > open_round >= first:
            last = await self._open_document(found)
            if last.round != open_round:
                return documents, open_round  # it was closed meanwhile: the next page tells it
            return [*documents, reports.bounded(last)], None
        return documents, first + page_size if first + page_size <= open_round else None

    async def _open_document(self, found: Open) -> RoundDocument:
        """Return the document of the round that is open by now, as it is at one moment."""
        now = await self._around.workers.ask(self._around.store.rounds.everything, found.head)
        return reports.open_document(now.standing, found.settings, now.waiting, now.evaluated)

    # -- for the owner

    async def close(self, ref: str, number: int) -> RoundDocument:
        """Close the open round with the contributions that there are; one that is closed is answered as it is.

        Raises:
            TooFewContributions: there are none, or fewer than the aggregate needs.
            StepGap, UnknownRound: it is not the open one.
            RoundClosed, PrivacySpent: the last round is over.

        """
        self._around.refuse_when_draining()
        session_id = await self._directory.resolve(ref)
        found = await self._open(session_id)
        if number > found.standing.number:
            raise refusal("ahead", found.standing, number, "")
        if number == found.standing.number:
            if found.over:
                word = "over" if is_over(found.standing, found.settings) else "spent"
                raise refusal(word, found.standing, number, "")
            work = self._closer.close(found.head, found.settings, number, "hand")
            document = await self._around.workers.guard(work)
            if document is not None:
                return document
        return await self.read(ref, number)

    async def cancel(self, ref: str, number: int) -> RoundDocument:
        """Drop the open round's contributions; it begins again.

        Raises:
            RoundClosed, StepGap: it is not the open one.

        """
        self._around.refuse_when_draining()
        session_id = await self._directory.resolve(ref)
        found = await self._open(session_id)
        cancelled = number == found.standing.number and await self._around.workers.ask(
            self._around.store.rounds.cancel, found.head, number
        )
        found = await self._open(session_id)
        if not cancelled:
            ahead = number > found.standing.number
            raise refusal("ahead" if ahead else "closed", found.standing, number, "")
        self._around.watchers.moved(session_id)
        self._around.workers.spawn(self._closer.collect(session_id))
        return reports.bounded(await self._open_document(found))

    def exported(self, head: Head) -> Spec:
        """Return a session's spec as an export says it: an adaptive clip begins where it is now. Asks the store."""
        settings = self._settings_of(head)
        clip_norm = self._around.store.rounds.look(head).standing.clip_norm
        return replace(head.spec, rounds=with_clip(settings, clip_norm).to_json())

    # -- waiting

    async def wait_for_step(self, ref: str, least: int, wait_s: float) -> bool:
        """Wait until the session has made step ``least``, with or without rounds; False if ``wait_s`` ran out."""
        session_id = await self._directory.resolve(ref)

        async def look() -> bool | None:
            loaded = self._loaded_head(session_id)
            if loaded is not None and loaded.step >= least:
                return True
            if session_id.startswith("m_"):
                if loaded is None:
                    raise SessionDeleted(f"the memory session {session_id} is no more")
                return None
            standing = await self._around.workers.ask(self._around.store.standing, session_id)
            return True if standing.step >= least else None

        return bool(await self._waited(session_id, wait_s, look))

    async def events(self, ref: str) -> AsyncGenerator[RoundEvent]:
        """Yield what happens to a session from now on, where it stands first; with or without rounds.

        Raises:
            ShuttingDown: the server goes down.

        """
        session_id = await self._directory.resolve(ref)
        before: RoundDocument | None = None
        async with aclosing(self._around.watchers.watch(session_id, every_look=True)) as moves:
            step, told = -1, (0, 0, 0, "")
            async for move in moves:
                if move.head.step != step:
                    step = move.head.step
                    yield RoundEvent(
                        "step", str(step), {"step": step, "chain": move.head.chain, "metrics": dict(move.metrics)}
                    )
                if move.head.spec.rounds is None:
                    continue
                found = await self._open(session_id)
                standing = found.standing
                self._closer.consider(found.head, found.settings, standing)
                place = standing.number, standing.tries, standing.received, state_of(standing, found.settings)
                if place == told:
                    continue  # all contributions are read where something has happened alone
                told, now = place, await self._open_document(found)
                following = now.round if before is None else max(before.round, now.round - MOST_PAGE)
                while before is not None and following < now.round:  # long documents are never in memory together
                    numbers = range(following, now.round)
                    page = await self._around.workers.ask(self._around.store.rounds.documents, session_id, numbers)
                    for event in events_of(page.documents, before):
                        yield event
                    following = page.following or now.round
                for event in events_between(before, now):
                    yield event
                before = now

    async def _waited(self, session_id: str, wait_s: float, look: Callable[[], Awaitable[T | None]]) -> T | None:
        """Look until something is there, at most ``wait_s`` seconds; whenever the session moves, and at a pace."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (min(wait_s, LONGEST_WAIT) if wait_s > 0 else 0.0)
        with self._around.watchers.listening(session_id) as moved:
            while True:
                moved.clear()
                found = await look()
                left = until - loop.time()
                if found is not None or left <= 0:
                    return found
                self._around.refuse_when_draining()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, POLL_SECONDS)):
                        await moved.wait()

    # -- in the background

    async def keep_house(self, tenant: str) -> None:
        """Go on with rounds that their replicas left, and close those whose time is up, whoever is asked."""
        for session_id in await self._around.workers.ask(self._around.store.rounds.sessions, tenant):
            try:
                found = await self._open(session_id)
            except (UnknownSession, SessionDeleted, NoRounds):
                await self._around.workers.ask(self._around.store.rounds.forget, tenant, session_id)
                continue
            except StoreUnavailable:
                raise
            except AdamdError:  # damaged: whoever asks for it is told
                continue
            self._closer.consider(found.head, found.settings, found.standing)

    def stop(self) -> None:
        """Set no deadline any more: the server goes down."""
        self._closer.stop()

    # -- inside

    def settings_of(self, head: Head) -> RoundsSettings:
        """Return the settings of a session's rounds; raises NoRounds."""
        return self._settings_of(head)

    def _settings_of(self, head: Head) -> RoundsSettings:
        if head.spec.rounds is None:
            raise NoRounds("this session takes plain steps; make one with rounds", step=head.step)
        key = head.spec.id, head.incarnation, head.settings_revision
        known = self._parsed.get(key)
        if known is None:
            try:
                known = parse_rounds(head.spec.rounds, head.spec.layout)
            except SettingsError as error:
                raise Damaged(f"session {head.spec.id}: {error.message}; {Damaged.ADVICE}") from None
            self._parsed[key] = known
            if len(self._parsed) > KNOWN_SETTINGS:
                self._parsed.popitem(last=False)
        return known

    def _loaded_head(self, session_id: str) -> Head | None:
        hot = self._around.hot.find(session_id)
        loaded = None if hot is None else hot.loaded
        return None if loaded is None else loaded.head

    async def _head_of(self, session_id: str) -> Head:
        """Return a session's head, perhaps of a moment ago: what can change of it, the scripts compare."""
        loaded = self._loaded_head(session_id)
        if loaded is not None:
            return loaded
        if session_id.startswith("m_"):
            raise SessionDeleted(f"the memory session {session_id} is no more")
        return await self._around.workers.ask(self._around.store.load_head, session_id)

    async def _open(self, session_id: str, client: str = "") -> Open:
        head = await self._head_of(session_id)
        settings = self._settings_of(head)
        look = await self._around.workers.ask(self._around.store.rounds.look, head, client)
        if look.standing.incarnation != head.incarnation:
            raise StoreUnavailable("the session was made anew; try again", retry_after=0.2)
        last = await last_of(self._around.workers, settings)
        return Open(head, settings, look, last is not None and look.standing.number > last)

    async def _met(self, session_id: str, client: str) -> Open:
        """Return where a session stands, once the client is known there and it is drawn who is asked."""
        rounds, ask = self._around.store.rounds, self._around.workers.ask
        for _ in range(MEETINGS):
            found = await self._open(session_id, client)
            settings, standing = found.settings, found.standing
            wanted = settings.cohort or settings.evaluate  # for training nobody waits for those who evaluate
            if not found.look.known:
                if await ask(rounds.meet, found.head, client) != "full":
                    continue
                if wanted:
                    raise Busy("this session knows as many clients as it can", retry_after=60.0)
                return found  # where nobody is drawn, strangers contribute too
            if not wanted or standing.drawn:
                return found
            known = await ask(rounds.clients, session_id)
            if len(known) < wanted:
                return found
            seed, number, tries = settings.seed or 0, standing.number, standing.tries
            cohort = drawn(known, settings.cohort, seed, number, tries, TRAIN) if settings.cohort else None
            evaluators = drawn(known, settings.evaluate, seed, number, tries, EVALUATE)
            await ask(rounds.draw, found.head, standing, cohort, evaluators)
        return found


def _task_of(found: Open, client: str | None) -> Task | None:
    """Return what a client is to do; None where it has to wait."""
    standing, settings, look = found.standing, found.settings, found.look
    contributed = look.contribution is not None
    closing = standing.frozen is not None and not settings.buffered
    selected = None if client is None else is_selected(standing, settings, client)
    names = found.head.spec.layout.names
    kind: TaskKind = "stop" if found.over else "train"
    if client is not None:
        asked = client in (standing.evaluators or ()) and not look.evaluated and standing.step > 0
        if asked:
            kind = "evaluate"
        elif not found.over and (contributed or not selected or closing):
            return None
    return Task(
        kind=kind,
        round=standing.number,
        base_step=standing.step,
        chain=standing.chain,
        selected=selected,
        contributed=contributed,
        config=standing.config,
        deadline=deadline(standing, settings),
        received=standing.received,
        wanted=settings.quorum,
        private=tuple(names[place] for place in settings.private),
    )


def _check_client(client: str) -> None:
    if CLIENT.fullmatch(client) is None:
        raise InvalidRequest("a client's name is 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'", path="client")


def _check_examples(num_examples: float) -> None:
    if not LEAST_EXAMPLES <= num_examples <= MOST_EXAMPLES:
        raise InvalidRequest(f"num_examples is {num_examples}; {EXAMPLES_WORDS}", path="num_examples")
