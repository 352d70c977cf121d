"""How much of everything is run at which size."""

from __future__ import annotations

from dataclasses import dataclass

# The product's defaults take a snapshot when the log has outgrown the state by a ratio of 4: 4 bytes a step against 12
# (and the counts) make that every 13th step. A block of 13 committed steps so pays for exactly one snapshot.
SNAPSHOT_PERIOD = 13
SNAPSHOT_PHASE = 8  # steps before the timed ones, so that the snapshot falls due, and is written, inside a block


@dataclass(frozen=True, slots=True)
class Size:
    """One size's share of a run: steps of each contender in a round."""

    parameters: int
    rounds: int
    interleaved: int  # floor, kernel, memory, SDK: one of each, in turns
    committed: int
    bulk: int
    naive: int

    @property
    def snapshots(self) -> bool:
        """Say whether a block is long enough for one: below this size the log has to reach 4 MiB first."""
        return self.parameters >= 100_000


FULL = (
    Size(1_000, rounds=9, interleaved=60, committed=39, bulk=39, naive=39),
    Size(100_000, rounds=9, interleaved=30, committed=SNAPSHOT_PERIOD, bulk=13, naive=13),
    Size(1_000_000, rounds=9, interleaved=10, committed=SNAPSHOT_PERIOD, bulk=13, naive=6),
    Size(10_000_000, rounds=9, interleaved=6, committed=SNAPSHOT_PERIOD, bulk=13, naive=3),
)
QUICK = (
    Size(1_000, rounds=3, interleaved=20, committed=13, bulk=13, naive=13),
    Size(100_000, rounds=3, interleaved=10, committed=SNAPSHOT_PERIOD, bulk=4, naive=4),
    Size(1_000_000, rounds=3, interleaved=4, committed=SNAPSHOT_PERIOD, bulk=3, naive=2),
)
