"""What every store keeps to, whatever stands behind it: one server, a cluster, or a primary that Sentinel watches.

A test module makes a class of this and a ``store`` fixture.
"""

import secrets
import threading
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import InternalError, InvalidRequest, SessionDeleted, UnknownSession
from adamd_service.records import BulkRef, Committed, IdempotencyKey, Lost
from adamd_service.store import ChunkMissing, Created, HeadVersion, Repeated, Taken, chunks

from .sessions import (
    array_of,
    body_of,
    commit_of,
    create,
    moved_on,
    new_head,
    next_record,
    params,
    snapshot,
    staged_record,
    step,
    steps,
)

ODD = "ü}{:\n\x00 *?[a]\\ 猫"  # what a key must survive
TEXT = {"weird": ODD, "quote": '"', "surrogate": "\ud800"}


class StoreContract:
    """The contract; ``store`` is a fixture of the class or module that uses it."""

    # -- sessions

    def test_a_session_comes_back_as_it_was_made(self, store):
        tensors = {"b": (3,), "w.猫": (2, 0, 5), "scalar": (), "empty": (0,)}
        head = new_head(tensors=tensors, name=f"n-{secrets.token_hex(4)}", labels=TEXT, dtype="float64")
        head = replace(head, settings={"name": "adam", "lr": 0.1, "groups": [{"tensors": ["b"], "lr": 1e-300}]})
        arrays = {name: np.arange(4, dtype="float64") for name in ("params", "exp_avg", "exp_avg_sq")}
        assert store.create(head, arrays, (1, 2, 3, 4), None) == Created()

        found = store.load_head(head.spec.id)
        assert replace(found, snapshots=()) == head
        assert found.spec.created_at == head.spec.created_at
        (ref,) = found.snapshots
        assert (ref.step, ref.chain, ref.counts, ref.nbytes) == (0, head.chain, (1, 2, 3, 4), 96)
        for array in ref.arrays:
            assert array_of(store, head.spec.id, ref, array) == arrays[array.name].tobytes()
        assert store.standing(head.spec.id) == HeadVersion(head.incarnation, 0, head.chain, 0, False)
        assert store.find("default", head.spec.name) == head.spec.id

    def test_a_layout_alone_and_no_elements_at_all(self, store):
        head = create(store, missing=True)
        assert (head.parameters_missing, head.snapshots) == (True, ())
        empty = create(store, 0)
        assert [array.bulk.chunks for array in empty.snapshots[0].arrays] == [()]
        assert array_of(store, empty.spec.id, empty.snapshots[0], empty.snapshots[0].arrays[0]) == b""
        empty = step(store, empty, b"")
        (record,) = store.records(empty.spec.id, 1, 1)
        assert (record.inline, record.nbytes, body_of(store, empty.spec.id, record)) == (b"", 0, b"")
        assert snapshot(store, empty)[1]

    def test_who_is_not_there_is_unknown(self, store):
        for odd in (ODD, "s_none", "}", "{}"):
            for ask in (store.load_head, store.standing):
                with pytest.raises(UnknownSession):
                    ask(odd)
            with pytest.raises(UnknownSession):
                store.find("default", odd)
            assert store.records(odd, 1, 3) == store.ring(odd) == []
            assert store.idempotent(odd, odd) is None
            assert store.collect(odd) == 0
            with pytest.raises(UnknownSession):
                store.delete(odd)

    def test_pages_go_through_all_sessions_once_oldest_first(self, store):
        tenant = f"t{secrets.token_hex(4)}"
        made = [create(store, 1, tenant=tenant, created_at=float(n // 3)).spec.id for n in range(11)]
        for size in (1, 2, 3, 11, 50):
            listed, token = [], None
            while True:
                heads, token = store.list_sessions(tenant, size, token)
                assert len(heads) <= size
                listed += [(head.spec.created_at, head.spec.id) for head in heads]
                if token is None:
                    break
            assert listed == sorted(listed)
            assert sorted(session for _, session in listed) == sorted(made)
        for wrong in ("", "x", "nan~s_1", "1.0~", "~", "1.0"):
            with pytest.raises(InvalidRequest):
                store.list_sessions(tenant, 5, wrong)
        assert store.list_sessions("nobody", 5, None) == ([], None)

    def test_settings_and_labels_change_once_a_revision(self, store):
        head = create(store)
        labelled = replace(head.spec, labels=TEXT)
        after = replace(head, spec=labelled, settings={"lr": 0.5}, settings_revision=1)
        assert store.patch(head.spec.id, head, after) == 0
        assert store.load_head(head.spec.id) == after
        assert store.patch(head.spec.id, head, replace(after, settings={"lr": 9.0})) is None
        assert store.patch(head.spec.id, replace(after, incarnation="another"), after) is None
        assert store.load_head(head.spec.id) == after
        step(store, after)
        assert store.patch(head.spec.id, after, replace(after, settings_revision=2)) == 1, "after a step unseen"

    def test_parameters_are_put_before_step_1_only(self, store):
        head = create(store, missing=True)
        after = replace(head, chain="c" * 64, parameters_missing=False)
        assert store.put_parameters(head, after, params(head), (0,))
        found = store.load_head(head.spec.id)
        assert (found.chain, found.parameters_missing) == ("c" * 64, False)
        assert array_of(store, head.spec.id, found.snapshots[0], found.snapshots[0].arrays[0])

        assert not store.put_parameters(head, after, params(head), (0,)), "on a chain that is no more"
        again = replace(found, chain="d" * 64)
        assert store.put_parameters(found, again, params(head), (0,)), "again, before step 1"
        head = step(store, store.load_head(head.spec.id))
        assert not store.put_parameters(head, replace(head, chain="e" * 64), params(head), (0,))
        assert store.load_head(head.spec.id).chain == head.chain
        assert store.collect(head.spec.id) == 1, "the first one's chunk"

    # -- steps

    @pytest.mark.parametrize("staged_body", [False, True], ids=["inline", "chunks"])
    def test_a_step_moves_the_head_and_leaves_its_record(self, store, staged_body):
        head, body = create(store), b"the gradient"
        make = staged_record if staged_body else (lambda store, head, body, **more: next_record(head, body, **more))
        extra = {"settings": {"lr": 0.5, "groups": []}, "metrics": {"loss": 1e-300, "猫": 3}, "dtype": "bfloat16"}
        record = make(store, head, body, **extra)
        settings = {"name": "adam", "lr": 0.5}
        commit = commit_of(head, record, settings=settings, settings_revision=1)

        assert store.commit(head.spec.id, commit) == Committed()

        after = replace(moved_on(head, record), settings=settings, settings_revision=1)
        assert store.load_head(head.spec.id) == after
        assert store.records(head.spec.id, 1, 5) == [record]
        assert body_of(store, head.spec.id, record) == body
        (entry,) = store.ring(head.spec.id)
        assert (entry.step, entry.digest, entry.attempt, entry.chain) == (
            *(1, record.digest, record.attempt),
            record.chain,
        )
        assert store.commit(head.spec.id, commit) == Committed(again=True)
        assert store.load_head(head.spec.id) == after
        assert store.resolve(head.spec.id, record.attempt, 1) == "committed"

    def test_the_ring_remembers_256(self, store):
        head = steps(store, create(store, step=2**53 - 300), 260)
        ring = store.ring(head.spec.id)
        assert sorted(entry.step for entry in ring) == list(range(head.step - 255, head.step + 1))
        assert store.load_head(head.spec.id).step == head.step == 2**53 - 40
        assert len(store.records(head.spec.id, head.step - 259, head.step)) == 260

    def test_records_stop_at_a_gap(self, store):
        head = steps(store, create(store), 3)
        assert [record.step for record in store.records(head.spec.id, 2, 9)] == [2, 3]
        assert store.records(head.spec.id, 4, 9) == store.records(head.spec.id, 3, 2) == []

    @pytest.mark.parametrize("off", [-1, 0, 1])
    def test_bodies_around_a_chunk(self, store, off):
        head, body = create(store), np.random.default_rng(1).bytes(2 * chunks.CHUNK_BYTES + off)
        record = staged_record(store, head, body)
        wanted = {
            -1: (chunks.CHUNK_BYTES, chunks.CHUNK_BYTES - 1),
            0: (chunks.CHUNK_BYTES, chunks.CHUNK_BYTES),
            1: (chunks.CHUNK_BYTES, chunks.CHUNK_BYTES, 1),
        }
        assert record.bulk.chunks == wanted[off]
        assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
        assert body_of(store, head.spec.id, record) == body

    def test_what_is_not_as_it_was_written_is_never_handed_out(self, store):
        head = create(store)
        record = staged_record(store, head, b"x" * 100)
        with pytest.raises(ChunkMissing):
            body_of(store, head.spec.id, replace(record, attempt="another"))
        with pytest.raises(ChunkMissing):
            body_of(store, head.spec.id, replace(record, bulk=BulkRef((99,))))
        ref = head.snapshots[0]
        with pytest.raises(InternalError, match="damaged"):
            array_of(store, head.spec.id, ref, replace(ref.arrays[0], digest="0" * 32))
        with pytest.raises(InternalError):
            store.read_body(head.spec.id, record, np.empty(99, np.uint8))

    def test_a_key_counts_once(self, store):
        head, key = create(store), IdempotencyKey(ODD, "d" * 32)
        record = next_record(head)
        assert store.commit(head.spec.id, commit_of(head, record, idempotency=key)) == Committed()
        assert store.idempotent(head.spec.id, ODD) == ("d" * 32, 1)
        head = moved_on(head, record)
        assert store.commit(head.spec.id, commit_of(head, next_record(head), idempotency=key)) == Lost("idempotency")
        assert store.load_head(head.spec.id).step == 1

    def test_one_of_many_wins_each_step(self, store):
        """Threads race for every step: the log is one chain, and whoever lost knows it."""
        head, wins = create(store), []

        def race():
            here = store.load_head(head.spec.id)
            while here.step < 20:
                record = next_record(here, secrets.token_bytes(8))
                outcome = store.commit(head.spec.id, commit_of(here, record))
                assert outcome in (Committed(), Lost("moved"))
                wins.extend([record.step] if outcome == Committed() else [])
                here = store.load_head(head.spec.id)

        racers = [threading.Thread(target=race) for _ in range(6)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()

        end = store.load_head(head.spec.id)
        assert sorted(wins) == list(range(1, end.step + 1))
        chain = head.chain
        for record in store.records(head.spec.id, 1, end.step):
            assert record.prev_chain == chain
            chain = record.chain
        assert chain == end.chain

    # -- snapshots, garbage, the end

    def test_two_snapshots_are_kept_and_the_log_goes_with_the_older(self, store):
        head = create(store)
        first, refs = head.snapshots[0], []
        for _ in range(3):
            head = steps(store, head, 2, staged_body=True)
            ref, kept = snapshot(store, head)
            assert kept
            head = replace(head, log_bytes=0)
            refs.append(ref)
        found = store.load_head(head.spec.id)
        assert found.snapshots == tuple(refs[1:])
        assert found.log_bytes == 0
        # Gone: the first two snapshots (1 and 2 arrays), and 4 records with a chunk each.
        assert store.collect(head.spec.id) == 1 + 2 + 4 * 2
        assert store.collect(head.spec.id) == 0
        assert [r.step for r in store.records(head.spec.id, 5, 6)] == [5, 6]
        assert store.records(head.spec.id, 1, 4) == []
        with pytest.raises(ChunkMissing):
            array_of(store, head.spec.id, first, first.arrays[0])
        for ref in refs[1:]:
            assert array_of(store, head.spec.id, ref, ref.arrays[1]) == np.full(10, ref.step, "f4").tobytes()

    def test_a_snapshot_of_another_history_is_not_kept(self, store):
        head = steps(store, create(store), 2)
        assert not snapshot(store, replace(head, chain="0" * 64))[1]
        assert not snapshot(store, replace(head, incarnation="another"))[1]
        assert not snapshot(store, replace(head, step=3))[1]
        ref, kept = snapshot(store, head)
        assert kept
        assert not snapshot(store, head)[1], "there is one of this step"
        assert store.snapshots.commit(head.spec, head.incarnation, ref, 0), "the same again"
        assert store.load_head(head.spec.id).snapshots[-1] == ref

    def test_a_deleted_session_is_gone_and_its_name_free(self, store):
        name = f"n-{secrets.token_hex(4)}"
        head = steps(store, create(store, name=name), 3, staged_body=True)
        store.delete(head.spec.id)
        for ask in (store.load_head, store.standing, store.delete):
            with pytest.raises(SessionDeleted):
                ask(head.spec.id)
        with pytest.raises(SessionDeleted):
            store.find("default", name)
        assert store.commit(head.spec.id, commit_of(head, next_record(head))) == Lost("moved")
        assert store.patch(head.spec.id, head, head) is None
        assert not snapshot(store, head)[1]
        assert store.collect(head.spec.id) == 1 + 3 * 2
        assert create(store, name=name).spec.id == store.find("default", name)

    def test_a_name_and_a_key_are_taken_once(self, store):
        name, key = f"n-{secrets.token_hex(4)}", IdempotencyKey(secrets.token_hex(4), "d" * 32)
        head = step(store, create(store, name=name, key=key))
        other = new_head(name=name)
        assert store.create(other, params(other), (0,), None) == Taken("name", head.spec.id, 1)
        assert store.create(other, params(other), (0,), key) == Repeated(head.spec.id)
        another = IdempotencyKey(key.key, "e" * 32)
        assert store.create(other, params(other), (0,), another) == Taken("idempotency", head.spec.id)
        with pytest.raises(UnknownSession):
            store.load_head(other.spec.id)

    def test_a_lease_holds_garbage_back(self, store):
        head = create(store)
        with store.lease(head.spec.id):
            store.delete(head.spec.id)
            # Deleting ends every lease: nobody has anything left to read.
        assert store.collect(head.spec.id) == 1

    def test_replicas_announce_themselves(self, store):
        name = secrets.token_hex(4)
        assert not store.replica_alive(name)
        store.announce(name, 30.0)
        assert store.replica_alive(name)
        store.ping()
