"""A store user with few permissions: what adamd needs is enough, and what is missing is named."""

import pytest

from adamd.errors import StoreUnavailable
from adamd_service.records import Committed
from adamd_service.store import RedisStore, StoreRefused, UnknownOutcome
from adamd_service.store.connection.failures import RULES
from adamd_service.store.keys import BULK, BULK_SESSIONS
from adamd_service.store.opening import bulk_files
from servers import free_port

from .clusters import until
from .contract import StoreContract
from .sessions import commit_of, create, next_record, staged_record, step

PLACE = r"ACL SETUSER <user> ~adamd:\* "


def url_of(process, rules, name="few"):
    """Where a user with these rules finds the store."""
    with process.client() as client:
        client.execute_command("ACL", "SETUSER", name, "reset", "on", ">word", *rules.split())
    return f"redis://{name}:word@127.0.0.1:{process.port}/0"


@pytest.fixture(scope="module")
def store(store_process):
    store = RedisStore.connect(url_of(store_process, RULES), timeout=10.0)
    store.check()
    store.try_writing("r", 30.0)
    yield store
    store.close()


class TestTheContract(StoreContract):
    """With what a refusal advises, and nothing more."""


@pytest.mark.parametrize(
    "rules",
    [
        "~other:* +@all",
        "~adamd:* +@all -@scripting",
        "~adamd:* +@all -set",
        "~adamd:* +@all -zadd",
        "~adamd:* +@all -info",
    ],
)
def test_who_may_not_write_is_told_at_the_start(store_process, connected, rules):
    store = connected(url_of(store_process, rules, "less"))
    with pytest.raises(StoreRefused, match=PLACE):
        store.check()
        store.try_writing("r", 30.0)


def test_a_permission_that_is_taken_away_while_it_serves(store_process, connected):
    """An unavailable store, in words, and no internal error; all is well when it is given back."""
    store = connected(url_of(store_process, RULES, "was"))
    store.check()
    head = create(store)
    url_of(store_process, RULES.replace("~adamd:*", "~other:*"), "was")
    for ask in (
        lambda: store.ready("r", 30.0),
        lambda: create(store),
        lambda: store.load_head(head.spec.id),
        lambda: store.commit(head.spec.id, commit_of(head, next_record(head))),
    ):
        with pytest.raises(StoreUnavailable, match=PLACE) as told:
            ask()
        assert told.value.retry_after
    url_of(store_process, RULES, "was")
    assert step(store, head).step == 1


@pytest.mark.parametrize(("taken", "said"), [("-info", PLACE), ("-config|get", "forbids CONFIG.*config.get")])
def test_a_store_that_no_longer_says_what_it_keeps(store_process, connected, taken, said):
    store = connected(url_of(store_process, RULES, "blind"))
    store.check()
    url_of(store_process, f"{RULES} {taken}", "blind")
    with pytest.raises(StoreUnavailable, match=said):
        store.ready("r", 30.0)
    url_of(store_process, RULES, "blind")
    store.ready("r", 30.0)


def test_a_command_that_a_script_may_not_run_leaves_the_outcome_unknown(store_process, connected):
    """It may have run others before: nobody may say that nothing happened."""
    store = connected(url_of(store_process, RULES, "half"))
    head = create(store)
    url_of(store_process, RULES + " -hset", "half")
    with pytest.raises(UnknownOutcome):
        store.commit(head.spec.id, commit_of(head, next_record(head)))
    url_of(store_process, RULES, "half")
    assert step(store, store.load_head(head.spec.id)).step == 1


def test_a_commit_that_was_cut_off_before_it_moved_the_head_is_none(store_process, connected):
    """Its record alone is there. Who took that for a commit would acknowledge a step that never was."""
    store = connected(url_of(store_process, RULES, "cut"))
    head = create(store)
    first, second = (staged_record(store, head, b"gradient" * count) for count in (1, 2))
    url_of(store_process, RULES + " -persist", "cut")
    for _ in range(2):  # the second finds the record
        with pytest.raises(UnknownOutcome):
            store.commit(head.spec.id, commit_of(head, first))
    assert store.load_head(head.spec.id).step == 0
    assert store.resolve(head.spec.id, first.attempt, 1) == "fenced"
    url_of(store_process, RULES, "cut")
    assert store.commit(head.spec.id, commit_of(head, second)) == Committed()
    assert store.load_head(head.spec.id).chain == second.chain


def test_a_user_of_a_cluster(store_factory, store_kind, connected):
    """redis-py takes any refusal for "Cluster mode is not enabled"."""
    process = store_factory(store_kind, cluster_enabled="yes", cluster_port=free_port())
    with process.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
    store = connected(url_of(process, RULES).replace("redis:", "redis+cluster:"))
    store.check()
    store.try_writing("r", 30.0)
    assert step(store, create(store), staged_body=True).step == 1
    with pytest.raises(StoreRefused, match=PLACE):
        connected(url_of(process, "~adamd:* +@all -cluster").replace("redis:", "redis+cluster:"))


def test_the_owner_of_a_bulk_directory_needs_no_more(store_process, connected, tmp_path):
    with store_process.client() as client:
        client.delete(BULK, BULK_SESSIONS)
    for _ in range(2):
        store = connected(url_of(store_process, RULES))
        with bulk_files(tmp_path / "bulk", store, synced=True, shared=True) as files:
            store.bulk.keep_in(files, above=0, shared=store.bulk.notes.identity())
            head = step(store, create(store), b"x" * 5000, staged_body=True)
            store.ready("r", 30.0)
            store.delete(head.spec.id)
            store.collect(head.spec.id)
            store.sweep("default")
            assert files.free_bytes == files.total_bytes > 0
