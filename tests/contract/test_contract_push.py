"""Many clients of one session that do not wait for each other: gradients that take whichever step is next."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import adamd
from adamd import errors
from contract import shells
from sdk.peers import Relay

WORKERS, EACH = 4, 10


def created(client, **options):
    return client.create(np.zeros(3, "f4"), lr=1.0, optimizer="sgd", **options)


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_every_gradient_of_many_clients_counts_exactly_once(connect, client, durability):
    session = created(client, durability=durability)

    def work(number):
        with connect() as mine:
            own = mine.session(session.id)
            seen = [own.step_number]
            for batch in range(EACH):
                own.push(np.full(3, 1 + number * EACH + batch, "f4"), loss=1.0)
                seen.append(own.step_number)
            return seen

    with ThreadPoolExecutor(WORKERS) as threads:
        seen = list(threads.map(work, range(WORKERS)))
    assert session.info()["step"] == WORKERS * EACH
    total = sum(range(1, WORKERS * EACH + 1))  # whole numbers, so that their order does not matter
    assert (session.parameters() == -total).all()
    for mine in seen:
        assert mine == sorted(set(mine))
    applied = [step for mine in seen for step in mine[1:]]
    assert sorted(applied) == list(range(1, WORKERS * EACH + 1))


def test_a_push_does_not_mind_what_others_did_and_a_step_goes_on_after_it(client):
    session = created(client)
    other = client.session(session.id)
    for _ in range(3):
        other.step(np.ones(3, "f4"))
    assert session.step_number == 0
    with pytest.raises(errors.StepSuperseded):
        session.step(np.full(3, 5, "f4"))
    assert (session.push(np.full(3, 5, "f4")) == -8).all()
    assert session.step_number == 4
    assert (session.step(np.ones(3, "f4")) == -9).all()


@pytest.mark.parametrize("bad", ["raise", "skip"])
def test_a_key_counts_once_whoever_repeats_it_and_no_other_gradient_has_it(connect, bad):
    client = connect(timeout=adamd.Timeout(total=20), on_bad_gradient=bad)  # to skip is for bad gradients only
    session = created(client)
    session.push(np.ones(3, "f4"), key="worker-3/batch 17")
    again = client.session(session.id)
    again.push(np.ones(3, "f4"))
    assert (again.push(np.ones(3, "f4"), key="worker-3/batch 17") == -2).all()
    assert again.step_number == 2
    with pytest.raises(errors.IdempotencyMismatch):
        again.push(np.full(3, 2, "f4"), key="worker-3/batch 17")
    assert session.info()["step"] == 2
    session.delete(anyway=True)


@pytest.mark.parametrize("key", ["", " x", "a\nb", "é", "k" * 256, 7])
def test_a_key_that_no_server_takes_is_refused_before_anything_is_sent(client, key):
    session = created(client)
    with pytest.raises(errors.InvalidRequest, match="key is"):
        session.push(np.ones(3, "f4"), key=key)
    assert session.info()["step"] == 0


def test_a_push_whose_answer_was_lost_counts_once_by_the_key_that_the_error_tells(kind, server):
    with Relay(server.grpc_port if kind.startswith("grpc") else server.port) as relay:
        url = shells.url_of(kind, relay.port, relay.port)
        with shells.connect(kind, url, timeout=adamd.Timeout(total=2, inactivity=1)) as client:
            session = created(client)
            session.push(np.ones(3, "f4"))
            relay.down.clear()  # what is asked arrives, what is answered does not
            with pytest.raises(errors.RetriesExhausted, match="same push with key=") as caught:
                session.push(np.ones(3, "f4"), key=None)
            relay.down.set()
        with shells.connect(kind, url) as client:
            session = client.session(session.id)
            assert session.step_number == 2
            assert (session.push(np.ones(3, "f4"), key=caught.value.extra["key"]) == -2).all()
            assert session.info()["step"] == 2


def test_a_bad_gradient_that_is_pushed_is_skipped_or_told(client):
    session = created(client, on_bad_gradient="skip")
    client.session(session.id).push(np.ones(3, "f4"))
    assert (session.push(np.full(3, np.nan, "f4")) == -1).all()
    assert (session.skipped, session.step_number) == (1, 1)
    with pytest.raises(errors.BadGradient):
        client.session(session.id).push(np.full(3, np.inf, "f4"))


def test_int8_with_error_feedback_loses_nothing_over_many_pushes(client):
    session = created(client, encoding="int8")
    gradient = np.array([1, 0.001, -0.0004], "f4")
    for _ in range(50):
        parameters = session.push(gradient)
    assert np.allclose(parameters, -50 * gradient, atol=2 * 1 / 127)


def test_a_push_notices_that_the_store_has_lost_what_was_acknowledged(client):
    session = created(client)
    session.step(np.ones(3, "f4"))
    held = session._track.now
    other = created(client)
    session._track.now = type(held)(
        **{name: getattr(held, name) for name in held.__slots__} | {"id": other.id, "step": 3}
    )
    with pytest.raises(errors.HistoryLost):
        session.push(np.ones(3, "f4"))


def test_a_push_tells_how_stale_it_was(client):
    session = created(client)
    other = client.session(session.id)
    assert other.staleness is None
    for stale in range(3):
        session.parameters()
        for _ in range(stale):
            other.push(np.ones(3, "f4"))
        session.push(np.ones(3, "f4"))
        assert session.staleness == stale
        other.parameters()


def test_a_push_that_is_too_stale_is_told_and_does_not_count(client):
    session = created(client)
    other = client.session(session.id)
    for _ in range(3):
        other.push(np.ones(3, "f4"))
    with pytest.raises(errors.StepSuperseded, match="3 steps of others came since, and at most 2") as caught:
        session.push(np.full(3, 5, "f4"), max_staleness=2, key="mine")
    assert (caught.value.step, caught.value.extra["staleness"], caught.value.extra["applied"]) == (3, 3, False)
    assert session.info()["step"] == 3
    assert (session.push(np.full(3, 5, "f4"), max_staleness=3, key="mine") == -8).all()
    other.parameters()
    other.push(np.ones(3, "f4"), max_staleness=0)
    assert (session.push(np.full(3, 5, "f4"), max_staleness=0, key="mine") == -9).all()  # it counts already
    assert session.staleness is None and session.info()["step"] == 5
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(errors.InvalidRequest, match="max_staleness is"):
            session.push(np.ones(3, "f4"), max_staleness=wrong)


def test_a_push_to_another_history_does_not_count(client, tmp_path):
    session = created(client)
    for value in (1, 2):
        session.step(np.full(3, value, "f4"))
    other = created(client)
    for value in (3, 4, 5):
        other.step(np.full(3, value, "f4"))
    session._track.now = replace(session._track.now, id=other.id)  # what a store that went back, and on, looks like
    with pytest.raises(errors.HistoryLost):
        session.push(np.ones(3, "f4"))
    assert other.info()["step"] == 3


def test_what_a_client_has_not_seen_is_not_deleted_by_it(client):
    session = created(client)
    session.step(np.ones(3, "f4"))
    worker = client.session(session.id)
    worker.push(np.ones(3, "f4"))
    with pytest.raises(errors.Moved, match=r"at step 2.*saw it at 1.*delete\(anyway=True\)") as caught:
        session.delete()
    assert caught.value.step == 2
    assert (session.parameters() == -2).all()
    worker.push(np.ones(3, "f4"))
    session.delete(anyway=True)
    with pytest.raises(errors.SessionDeleted):
        worker.info()
    with pytest.raises(errors.SessionDeleted):
        worker.delete()
