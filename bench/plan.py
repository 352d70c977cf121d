"""How much of everything is run at which size."""

from __future__ import annotations

from dataclasses import dataclass

# The product's defaults take a snapshot when the log is 1.5 times the state: 4 bytes a step against 12 make that every
# 5th step, and every 11th at 100,000 parameters, where the log reaches 4 MiB first. A block pays for one at least.
SNAPSHOT_PERIOD = 13
SNAPSHOT_PHASE = 8  # steps before the timed ones, so that the snapshot falls due, and is written, inside a block
SMALL = 100_000  # parameters; calls that carry a whole body in one message are compared up to here


@dataclass(frozen=True, slots=True)
class Size:
    """One size's share of a run: steps of each contender in a round."""

    parameters: int
    rounds: int
    interleaved: int  # floor, kernel, memory, peers: in turns of ``burst`` steps
    burst: int  # small steps come in bursts: between single ones, every contender would find its caches cold
    committed: int
    bulk: int
    naive: int

    @property
    def snapshots(self) -> bool:
        """Say whether a block is long enough for one: below this size the log has to reach 4 MiB first."""
        return self.parameters >= 100_000


@dataclass(frozen=True, slots=True)
class Load:
    """Many sessions stepped by many clients at once: each client steps its own share, one after the other."""

    sessions: int
    parameters: int
    clients: int
    steps: int  # of each session, timed
    warm: int  # of each session, before


@dataclass(frozen=True, slots=True)
class Restart:
    """A server with many sessions that is killed and started again."""

    sessions: int
    parameters: int
    clients: int = 16


@dataclass(frozen=True, slots=True)
class Beginning:
    """New sessions that many clients step for the first time, and for the second."""

    rounds: int
    sessions: int = 320
    parameters: int = 100
    clients: int = 16


@dataclass(frozen=True, slots=True)
class Reduction:
    """One round's contributions, reduced by adamd and by its peers in turns."""

    clients: int
    parameters: int
    turns: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The memory that a round takes with few clients and with many."""

    few: int
    many: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Federation:
    """Whole rounds of clients that pull, add a little and contribute, one after the other."""

    clients: int
    parameters: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Contributors:
    """More contributors than connections: each connection speaks for its share of them."""

    contributors: int
    parameters: int
    rounds: int
    connections: int = 32


@dataclass(frozen=True, slots=True)
class Rounds:
    """What is measured of rounds."""

    reduction: Reduction
    growth: Growth
    federation: Federation
    contributors: Contributors


@dataclass(frozen=True, slots=True)
class Many:
    """What is measured with many sessions at once."""

    load: Load
    beginning: Beginning
    restarts: tuple[Restart, ...]


FULL = (
    Size(1_000, rounds=9, interleaved=60, burst=20, committed=39, bulk=39, naive=39),
    Size(100_000, rounds=9, interleaved=30, burst=5, committed=SNAPSHOT_PERIOD, bulk=13, naive=13),
    Size(1_000_000, rounds=9, interleaved=10, burst=2, committed=SNAPSHOT_PERIOD, bulk=13, naive=6),
    Size(10_000_000, rounds=9, interleaved=6, burst=1, committed=SNAPSHOT_PERIOD, bulk=13, naive=3),
)
QUICK = (
    Size(1_000, rounds=3, interleaved=20, burst=10, committed=13, bulk=13, naive=13),
    Size(100_000, rounds=3, interleaved=10, burst=5, committed=SNAPSHOT_PERIOD, bulk=4, naive=4),
    Size(1_000_000, rounds=3, interleaved=4, burst=2, committed=SNAPSHOT_PERIOD, bulk=3, naive=2),
)
LARGE_ENOUGH = 150_000  # parameters whose bytes lie in files, not in the store
FULL_MANY = Many(
    Load(200, 10_000, clients=32, steps=50, warm=3),
    Beginning(rounds=9),
    (Restart(1_000, LARGE_ENOUGH), Restart(1_000, 100)),
)
QUICK_MANY = Many(
    Load(200, 10_000, clients=32, steps=5, warm=1), Beginning(rounds=1, sessions=80), (Restart(40, LARGE_ENOUGH),)
)
FULL_ROUNDS = Rounds(
    Reduction(10, 10_000_000, turns=9),
    Growth(10, 50, 10_000_000),
    Federation(20, 1_000_000, rounds=10),
    Contributors(1_000, 10_000, rounds=50),
)
QUICK_ROUNDS = Rounds(
    Reduction(10, 1_000_000, turns=3),
    Growth(10, 50, 200_000),
    Federation(20, 100_000, rounds=3),
    Contributors(100, 1_000, rounds=3),
)
