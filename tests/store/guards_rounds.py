"""What each line of the Lua scripts of rounds is there for, as functions that fail without it.

See test_guards.py.
"""

import json
import secrets
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import StoreFull, UnknownSession
from adamd_service.records import BulkRef, Committed, Lost, RoundClosing
from adamd_service.rounds import Failure, KeptContribution
from adamd_service.store import rounds
from adamd_service.store.keys import SessionKeys
from adamd_service.store.rounds import Admission
from adamd_service.store.scripts import Script

from .sessions import commit_of, create, keys_of, moved_on, next_record, staged

SYNC = Admission(behind=0, goes_on=False, most=3, last=None, drawn=False)
FAILURE = Failure("bad_gradient", "element 3 is NaN")
ROUNDS = {"config": {"epochs": 1}}


def with_rounds(store, **more):
    return create(store, rounds=ROUNDS, **more)


def one_of(number, client="a", body=b"delta", **more):
    return KeptContribution(
        **{
            "round": number,
            "client": client,
            "attempt": secrets.token_hex(8),
            "digest": body.hex(),
            "body_digest": body.hex(),
            "kind": "delta",
            "num_examples": 1.0,
            "encoding": "raw",
            "dtype": "float32",
            "nbytes": len(body),
            **more,
        }
    )


def said(store, head, client="a", number=None, body=b"delta", **changed):
    """The word for a contribution to the open round, or to ``number``."""
    one = one_of(head.step + 1 if number is None else number, client, body)
    return store.rounds.contribute(head, one, body, replace(SYNC, **changed)).word


def standing(store, head):
    return store.rounds.look(head).standing


def frozen(store, head, why="hand", least=1, deadline=0.0):
    """The word for freezing the open round."""
    return store.rounds.freeze(head, head.step + 1, why, least, deadline, "replica").word


def closing_of(store, head, **more):
    """What a commit that closes the frozen round does beside its step."""
    members = standing(store, head).frozen.members
    number = head.step + 1
    return RoundClosing(
        **{
            "token": standing(store, head).frozen.token,
            "document": {"round": number},
            "counted": {member.text: f"{b'delta'.hex()} {number}" for member in members},
            "oldest": number - 1,
            "config": {"epochs": 2},
            **more,
        }
    )


def closed(store, head, **more):
    """Close the open round; returns the outcome and the head after it."""
    frozen(store, head)
    record = next_record(head)
    outcome = store.commit(head.spec.id, commit_of(head, record, closing=closing_of(store, head, **more)))
    return outcome, moved_on(head, record)


# -- contribute.lua


def a_contribution_compares_the_incarnation(store, client):
    head = with_rounds(store)
    assert said(store, replace(head, incarnation="another")) == "moved"
    assert standing(store, head).received == 0


def a_client_contributes_once(store, client):
    head = with_rounds(store)
    assert [said(store, head), said(store, head)] == ["accepted", "duplicate"]
    one = one_of(1, "b")
    assert [store.rounds.contribute(head, one, b"delta", SYNC).word for _ in range(2)] == ["accepted"] * 2
    assert standing(store, head).received == 2


def another_contribution_is_a_conflict(store, client):
    head = with_rounds(store)
    assert [said(store, head), said(store, head, body=b"other")] == ["accepted", "conflict"]


def a_later_round_is_ahead(store, client):
    assert said(store, with_rounds(store), number=2) == "ahead"


def an_earlier_round_is_closed(store, client):
    head = with_rounds(store)
    said(store, head)
    _, head = closed(store, head)
    assert said(store, head, "b", number=1) == "closed"
    assert said(store, head, "b", number=1, behind=1, goes_on=True) == "accepted"


def what_was_counted_is_not_taken_again(store, client):
    head = with_rounds(store)
    said(store, head)
    _, head = closed(store, head)
    assert said(store, head, number=1, behind=1, goes_on=True) == "closed"


def a_frozen_round_takes_nothing(store, client):
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    assert [said(store, head, "b"), said(store, head, "b", goes_on=True)] == ["closed", "accepted"]


def the_last_round_takes_nothing_for_another(store, client):
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    assert [said(store, head, "b", goes_on=True, last=last) for last in (1, 2)] == ["closed", "accepted"]


def where_no_round_is_allowed_nothing_is_taken(store, client):
    assert said(store, with_rounds(store), last=0) == "over"


def parameters_stay_where_contributions_wait(store, client):
    head = with_rounds(store)
    said(store, head)
    after = replace(head, chain="c" * 64)
    assert not store.put_parameters(head, after, {"parameters": np.zeros(4, np.float32)}, (0,))
    assert store.load_head(head.spec.id).chain == head.chain


def after_the_last_round_nothing_is_taken(store, client):
    head = with_rounds(store)
    assert said(store, head, last=1) == "accepted"
    _, head = closed(store, head)
    assert said(store, head, last=1) == "over"


def only_who_is_asked_contributes(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    assert said(store, head, "a", drawn=True) == "not_selected"
    store.rounds.draw(head, standing(store, head), ["a"], [])
    assert [said(store, head, one, drawn=True) for one in ("b", "a")] == ["not_selected", "accepted"]


def a_round_takes_so_many(store, client):
    head = with_rounds(store)
    assert [said(store, head, one) for one in "abcd"] == ["accepted"] * 3 + ["full"]


def a_contribution_wants_every_byte(store, client):
    head = with_rounds(store)
    attempt, ref = staged(store, head.spec.id, b"x" * 2_000_000)
    wrong = BulkRef((ref.chunks[0] + 1, *ref.chunks[1:]))
    one = one_of(1, attempt=attempt, bulk=wrong)
    assert store.rounds.contribute(head, one, None, SYNC).word == "chunks"


def a_contributions_chunks_stay(store, client):
    head = with_rounds(store)
    attempt, ref = staged(store, head.spec.id, b"x" * 2_000_000)
    assert store.rounds.contribute(head, one_of(1, attempt=attempt, bulk=ref), None, SYNC).word == "accepted"
    assert {client.ttl(key) for key in SessionKeys(head.spec.id).body(attempt, len(ref.chunks))} == {-1}


def the_deadline_counts_from_the_first(store, client):
    head = with_rounds(store)
    assert standing(store, head).first_at is None
    said(store, head)
    first = standing(store, head).first_at
    assert first is not None
    said(store, head, "b")
    assert standing(store, head).first_at == first


def who_contributes_is_known(store, client):
    head = with_rounds(store)
    said(store, head)
    assert store.rounds.clients(head.spec.id) == ["a"]


# -- standing.lua, meet.lua, draw.lua


def a_round_of_no_session_is_not_told(store, client):
    head = with_rounds(store)
    client.delete(SessionKeys(head.spec.id).head)
    with pytest.raises(UnknownSession):
        store.rounds.look(head)


def everything_is_told_at_once(store, client):
    head = with_rounds(store)
    said(store, head)
    store.rounds.evaluate(head, 1, "b", 2.0, {"loss": 0.5})
    told = store.rounds.everything(head)
    assert [one.client for one in told.waiting] == ["a"]
    assert (told.evaluated, told.standing.received) == ([("b", 2.0, {"loss": 0.5})], 1)


def a_meeting_compares_the_incarnation(store, client):
    head = with_rounds(store)
    assert store.rounds.meet(replace(head, incarnation="another"), "a") == "moved"
    assert store.rounds.clients(head.spec.id) == []


def a_session_knows_so_many_clients(store, client):
    head = with_rounds(store)
    client.sadd(SessionKeys(head.spec.id).clients, *(f"c{i}" for i in range(100_000)))
    assert [store.rounds.meet(head, name) for name in ("a", "c1")] == ["full", "met"]


def a_round_opens_once(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    opened_at = standing(store, head).opened_at
    store.rounds.meet(head, "b")
    assert standing(store, head).opened_at == opened_at
    assert standing(store, head).now > opened_at


def a_drawing_is_of_one_try(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    before = standing(store, head)
    store.rounds.cancel(head, 1)
    store.rounds.draw(head, before, ["a"], [])
    assert not standing(store, head).drawn


def a_drawing_is_of_one_round(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    before = standing(store, head)
    said(store, head)
    _, head = closed(store, head)
    store.rounds.draw(head, before, ["a"], [])
    assert not standing(store, head).drawn


def the_first_drawing_counts(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    for name in "ab":
        store.rounds.draw(head, standing(store, head), [name], [name])
    assert (standing(store, head).cohort, standing(store, head).evaluators) == (("a",), ("a",))


# -- freeze.lua, cancel.lua, evaluate.lua


def freezing_compares_the_history(store, client):
    head = with_rounds(store)
    said(store, head)
    assert frozen(store, replace(head, incarnation="another")) == "moved"
    assert frozen(store, replace(head, step=1)) == "moved"


def freezing_needs_so_many(store, client):
    head = with_rounds(store)
    said(store, head)
    assert frozen(store, head, least=2) == "few"
    assert standing(store, head).frozen is None


def freezing_waits_for_the_deadline(store, client):
    head = with_rounds(store)
    said(store, head)
    assert frozen(store, head, "deadline", deadline=1000.0) == "early"
    assert frozen(store, head, "deadline", deadline=0.0) == "frozen"


def a_round_is_frozen_once(store, client):
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    first = standing(store, head).frozen
    said(store, head, "b", goes_on=True)
    assert frozen(store, head) == "frozen"
    assert standing(store, head).frozen == first


def a_failure_is_of_one_freezing(store, client):
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    first = standing(store, head).frozen
    assert store.rounds.cancel(head, 1, first, FAILURE)
    said(store, head)
    frozen(store, head)
    assert not store.rounds.cancel(head, 1, first, FAILURE)
    assert standing(store, head).frozen is not None


def what_came_while_a_round_failed_waits_for_its_next_try(store, client):
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    said(store, head, "b", goes_on=True)
    assert store.rounds.cancel(head, 1, standing(store, head).frozen, FAILURE)
    now = standing(store, head)
    assert [one.client for one in store.rounds.waiting(head.spec.id)] == ["b"]
    assert (now.tries, now.first_at, now.frozen) == (1, now.opened_at, None)


def a_failure_is_told(store, client):
    """Until the round is made, or begun again by a hand."""
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    assert store.rounds.cancel(head, 1, standing(store, head).frozen, FAILURE)
    assert standing(store, head).failure == FAILURE
    assert store.rounds.cancel(head, 1)
    assert standing(store, head).failure is None


# -- clock.lua


def _first_at(store, client, head, moved):
    """Move the first contribution's time; returns what a look says of it, and whether the store has that."""
    key = SessionKeys(head.spec.id).round
    client.hset(key, "first_at", repr(float(client.hget(key, "first_at")) + moved))
    before = client.hget(key, "first_at")
    told = standing(store, head)
    return told, before, client.hget(key, "first_at")


def a_clock_that_went_back(store, client):
    head = with_rounds(store)
    said(store, head)
    told, before, after = _first_at(store, client, head, 3600.0)
    assert told.first_at == told.now
    assert told.now <= float(after) < float(before) - 3000.0


def a_time_that_has_come_stays(store, client):
    head = with_rounds(store)
    said(store, head)
    key = SessionKeys(head.spec.id).round
    before = client.hget(key, "first_at")
    rounds.script("clock").repeatably(client, [key], 1)
    assert client.hget(key, "first_at") == before


def the_time_of_another_round_stays(store, client):
    head = with_rounds(store)
    said(store, head)
    key = SessionKeys(head.spec.id).round
    client.hset(key, "first_at", "9e9")
    rounds.script("clock").repeatably(client, [key], 2)
    assert client.hget(key, "first_at") == b"9e9"


def cancelling_compares_the_history(store, client):
    head = with_rounds(store)
    said(store, head)
    assert not store.rounds.cancel(replace(head, incarnation="another"), 1)
    assert not store.rounds.cancel(head, 2)
    assert standing(store, head).received == 1


def cancelling_twice_drops_once(store, client):
    """An answer that was lost: the call is sent again, and others have contributed in between."""
    head = with_rounds(store)
    said(store, head)
    run = Script.repeatably

    def twice(script, *call):
        Script.repeatably = run  # of what follows, too
        run(script, *call)
        said(store, head, "b")
        return run(script, *call)

    Script.repeatably = twice
    try:
        assert store.rounds.cancel(head, 1)
    finally:
        Script.repeatably = run
    assert [one.client for one in store.rounds.waiting(head.spec.id)] == ["b"]


def what_is_cancelled_is_garbage(store, client):
    head = with_rounds(store)
    said(store, head)
    store.rounds.evaluate(head, 1, "a", 1.0, {"loss": 0.5})
    assert store.rounds.cancel(head, 1)
    assert standing(store, head).tries == 1
    assert (store.rounds.evaluations(head.spec.id), standing(store, head).received) == ([], 0)
    store.collect(head.spec.id)
    assert not [key for key in keys_of(client, head.spec.id) if key.startswith(("contribution", "pending", "garbage"))]


def an_evaluation_compares_the_history(store, client):
    head = with_rounds(store)
    words = [
        store.rounds.evaluate(replace(head, incarnation="another"), 1, "a", 1.0, {}).word,
        store.rounds.evaluate(head, 2, "a", 1.0, {}).word,
    ]
    assert words == ["moved", "ahead"]
    assert store.rounds.evaluations(head.spec.id) == []


def a_client_evaluates_once(store, client):
    head = with_rounds(store)
    words = [store.rounds.evaluate(head, 1, "a", 1.0, {"loss": loss}).word for loss in (0.5, 0.5, 0.6)]
    assert words == ["accepted", "duplicate", "conflict"]


def a_round_takes_so_many_evaluations(store, client):
    head = with_rounds(store)
    client.hset(SessionKeys(head.spec.id).evaluations, mapping={f"c{i}": "x" for i in range(10_000)})
    assert store.rounds.evaluate(head, 1, "a", 1.0, {}).word == "full"


# -- commit.lua, unlink.lua, delete.lua


def a_closing_compares_the_freezing(store, client):
    head = with_rounds(store)
    said(store, head)
    assert closed(store, head, token="another")[0] == Lost("thawed")
    assert store.load_head(head.spec.id) == head


def a_closing_is_whole_or_not_at_all(store, client):
    for key in ("pending", "counted", "garbage"):
        head = with_rounds(store)
        said(store, head)
        frozen(store, head)
        closing = closing_of(store, head)
        name = getattr(SessionKeys(head.spec.id), key)
        client.delete(name)
        client.set(name, "in the way")
        with pytest.raises(Exception, match="WRONGTYPE|operation against a key"):
            store.commit(head.spec.id, commit_of(head, next_record(head), closing=closing))
        assert store.load_head(head.spec.id) == head


def a_closing_moves_everything(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    said(store, head)
    store.rounds.evaluate(head, 1, "a", 1.0, {"loss": 0.5})
    outcome, after = closed(store, head)
    assert outcome == Committed()
    now = standing(store, after)
    assert (now.number, now.received, now.first_at, now.frozen, now.config) == (2, 0, None, None, {"epochs": 2})
    assert store.rounds.evaluations(head.spec.id) == []
    assert client.get(SessionKeys(head.spec.id).closed_round(1)) is not None
    assert store.rounds.look(after, "a", 1).counted == f"{b'delta'.hex()} 1"
    store.collect(head.spec.id)
    assert not [key for key in keys_of(client, head.spec.id) if key.startswith(("contribution", "pending", "garbage"))]


def what_comes_while_a_round_closes_waits_for_the_next(store, client):
    head = with_rounds(store)
    said(store, head)
    frozen(store, head)
    said(store, head, "b", goes_on=True)
    _, after = closed(store, head)
    now = standing(store, after)
    assert (now.received, now.first_at) == (1, now.opened_at)


def who_was_counted_is_forgotten_later(store, client):
    head = with_rounds(store)
    for _ in range(3):
        said(store, head)
        _, head = closed(store, head)
    assert set(client.hkeys(SessionKeys(head.spec.id).counted)) == {b"2:a", b"3:a"}


def old_documents_go(store, client):
    head = with_rounds(store, step=1000)
    client.set(SessionKeys(head.spec.id).closed_round(1), "old")
    said(store, head)
    closed(store, head)
    assert client.get(SessionKeys(head.spec.id).closed_round(1)) is None


def a_contribution_that_waits_is_no_garbage(store, client):
    """A store that went back names again what its list of garbage has."""
    head, names = with_rounds(store), None
    names = SessionKeys(head.spec.id)
    said(store, head)
    ((member, text),) = client.hgetall(names.pending).items()
    entry = {"kind": "contribution", "at": 1, "name": member.decode(), "contribution": json.loads(text)}
    client.rpush(names.garbage, json.dumps(entry))
    store.collect(head.spec.id)
    (one,) = store.rounds.waiting(head.spec.id)
    assert client.get(names.contribution(one.attempt)) == b"delta"


def a_deleted_session_leaves_nothing_of_its_rounds(store, client):
    head = with_rounds(store)
    said(store, head)
    _, head = closed(store, head)
    said(store, head, "b")
    store.rounds.evaluate(head, 2, "a", 1.0, {})
    store.delete(head.spec.id)
    store.collect(head.spec.id)
    assert keys_of(client, head.spec.id) == ["gone"]


def a_later_start_lets_no_contribution_through(store, client):
    head = with_rounds(store)
    client.set(SessionKeys(head.spec.id).bulk, "of a later start")
    store.rounds._bulk = _Tokens(store.bulk)
    try:
        assert said(store, head) == "chunks"
    finally:
        store.rounds._bulk = store.bulk


class _Tokens:
    """Homes whose every contribution names an extent of an earlier start."""

    def __init__(self, homes):
        self._homes = homes

    def __getattr__(self, name):
        return getattr(self._homes, name)

    def token(self, refs):
        return "of an earlier start"


def a_contribution_is_refused_whole_by_a_full_store(store, client):
    head = with_rounds(store)
    store.rounds.meet(head, "a")
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFull):
            said(store, head)
    finally:
        client.config_set("maxmemory", 0)
    assert standing(store, head).received == 0
    assert said(store, head) == "accepted"
