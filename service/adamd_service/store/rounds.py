"""Rounds in the store: contributions, freezing and cancelling, documents. Called from worker threads."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Final, Protocol, cast

from adamd.errors import AdamdError, SessionDeleted, UnknownSession
from adamd.wire.buffers import Bytes
from adamd_service.records import Head, Spec
from adamd_service.rounds.documents import (
    ClosedBy,
    Evaluated,
    Failure,
    Frozen,
    KeptContribution,
    MemberName,
    RoundDocument,
    Standing,
)
from adamd_service.store import garbage, round_texts, serialization
from adamd_service.store.bulk.homes import Homes
from adamd_service.store.bulk.protocol import BulkName
from adamd_service.store.bulk.reading import ExtentReader
from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import translated
from adamd_service.store.keys import IndexKeys, SessionKeys
from adamd_service.store.outcomes import ChunkMissing
from adamd_service.store.scripts import script

MOST_CLIENTS: Final = 100_000  # that a session knows
MOST_EVALUATIONS: Final = 10_000  # of a round
OVERHEAD_BYTES: Final = 4096  # of a contribution without its body, at least
PAGE_BYTES: Final = 8 * 1024 * 1024  # of documents, read at once


class Promises(Protocol):
    """Refuses what the store could not keep."""

    def require(self) -> None:
        """Raise StoreUnavailable where the store does not keep what adamd promises."""


@dataclass(frozen=True, slots=True)
class Look:
    """Where the open round stands, and what is known of one client, at one moment.

    Attributes:
        standing: of the round.
        contribution: the client's, while it waits to be counted.
        counted: "digest step" of the client's contribution, once it was; "" if it was not.
        known: the client has asked for a task before.
        evaluated: what it measured, as text; "" if nothing.

    """

    standing: Standing
    contribution: KeptContribution | None
    counted: str
    known: bool
    evaluated: str


@dataclass(frozen=True, slots=True)
class Everything:
    """The open round with all that it has, at one moment: contributions by round and client, evaluations by client."""

    standing: Standing
    waiting: list[KeptContribution]
    evaluated: list[Evaluated]


@dataclass(frozen=True, slots=True)
class Admission:
    """What the store looks at when a contribution comes.

    Attributes:
        behind: rounds that a contribution may be behind.
        goes_on: a frozen round takes contributions for the next one.
        most: contributions that may wait.
        last: the last round; None: there is none.
        drawn: only the cohort is asked.

    """

    behind: int
    goes_on: bool
    most: int
    last: int | None
    drawn: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a script said: its word, how many are there now, the open round, and what was counted before."""

    word: str
    received: int = 0
    open: int = 0
    counted: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Documents, and the number of the first that was asked for and is left for the next page; None: none is."""

    documents: list[RoundDocument]
    following: int | None


class RoundStore:
    """The rounds of sessions: ``store.rounds``. Thread-safe; raises as `RedisStore` does.

    Args:
        client: the store's.
        bulk: where large contributions lie.
        guard: asked before something is promised.
        grow: raises StoreFull where there is no room for so many bytes.

    """

    def __init__(self, client: Client, bulk: Homes, guard: Promises, grow: Callable[[int], None]) -> None:
        self._client = client
        self._bulk = bulk
        self._guard = guard
        self._grow = grow
        self._remembered = set[str]()  # sessions for which the store knows that they have rounds

    # -- looking

    def look(self, head: Head, client: str = "", number: int = 0) -> Look:
        """Return where the open round stands, and what is known of a client and its contribution.

        ``number``: of the round that the contribution was made for; 0: the open one.

        Raises:
            UnknownSession: the session is gone.

        """
        standing, answer = self._ask(head, client, number)
        pending, counted, known, evaluated = answer[:4]
        member = MemberName(number or standing.number, client).text.encode()
        return Look(
            standing,
            round_texts.contribution_from(member, pending) if pending else None,
            counted.decode(),
            known == b"1",
            evaluated.decode(),
        )

    def everything(self, head: Head) -> Everything:
        """Return the open round with all contributions and evaluations; raises as `look`."""
        standing, answer = self._ask(head, everything=True)
        waiting, evaluated = (dict(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in answer[4:6])
        return Everything(standing, _contributions(waiting), _evaluations(evaluated))

    def _ask(self, head: Head, client: str = "", number: int = 0, everything: bool = False) -> tuple[Standing, Any]:
        """Return where the open round stands, and what else standing.lua tells."""
        names = SessionKeys(head.spec.id)
        with translated(head.spec.id):
            keys = [names.head, names.round, names.pending, names.counted, names.clients, names.evaluations]
            answer = script("standing").repeatably(self._client, keys, client, number, int(everything))
            if answer[0] != b"standing":
                if self._client.exists(names.gone):
                    raise SessionDeleted(f"session {head.spec.id} is deleted")
                raise UnknownSession(f"there is no session {head.spec.id!r}")
        fields = dict(zip(answer[12::2], answer[13::2], strict=True))
        standing = round_texts.standing_from(head.spec, answer[1:5], answer[5], fields)
        if standing.first_at is not None and standing.now < standing.first_at:
            standing = self._clock_went_back(head, standing)
        return standing, answer[6:12]

    def _clock_went_back(self, head: Head, standing: Standing) -> Standing:
        """Let a deadline count from now where the first contribution is to come: so it moves by its length at most."""
        with suppress(AdamdError), translated(head.spec.id):  # whoever looks next does the same
            keys = [SessionKeys(head.spec.id).round]
            script("clock").repeatably(self._client, keys, standing.number)
        return replace(standing, first_at=standing.now)

    def waiting(self, session_id: str) -> list[KeptContribution]:
        """Return the contributions that wait to be counted, by round and client."""
        with translated(session_id):
            raw = cast("dict[bytes, bytes]", self._client.hgetall(SessionKeys(session_id).pending))
        return _contributions(raw)

    def members(self, session_id: str, frozen: Frozen) -> list[KeptContribution]:
        """Return the contributions of a frozen round; fewer where others have closed or cancelled it meanwhile."""
        wanted = set(frozen.members)
        return [one for one in self.waiting(session_id) if one.member in wanted]

    def clients(self, session_id: str) -> list[str]:
        """Return the clients that have asked for a task, sorted."""
        with translated(session_id):
            members = cast("set[bytes]", self._client.smembers(SessionKeys(session_id).clients))
            return sorted(member.decode() for member in members)

    def evaluations(self, session_id: str) -> list[Evaluated]:
        """Return what clients measured at the open round's base step: client, number of examples, metrics."""
        with translated(session_id):
            raw = cast("dict[bytes, bytes]", self._client.hgetall(SessionKeys(session_id).evaluations))
        return _evaluations(raw)

    def documents(self, session_id: str, numbers: Sequence[int]) -> Page:
        """Return the documents of these closed rounds, as far as they are kept, at most `PAGE_BYTES` of them, or one.

        Those of many clients are long, and a thousand of them would fill the memory.
        """
        names = SessionKeys(session_id)
        with translated(session_id):
            pipeline = self._client.pipeline(transaction=False)
            for number in numbers:
                pipeline.strlen(names.closed_round(number))
            ends = accumulate(pipeline.execute())
            taken = numbers[: max(1, sum(end <= PAGE_BYTES for end in ends))]
            pipeline = self._client.pipeline(transaction=False)
            for number in taken:
                pipeline.get(names.closed_round(number))
            found = zip(taken, pipeline.execute(), strict=True)
            documents = [round_texts.document_from(number, raw) for number, raw in found if raw is not None]
        return Page(documents, numbers[len(taken)] if len(taken) < len(numbers) else None)

    # -- contributing

    def meet(self, head: Head, client: str) -> str:
        """Make a client known, and open the round. Returns met, full (of clients) or moved (the session has)."""
        self._guard.require()
        self._grow(OVERHEAD_BYTES)
        names = SessionKeys(head.spec.id)
        with translated(head.spec.id):
            self.remember(head.spec)
            args = (head.incarnation, client, MOST_CLIENTS, _config(head))
            return script("meet").repeatably(self._client, [names.head, names.round, names.clients], *args)[0].decode()

    def draw(self, head: Head, standing: Standing, cohort: Collection[str] | None, evaluators: Collection[str]) -> None:
        """Note who is asked in a round, unless others have noted it already. ``cohort``: None for all."""
        names = SessionKeys(head.spec.id)
        with translated(head.spec.id):
            script("draw").repeatably(
                self._client,
                [names.head, names.round],
                *(head.incarnation, standing.number, standing.tries),
                "" if cohort is None else serialization.dumps(sorted(cohort)),
                serialization.dumps(sorted(evaluators)),
            )

    def contribute(self, head: Head, one: KeptContribution, body: bytes | None, admission: Admission) -> Verdict:
        """Take a contribution, whose bytes are ``body`` where they are small; durable once this returns "accepted"."""
        self._guard.require()
        spec, names, text = head.spec, SessionKeys(head.spec.id), round_texts.contribution_text(one)
        self._grow(OVERHEAD_BYTES + len(text) + len(body or b""))
        keys = [names.head, names.round, names.pending, names.counted, names.clients, names.bulk]
        keys += [names.contribution(one.attempt), *names.body(one.attempt, len(one.bulk.chunks))]
        args: list[str | bytes | int] = [head.incarnation, one.round, one.client, text, one.digest, one.attempt]
        args += [body or b"", _config(head), admission.behind, int(admission.goes_on), admission.most, MOST_CLIENTS]
        last = 0 if admission.last is None else admission.last or -1  # none allowed: every round is beyond it
        args += [last, int(admission.drawn), self._bulk.token((one.bulk,)), *one.bulk.chunks]
        with translated(spec.id):
            self.remember(spec)
            if not self._bulk.doubts.add(spec.id, one.attempt, (one.bulk,)):
                return Verdict("chunks")
            answer = script("contribute").repeatably(self._client, keys, *args)
            self._bulk.doubts.settle(spec.id, one.attempt, named=answer[0] == b"accepted")
            return _verdict(answer)

    def evaluate(
        self, head: Head, number: int, client: str, num_examples: float, metrics: Mapping[str, Any]
    ) -> Verdict:
        """Note what a client measured at the parameters that round ``number`` begins with."""
        self._guard.require()
        names, text = SessionKeys(head.spec.id), round_texts.evaluation_text(num_examples, metrics)
        self._grow(OVERHEAD_BYTES + len(text))
        with translated(head.spec.id):
            args = (head.incarnation, number, client, text, MOST_EVALUATIONS)
            return _verdict(script("evaluate").repeatably(self._client, [names.head, names.evaluations], *args))

    # -- closing

    def freeze(
        self, head: Head, number: int, closed_by: ClosedBy, least: int, deadline_s: float, replica: str
    ) -> Verdict:
        """Fix a round's members. The word is frozen, few, early (for its deadline) or moved."""
        self._guard.require()
        self._grow(OVERHEAD_BYTES)
        names = SessionKeys(head.spec.id)
        with translated(head.spec.id):
            args = (head.incarnation, number, secrets.token_hex(8), closed_by, least, repr(deadline_s), replica)
            answer = script("freeze").repeatably(self._client, [names.head, names.round, names.pending], *args)
            return Verdict(answer[0].decode(), int(answer[1]))

    def expect_garbage(self, spec: Spec) -> None:
        """Note that a commit is about to close a round: whoever makes it may die before it has collected."""
        with translated(spec.id):
            garbage.expect(self._client, spec.tenant, spec.id)

    def cancel(self, head: Head, number: int, frozen: Frozen | None = None, failure: Failure | None = None) -> bool:
        """Drop the open round's contributions, which begins again; False where it is not the open one.

        ``frozen``: only its members, and only while it is frozen so. ``failure``: why.
        """
        spec, names = head.spec, SessionKeys(head.spec.id)
        with translated(spec.id):
            garbage.expect(self._client, spec.tenant, spec.id)
            keys = [names.head, names.round, names.pending, names.garbage, names.evaluations]
            token, why = frozen.token if frozen else "", failure and serialization.summed(asdict(failure))
            args = (head.incarnation, number, secrets.token_hex(8), _config(head), token, why or "")
            return script("cancel").repeatably(self._client, keys, *args)[0] == b"cancelled"

    # -- bytes

    def read_body(self, session_id: str, one: KeptContribution, into: Bytes) -> None:
        """Fill ``into`` with a contribution's body; raises ChunkMissing."""
        self.read_part(session_id, one, 0, into)

    def read_part(self, session_id: str, one: KeptContribution, start: int, into: Bytes) -> None:
        """Fill ``into`` with a contribution's bytes from ``start`` on.

        Raises:
            ChunkMissing: they are not there any more, or not as many.

        """
        name = BulkName(session_id, one.attempt)
        if one.bulk.extent:
            self._bulk.read_part(name, one.bulk, start, into)
            return
        target, done = memoryview(into), 0
        for key, first, length in _pieces(session_id, one, start, into.nbytes):
            with translated(session_id):
                part = cast(bytes, self._client.getrange(key, first, first + length - 1))
            if len(part) != length:
                raise ChunkMissing(f"the contribution {one.member.text} is not there, or shorter than it was")
            target[done : done + length] = part
            done += length

    def reader(self, session_id: str, one: KeptContribution) -> ExtentReader | None:
        """Open a contribution that lies in a file, for many reads; None where it does not. Raises ChunkMissing."""
        return self._bulk.reader(BulkName(session_id, one.attempt), one.bulk) if one.bulk.extent else None

    def attempts(self, session_id: str) -> set[str]:
        """Return the attempts that waiting contributions name."""
        with translated(session_id):
            raw = cast("list[bytes]", self._client.hvals(SessionKeys(session_id).pending))
            return {json.loads(text)["attempt"] for text in raw}

    # -- which sessions have rounds

    def remember(self, spec: Spec) -> None:
        """Note that a session has rounds: other replicas, and the next start, close them too."""
        if spec.id not in self._remembered:
            self._client.sadd(IndexKeys(spec.tenant).rounds, spec.id)
            self._remembered.add(spec.id)

    def sessions(self, tenant: str) -> list[str]:
        """Return the sessions with rounds."""
        with translated():
            members = cast("set[bytes]", self._client.smembers(IndexKeys(tenant).rounds))
            return sorted(member.decode() for member in members)

    def forget(self, tenant: str, session_id: str) -> None:
        """Note that a session is gone."""
        self._remembered.discard(session_id)
        with translated():
            self._client.srem(IndexKeys(tenant).rounds, session_id)


def _contributions(raw: Mapping[bytes, bytes]) -> list[KeptContribution]:
    found = [round_texts.contribution_from(name, text) for name, text in raw.items()]
    return sorted(found, key=lambda one: one.member)


def _evaluations(raw: Mapping[bytes, bytes]) -> list[Evaluated]:
    return [round_texts.evaluation_from(name.decode(), raw[name]) for name in sorted(raw)]


def _config(head: Head) -> str:
    return serialization.dumps((head.spec.rounds or {}).get("config", {}))


def _verdict(answer: Sequence[bytes]) -> Verdict:
    word, *rest = (part.decode() for part in answer)
    if len(rest) < 2:
        return Verdict(word)
    return Verdict(word, int(rest[0]), int(rest[1]), rest[2] if len(rest) > 2 else "")


def _pieces(session_id: str, one: KeptContribution, start: int, length: int) -> list[tuple[str, int, int]]:
    """Return key, first byte and length of each piece of a contribution that lies in the store."""
    names = SessionKeys(session_id)
    if one.inline:
        return [(names.contribution(one.attempt), start, length)] if length else []
    found, begin = [], 0
    for key, size in zip(names.body(one.attempt, len(one.bulk.chunks)), one.bulk.chunks, strict=True):
        first, last = max(start, begin), min(start + length, begin + size)
        if first < last:
            found.append((key, first - begin, last - first))
        begin += size
    return found
