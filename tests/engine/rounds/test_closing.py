"""How rounds close: by quorum, deadline or hand, by any replica, after a crash, always with the same bits."""

import asyncio
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import InvalidRequest, NotSelected, RoundClosed, StepGap, TooFewContributions, UnknownRound
from adamd.wire.encodings import INT8, SPARSE, decode_int8, encode_int8, encode_sparse, int8_parts
from adamd_service.engine import RequestBody
from adamd_service.engine.rounds import ContributeCall, EvaluateCall
from adamd_service.engine.rounds.closing import Closer
from adamd_service.store.rounds import RoundStore

from ..conftest import run
from .conftest import contribute, keys_of, opened, settled_keys, shown, stepped

ADAM = {"name": "adam", "lr": 0.1}


class Crash(BaseException):
    """Ends a closing as a power cut would."""


def test_the_order_of_arrival_does_not_matter(replica, clients):
    """50 orders, with duplicates: the same bits, chains apart."""
    deltas = clients(6)
    names = list(deltas)
    rng = random.Random(3)  # noqa: S311 - no secret

    async def scenario():
        bits, digests = set(), set()
        async with replica() as engine:
            for _ in range(50):
                session = await opened(engine, quorum=6, optimizer=ADAM)
                order = rng.sample(names, len(names))
                for client, again in itertools.chain.from_iterable(((c, False), (c, True)) for c in order[:-1]):
                    answer = await contribute(engine, session, 1, client, deltas[client], num_examples=3 + len(client))
                    assert answer.outcome == ("duplicate" if again else "accepted")
                await contribute(engine, session, 1, order[-1], deltas[order[-1]], num_examples=3 + len(order[-1]))
                bits.add((await stepped(engine, session, 1)).tobytes())
                records = await asyncio.to_thread(engine.store.records, session, 1, 1)
                digests.add(records[0].digest)
        assert (len(bits), len(digests)) == (1, 1)

    run(scenario())


def test_all_at_once(replica, clients):
    """Fifty clients at the same time, one round: everybody is taken once, and the round closes once."""
    deltas = clients(50)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=50)
            sent = [contribute(engine, session, 1, client, delta) for client, delta in deltas.items() for _ in range(2)]
            outcomes = [
                a.outcome if not isinstance(a, RoundClosed) else "closed"
                for a in await asyncio.gather(*sent, return_exceptions=True)
            ]
            assert outcomes.count("accepted") == 50
            await stepped(engine, session, 1)
            document = await engine.rounds.read(session, 1)
            assert [row.client for row in document.contributions] == sorted(deltas)
            assert (await engine.view(session)).head.step == 1

    run(scenario())


def test_a_deadline_closes_with_enough(replica, clients):
    one, two, three = clients(3).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3, min_contributions=2, deadline_s=0.5)
            await contribute(engine, session, 1, "a", one)
            overdue = await engine.rounds.task(session)
            assert overdue.deadline is not None
            while (await engine.rounds.read(session, 1)).state != "overdue":
                await asyncio.sleep(0.05)
            await contribute(engine, session, 1, "b", two)  # late, and not too late: it makes the step
            np.testing.assert_allclose(await stepped(engine, session, 1), (one + two) / 2, rtol=1e-5, atol=1e-6)
            assert (await engine.rounds.read(session, 1)).closed_by == "deadline"
            await contribute(engine, session, 2, "a", one)
            await contribute(engine, session, 2, "b", three)
            await stepped(engine, session, 2)  # by the timer: nobody asks
            assert (await engine.rounds.read(session, 2)).closed_by == "deadline"

    run(scenario())


def test_the_owner_closes_and_cancels(replica, clients, valkey):
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3)
            with pytest.raises(TooFewContributions):
                await engine.rounds.close(session, 1)
            await contribute(engine, session, 1, "a", one)
            cancelled = await engine.rounds.cancel(session, 1)
            assert (cancelled.state, cancelled.received, cancelled.contributions) == ("open", 0, ())
            assert (await contribute(engine, session, 1, "a", two)).outcome == "accepted"
            closed = await engine.rounds.close(session, 1)
            assert (closed.state, closed.closed_by, closed.step) == ("closed", "hand", 1)
            assert shown(await engine.rounds.close(session, 1)) == shown(closed)
            np.testing.assert_array_equal(await stepped(engine, session, 1), two)
            for number, error in ((1, RoundClosed), (3, StepGap)):
                with pytest.raises(error):
                    await engine.rounds.cancel(session, number)
            with pytest.raises(StepGap):
                await engine.rounds.close(session, 3)
            with pytest.raises(UnknownRound):
                await engine.rounds.read(session, 3)
            documents, following = await engine.rounds.list(session)
            assert ([one.round for one in documents], following) == ([1, 2], None)
            documents, following = await engine.rounds.list(session, 1, 1)
            assert ([one.round for one in documents], following) == ([1], 2)
        keys = await settled_keys(valkey, session, ("contribution:", "garbage"))
        assert not [key for key in keys if key.startswith(("contribution:", "garbage"))]

    run(scenario())


def test_two_replicas_close_at_once(replica, clients, nothing_closes):
    deltas = clients(4)

    async def scenario():
        async with replica() as one, replica() as two:
            session = await opened(one, quorum=4, optimizer=ADAM)
            for number, (client, delta) in enumerate(deltas.items()):
                await contribute((one, two)[number % 2], session, 1, client, delta)
            closed = await asyncio.gather(one.rounds.close(session, 1), two.rounds.close(session, 1))
            assert len({shown(document) for document in closed}) == 1
            found = [await stepped(engine, session, 1) for engine in (one, two)]
            assert found[0].tobytes() == found[1].tobytes()
            assert (await two.view(session)).head.step == 1

    run(scenario())


@pytest.mark.parametrize("where", ["frozen", "aggregated"])
def test_a_crash_before_the_commit_changes_no_bit(replica, clients, nothing_closes, monkeypatch, where):
    """The next replica goes on with the members that were frozen, though more have come in the meantime."""
    deltas = clients(4)

    async def scenario():
        async with replica() as lasting:
            wanted = await opened(lasting, quorum=3, optimizer=ADAM)
            for client in list(deltas)[:3]:
                await contribute(lasting, wanted, 1, client, deltas[client])
            await lasting.rounds.close(wanted, 1)
            session = await opened(lasting, quorum=3, max_contributions=4, optimizer=ADAM)
            for client in list(deltas)[:3]:
                await contribute(lasting, session, 1, client, deltas[client])

            def crash(*args, **more):
                raise Crash

            with monkeypatch.context() as patched:
                patched.setattr(RoundStore, "members" if where == "frozen" else "evaluations", crash)
                with pytest.raises(Crash):
                    await lasting.rounds.close(session, 1)
            standing = (await asyncio.to_thread(lasting.store.rounds.look, (await lasting.view(session)).head)).standing
            assert len(standing.frozen.members) == 3
            with pytest.raises(RoundClosed) as late:
                await contribute(lasting, session, 1, "ward-3", deltas["ward-3"])
            assert late.value.extra == {"round": 1, "counted": False}
        nothing_closes()
        async with replica() as started_again:
            await started_again.keep_house()
            found = await stepped(started_again, session, 1)
            assert found.tobytes() == (await started_again.parameters(wanted)).parameters.tobytes()
            one, other = [await started_again.rounds.read(ref, 1) for ref in (session, wanted)]
            assert [row.client for row in one.contributions] == [row.client for row in other.contributions]

    run(scenario())


def test_contributions_go_though_their_closer_died_before_it_could_unlink_them(replica, clients, valkey, monkeypatch):
    (delta,) = clients(1).values()

    async def died(self, session_id):
        """Do nothing: the process is gone."""

    monkeypatch.setattr(Closer, "collect", died)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)
            keys = await asyncio.to_thread(keys_of, valkey, session)
            assert "garbage" in keys and [key for key in keys if key.startswith("contribution:")]
            left = keys
            while [key for key in left if key.startswith(("contribution:", "garbage"))]:  # a reader's lease may hold it
                await engine.keep_house()
                left = await asyncio.to_thread(keys_of, valkey, session)

    run(scenario())


def test_a_round_left_frozen_is_closed_at_the_next_question(replica, clients, nothing_closes, monkeypatch):
    deltas = clients(2)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            for client, delta in deltas.items():
                await contribute(engine, session, 1, client, delta)
            nothing_closes()
            await engine.rounds.task(session, "somebody")
            await stepped(engine, session, 1)

    run(scenario())


def test_a_cancelled_round_makes_no_step(replica, clients, nothing_closes, monkeypatch):
    """Cancelling between freezing and commit: the commit fails, and the round takes contributions again."""
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=1)
            await contribute(engine, session, 1, "a", delta)
            run_step = engine._stepper.run

            def cancelled(hot, step):
                engine.store.rounds.cancel(engine.store.load_head(session), 1)
                return run_step(hot, step)

            monkeypatch.setattr(type(engine._stepper), "run", lambda self, hot, step: cancelled(hot, step))
            with pytest.raises(Exception, match="cancelled"):
                await engine.rounds.close(session, 1)
            monkeypatch.undo()
            document = await engine.rounds.read(session, 1)
            assert (document.state, document.received) == ("open", 0)
            assert (await engine.view(session)).head.step == 0
            await contribute(engine, session, 1, "a", delta)
            await engine.rounds.close(session, 1)
            np.testing.assert_array_equal(await stepped(engine, session, 1), delta)

    run(scenario())


def test_the_last_round(replica, clients):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, total=1, evaluate=1)
            await engine.rounds.task(session, "a")
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)
            assert (await engine.rounds.task(session, "a")).kind == "evaluate"
            await engine.rounds.evaluate(EvaluateCall(session, 2, "a", 1.0, {"loss": 0.5}))
            assert (await engine.rounds.task(session, "a")).kind == "stop"
            assert (await engine.rounds.task(session)).kind == "stop"
            with pytest.raises(RoundClosed):
                await contribute(engine, session, 2, "a", delta)

    run(scenario())


@pytest.mark.parametrize("encoding", [INT8, SPARSE])
@pytest.mark.parametrize("size", [40, 70_003])  # one short block; more than a slice, and no whole number of blocks
def test_contributions_come_in_every_encoding(replica, encoding, size):
    delta = np.where(np.arange(size) % 4, 0, np.linspace(-1, 1, size)).astype(np.float32)
    chosen = np.flatnonzero(delta)
    body = encode_int8(delta) if encoding == INT8 else encode_sparse(chosen, delta[chosen])

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, size=size)
            await contribute(engine, session, 1, "a", body, encoding=encoding, dtype="float32")
            found = await stepped(engine, session, 1)
            wanted = np.empty(size, np.float32)
            if encoding == INT8:
                decode_int8(*int8_parts(body, size), 0, wanted)
            else:
                wanted = delta
            np.testing.assert_array_equal(found, wanted)

    run(scenario())


def test_a_damaged_contribution_is_left_out(replica, clients, valkey, nothing_closes):
    """What the store changed is seen before it is used, and told; the others make the step."""
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            await contribute(engine, session, 1, "a", one)
            await contribute(engine, session, 1, "b", two)
            (bad,) = [row for row in await asyncio.to_thread(engine.store.rounds.waiting, session) if row.client == "a"]
            with valkey.client() as client:
                key = f"adamd:{{{session}}}:contribution:{bad.attempt}"
                body = bytearray(client.get(key))
                body[5] ^= 1
                client.set(key, bytes(body))
            document = await engine.rounds.close(session, 1)
            assert [(row.client, row.counted, row.reason) for row in document.contributions] == [
                ("a", False, "damaged"),
                ("b", True, None),
            ]
            np.testing.assert_array_equal(await stepped(engine, session, 1), two)

    run(scenario())


def test_what_cannot_count_is_refused_before_its_body_is_read(replica, clients):
    (delta,) = clients(1).values()

    async def unread():
        raise AssertionError("the body was read")
        yield b""

    def unreadable(session, number, client):
        return ContributeCall(session, number, client, RequestBody(delta.nbytes, unread()), dtype="float32")

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, cohort=1, quorum=1)
            with pytest.raises(NotSelected):
                await engine.rounds.contribute(unreadable(session, 1, "a"))
            await engine.rounds.task(session, "a")
            with pytest.raises(StepGap):
                await engine.rounds.contribute(unreadable(session, 2, "a"))
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)
            with pytest.raises(RoundClosed):
                await engine.rounds.contribute(unreadable(session, 1, "a"))
            for wrong in ({"num_examples": 0.0}, {"num_examples": float("nan")}, {"client": "no name"}):
                with pytest.raises(InvalidRequest):
                    await engine.rounds.contribute(replace(unreadable(session, 2, "a"), **wrong))

    run(scenario())


def test_what_comes_during_a_look_is_looked_at(replica, clients, monkeypatch):
    one, two = clients(2).values()
    close_due = Closer._close_due

    async def scenario():
        gate, looked = asyncio.Event(), asyncio.Event()

        async def slow(self, session_id):
            found = await close_due(self, session_id)
            looked.set()
            await gate.wait()
            return found

        monkeypatch.setattr(Closer, "_close_due", slow)
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            await contribute(engine, session, 1, "a", one)
            await looked.wait()
            await contribute(engine, session, 1, "b", two)
            gate.set()
            await stepped(engine, session, 1)

    run(scenario())
