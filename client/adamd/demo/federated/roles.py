"""Who takes part in the demo: twenty clients, most of them honest, some slow, absent, talkative or poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CLIENTS = 20
SECONDS = 0.8  # that a slow client takes longer
BOOST = 30.0  # how much larger than its honest change a poisoned client's is, with the other sign


class Role(Enum):
    """What a client does beside training."""

    HONEST = "honest"
    SLOW = "slow"
    ABSENT = "drops out"  # of every other round
    TWICE = "sends twice"
    POISONED = "poisoned"


@dataclass(frozen=True, slots=True)
class Member:
    """One client: its place among the shards, its name, and its role."""

    place: int
    name: str
    role: Role

    def away(self, number: int) -> bool:
        """Say whether the client drops out of a round; of each round the same number does."""
        return self.role is Role.ABSENT and (number + self.place) % 2 == 0


SPECIAL = {
    1: Role.SLOW,
    2: Role.ABSENT,
    5: Role.POISONED,
    7: Role.ABSENT,
    8: Role.TWICE,
    10: Role.SLOW,
    12: Role.ABSENT,
    14: Role.POISONED,
    15: Role.TWICE,
    17: Role.ABSENT,
    18: Role.SLOW,
}
MEMBERS = tuple(Member(place, f"ward-{place:02}", SPECIAL.get(place, Role.HONEST)) for place in range(CLIENTS))
# Replies that every round has, whichever half of the absent ones is away: so each run has the same clients in a round.
REPLIES = CLIENTS - sum(member.away(1) for member in MEMBERS)
