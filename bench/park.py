"""Everything that runs while a bench runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from adamd_service.store import EmbeddedStore
from bench import child, processes
from bench.child import Child
from bench.environments import PEERS, Absent
from bench.floor import peer
from bench.processes import Service

POLICIES = "always", "everysec"


@dataclass(frozen=True, slots=True)
class Park:
    """The processes, and why a row has none."""

    data: Path  # where the servers' data lie
    floor: int
    memory: Service
    sdk: Service
    stores: dict[str, EmbeddedStore]
    committed: dict[str, Service]
    naive: dict[str, Service]
    children: list[Child]
    absent: dict[str, str]  # row -> why

    def pids(self) -> dict[str, int]:
        """Return the processes whose memory is told."""
        found = {"adamd, memory": self.memory.pid}
        for policy in POLICIES:
            found[f"adamd, committed {policy}"] = self.committed[policy].pid
            found[f"naive, {policy}"] = self.naive[policy].pid
            pid = self.stores[policy].pid
            assert pid is not None
            found[f"store, {policy} (the naive session, 13 bodies of the bulk writer)"] = pid
        for one in self.children:
            found |= one.pids
        return found


def start(stack: ExitStack, out: Path, asked: Sequence[str], say: Callable[[str], None]) -> Park:
    """Start the floor's peer, two stores (the embedded one in both its policies), four servers, two naive services, and
    the peers that were asked for.
    """
    enter, directory = stack.enter_context, out / "data"
    stores, committed, naive = {}, {}, {}
    for policy in POLICIES:
        say(f"starting adamd with {policy}, and a store with appendfsync {policy} for the naive service")
        stores[policy] = enter(processes.store(directory / policy, policy))
        committed[policy] = enter(processes.adamd(f"adamd {policy}", directory / f"adamd-{policy}", policy))
        naive[policy] = enter(processes.naive(f"naive {policy}", stores[policy].url))
    say("starting two servers for memory sessions")
    memory = enter(processes.adamd("adamd memory", directory / "adamd-memory", "everysec"))
    sdk = enter(processes.adamd("adamd sdk", directory / "adamd-sdk", "everysec"))
    children: list[Child] = []
    absent: dict[str, str] = {}
    for one in PEERS:
        if one.name == "flower":  # has rounds, and no steps: see `rounds`
            continue
        if one.name not in asked:
            absent |= dict.fromkeys(one.rows, "not asked for")
            continue
        say(f"starting {', '.join(one.rows)} (its environment is made first, where it is not there yet: minutes)")
        try:
            children.append(enter(child.child(one, directory, out)))
        except Absent as why:
            say(f"{one.name}: {why}")
            absent |= dict.fromkeys(one.rows, str(why))
    return Park(directory, enter(peer()), memory, sdk, stores, committed, naive, children, absent)
