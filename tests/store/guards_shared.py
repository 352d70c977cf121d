"""Functions that fail without a line of the Lua scripts: bulk files beside a shared store.

See test_guards.py.
"""

import tempfile
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adamd.errors import StoreUnavailable
from adamd_service.records import Lost
from adamd_service.store import RedisStore
from adamd_service.store.bulk.directory import Identity
from adamd_service.store.keys import BULK, BULK_SESSIONS, SessionKeys
from adamd_service.store.opening import bulk_files

from .sessions import commit_of, create, params, snapshot, staged_record, step

BODY = bytes(5000)
FIRST, OTHER = Identity("1" * 32, 1), Identity("2" * 32, 1)


@contextmanager
def owner(client):
    """A server's store, whose bulk lies in files beside a store that others use too."""
    host, port = (client.connection_pool.connection_kwargs[name] for name in ("host", "port"))
    client.delete(BULK, BULK_SESSIONS)
    with closing(RedisStore.connect(f"redis://{host}:{port}/0", timeout=10.0)) as store, ExitStack() as opened:
        directory = opened.enter_context(tempfile.TemporaryDirectory())
        files = opened.enter_context(bulk_files(Path(directory) / "bulk", store, synced=True))
        store.bulk.keep_in(files, above=0, shared=store.bulk.notes.identity())
        yield store


def taken_over(store):
    """The directory is opened by a later start, which lets nothing through that the earlier one names."""
    known = store.bulk.notes.identity()
    later = replace(known, generation=known.generation + 1)
    assert store.bulk.notes.remember(later, known, len(store.bulk.notes.sessions()))
    store.bulk.notes.replace_tokens(later)


def one_claim_of_two_counts(store, client):
    client.delete(BULK, BULK_SESSIONS)
    assert store.bulk.notes.remember(FIRST, None, 0) and store.bulk.notes.remember(FIRST, None, 0)
    assert not store.bulk.notes.remember(OTHER, None, 0)
    assert store.bulk.notes.identity() == FIRST


def a_claim_wants_the_sessions_that_were_looked_at(store, client):
    client.delete(BULK, BULK_SESSIONS)
    client.sadd(BULK_SESSIONS, "s_new")
    assert not store.bulk.notes.remember(FIRST, None, 0)
    assert store.bulk.notes.identity() is None


def a_session_is_expected_before_it_has_an_extent(store, client):
    with owner(client) as one:
        head = create(one)
        assert one.bulk.notes.sessions() == [head.spec.id]
        assert list(one.bulk.named())


def a_later_start_expects_no_session_of_an_earlier(store, client):
    with owner(client) as one:
        taken_over(one)
        with pytest.raises(StoreUnavailable, match="another server has the bulk directory"):
            create(one)
        assert one.bulk.notes.sessions() == []


def a_later_start_lets_no_step_through(store, client):
    with owner(client) as one:
        head = create(one)
        record = staged_record(one, head, BODY)
        taken_over(one)
        assert one.commit(head.spec.id, commit_of(head, record)) == Lost("chunks")
        assert store.load_head(head.spec.id) == head


def a_later_start_lets_no_snapshot_through(store, client):
    with owner(client) as one:
        head = step(one, create(one))
        taken_over(one)
        snapshot(one, head)
        assert store.load_head(head.spec.id).snapshots == head.snapshots


def a_later_start_lets_no_parameters_through(store, client):
    with owner(client) as one:
        head = create(one)
        taken_over(one)
        after = replace(head, chain="f" * 64)
        assert not one.put_parameters(head, after, params(head), (0,))
        assert store.load_head(head.spec.id) == head


def a_later_start_lets_no_creation_through(store, client):
    with owner(client) as one:
        expect = one.bulk.notes.expect

        def expect_then_taken_over(session_id):
            if session_id not in one.bulk.notes.expected:
                expect(session_id)
                taken_over(one)

        one.bulk.files._expect = expect_then_taken_over
        with pytest.raises(StoreUnavailable, match="given up"):
            create(one)
        (session_id,) = one.bulk.notes.sessions()
        assert not client.exists(SessionKeys(session_id).head)


def a_deleted_session_leaves_no_token(store, client):
    with owner(client) as one:
        head = create(one)
        assert client.exists(SessionKeys(head.spec.id).bulk)
        one.delete(head.spec.id)
        assert not client.exists(SessionKeys(head.spec.id).bulk)
