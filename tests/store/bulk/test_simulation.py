"""File bulk on a disk that forgets.

After every crash each committed record has its bytes. Faults are planted and found.
"""

import os
import time
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from adamd.errors import Damaged
from adamd_service.store import ChunkMissing, garbage
from adamd_service.store.bulk import extents, files
from adamd_service.store.bulk.extents import Use
from adamd_service.store.bulk.files import FileBulk

from . import simulation
from .simulation import Simulation

CRASHES = int(os.environ.get("SIM_CRASHES", "150"))
FIRST_SEED = int(os.environ.get("SIM_SEED", "1"))
WITHIN_SECONDS = 60  # in which a planted fault has to be found
EACH = 20  # crashes of one seed, where many are tried
DAMAGE = (AssertionError, ChunkMissing, Damaged)  # any other error is a fault of the test, and finds nothing


@pytest.fixture(autouse=True)
def small_extents(monkeypatch):
    """Small extents, and no log of failures: there are thousands, all of them made here."""
    monkeypatch.setattr(extents, "SMALLEST_BYTES", 4096)
    with capture_logs():
        yield


def test_what_is_committed_survives_every_crash(store):
    run = Simulation(store, FIRST_SEED)
    run.run(CRASHES)
    print(f"seed {FIRST_SEED}: {run.crashes} crashes, {run.committed} steps, {run.disk.calls} calls")
    assert run.committed > CRASHES / 4


@pytest.mark.slow
def test_a_disk_that_fails_now_and_then_loses_nothing(store):
    run = Simulation(store, FIRST_SEED, faults=0.5)
    run.run(CRASHES)
    print(f"seed {FIRST_SEED}: {run.crashes} crashes, {run.committed} steps, {run.refused} refused")
    assert run.refused > 0
    assert any(name.endswith(files.RETIRED) for name in run.disk.files)


@pytest.mark.slow
def test_a_full_disk_refuses_and_goes_on(store):
    run = Simulation(store, FIRST_SEED, room=60 * 4096)
    run.run(CRASHES)
    assert run.refused > 0 and run.committed > 0


@pytest.mark.slow
def test_a_seed_gives_the_same_run_again(store):
    """Or a fault that was found could not be looked at."""
    traces = []
    for seed in (FIRST_SEED, FIRST_SEED, FIRST_SEED + 1):
        run = Simulation(store, seed, faults=0.5)
        run.run(3 * EACH)
        traces.append(run.trace())
    assert traces[0] == traces[1] != traces[2]


class NoSync(FileBulk):
    def sync(self, file, extent):
        pass


class SyncAfterCommit(FileBulk):
    def sync(self, file, extent):
        self.late = [*getattr(self, "late", []), file]

    def settle(self, session_id, owner, *, named):
        super().settle(session_id, owner, named=named)
        for file in getattr(self, "late", []):
            with suppress(OSError):  # the step is committed: there is nobody left to be told
                file.sync()
        self.late = []


class RetriesAFailedSync(FileBulk):
    def sync(self, file, extent):
        try:
            file.sync()
        except OSError:
            file.sync()


class FreesWhatIsNamed(FileBulk):
    def release(self, session_id, owner):
        with self._lock:
            for extent, its, use in self._extents.of_session(session_id):
                if its.owner != owner or use is Use.STAGED:
                    self._extents.move(extent, its, frozenset({use}), Use.FREE)


def no_lease(monkeypatch):
    monkeypatch.setattr(garbage, "LEASE_SECONDS", -1000)
    return FileBulk


def misses_a_name(monkeypatch):
    real = simulation.listed

    def listed(names, owners):
        return real(names, {name: owner for name, owner in owners.items() if name != min(owners)})

    monkeypatch.setattr(simulation, "listed", listed)
    return FileBulk


PLANTS = {
    "no-sync": lambda _: NoSync,
    "sync-after-commit": lambda _: SyncAfterCommit,
    "retry-after-failed-sync": lambda _: RetriesAFailedSync,
    "frees-what-is-named": lambda _: FreesWhatIsNamed,
    "no-lease": no_lease,
    "misses-a-name": misses_a_name,
}


def damage(store, bulk, wanted):
    """Try seed after seed; returns the first damage and the crashes until then, or None after ``wanted`` crashes."""
    crashes, began = 0, time.monotonic()
    for seed in range(FIRST_SEED, FIRST_SEED + 10_000):
        run = Simulation(store, seed, bulk=bulk, faults=0.5)
        try:
            run.run(EACH)
        except DAMAGE as found:
            return found, crashes + run.crashes, time.monotonic() - began
        crashes += run.crashes
        if crashes >= wanted or time.monotonic() - began > WITHIN_SECONDS:
            break
    return None, crashes, time.monotonic() - began


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(store, monkeypatch, plant):
    found, crashes, seconds = damage(store, PLANTS[plant](monkeypatch), 10**9)
    print(f"{plant}: after {crashes} crashes, {seconds:.2f} s: {found!r}"[:200])
    assert found is not None, f"{plant} was not found by {crashes} crashes in {seconds:.0f} s"


@pytest.mark.slow
def test_where_nothing_is_planted_nothing_is_found(store):
    """The same seeds: so it was the planted fault that was found."""
    assert damage(store, FileBulk, CRASHES)[0] is None
