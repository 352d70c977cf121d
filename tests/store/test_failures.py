"""A full, absent, slow or busy store: adamd's own words, nothing half-written, recovery by itself."""

import secrets
import threading
from dataclasses import replace

import numpy as np
import pytest
import redis
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
)

from adamd.errors import Busy, InternalError, StoreFull, StoreUnavailable
from adamd_service.records import BulkRef, Committed
from adamd_service.store import RedisStore, StoreRefused, UnknownOutcome, chunks
from adamd_service.store.connection.connect import connect
from adamd_service.store.connection.failures import refused, translated
from servers import free_port

from .sessions import body_of, commit_of, create, new_head, next_record, staged, staged_record, step

MIB = 2**20


def room(client, nbytes):
    """Leave the store this much room."""
    client.config_set("maxmemory", client.info("memory")["used_memory"] + nbytes)


def test_a_full_store_refuses_and_keeps_nothing_half(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    store, client = connected(process), process.client()
    head = create(store, MIB)
    record = staged_record(store, head, bytes(2 * MIB))
    before = sorted(client.scan_iter())
    room(client, 1 * MIB)

    with pytest.raises(StoreFull):
        create(store, 4 * MIB)
    with pytest.raises(StoreFull):
        staged(store, head.spec.id, bytes(8 * MIB))
    with pytest.raises(StoreFull):
        store.snapshots.write_array(head.spec.id, "snap", "params", np.zeros(8 * MIB, np.uint8))
    client.config_set("maxmemory", 1)
    with pytest.raises(StoreFull):
        store.commit(head.spec.id, commit_of(head, record))
    with pytest.raises(StoreFull):
        store.patch(head.spec.id, head, replace(head, settings_revision=1))
    with pytest.raises(StoreFull):
        store.create(new_head(missing=True), {}, (), None)
    with pytest.raises(StoreFull):
        store.announce("replica", 1.0)

    assert sorted(client.scan_iter()) == before, "no chunk of what was refused is left to fill the store"
    assert store.load_head(head.spec.id) == head
    assert 0 < client.ttl(f"adamd:{{{head.spec.id}}}:body:{record.attempt}:0")

    store.delete(head.spec.id)
    store.discard(head.spec.id, record.attempt, record.bulk)
    assert store.collect(head.spec.id) > 0
    room(client, 16 * MIB)
    assert step(store, create(store, MIB), bytes(2 * MIB), staged_body=True)
    client.close()


def test_a_killed_store_is_unavailable_and_then_works_with_the_same_client(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    store = connected(process)
    head = step(store, create(store, name="n-1"), staged_body=True)
    record = store.records(head.spec.id, 1, 1)[0]
    upload = store.stage(head.spec.id, "upload", 2 * chunks.CHUNK_BYTES)
    upload.write(memoryview(bytes(chunks.CHUNK_BYTES)))
    process.kill()
    away = [
        lambda: store.load_head(head.spec.id),
        lambda: store.standing(head.spec.id),
        lambda: store.find("default", "n-1"),
        lambda: store.list_sessions("default", 5, None),
        lambda: store.records(head.spec.id, 1, 1),
        lambda: store.ring(head.spec.id),
        lambda: store.idempotent(head.spec.id, "k"),
        lambda: store.collect(head.spec.id),
        lambda: store.delete(head.spec.id),
        lambda: create(store),
        lambda: body_of(store, head.spec.id, record),
        lambda: staged(store, head.spec.id, b"x"),
        lambda: store.resolve(head.spec.id, "a", 2),
        lambda: store.announce("r", 1.0),
        lambda: upload.write(memoryview(bytes(chunks.CHUNK_BYTES))) or upload.finish(),
        upload.finish,
        lambda: store.ready("r", 1.0),
        store.check,
        lambda: store.lease(head.spec.id).__enter__(),
    ]
    for ask in away:
        with pytest.raises(StoreUnavailable) as told:
            ask()
        assert told.value.retry_after
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, next_record(head)))
    store.discard(head.spec.id, "nothing", BulkRef((1, 1, 1)))  # does what it can

    process.start()
    assert store.load_head(head.spec.id).step == 1
    assert body_of(store, head.spec.id, record) == b"gradient"
    assert step(store, head, staged_body=True).step == 2
    assert store.find("default", "n-1") == head.spec.id


def test_a_lease_outlives_the_store(store_factory, store_kind, connected):
    """What a reader raises is its own error, not that its lease could not be given back."""
    process = store_factory(store_kind)
    store = connected(process)
    head = create(store)
    with pytest.raises(KeyError), store.lease(head.spec.id):
        process.kill()
        raise KeyError


def test_a_store_that_loses_its_scripts(store, client):
    head = create(store)
    client.script_flush()
    record = staged_record(store, head, b"gradient")
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()


def test_a_store_at_its_last_connection(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    store, client = connected(process), process.client()
    head = create(store)
    store.close()
    client.config_set("maxclients", 1)
    with pytest.raises((StoreUnavailable, InternalError)) as told:
        store.load_head(head.spec.id)
    assert isinstance(told.value, StoreUnavailable)
    client.config_set("maxclients", 100)
    assert store.load_head(head.spec.id) == head
    client.close()


def test_uploads_have_connections_of_their_own(store_process, monkeypatch):
    """Slow clients with a body under way never keep the others from the store; and there is a bound to them (law 7)."""
    monkeypatch.setattr(chunks, "MAX_UPLOADS", 4)
    store = RedisStore.connect(store_process.url, timeout=10.0, max_connections=1)
    head = create(store)
    uploads = []
    for number in range(4):
        upload = store.stage(head.spec.id, f"a{number}", 3)
        upload.write(memoryview(b"abc"))
        uploads.append(upload)
    with pytest.raises(Busy) as told:
        store.stage(head.spec.id, "a5", 3)
    assert told.value.retry_after
    head = step(store, head)  # the fifth connection

    # However an upload ends, and however often, its place is free once.
    assert uploads[0].finish() == uploads[0].finish() == BulkRef((3,))
    uploads[0].abort()
    uploads[1].abort()
    uploads[1].abort()
    for wrong in (uploads[1].finish, lambda: uploads[1].write(memoryview(b"abc"))):
        with pytest.raises(StoreUnavailable):
            wrong()
    again = [store.stage(head.spec.id, f"b{number}", 3) for number in range(2)]
    with pytest.raises(Busy):
        store.stage(head.spec.id, "c", 3)
    for upload in (*uploads, *again):
        upload.abort()
    assert step(store, head, staged_body=True).step == 2
    store.close()


def test_all_connections_taken_is_said_and_not_hung(store_process, connected):
    store = connected(store_process, connections=1)
    head = create(store)
    record = next_record(head)
    upload = store.stage(head.spec.id, "upload", 3)
    upload.write(memoryview(b"abc"))
    with pytest.raises(StoreUnavailable):
        store.load_head(head.spec.id)
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, record))
    upload.finish()
    assert store.resolve(head.spec.id, record.attempt, 1) == "fenced"
    assert store.load_head(head.spec.id) == head


def test_an_upload_is_given_up_while_it_is_at_work(store_process, connected, client):
    """Another thread may still be waiting for the store: the connection must not be two callers' at once."""
    store = connected(store_process, connections=1)
    head = create(store)
    body = memoryview(bytes(4 * chunks.CHUNK_BYTES))
    for number in range(10):
        upload = store.stage(head.spec.id, f"a{number}", body.nbytes)
        ended = []

        def work(upload=upload, ended=ended):
            try:
                upload.write(body)
                ended.append(upload.finish())
            except StoreUnavailable:
                ended.append(None)

        worker = threading.Thread(target=work)
        worker.start()
        upload.abort()
        worker.join()
        assert ended in ([None], [BulkRef((chunks.CHUNK_BYTES,) * 4)])
        assert store.load_head(head.spec.id) == head
        store.discard(head.spec.id, f"a{number}", BulkRef((1, 1, 1, 1)))


def test_a_piece_that_is_not_a_multiple_is_still_whole(store):
    """The chunks' lengths say what they are, whatever parts came."""
    head, body = create(store), secrets.token_bytes(chunks.CHUNK_BYTES + 77)
    staging = store.stage(head.spec.id, "a", len(body))
    for part in (body[:10], b"", body[10 : chunks.CHUNK_BYTES + 20], body[chunks.CHUNK_BYTES + 20 :]):
        staging.write(memoryview(part))
    record = next_record(head, body, bulk=staging.finish(), attempt="a")
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
    assert body_of(store, head.spec.id, record) == body


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), StoreFull),
        # Redis 6.2 wraps what a script's command said in its own text.
        (ResponseError(f"Error running script (call to f_{'a' * 40}): @user_script:39: -OOM command not"), StoreFull),
        (
            ResponseError(f"Error running script (call to f_{'a' * 40}): @user_script:9: -READONLY You"),
            StoreUnavailable,
        ),
        (ReadOnlyError("You can't write against a read only replica."), StoreUnavailable),
        (MovedError("1234 127.0.0.1:7000"), StoreUnavailable),
        (ClusterDownError("The cluster is down"), StoreUnavailable),
        (MasterDownError("Link with MASTER is down"), StoreUnavailable),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), StoreFull),
        (ResponseError("MISCONF Errors writing to the AOF file: Input/output error"), StoreUnavailable),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), StoreUnavailable),
        (ResponseError("BUSY Valkey is busy running a script."), StoreUnavailable),
        (ResponseError("wrong number of arguments for 'set' command, you ASKED"), InternalError),
        (ResponseError("user_script:9: BLOOMING"), InternalError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_an_answer_means(error, kind):
    assert type(refused(error)) is kind


@pytest.mark.parametrize("error", [redis.ConnectionError, redis.TimeoutError, RedisClusterException, BrokenPipeError])
def test_who_does_not_answer_is_unavailable(error):
    with pytest.raises(StoreUnavailable), translated():
        raise error("gone")


def test_a_replica_takes_no_steps(store_factory, store_kind, connected):
    """A demoted primary: its refusal is "not now", and nothing was written."""
    process, primary = store_factory(store_kind), store_factory(store_kind)
    store, client = connected(process), process.client()
    head = create(store)
    record = staged_record(store, head, b"gradient")
    client.config_set("replica-serve-stale-data", "yes")
    client.replicaof("127.0.0.1", primary.port)
    for wanted in (
        lambda: store.commit(head.spec.id, commit_of(head, record)),
        lambda: create(store),
        lambda: staged(store, head.spec.id, b"x"),
        lambda: store.resolve(head.spec.id, "a", 1),
    ):
        with pytest.raises(StoreUnavailable):
            wanted()
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "localhost:6379",
        "redis://localhost:port",
        "redis://[::1",
        "redis://localhost/0?no_such_option=1",
        "redis://localhost/0?socket_timeout=soon",
        "redis://localhost/0?decode_responses=true",
        "redis+cluster://",
        "redis+cluster://host:x",
        "redis+sentinel://host:26379",
        "redis+sentinel://host:26379/service/db",
        "redis+sentinel://host:26379/service?socket_timeout=soon",
    ],
)
def test_a_url_that_says_nothing_useful_is_refused(url):
    with pytest.raises(StoreRefused, match="--redis-url"):
        connect(url, 1.0, 4)


def test_a_cluster_that_is_not_there():
    with pytest.raises(StoreUnavailable):
        connect(f"redis+cluster://127.0.0.1:{free_port()},[::1]:{free_port()}", 1.0, 4)
    with pytest.raises(StoreUnavailable):
        RedisStore(connect(f"redis+sentinel://127.0.0.1:{free_port()}/service", 1.0, 4), 1.0).check()


def test_a_login_in_the_url(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    with process.client() as client:
        client.acl_setuser("ad:am", enabled=True, passwords=["+p@ss/w?rd"], keys=["*"], commands=["+@all"])
    store = connected(f"redis://ad%3Aam:p%40ss%2Fw%3Frd@127.0.0.1:{process.port}/0?socket_timeout=7")
    head = create(store)
    assert store.load_head(head.spec.id) == head
    wrong = connected(f"redis://ad%3Aam:wrong@127.0.0.1:{process.port}/0")
    with pytest.raises(StoreUnavailable) as told:
        wrong.check()
    assert "wrong@" not in told.value.detail
