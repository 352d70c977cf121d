"""A bulk directory beside a store that replicas share: one server has it, and the others say so."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import StoreUnavailable, WrongReplica
from adamd_service.records import Committed, Lost
from adamd_service.store import StoreRefused, index
from adamd_service.store.bulk.extents import MANY
from adamd_service.store.bulk.homes import SMALL_BULK_BYTES, Homes
from adamd_service.store.keys import BULK, BULK_ALIVE, BULK_OF_SESSIONS, BULK_SESSIONS, SessionKeys
from adamd_service.store.opening import bulk_files
from adamd_service.store.outcomes import Taken

from ..sessions import array_of, body_of, commit_of, create, new_head, params, snapshot, staged_record, step

LARGE = SMALL_BULK_BYTES // 4 + 1  # elements of float32
BODY = bytes(4 * LARGE)


@pytest.fixture
def server(store_process, tmp_path, connected):
    """Make the store of a server: with a bulk directory, or without. Its end is a crash: nothing is settled."""
    store_process.client().delete(BULK, BULK_SESSIONS)
    stores = []

    def make(name=None, host="one:8000", *, alive=False, allow_lost=False):
        """``alive``: the one that has the directory lives; else its last sign of life is long ago."""
        if not alive:
            store_process.client().delete(BULK_ALIVE)
        store = connected(store_process)
        more = {"server": host, "allow_lost": allow_lost}
        opened = name and bulk_files(tmp_path / name, store, synced=True, shared=True, **more)
        if opened:
            opened.__enter__()
        stores.append((store, opened))
        return store

    def end(store):
        for entry in [one for one in stores if one[0] is store]:
            stores.remove(entry)
            if entry[1]:
                entry[1].__exit__(None, None, None)

    make.end = end
    yield make
    for store, _ in list(stores):
        end(store)


def test_only_what_was_created_here_goes_into_files(server):
    one, two = server("bulk"), server()
    own = step(one, create(one, LARGE), BODY, staged_body=True)
    others = step(two, create(two, LARGE), BODY, staged_body=True)
    small = create(one, 10)
    assert own.snapshots[0].arrays[0].bulk.extent
    assert not others.snapshots[0].arrays[0].bulk.extent and not small.snapshots[0].arrays[0].bulk.extent
    others = step(one, others, BODY, staged_body=True)
    for record in two.records(others.spec.id, 1, 2):
        assert body_of(two, others.spec.id, record) == body_of(one, others.spec.id, record) == BODY


def test_another_server_names_the_one_that_has_the_bytes(server):
    one, two = server("bulk"), server()
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    assert two.load_head(head.spec.id).step == 1
    with pytest.raises(WrongReplica, match=r"\(one:8000\); ask that server"):
        body_of(two, head.spec.id, two.records(head.spec.id, 1, 1)[0])
    with pytest.raises(WrongReplica):
        array_of(two, head.spec.id, head.snapshots[0], head.snapshots[0].arrays[0])


def test_a_commit_that_comes_after_the_next_start_is_refused(server):
    """The next start frees what nothing names. An earlier process's commit must not name that afterwards."""
    one = server("bulk")
    head = create(one, LARGE)
    record = staged_record(one, head, BODY)
    server.end(one)  # its last call is still on its way to the store
    again = server("bulk")
    assert again.bulk.files.free_bytes
    assert one.bulk.doubts.add(head.spec.id, record.attempt, (record.bulk,), record.step)
    assert one.commit(head.spec.id, commit_of(head, record)) == Lost("chunks")
    assert again.load_head(head.spec.id) == head


def test_an_earlier_start_does_not_replace_a_later_ones_token(server, store_process):
    one = server("bulk")
    start, client = one.bulk.notes.identity(), store_process.client()
    client.set(SessionKeys("s_new").bulk, "a later start's")
    one.bulk.notes.expect("s_new")
    one.bulk.look()
    assert client.get(SessionKeys("s_new").bulk) == b"a later start's"
    assert start.token != "a later start's"


def test_what_a_failover_lost_is_said_again(server, store_process):
    one, client = server("bulk"), store_process.client()
    head = create(one, LARGE)
    client.delete(BULK_SESSIONS, SessionKeys(head.spec.id).bulk)
    one.bulk.look()
    assert one.bulk.notes.sessions() == [head.spec.id]
    record = staged_record(one, head, BODY)
    assert one.commit(head.spec.id, commit_of(head, record)) == Committed()


def test_a_server_that_lost_its_directory_answers_as_the_others(server, tmp_path):
    one = server("bulk")
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    shutil.copytree(tmp_path / "bulk", tmp_path / "moved")  # the disk is moved to another machine
    two = server("moved", host="two:8000")
    one.bulk.look()
    with pytest.raises(WrongReplica, match=r"\(two:8000\)"):
        body_of(one, head.spec.id, one.records(head.spec.id, 1, 1)[0])
    assert body_of(two, head.spec.id, two.records(head.spec.id, 1, 1)[0]) == BODY


def test_another_directory_is_refused_while_sessions_have_bytes(server):
    one, two = server("bulk"), server()
    head = create(one, LARGE)
    with pytest.raises(
        StoreRefused, match=r"used last, on one:8000: it is empty. Sessions that have vectors there: 1;"
    ):
        server("other")
    two.delete(head.spec.id)
    assert server("other").bulk.files is not None


def test_a_directory_is_not_lost_while_its_server_lives(server):
    one = server("bulk")
    head = create(one, LARGE)
    with pytest.raises(StoreRefused, match="it is empty.* and the server that has it lives"):
        server("other", alive=True, allow_lost=True)
    one.bulk.look()
    assert step(one, head, BODY, staged_body=True).step == 1
    assert server("other", allow_lost=True).bulk.files is not None


def test_a_copy_is_refused_while_its_server_lives(server, tmp_path):
    """A copy has not what came after it; and the directory itself would be refused from then on as an older one."""
    one = server("bulk")
    head = create(one, LARGE)
    shutil.copytree(tmp_path / "bulk", tmp_path / "copy")
    head = step(one, head, BODY, staged_body=True)
    with pytest.raises(StoreRefused, match="is a copy of the bulk directory of a server that lives, on one:8000"):
        server("copy", alive=True)
    one.ready("r", 30.0)
    with pytest.raises(StoreRefused, match="a server that lives"):
        server("copy", alive=True)
    assert body_of(one, head.spec.id, one.records(head.spec.id, 1, 1)[0]) == BODY
    server.end(one)
    (tmp_path / "bulk").rename(tmp_path / "moved")  # what has ended may move at once, and be itself again
    again = server("moved", alive=True)
    again.bulk.end()
    assert body_of(again, head.spec.id, again.records(head.spec.id, 1, 1)[0]) == BODY


def test_the_same_directory_may_start_again_at_once(server, store_process):
    one = server("bulk")
    alive = store_process.client().get(BULK_ALIVE)
    server.end(one)
    store_process.client().set(BULK_ALIVE, alive)  # it was killed
    assert server("bulk", alive=True).bulk.files is not None


def test_two_starts_at_once_are_not_both_taken(server):
    one = server("bulk")
    known, sessions = one.bulk.notes.identity(), len(one.bulk.notes.sessions())
    assert one.bulk.notes.remember(replace(known, id="2" * 32), known, sessions)
    assert not one.bulk.notes.remember(replace(known, id="3" * 32), known, sessions)


def test_the_owner_frees_what_another_server_unnamed(server):
    """The other one drops records and snapshots from the head; their extents are still the owner's to free."""
    one, two = server("bulk"), server()
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    held = one.bulk.files.total_bytes - one.bulk.files.free_bytes
    two.delete(head.spec.id)
    assert two.collect(head.spec.id) == 0
    two.sweep("default")
    assert one.bulk.files.total_bytes - one.bulk.files.free_bytes == held
    assert one.collect(head.spec.id) >= 2
    assert one.bulk.files.total_bytes == one.bulk.files.free_bytes


def test_a_damaged_sessions_extents_are_the_owners_to_free(server, store_process):
    one, two = server("bulk"), server()
    head = create(one, LARGE)
    store_process.client().hset(SessionKeys(head.spec.id).head, "spec", "{")
    two.delete(head.spec.id)
    assert two.collect(head.spec.id) == 0
    one.collect(head.spec.id)
    assert one.bulk.files.total_bytes == one.bulk.files.free_bytes


def test_snapshots_move_between_both_homes(server):
    """Another server may take a snapshot of what is small; the owner goes on from it, and frees the older ones."""
    one, two = server("bulk"), server()
    head = step(one, create(one, LARGE))
    _, kept = snapshot(two, head)
    assert kept
    head = step(two, two.load_head(head.spec.id))
    ref, kept = snapshot(one, head)
    assert kept and ref.arrays[0].bulk.extent
    one.collect(head.spec.id)
    assert one.bulk.files.free_bytes  # of the first snapshot
    assert array_of(one, head.spec.id, ref, ref.arrays[0])


def taken_from(name, server, tmp_path):
    """Start a server elsewhere, on a copy of a directory."""
    shutil.copytree(tmp_path / name, tmp_path / "moved")
    return server("moved", host="two:8000")


def test_a_start_that_comes_between_expectation_and_token(server, tmp_path, monkeypatch):
    """The later start has forgotten the session by then: the earlier one's token must not come back."""
    one = server("bulk")
    real, later = one._client.set, []

    def stopped_before(*args, **more):
        monkeypatch.undo()
        later.append(taken_from("bulk", server, tmp_path))
        return real(*args, **more)

    monkeypatch.setattr(one._client, "set", stopped_before)
    with pytest.raises(StoreUnavailable, match="given up"):
        create(one, LARGE)
    (two,) = later
    assert two.bulk.notes.sessions() == []


def test_a_start_that_comes_while_the_earlier_one_looks(server, tmp_path, monkeypatch):
    one = server("bulk")
    real = one.bulk.notes.deleted

    def stopped_in_look():
        monkeypatch.undo()
        taken_from("bulk", server, tmp_path)
        return real()

    def looks_before_the_head_is_sent(*args):
        monkeypatch.setattr(index, "claim", claim)
        one.bulk.look()
        return claim(*args)

    claim = index.claim
    monkeypatch.setattr(one.bulk.notes, "deleted", stopped_in_look)
    with monkeypatch.context() as patch:
        patch.setattr(index, "claim", looks_before_the_head_is_sent)
        with pytest.raises(StoreUnavailable, match="given up"):
            create(one, LARGE)


def test_a_damaged_note_is_no_sessions_fault(server, store_process):
    """The owner goes on; the others answer as before, without a name. A note that is deleted is written again."""
    one, two, client = server("bulk"), server(), store_process.client()
    head = step(one, create(one, LARGE), BODY, staged_body=True)
    start = one.bulk.notes.identity()
    for damage in (lambda: client.set(BULK, "{"), lambda: client.rpush(BULK, "1")):
        client.delete(BULK)
        damage()
        one.ready("r", 30.0)
        head = step(one, head, BODY, staged_body=True)
        with pytest.raises(WrongReplica, match="another server; ask"):
            body_of(two, head.spec.id, two.records(head.spec.id, 1, 1)[0])
        with pytest.raises(StoreRefused, match="or delete it while the server runs"):
            server("other")
    client.delete(BULK)
    one.ready("r", 30.0)
    assert two.bulk.notes.identity() == start
    assert body_of(one, head.spec.id, one.records(head.spec.id, 1, 1)[0]) == BODY


def test_two_sessions_that_claim_an_extent_both_keep_it(server, store_process):
    """One part of a cluster went back: a session names again what has been freed, and is another's by now."""
    one, client = server("bulk"), store_process.client()
    old = step(one, create(one, LARGE, session_id="s_b"), BODY, staged_body=True)
    before = {key: client.dump(key) for key in client.scan_iter(match="adamd:{s_b}:*")}
    one.delete(old.spec.id)
    one.collect(old.spec.id)
    others = []
    for session_id in ("s_a", "s_c"):
        head = create(one, LARGE, session_id=session_id, arrays={"params": np.ones(LARGE, np.float32)})
        others.append(step(one, head, BODY[:-1] + b"x", staged_body=True))
    for key in client.scan_iter(match="adamd:{s_b}:*"):
        client.delete(key)
    for key, value in before.items():
        client.restore(key, 0, value)
    server.end(one)
    again = server("bulk")
    twice = [extent for extent, owner in again.bulk.named().items() if owner == MANY]
    assert len(twice) == 2  # that is what is tried here
    for collected in (False, True):
        for head in others:
            ref = head.snapshots[0]
            assert array_of(again, head.spec.id, ref, ref.arrays[0]) == np.ones(LARGE, np.float32).tobytes()
            record = again.records(head.spec.id, 1, 1)[0]
            assert body_of(again, head.spec.id, record) == BODY[:-1] + b"x"
        if not collected:
            again.delete(old.spec.id)
            again.collect(old.spec.id)
            create(again, LARGE)


def test_a_creation_that_fails_leaves_nothing(server, store_process):
    one, client = server("bulk"), store_process.client()
    create(one, LARGE, name="taken")
    sessions, tokens = one.bulk.notes.sessions(), set(client.keys(BULK_OF_SESSIONS))  # a store lists them in any order
    for _ in range(3):
        head = new_head(LARGE, name="taken")
        assert isinstance(one.create(head, params(head), (0,), None), Taken)
    assert one.bulk.notes.sessions() == sessions and set(client.keys(BULK_OF_SESSIONS)) == tokens
    assert one.bulk.notes.expected == one.bulk._own == set(sessions)


def test_what_another_server_deletes_is_not_said_again(server, store_process):
    one, two, client = server("bulk"), server(), store_process.client()
    head = create(one, LARGE)
    two.delete(head.spec.id)
    one.bulk.look()
    assert not client.exists(SessionKeys(head.spec.id).bulk)
    assert head.spec.id not in one.bulk.notes.expected


def test_a_server_loses_its_directory_between_a_look_and_a_use(server, monkeypatch):
    """Every method reads once which files there are: an answer, never an AttributeError."""
    one = server("bulk")
    head = step(one, create(one, LARGE), BODY, staged_body=True)

    class Vanishing(Homes):
        @property
        def files(self):
            files, self.__dict__["kept"] = self.__dict__["kept"], None
            return files

        @files.setter
        def files(self, files):
            self.__dict__["kept"] = files

    files = one.bulk.files
    one.bulk.__dict__["kept"] = files
    monkeypatch.setattr(one.bulk, "__class__", Vanishing)
    record = one.records(head.spec.id, 1, 1)[0]
    for use in (
        lambda: body_of(one, head.spec.id, record),
        lambda: one.bulk.doubts.add(head.spec.id, record.attempt, (record.bulk,), 1),
        lambda: one.bulk.doubts.settle(head.spec.id, record.attempt, named=True),
        lambda: one.bulk.release(head.spec.id, record.attempt),
        lambda: one.bulk.tidy(full=False),
    ):
        one.bulk.files = files
        use()


def test_what_a_later_start_has_written_is_not_missing(server, tmp_path):
    """Before it has looked, an earlier start would take the session for damaged, and advise to delete it."""
    one = server("bulk")
    head = create(one, LARGE)
    two = taken_from("bulk", server, tmp_path)
    step(two, head, BODY, staged_body=True)
    with pytest.raises(WrongReplica, match=r"\(two:8000\)"):
        body_of(one, head.spec.id, one.records(head.spec.id, 1, 1)[0])


@pytest.mark.parametrize("way", ["collect", "sweep"])
def test_what_a_later_start_has_written_is_its_own_to_free(server, tmp_path, way):
    one = server("bulk")
    head = create(one, LARGE)
    two = taken_from("bulk", server, tmp_path)
    step(two, head, BODY, staged_body=True)
    one.delete(head.spec.id)
    assert not (one.collect(head.spec.id) if way == "collect" else one.sweep("default"))
    two.collect(head.spec.id)
    assert two.bulk.files.free_bytes == two.bulk.files.total_bytes > 0
