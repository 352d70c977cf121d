"""The store's durability is asked anew: its settings, a restart, or another store behind the name may change it."""

import asyncio
import socket
import threading
from dataclasses import replace

import pytest
import redis

from adamd.errors import StoreFull, StoreUnavailable
from adamd_service.records import Committed
from adamd_service.store import RedisStore, StoreLoading, StoreRefused, UnknownOutcome
from servers import free_port

from .clusters import until
from .sessions import commit_of, create, new_head, next_record, params, staged, step


def acknowledging(store, head):
    """Everything that would promise to keep something."""
    return [
        lambda: store.commit(head.spec.id, commit_of(head, next_record(head))),
        lambda: asyncio.run(store.commit_soon(head.spec.id, commit_of(head, next_record(head)))),
        lambda: create(store),
        lambda: staged(store, head.spec.id, b"x"),
        lambda: store.patch(head.spec.id, head, replace(head, settings_revision=1)),
        lambda: store.put_parameters(head, replace(head, chain="another"), params(head), (0,)),
    ]


def first_file(client):
    """Whether the file is written for the first time: meanwhile the store does not let itself be stopped."""
    return client.info("persistence")["aof_base_size"] == 0


def ready(store):
    try:
        store.ready("r", 30.0)
    except StoreUnavailable:
        return False
    return True


def test_the_file_is_switched_off_while_it_serves(store_factory, store_kind, connected):
    """Nothing is acknowledged as kept. What is there can be read and deleted, and all is well again when the file is."""
    process = store_factory(store_kind)
    store = connected(process)
    store.check()
    kept, other, promise = create(store), create(store), store.promise
    with process.client() as client:
        client.config_set("appendonly", "no")
        with pytest.raises(StoreUnavailable, match="keeps no append-only file.*CONFIG REWRITE"):
            store.ready("r", 30.0)
        assert store.replica_alive("r"), "the other replicas know that this one lives"
        for ask in acknowledging(store, kept):
            with pytest.raises(StoreUnavailable, match="keeps no append-only file") as told:
                ask()
            assert told.value.retry_after
        assert store.load_head(kept.spec.id) == kept
        assert store.delete(other.spec.id)
        assert "no append-only file: the store's death takes everything" in store.promise
        assert "nothing is committed now" in store.promise

        client.config_set("appendonly", "yes")
        until(lambda: ready(store))
        assert store.promise == promise
        assert step(store, kept).step == 1


def test_a_setting_that_a_restart_forgets(store_factory, store_kind, connected):
    """What adamd itself once advised: CONFIG SET appendonly yes, without CONFIG REWRITE."""
    process = store_factory(store_kind, appendonly="no")
    with process.client() as client:
        client.config_set("appendonly", "yes")
        until(lambda: not first_file(client))
    store = connected(process)
    store.check()
    head = step(store, create(store))
    process.kill()
    process.start()

    for ask in (*acknowledging(store, head)[2:], lambda: store.load_head(head.spec.id)):
        with pytest.raises(StoreUnavailable, match="keeps no append-only file"):
            ask()
    with pytest.raises((StoreUnavailable, UnknownOutcome)):
        store.commit(head.spec.id, commit_of(head, next_record(head)))
    with pytest.raises(StoreUnavailable, match="keeps no append-only file"):
        store.look()
    assert "nothing is committed now" in store.promise

    process.kill()
    process.settings["appendonly"] = "yes"
    process.start()
    assert store.load_head(head.spec.id) == head, "it was there all the time, in a file that nobody had read"
    assert step(store, head).step == 2
    assert "appendfsync always" in store.promise


def test_a_file_that_is_not_whole_yet_keeps_nothing(store_factory, store_kind, connected):
    """INFO says aof_enabled:1 at once, and a store that is killed before all is in its first file reads none of it."""
    process = store_factory(store_kind, appendonly="no", rdb_key_save_delay=20_000)
    store = connected(process)
    with process.client() as client:
        for number in range(50):
            client.set(f"other:{number}", 1)
        store.check(allow_lossy=True)
        head = create(store)
        client.config_set("appendonly", "yes")
        with pytest.raises(StoreLoading, match="for the first time"):
            store.check()
        with pytest.raises(StoreUnavailable, match="for the first time"):
            store.commit(head.spec.id, commit_of(head, next_record(head)))
        until(lambda: not first_file(client))
    store.check()
    assert step(store, head).step == 1


def test_the_first_rewrite_of_a_file_that_is_whole_is_no_beginning(store_factory, store_kind, connected):
    """A store that began empty has a file without a base until its first rewrite, and INFO says the same of both."""
    process = store_factory(store_kind, rdb_key_save_delay=20_000)
    store = connected(process)
    store.check()
    head = create(store)
    with process.client() as client:
        for number in range(50):
            client.set(f"other:{number}", 1)
        assert first_file(client)
        client.bgrewriteaof()
        until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 1)
        store.check()
        assert step(store, head).step == 1
        assert client.info("persistence")["aof_rewrite_in_progress"] == 1
        until(lambda: not first_file(client))


def test_no_process_is_used_before_it_was_looked_at(store_factory, store_kind, connected):
    """Nobody asks, and nobody comes by from time to time: the first step after the restart is refused already."""
    process = store_factory(store_kind)
    store = connected(process)
    store.check()
    head = create(store)

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        process.kill()
        process.settings["appendonly"] = "no"
        process.start()
        assert await store.commit_soon(head.spec.id, commit_of(head, next_record(head))) is None
        await store.lines.grow(asyncio.to_thread)
        assert not store.lines.at_hand

    asyncio.run(scenario())
    with pytest.raises(StoreUnavailable, match="keeps no append-only file"):
        store.commit(head.spec.id, commit_of(head, next_record(head)))


def test_a_new_connection_to_a_known_process_sees_that_it_is_set_otherwise(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    store = connected(process)
    store.check()
    head = create(store)
    with process.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.client_kill_filter(_type="normal", skipme=True)
        assert store.load_head(head.spec.id) == head
        with pytest.raises(StoreUnavailable, match="may evict keys .maxmemory-policy allkeys-lru"):
            store.commit(head.spec.id, commit_of(head, next_record(head)))


def test_a_word_that_was_accepted_is_not_frozen(store_factory, store_kind, connected):
    process = store_factory(store_kind, appendonly="no")
    store = connected(process)
    store.check(allow_lossy=True)
    assert "no append-only file" in store.promise
    with process.client() as client:
        client.config_set("appendonly", "yes")
        until(lambda: not first_file(client))
    store.look()
    assert "appendfsync always" in store.promise
    process.kill()
    process.start()
    store.load_head(create(store).spec.id)
    assert "no append-only file" in store.promise and "nothing is committed" not in store.promise


# -- a primary that is one no more


def two(store_factory, store_kind):
    """A primary, and a replica of it that has everything."""
    first, second = (store_factory(store_kind, repl_diskless_sync_delay=0) for _ in range(2))
    with second.client() as client:
        client.replicaof("127.0.0.1", first.port)
        until(lambda: client.info("replication")["master_link_status"] == "up")
    return first, second


def swap(first, second, proxy):
    """Fail over: the old primary follows the new one, and the name leads there; connections stay as they are."""
    with first.client() as old, second.client() as new:
        until(lambda: old.info("replication")["slave0"]["offset"] == old.info("replication")["master_repl_offset"])
        new.execute_command("REPLICAOF", "NO", "ONE")
        old.replicaof("127.0.0.1", second.port)
        until(lambda: old.info("replication")["master_link_status"] == "up")
    proxy.target = second.port


def test_a_demoted_primary_is_left_by_threads(store_factory, store_kind, connected, proxy):
    first, second = two(store_factory, store_kind)
    before = proxy(first)
    store = connected(before.url)
    store.check()
    head = step(store, create(store), staged_body=True)
    upload = store.stage(head.spec.id, "a", 3)
    upload.write(memoryview(b"ab"))  # over a connection that it keeps
    store.load_head(head.spec.id)  # over another one, which is idle then
    swap(first, second, before)

    with pytest.raises(StoreUnavailable, match="READONLY|read only"):
        store.commit(head.spec.id, commit_of(head, next_record(head)))
    assert step(store, head, staged_body=True).step == 2
    upload.write(memoryview(b"c"))
    with pytest.raises(StoreUnavailable, match="READONLY|read only"):
        upload.finish()
    with second.client() as client:
        assert client.hget(f"adamd:{{{head.spec.id}}}:head", "step") == b"2"


def test_a_demoted_primary_is_left_by_the_loop(store_factory, store_kind, connected, proxy):
    first, second = two(store_factory, store_kind)
    before = proxy(first)
    store = connected(before.url)
    store.check()
    head = step(store, create(store))

    async def scenario():
        await store.lines.grow(asyncio.to_thread)
        swap(first, second, before)
        assert await store.commit_soon(head.spec.id, commit_of(head, next_record(head))) is None
        assert not store.lines.at_hand
        record = next_record(head)
        assert store.commit(head.spec.id, commit_of(head, record)) == Committed(), "the threads' were left with it"
        await store.lines.grow(asyncio.to_thread)
        assert store.lines.at_hand

    asyncio.run(scenario())
    with second.client() as client:
        assert client.hget(f"adamd:{{{head.spec.id}}}:head", "step") == b"2"


def test_a_demoted_primary_is_left_by_who_only_reads(store_factory, store_kind, connected, proxy):
    """A replica answers reads, and says what was: the look from time to time finds out."""
    first, second = two(store_factory, store_kind)
    before = proxy(first)
    store = connected(before.url)
    store.check()
    head = create(store)
    swap(first, second, before)
    with pytest.raises(StoreUnavailable, match="is a replica now"):
        store.ready("r", 30.0)
    assert store.load_head(head.spec.id) == head
    with first.client() as client:  # nobody but its primary, and this one
        clients = [one for one in client.client_list() if one["flags"] == "N"]
    assert len(clients) == 1
    store.ready("r", 30.0)
    assert step(store, head).step == 1


def test_a_name_that_leads_to_a_replica_still(store_factory, store_kind, connected, proxy):
    """Nothing is read from it: what it has may be old."""
    first, second = two(store_factory, store_kind)
    before = proxy(first)
    store = connected(before.url)
    store.check()
    head = create(store)
    swap(first, second, before)
    before.target = first.port
    for ask in (lambda: store.ready("r", 30.0), lambda: store.load_head(head.spec.id)):
        with pytest.raises(StoreUnavailable, match="is a replica now"):
            ask()
    before.target = second.port
    assert store.load_head(head.spec.id) == head


@pytest.mark.parametrize("word", ["MASTERDOWN", "NOREPLICAS"])
def test_other_words_of_one_who_takes_no_writes(store_factory, store_kind, connected, proxy, word):
    first, second = store_factory(store_kind), store_factory(store_kind)
    before = proxy(first)
    store = connected(before.url)
    head = create(store)
    with first.client() as client:
        if word == "NOREPLICAS":
            client.config_set("min-replicas-to-write", 1)
        else:
            client.config_set("replica-serve-stale-data", "no")
            client.replicaof("127.0.0.1", 1)
    before.target = second.port
    with pytest.raises(StoreUnavailable):
        store.commit(head.spec.id, commit_of(head, next_record(head)))
    assert step(store, create(store)).step == 1


# -- readiness


@pytest.mark.parametrize(
    ("setting", "wrong", "right", "kind"),
    [("min-replicas-to-write", 1, 0, StoreUnavailable), ("maxmemory", 1, 0, StoreFull)],
)
def test_ready_is_who_can_write(store_factory, store_kind, connected, setting, wrong, right, kind):
    process = store_factory(store_kind)
    store = connected(process)
    store.check()
    store.try_writing("r", 30.0)
    with process.client() as client:
        client.config_set(setting, wrong)
        for ask in (store.ready, store.try_writing):
            with pytest.raises(kind):
                ask("r", 30.0)
        client.config_set(setting, right)
    store.ready("r", 30.0)


# -- what an answer says that is in hand


@pytest.fixture
def loading(store_factory, store_kind):
    """A store that takes its time to read its file."""
    process = store_factory(store_kind)
    with process.client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(20000):
            pipeline.set(f"other:{number}", bytes(100))
        pipeline.execute()
    process.kill()
    process.settings |= {"key-load-delay": "200", "loading-process-events-interval-bytes": "1024"}
    process.start(wait=False)
    return process


def test_a_store_that_loads_is_not_judged(loading, connected):
    """Redis says aof_enabled:0 meanwhile."""
    store = connected(loading)

    def told():
        try:
            store.check(allow_lossy=True)
        except StoreLoading as error:
            return str(error)
        return None

    with loading.client() as client:
        until(lambda: client.info("persistence")["loading"] == 1, pause=0.01)
        assert "is loading its data (" in told()
        client.config_set("key-load-delay", 0)
    loading.wait_ready()
    store.check()
    assert "appendfsync always" in store.promise
    head = create(store)

    loading.kill()
    loading.settings["key-load-delay"] = "200"
    loading.start(wait=False)
    with loading.client() as client:
        until(lambda: client.info("persistence")["loading"] == 1, pause=0.01)
        for ask in (lambda: store.load_head(head.spec.id), lambda: store.ready("r", 30.0)):
            with pytest.raises(StoreUnavailable, match="is loading its data"):
                ask()
        assert "appendfsync always" in store.promise
        client.config_set("key-load-delay", 0)
    loading.wait_ready()
    assert store.load_head(head.spec.id) == head


def test_one_node_of_a_cluster(store_factory, store_kind, connected):
    process = store_factory(store_kind, cluster_enabled="yes", cluster_port=free_port())
    with pytest.raises(StoreRefused, match=r"is a node of a Cluster.*redis\+cluster://"):
        connected(process).check(allow_lossy=True, trusted=True)


def test_no_cluster(store_factory, store_kind):
    with pytest.raises(StoreRefused, match="is no Cluster: write redis://"):
        RedisStore.connect(f"redis+cluster://127.0.0.1:{store_factory(store_kind).port}", timeout=5.0)


def test_a_slot_that_is_elsewhere_is_said_in_words(store_factory, store_kind, connected):
    process = store_factory(store_kind, cluster_enabled="yes", cluster_port=free_port())
    with pytest.raises(StoreUnavailable, match="Hash slot not served"):
        create(connected(process))


def test_who_is_asked_as_what_it_is_not(store_factory, store_kind, connected):
    port = store_factory(store_kind).port
    with pytest.raises(StoreUnavailable, match="is a store, and no Sentinel"):
        connected(f"redis+sentinel://127.0.0.1:{port}/steps").check()
    with pytest.raises(StoreUnavailable, match="no answer to the beginning of TLS"):
        connected(f"rediss://127.0.0.1:{port}", timeout=0.3).check()


def test_what_is_no_store_at_all(connected):
    with socket.create_server(("127.0.0.1", 0)) as web:

        def answer():
            came, _ = web.accept()
            with came:
                came.recv(1000)
                came.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StoreUnavailable, match="does not speak its protocol"):
            connected(f"redis://127.0.0.1:{web.getsockname()[1]}").check()


def test_a_wrong_password(store_factory, store_kind, connected):
    process = store_factory(store_kind)
    with process.client() as client:
        client.config_set("requirepass", "right")
    for login in (":wrong@", ""):
        with pytest.raises(StoreUnavailable, match="does not know the user or the password") as told:
            connected(f"redis://{login}127.0.0.1:{process.port}").check()
        assert "wrong@" not in str(told.value)
    connected(f"redis://:right@127.0.0.1:{process.port}").check()


def test_a_store_that_was_not_checked_is_not_looked_at(store_factory, store_kind, connected):
    store = connected(store_factory(store_kind, appendonly="no"))
    store.ready("r", 30.0)
    assert store.promise == "unchecked"
    assert isinstance(store.create(new_head(missing=True), {}, (), None), object)
    with pytest.raises(redis.ResponseError):
        store._client.execute_command("NOSUCH")


def test_a_cluster_whose_nodes_are_told_by_ipv6_addresses(store_factory, store_kind, connected):
    store = store_factory(store_kind, cluster_enabled="yes", cluster_port=free_port(), bind="::1 127.0.0.1")
    with store.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        client.config_set("cluster-announce-ip", "::1")
        until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        assert client.execute_command("CLUSTER SLOTS")[0][2][0] == b"::1"
    reached = connected(f"redis+cluster://[::1]:{store.port}")
    reached.check()
    assert step(reached, create(reached), staged_body=True).step == 1
