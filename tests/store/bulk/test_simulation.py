"""File bulk on a disk that forgets.

After every crash each committed record has its bytes. Faults are planted and found.
"""

import os
import time

import pytest

from adamd_service.store import garbage
from adamd_service.store.bulk import extents, files
from adamd_service.store.bulk.extents import Use
from adamd_service.store.bulk.files import FileBulk

from . import simulation
from .simulation import Simulation

CRASHES = int(os.environ.get("SIM_CRASHES", "150"))
FIRST_SEED = int(os.environ.get("SIM_SEED", "1"))
WITHIN_SECONDS = 60  # in which a planted fault has to be found


@pytest.fixture(autouse=True)
def small_extents(monkeypatch):
    monkeypatch.setattr(extents, "SMALLEST_BYTES", 4096)


def test_what_is_committed_survives_every_crash(store):
    run = Simulation(store, FIRST_SEED)
    run.run(CRASHES)
    print(f"seed {FIRST_SEED}: {run.crashes} crashes, {run.committed} steps, {run.disk.calls} calls")
    assert run.committed > CRASHES / 4


def test_a_disk_that_fails_now_and_then_loses_nothing(store):
    run = Simulation(store, FIRST_SEED, faults=0.5)
    run.run(CRASHES)
    print(f"seed {FIRST_SEED}: {run.crashes} crashes, {run.committed} steps, {run.refused} refused")
    assert run.refused > 0
    assert any(name.endswith(files.RETIRED) for name in run.disk.files)


def test_a_full_disk_refuses_and_goes_on(store):
    run = Simulation(store, FIRST_SEED, room=60 * 4096)
    run.run(CRASHES)
    assert run.refused > 0 and run.committed > 0


class NoSync(FileBulk):
    def sync(self, file, extent):
        pass


class SyncAfterCommit(FileBulk):
    def sync(self, file, extent):
        self.late = [*getattr(self, "late", []), file]

    def settle(self, session_id, owner, *, named):
        super().settle(session_id, owner, named=named)
        for file in getattr(self, "late", []):
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


@pytest.mark.parametrize(
    "plant",
    [
        *(lambda _, kind=kind: kind for kind in (NoSync, SyncAfterCommit, RetriesAFailedSync, FreesWhatIsNamed)),
        no_lease,
        misses_a_name,
    ],
    ids=["no-sync", "sync-after-commit", "retry-after-failed-sync", "frees-what-is-named", "no-lease", "misses-a-name"],
)
def test_a_planted_fault_is_found(store, monkeypatch, plant):
    bulk, began = plant(monkeypatch), time.monotonic()
    with pytest.raises((AssertionError, Exception)) as found:  # noqa: PT011 - damage is told in several ways
        for seed in range(FIRST_SEED, FIRST_SEED + 10_000):
            Simulation(store, seed, bulk=bulk, faults=0.5).run(20)
            if time.monotonic() - began > WITHIN_SECONDS:
                break
    print(f"found after {time.monotonic() - began:.1f} s: {found.value!r}"[:200])
