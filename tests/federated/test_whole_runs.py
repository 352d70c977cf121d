"""A whole federation of digits through every kind of death: as good as without, no round twice, nothing left behind."""

import time
from collections import Counter

import pytest
import redis

from federated.learning import accuracy, learned, shards
from federated.whole_run import CLIENTS, DEATHS, ROUNDS, WholeRun

SETTLED = 60.0  # seconds in which a server must have unlinked what it does not need


@pytest.mark.slow
@pytest.mark.timeout(900)  # thirty processes start, on a busy machine too
def test_a_run_through_every_kind_of_death(tmp_path):
    """Twelve hospitals of which none has all digits (Dirichlet 0.3)."""
    hospitals = shards(CLIENTS, 0.3, seed=5)
    calm = accuracy(learned(hospitals, ROUNDS))
    with WholeRun(tmp_path, hospitals, seed=1) as whole:
        whole.through()
        assert whole.killed == DEATHS
        rounds = whole.run.history()[:-1]  # the last is open: it would take an evaluation
        assert [one.round for one in rounds] == [one.step for one in rounds] == list(range(1, ROUNDS + 1))
        assert whole.told()[-ROUNDS:] == list(range(1, ROUNDS + 1))
        check_answers(whole, rounds)
        assert accuracy(whole.run.parameters()) == pytest.approx(calm, abs=1.0)
        check_remains(whole)


def check_answers(whole, rounds):
    """Whoever was told that it counted is in its round, once; who was told that it did not, is not."""
    listed = Counter((one.round, row.client) for one in rounds for row in one.contributions)
    assert set(listed.values()) == {1}
    assert min(one.received for one in rounds) >= 10
    outcomes = Counter()
    for number, client, outcome, counted in whole.answers():
        outcomes[outcome] += 1
        assert outcome in ("accepted", "duplicate", "too_late")
        assert str((number, client) in listed) == counted, (number, client, outcome, counted)
    assert outcomes["accepted"] > CLIENTS * ROUNDS / 2 and outcomes["duplicate"]


def check_remains(whole):
    """After the last round nothing waits to be counted; after the session nothing is there at all."""
    session = whole.run.id
    socket = whole.server.data_dir / "store" / "valkey.sock"
    with redis.Redis(unix_socket_path=str(socket), protocol=2) as store:

        def keys():
            return {key.decode() for key in store.scan_iter(match=f"*{session}*", count=1000) if store.ttl(key) < 0}

        def waiting():
            return [key for key in keys() if key.split(":")[2] in ("contribution", "pending", "garbage", "evaluations")]

        assert settled(waiting) == []
        whole.run.delete()
        assert settled(keys) == set()
        assert settled(lambda: [name for name in index(store) if session.encode() in name]) == []
        assert settled(whole.bulk_in_use) == 0


def index(store):
    """Return every member of the tenants' indexes."""
    for key in store.scan_iter(match="adamd:{index.*", count=1000):
        read = {b"set": store.smembers, b"zset": lambda key: store.zrange(key, 0, -1), b"hash": store.hvals}
        yield from read.get(store.type(key), lambda key: [])(key)


def settled(look):
    """Look until nothing is found, or the time is up; returns what was found at last."""
    until = time.monotonic() + SETTLED
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    return found
