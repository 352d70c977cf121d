"""Aggregates a frozen round: its members become the body of a step, and the document that is written with it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import structlog

from adamd.errors import TooFewContributions
from adamd.wire.dtypes import Floats, storage
from adamd_service.aggregation import Lanes, Outcome, epsilon, noise_seed
from adamd_service.aggregation.settings import fewest
from adamd_service.engine.rounds import reports
from adamd_service.engine.rounds.combining import combine
from adamd_service.engine.rounds.making import Making
from adamd_service.engine.rounds.surroundings import Surroundings
from adamd_service.engine.rounds.values import DamagedMembers, Opened, Readings
from adamd_service.records import RoundClosing, Spec
from adamd_service.rounds import Frozen, KeptContribution, MemberName, RoundDocument, RoundsSettings, Standing
from adamd_service.rounds.rules import REMEMBERED

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FrozenRound:
    """All that a round's aggregate is made of: whoever has the same makes the same bits.

    Attributes:
        spec: the session's.
        settings: of its rounds.
        standing: of the session, with the round frozen.
        members: what the store has of each, in the order of `Frozen.members`.
        pulled: the parameters that the round begins with, in the session's dtype; None where none are needed.

    """

    spec: Spec
    settings: RoundsSettings
    standing: Standing
    members: Sequence[KeptContribution]
    pulled: Floats | None

    @property
    def frozen(self) -> Frozen:
        """Its members' names, and who froze it."""
        assert self.standing.frozen is not None
        return self.standing.frozen

    def check_enough(self, whole: Collection[MemberName]) -> None:
        """Raise TooFewContributions where what is whole, and not too old, makes no aggregate."""
        aggregation, number = self.settings.aggregation, self.standing.number
        least, most = fewest(aggregation.aggregate), aggregation.max_staleness
        if len(whole) < least:
            raise TooFewContributions(
                f"of {len(self.members)} contributions of round {number} {len(whole)} are undamaged; it needs {least}",
                step=self.standing.step,
            )
        if most is not None and all(number - one.round > most for one in whole):
            raise TooFewContributions(
                f"every contribution of round {number} is too old by now", step=self.standing.step
            )

    def noise_seed(self, whole: Collection[MemberName]) -> bytes | None:
        """Return the noise's seed: the same for whoever aggregates these members of this freezing, no other ones."""
        privacy = self.settings.aggregation.privacy
        if privacy is None:
            return None
        names = " ".join(f"{one.member.text} {one.digest}" for one in self.members if one.member in whole)
        text = f"{self.standing.incarnation} {self.frozen.token} {names}"
        return noise_seed(privacy.seed or 0, text, self.standing.number)


@dataclass(frozen=True, slots=True)
class Aggregated:
    """A round's contributions as the body of a step, and what is to be written with it."""

    making: Making
    document: RoundDocument
    closing: RoundClosing


def aggregate(around: Surroundings, round_: FrozenRound) -> Aggregated:
    """Make one gradient of a round's members. Runs in a worker thread.

    Raises:
        TooFewContributions: too few of them are undamaged, or young enough.
        ChunkMissing: what one of them sent is gone.

    """
    standing, settings, frozen = round_.standing, round_.settings, round_.frozen
    began, privacy = time.monotonic(), settings.aggregation.privacy
    with closing(Readings(around.store, around.pool, round_.spec)) as readings:
        outcome, making = _combined(around, round_, readings)
    spent = None if privacy is None else epsilon(privacy, standing.number, settings.asked)
    evaluated = around.store.rounds.evaluations(round_.spec.id)
    whole = reports.closed_document(standing, frozen, settings, round_.members, outcome, evaluated, spent)
    counted, document = reports.counted_members(round_.members, whole), reports.bounded(whole)
    log.debug("round aggregated", session=round_.spec.id, round=standing.number, seconds=time.monotonic() - began)
    told = RoundClosing(
        token=frozen.token,
        document=document.to_json(),
        counted=counted,
        oldest=max(0, standing.number - max(settings.remembered, REMEMBERED)),
        config=settings.config,
        clip_norm=outcome.clip_norm_next,
    )
    return Aggregated(making, document, told)


def _combined(around: Surroundings, round_: FrozenRound, readings: Readings) -> tuple[Outcome, Making]:
    """Combine the members whose bytes are those that came; made again wherever one turns out to be damaged."""
    lanes = Lanes(around.workers.threads, around.lanes)
    opened = readings.whole(round_.members, round_.pulled, lanes)
    while True:
        round_.check_enough(opened)
        try:
            return _combined_once(around, round_, readings, opened)
        except DamagedMembers:  # `opened` has lost them
            continue


def _combined_once(
    around: Surroundings, round_: FrozenRound, readings: Readings, opened: dict[MemberName, Opened]
) -> tuple[Outcome, Making]:
    spec, kind = round_.spec, storage(round_.spec.dtype)
    out: Floats = around.pool.lease(spec.layout.size * kind.itemsize).view(kind)
    making = Making(around.store, spec, out)
    try:
        made = combine(
            spec,
            round_.settings,
            round_.standing.number,
            round_.members,
            opened,
            round_.pulled,
            around.pool,
            out,
            making.written,
            seen=partial(readings.check, opened),
            clip_norm=round_.standing.clip_norm,
            noise_seed=round_.noise_seed(opened),
            threads=around.workers.threads,
            lanes=around.lanes,
        )
    except BaseException:
        making.give_up()
        raise
    if made.body is not out:
        making.give_up()
        making = Making(around.store, spec, made.body, made.stepped, made.assigned)
    return made.outcome, making
