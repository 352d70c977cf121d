"""The contract on a cluster, and slots that move from one node to another in the middle of the work."""

import secrets

import pytest

from adamd.errors import StoreUnavailable
from adamd_service.records import Committed
from adamd_service.store import RedisStore, UnknownOutcome
from adamd_service.store.keys import BULK_SESSIONS, IndexKeys, SessionKeys
from adamd_service.store.opening import bulk_files

from .clusters import Cluster, until
from .contract import StoreContract
from .sessions import array_of, body_of, commit_of, create, moved_on, next_record, staged, staged_record, step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(store_kind):
    running = Cluster(store_kind)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def store(cluster):
    store = RedisStore.connect(cluster.url, timeout=5.0)
    yield store
    store.close()


class TestCluster(StoreContract):
    """Every key of a session in one slot; the index in another."""


def slot_of(store, session_id):
    return store._client.keyslot(SessionKeys(session_id).head)


def created_on(cluster, store, number, **more):
    """A session whose slot one node holds."""
    for _ in range(100):  # every third is; none, where its replica has taken over
        head = create(store, **more)
        if cluster.holder(slot_of(store, head.spec.id)) == number:
            return head
    raise AssertionError(f"node {number} holds no slots")


def test_its_promise_is_the_weakest_nodes(store):
    store.check()
    assert "3 nodes of" in store.promise
    assert "appendfsync everysec" in store.promise
    assert "failover" in store.promise


def test_a_sessions_keys_share_a_slot(store):
    for session in ("s_1", "a:b", "ü"):
        names = SessionKeys(session)
        keys = [names.head, names.ring, names.gone, names.record(1), names.chunk("a", 0), names.idempotency("k")]
        assert len({store._client.keyslot(key) for key in keys}) == 1
    index = IndexKeys("default")
    assert (
        len({store._client.keyslot(k) for k in (index.names, index.sessions, index.former("n"), index.claim("s"))}) == 1
    )


def test_a_slot_moves(cluster, store):
    """While it moves, a step is refused or done whole; afterwards bulk work finds the new node by itself."""
    head = step(store, created_on(cluster, store, 1), staged_body=True)
    session, slot = head.spec.id, slot_of(store, head.spec.id)
    ids = [cluster.id_of(number) for number in range(3)]
    source, target = cluster.stores[1].client(), cluster.stores[2].client()
    target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[1])
    source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[2])
    keys = source.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
    moving, staying = keys[::2], keys[1::2]

    def move(some):
        source.execute_command("MIGRATE", "127.0.0.1", cluster.stores[2].port, "", 0, 5000, "KEYS", *some)

    move(moving)
    for ask in (lambda: staged(store, session, b"x" * 10), lambda: create_step(store, head)):
        try:
            ask()
        except (StoreUnavailable, UnknownOutcome):
            continue
    move(source.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000))
    assert staying
    for client in (target, source, cluster.stores[0].client()):
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[2])
        client.close()
    until(lambda: cluster.holder(slot) == 2)

    # Bulk work alone, as a session that is hot does it: no command of redis-py's own tells the client.
    def upload():
        try:
            return staged(store, session, b"gradient")
        except StoreUnavailable:
            return None

    until(upload)
    here = store.load_head(session)
    assert here.step in (1, 2), "the step of the middle was done whole or not at all"
    for record in store.records(session, 1, here.step):
        assert len(body_of(store, session, record)) == record.nbytes
    assert array_of(store, session, here.snapshots[0], here.snapshots[0].arrays[0])
    assert step(store, here, staged_body=True)


def create_step(store, head):
    assert store.commit(head.spec.id, commit_of(head, next_record(head))) == Committed()


def test_a_lost_list_of_sessions_overwrites_nothing(cluster, connected, tmp_path):
    """The bulk directory's list of sessions lies on one node, and each session on its own: the one may go back alone."""
    one = connected(cluster.url)
    with bulk_files(tmp_path / "bulk", one, synced=True, shared=True) as files:
        one.bulk.keep_in(files, above=0, shared=one.bulk.notes.identity())
        heads = [step(one, create(one), b"x" * 5000, staged_body=True) for _ in range(8)]
        assert all(head.snapshots[0].arrays[0].bulk.extent for head in heads)
    one._client.delete(BULK_SESSIONS)
    two = connected(cluster.url)
    with bulk_files(tmp_path / "bulk", two, synced=True, shared=True) as files:
        two.bulk.keep_in(files, above=0, shared=two.bulk.notes.identity())
        assert files.free_bytes == 0
        heads = [step(two, head, b"y" * 5000, staged_body=True) for head in heads]
        for head in heads:
            first, second = two.records(head.spec.id, 1, 2)
            assert body_of(two, head.spec.id, first) == b"x" * 5000
            assert body_of(two, head.spec.id, second) == b"y" * 5000
            two.delete(head.spec.id)
            two.collect(head.spec.id)
        assert files.free_bytes == files.total_bytes


def test_a_node_dies_and_its_replica_takes_over(cluster, store):
    """The last test of the module: its first node stays dead."""
    head = created_on(cluster, store, 0)
    for _ in range(3):
        head = step(store, head, staged_body=True)
    slot, session = slot_of(store, head.spec.id), head.spec.id
    with cluster.stores[3].client() as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    record = staged_record(store, head, b"gradient")
    cluster.stores[0].kill()
    with pytest.raises(UnknownOutcome):
        store.commit(session, commit_of(head, record))
    until(lambda: cluster.holder(slot) == 3)

    def upload():
        try:
            return staged(store, session, b"x", attempt=secrets.token_hex(4))
        except StoreUnavailable:
            return None

    until(upload)
    verdict = store.resolve(session, record.attempt, record.step)
    assert verdict in ("fenced", "committed")
    here = store.load_head(session)
    if verdict == "committed":
        assert here == moved_on(head, record)
    assert step(store, here, staged_body=True)


def test_a_node_that_stands_still_keeps_nobody_from_the_others(cluster, connected):
    """The last test of the module: a node that does not answer for long is given up by the others."""
    store = connected(cluster.url, timeout=0.5)
    still, beside = created_on(cluster, store, 1), created_on(cluster, store, 2)
    cluster.stores[1].pause()
    try:
        with pytest.raises(StoreUnavailable):
            store.load_head(still.spec.id)
        assert store.silences.knows(("127.0.0.1", cluster.stores[1].port))
        with pytest.raises(StoreUnavailable):
            store.load_head(still.spec.id)
        assert step(store, beside, staged_body=True).step == 1
    finally:
        cluster.stores[1].resume()
    until(lambda: not store.silences.knows(("127.0.0.1", cluster.stores[1].port)))
    until(lambda: cluster.holder(slot_of(store, still.spec.id)) == 1)
    assert step(store, still).step == 1
