"""A commit whose answer never came: really late, really lost, and found out (law 3: applied as often as acknowledged)."""

import secrets
import shutil
import socket
import threading
from dataclasses import replace

import pytest

from adamd.errors import StoreUnavailable
from adamd_service.records import Committed, Lost
from adamd_service.store import UnknownOutcome, chunks, redis_store, scripts

from .sessions import (
    answering,
    body_of,
    commit_of,
    create,
    keys_of,
    moved_on,
    next_record,
    snapshot,
    staged_record,
    step,
)


@pytest.fixture
def held(store_process, monkeypatch, connected):
    """A store whose commit is not sent: its bytes are held back, as a network would, to be sent later."""
    store = connected(store_process)
    packed = []

    class Caught(Exception):
        pass

    def catch(client, keys, *args):
        nonce = secrets.token_hex(8)
        text = scripts.script("commit").text
        pool = client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        packed.append(connection.pack_command("EVAL", text, len(keys), *keys, nonce, *args))
        raise Caught

    original = redis_store.script
    monkeypatch.setattr(redis_store, "script", lambda name: catch if name == "commit" else original(name))

    def send():
        with socket.create_connection(("127.0.0.1", store_process.port)) as raw:
            raw.sendall(b"".join(packed.pop()))
            raw.settimeout(10)
            answer = b""
            while answer.count(b"\r\n") < 5:
                answer += raw.recv(4096)
        return answer.split(b"\r\n")[4].decode()

    return store, send


def test_a_commit_that_runs_after_its_fence_writes_nothing(held, client):
    store, send = held
    head = create(store)
    record = staged_record(store, head, b"gradient")
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, record))
    assert store.resolve(head.spec.id, record.attempt, 1) == "fenced"
    before = keys_of(client, head.spec.id)

    assert send() == "fenced"

    assert store.load_head(head.spec.id) == head
    assert keys_of(client, head.spec.id) == before
    assert client.ttl(f"adamd:{{{head.spec.id}}}:body:{record.attempt}:0") > 0


def test_a_commit_that_runs_before_it_is_looked_for_is_found(held):
    store, send = held
    head = create(store)
    record = staged_record(store, head, b"gradient")
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, record))

    assert send() == "committed"

    assert store.resolve(head.spec.id, record.attempt, 1) == "committed"
    assert store.resolve(head.spec.id, record.attempt, 1) == "committed"
    assert body_of(store, head.spec.id, record) == b"gradient"
    assert store.load_head(head.spec.id) == moved_on(head, record)


def test_a_late_commit_of_a_step_that_another_one_took(held, monkeypatch):
    """Another attempt was first: the late one is fenced, and moves nothing, whichever comes first."""
    store, send = held
    head = create(store)
    for fence_first in (True, False):
        late = next_record(head, b"late")
        with pytest.raises(UnknownOutcome):
            store.commit(head.spec.id, commit_of(head, late))
        if fence_first:
            assert store.resolve(head.spec.id, late.attempt, late.step) == "fenced"
        other = next_record(head, b"other")
        with monkeypatch.context() as patch:
            patch.setattr(redis_store, "script", scripts.script)
            assert store.commit(head.spec.id, commit_of(head, other)) == Committed()
        head = moved_on(head, other)
        assert send() == ("fenced" if fence_first else "moved")
        assert store.resolve(head.spec.id, late.attempt, late.step) == "fenced"
        assert store.load_head(head.spec.id) == head


def test_a_store_that_stood_still(store_factory, store_kind, connected):
    """SIGSTOP in the middle: the client gives up; the store wakes and runs what lay in its socket, or what came first."""
    process = store_factory(store_kind)
    store = connected(process, timeout=0.5)
    head = create(store)
    record = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    process.pause()
    try:
        with pytest.raises(UnknownOutcome):
            store.commit(head.spec.id, commit_of(head, record))
        with pytest.raises(StoreUnavailable):
            store.resolve(head.spec.id, record.attempt, 1)
    finally:
        process.resume()
    patient = connected(process)
    verdict = patient.resolve(head.spec.id, record.attempt, 1)
    # The commit lay in the store's socket, before the question: it ran first. But the law is only that both agree.
    committed = patient.load_head(head.spec.id).step == 1
    assert verdict == ("committed" if committed else "fenced")
    answering(store)
    # The client works again, as it is; sent again, the commit is what the verdict said.
    again = store.commit(head.spec.id, commit_of(head, record))
    assert again == (Committed(again=True) if committed else Lost("fenced"))
    assert step(store, store.load_head(head.spec.id)).step == (2 if committed else 1)


def test_the_answer_is_lost_with_the_store(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    store = connected(process)
    head = create(store)
    record = next_record(head)
    process.kill()
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, record))
    with pytest.raises(StoreUnavailable):
        store.resolve(head.spec.id, record.attempt, 1)
    process.start()
    assert store.resolve(head.spec.id, record.attempt, 1) == "fenced"
    assert store.commit(head.spec.id, commit_of(head, record)) == Lost("fenced")
    assert store.load_head(head.spec.id) == head


def test_committers_race_the_fence(store_process, connected):
    """Commit and resolve at the same moment, again and again: whoever was first, both tell the same."""
    store = connected(store_process)
    head = create(store)
    seen = set()
    for _ in range(60):
        record = next_record(head)
        told = {}
        both = threading.Barrier(2)

        def commit(record=record, head=head, told=told, both=both):
            both.wait()
            told["commit"] = store.commit(head.spec.id, commit_of(head, record))

        committer = threading.Thread(target=commit)
        committer.start()
        both.wait()
        told["resolve"] = store.resolve(head.spec.id, record.attempt, record.step)
        committer.join()
        seen.add(told["resolve"])
        assert told["commit"] == (Committed() if told["resolve"] == "committed" else Lost("fenced"))
        head = moved_on(head, record) if told["resolve"] == "committed" else head
        assert store.load_head(head.spec.id) == head
    assert seen <= {"committed", "fenced"}


def test_a_chunk_that_outlived_its_time_is_seen(store, client):
    """The TTL of a staged chunk ends before the commit: nothing is written, the attempt may be staged again."""
    head = create(store)
    record = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    client.pexpire(f"adamd:{{{head.spec.id}}}:body:{record.attempt}:0", 1)
    while client.exists(f"adamd:{{{head.spec.id}}}:body:{record.attempt}:0"):
        pass
    assert store.commit(head.spec.id, commit_of(head, record)) == Lost("chunks")
    assert store.load_head(head.spec.id) == head
    again = staged_record(store, head, bytes(chunks.CHUNK_BYTES + 1))
    assert store.commit(head.spec.id, commit_of(head, again)) == Committed()


def test_a_store_that_went_back(store_factory, store_kind, connected):
    """Its files of an earlier moment come back: an older step on a known chain, and nothing resumes on another history."""
    process = store_factory(store_kind)
    store = connected(process)
    head = step(store, step(store, create(store)))
    process.kill()
    saved = f"{process.directory}-saved"
    shutil.copytree(process.directory, saved)
    try:
        process.start()
        ahead = step(store, step(store, head))
        process.kill()
        shutil.rmtree(process.directory)
        shutil.copytree(saved, process.directory)
    finally:
        shutil.rmtree(saved)
    process.start()

    assert (store.standing(head.spec.id).step, store.standing(head.spec.id).chain) == (2, head.chain)
    assert store.commit(head.spec.id, commit_of(ahead, next_record(ahead))) == Lost("moved")
    # The same numbers again, on another history: a snapshot or a commit of the lost one is refused.
    other = step(store, step(store, head, b"another"), b"another")
    assert other.step == ahead.step
    assert store.commit(head.spec.id, commit_of(ahead, next_record(ahead))) == Lost("moved")
    assert store.commit(head.spec.id, commit_of(replace(head, step=3), next_record(ahead))) == Lost("moved")
    assert not snapshot(store, ahead)[1]
    assert snapshot(store, other)[1]
