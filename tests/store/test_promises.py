"""What a store's settings promise, word for word, and which stores are refused."""

import pytest

from adamd_service.store import StoreRefused
from adamd_service.store.connection import durability


def checked(connected, process, **options):
    store = connected(process)
    store.check(**options)
    return store.promise


@pytest.mark.parametrize(
    ("fsync", "said"),
    [
        ("always", "appendfsync always: an acknowledged step survives the death of any process and of power"),
        (
            "everysec",
            "appendfsync everysec: an acknowledged step survives the death of adamd; the store's own death may take up to 2 s of them",
        ),
        (
            "no",
            "appendfsync no: an acknowledged step survives the death of adamd; the store's own death may take up to 30 s of them",
        ),
    ],
)
def test_what_each_appendfsync_promises(store_factory, store_kind, connected, fsync, said):
    promise = checked(connected, store_factory(store_kind, appendfsync=fsync))
    product, version, rest = promise.split(" ", 2)
    assert product in ("Valkey", "Redis")
    assert version.rstrip(",").replace(".", "").isdigit()
    assert rest == said


def test_a_store_that_is_not_asked_promises_nothing(store_factory, store_kind, connected):
    assert connected(store_factory(store_kind)).promise == "unchecked"


def test_no_append_only_file(store_factory, store_kind, connected):
    process = store_factory(store_kind, appendonly="no")
    with pytest.raises(
        StoreRefused, match="keeps no append-only file.*redis.conf.*CONFIG REWRITE.*--allow-lossy-store"
    ):
        checked(connected, process)
    promise = checked(connected, process, allow_lossy=True)
    assert promise.endswith("no append-only file: the store's death takes everything since its last RDB snapshot")
    assert checked(connected, process, trusted=True).endswith("its last RDB snapshot (trusted)")


def test_a_store_that_evicts(store_factory, store_kind, connected):
    process = store_factory(store_kind, maxmemory_policy="allkeys-lru")
    with pytest.raises(StoreRefused, match="may evict keys .maxmemory-policy allkeys-lru.*--allow-lossy-store"):
        checked(connected, process)
    assert checked(connected, process, allow_lossy=True).endswith("; it may evict keys: sessions may be lost")


@pytest.fixture
def without_config(tmp_path):
    """A file of settings that takes CONFIG away."""
    (tmp_path / "settings").write_text('rename-command CONFIG ""\n')
    return tmp_path / "settings"


@pytest.mark.parametrize("how", ["renamed", "acl"])
def test_config_is_forbidden(store_factory, store_kind, connected, without_config, how):
    """As managed services do: CONFIG is not there at all, or not for this user."""
    if how == "renamed":
        where = store_factory(store_kind, include=without_config).url
    else:
        process = store_factory(store_kind)
        with process.client() as client:
            client.acl_setuser("adamd", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-config"])
        where = f"redis://adamd:p@127.0.0.1:{process.port}/0"
    for options in ({}, {"allow_lossy": True}):
        with pytest.raises(StoreRefused, match="forbids CONFIG.*--store-trusted"):
            checked(connected, where, **options)
    said = checked(connected, where, trusted=True)
    assert said.endswith(": CONFIG is forbidden; its owner says that it persists and never evicts")


def test_config_is_forbidden_and_info_says_that_it_evicts(store_factory, store_kind, connected, without_config):
    """The owner's word does not cover what the store itself tells."""
    process = store_factory(store_kind, include=without_config, maxmemory_policy="allkeys-lru")
    said = checked(connected, process, trusted=True)
    assert said.endswith("its owner says that it persists; it may evict keys: sessions may be lost")


def test_a_store_with_replicas_and_one_of_them(store_factory, store_kind, connected):
    primary, replica = store_factory(store_kind), store_factory(store_kind)
    with replica.client() as client, primary.client() as asked:
        client.replicaof("127.0.0.1", primary.port)
        while not asked.info("replication")["connected_slaves"]:
            pass
        assert checked(connected, primary).endswith(
            "; a failover to an asynchronous replica may lose steps, and clients are told (history_lost)"
        )
        with pytest.raises(StoreRefused, match="is a replica, which takes no writes: name its primary"):
            checked(connected, replica, allow_lossy=True, trusted=True)


def test_too_old(store_factory, store_kind, connected, monkeypatch):
    """No older server is at hand, so the bar is raised above this one."""
    monkeypatch.setattr(durability, "OLDEST", (99, 0))
    with pytest.raises(StoreRefused, match=r"(Valkey|Redis) [\d.]+ is too old: wanted Redis 6.2 or later, or Valkey"):
        checked(connected, store_factory(store_kind), allow_lossy=True, trusted=True)


def test_the_weakest_node_speaks_for_all():
    def node(**more):
        plain = {"name": "Valkey 9.1.2", "version": (7, 2), "product": "Valkey", "aof": True, "fsync": "always"}
        return durability.NodeSettings(**{**plain, "eviction": "noeviction", "replicas": 0, "replica": False, **more})

    strong, weak = node(), node(fsync="everysec")

    def said(*nodes):
        return durability.promise_of(nodes, durability.Terms())

    assert said(strong, weak, strong).startswith("3 nodes of Valkey 9.1.2, appendfsync everysec: ")
    assert "no append-only file" in said(strong, node(aof=False))
    assert "may evict" in said(strong, node(eviction="volatile-ttl"))
    assert "failover" in said(strong, node(replicas=1))


@pytest.mark.parametrize(
    "info", [b"", b"loading_loaded_perc:x\r\nconnected_slaves:-\xff\r\nredis_version:..", 7, [b"x"], None]
)
@pytest.mark.parametrize("setting", [[], [b"appendfsync"], [b"x", 7], b"x", None, [b"x", b"\xff"]])
def test_what_cannot_be_read_is_refused(info, setting):
    """Whatever answers at a store's address."""

    class Strange:
        def send_command(self, name, *words):
            self.answer = info if name == "INFO" else setting

        def read_response(self, **options):
            return self.answer

    try:
        found = durability.look(Strange())
    except StoreRefused:
        return
    assert durability.why_not(found, durability.Terms()) is not None
    assert durability.promise_of([found], durability.Terms())
