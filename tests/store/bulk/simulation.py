"""A random run of the real file bulk on the simulated disk, beside a real store, and its crashes."""

import gc
import mmap
import random
import secrets
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from adamd.errors import StoreFull, StoreUnavailable
from adamd_service.records import Committed, SnapshotRef
from adamd_service.store import ChunkMissing, keys
from adamd_service.store.bulk.extents import PAGE
from adamd_service.store.bulk.files import FileBulk
from adamd_service.store.opening import listed

from ..sessions import commit_of, create, digest_of, moved_on, next_record
from .simulated_disk import Crash, SimulatedDisk


class Inline(Executor):
    """Runs work at once, so that a seed gives the same run again."""

    def submit(self, work, /, *args, **more):
        future = Future()
        try:
            future.set_result(work(*args, **more))
        except BaseException as error:
            if isinstance(error, Crash):
                raise
            future.set_exception(error)
        return future


@contextmanager
def collected_at_crashes():
    """Collect cycles when the run says so: one may hold an upload, whose extent is free when it goes."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Simulation:
    """Sessions that step, take snapshots, lose uploads and end, with a crash of the machine now and then.

    After each crash every record and snapshot that the store names must have its bytes.
    """

    def __init__(self, store, seed, *, room=2**40, bulk=FileBulk, faults=0.0):
        self.rng = random.Random(seed)  # noqa: S311 - a run that can be repeated
        self.store = store
        self.bulk = bulk
        self.faults = faults
        self.disk = SimulatedDisk(self.rng, room)
        self.heads = {}
        self.prefix = f"s_{secrets.token_hex(6)}"  # the store has the sessions of other runs with this seed
        store._client.delete(keys.BULK_SESSIONS)  # of other runs, on other disks
        store.bulk.notes.expected.clear()
        self.staged = []
        self.reading = False
        self.crashes = self.committed = self.refused = 0
        self.open()

    def open(self):
        """Start on what the disk has."""
        extents = listed(self.disk.names(), self.store.bulk.named())
        self.files = self.bulk(self.disk, extents, self.store.bulk.notes.expect, Inline(), synced=True, margin=0)
        self.store.bulk.keep_in(self.files, above=0)
        self.staged.clear()

    def run(self, crashes):
        """Go on until there were so many crashes."""
        with collected_at_crashes():
            self._run(crashes)

    def _run(self, crashes):
        while self.crashes < crashes:
            self.disk.crash_at = self.disk.calls + self.rng.randrange(1, 40)
            if self.rng.random() < self.faults:
                self.disk.faults = {self.disk.calls + self.rng.randrange(1, 20)}
            try:
                while True:
                    self.act()
            except Crash:
                self.crashes += 1
                gc.collect()
                self.disk.crash()
                self.open()
                self.check()

    def trace(self):
        """Everything by which two runs can be compared."""
        files = {name: digest_of(bytes(data)) for name, data in self.disk.files.items()}
        return self.crashes, self.committed, self.refused, self.disk.calls, files

    def act(self):
        try:
            self.rng.choices(
                [self.begin, self.step, self.snapshot, self.give_up, self.end, self.look_slowly], [2, 20, 4, 3, 1, 3]
            )[0]()
        except ChunkMissing:  # what something names is never missing
            raise
        except (StoreUnavailable, StoreFull):
            self.refused += 1

    def begin(self):
        if len(self.heads) < 4:
            head = create(self.store, 10, session_id=f"{self.prefix}{self.rng.getrandbits(32):08x}")
            self.heads[head.spec.id] = head

    def some(self):
        return self.heads[self.rng.choice(sorted(self.heads))] if self.heads else None

    def body(self):
        return self.rng.randbytes(self.rng.randrange(1, 5 * PAGE))

    def laid(self, body):
        """Lay bytes where a page begins, or not: chance would have the two be written by other calls each time."""
        memory, start = mmap.mmap(-1, len(body) + PAGE), self.rng.choice((0, 8))
        memory[start : start + len(body)] = body
        return memoryview(memory)[start : start + len(body)]

    def stage(self, head):
        body, attempt = self.body(), f"{self.rng.getrandbits(64):016x}"
        staging = self.store.stage(head.spec.id, attempt, len(body))
        laid = self.laid(body)
        for start in range(0, len(body), 2 * PAGE):
            staging.write(laid[start : start + 2 * PAGE])
        return body, attempt, staging

    def step(self):
        if (head := self.some()) is None:
            return
        body, attempt, staging = self.stage(head)
        record = next_record(head, body, bulk=staging.finish(), attempt=attempt)
        assert self.store.commit(head.spec.id, commit_of(head, record)) == Committed()
        self.heads[head.spec.id] = moved_on(head, record)
        self.committed += 1

    def give_up(self):
        """Upload something that is not committed, and let go of it in one of the ways that there are."""
        if (head := self.some()) is None:
            return
        _, attempt, staging = self.stage(head)
        way = self.rng.randrange(3)
        if way == 0:
            self.store.discard(head.spec.id, attempt, staging.finish())
        elif way == 1:
            staging.abort()

    def snapshot(self):
        if (head := self.some()) is None or head.step == 0:
            return
        snapshot_id = f"{self.rng.getrandbits(64):016x}"
        data = np.frombuffer(self.laid(self.body()), np.uint8)
        refs = tuple(
            self.store.snapshots.write_array(head.spec.id, snapshot_id, name, data) for name in ("params", "exp_avg")
        )
        ref = SnapshotRef(snapshot_id, head.step, head.chain, (head.step,), refs)
        self.store.snapshots.commit(head.spec, head.incarnation, ref, head.log_bytes)
        self.heads[head.spec.id] = replace(head, log_bytes=0)
        self.store.collect(head.spec.id)

    def end(self):
        if (head := self.some()) is None:
            return
        self.store.delete(head.spec.id)
        del self.heads[head.spec.id]
        self.store.collect(head.spec.id)

    def look_slowly(self):
        """Read with a lease, while others go on: nothing that the head named may have changed."""
        if (head := self.some()) is None or self.reading:
            return
        self.reading = True
        try:
            with self.store.lease(head.spec.id):
                head = self.store.load_head(head.spec.id)
                records = self.store.records(head.spec.id, head.snapshots[0].step + 1, head.step)
                for _ in range(6):
                    self.act()
                if head.spec.id in self.heads:  # whose session ends reads no more
                    self.check_named(head, records)
        finally:
            self.reading = False

    def check(self):
        """Read everything that the store names."""
        for session_id in list(self.heads):
            self.check_session(session_id)

    def check_session(self, session_id):
        head = self.store.load_head(session_id)
        self.heads[session_id] = head
        assert head.snapshots
        self.check_named(head, self.store.records(session_id, head.snapshots[0].step + 1, head.step))

    def check_named(self, head, records):
        session_id = head.spec.id
        for snapshot in head.snapshots:
            for array in snapshot.arrays:
                self.store.read_array(session_id, snapshot.id, array, np.empty(array.bulk.nbytes, np.uint8))
        for record in records:
            into = np.empty(record.nbytes, np.uint8)
            self.store.read_body(session_id, record, into)
            assert digest_of(into.tobytes()) == record.digest, f"step {record.step} of {session_id} has other bytes"
