"""A round from the task to its step: what each contribution gets, and what the step is made of."""

import numpy as np
import pytest

from adamd.errors import ContributionConflict, NoRounds, RoundClosed, RoundsOnly, StepGap
from adamd_service.engine.rounds import EvaluateCall
from adamd_service.rounds.rules import REMEMBERED

from ..conftest import create_call, run, step_call
from .conftest import SIZE, contribute, opened, settled_keys, stepped


def test_a_round_makes_the_weighted_mean(replica, clients, valkey):
    """FedAvg: sgd with lr 1 takes the parameters to the weighted mean of what was trained."""
    deltas, examples = clients(3), {"ward-0": 10, "ward-1": 30, "ward-2": 5}

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3)
            for number, (client, delta) in enumerate(deltas.items(), 1):
                task = await engine.rounds.task(session, client)
                assert (task.kind, task.round, task.base_step, task.selected) == ("train", 1, 0, True)
                answer = await contribute(engine, session, 1, client, delta, num_examples=examples[client])
                assert (answer.outcome, answer.received, answer.wanted) == ("accepted", number, 3)
            found = await stepped(engine, session, 1)
            weights = np.array([examples[client] for client in deltas], np.float64)
            wanted = np.average(list(deltas.values()), axis=0, weights=weights)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
            document = await engine.rounds.read(session, 1)
            assert (document.state, document.closed_by, document.step, document.received) == ("closed", "quorum", 1, 3)
            assert [(row.client, row.counted) for row in document.contributions] == [(c, True) for c in sorted(deltas)]
            assert (await engine.rounds.task(session, "ward-0")).round == 2
        keys = await settled_keys(valkey, session, ("contribution:", "pending", "garbage"))
        assert not [key for key in keys if key.startswith(("contribution:", "body:", "pending", "garbage"))]

    run(scenario())


def test_the_same_again_is_a_duplicate_and_another_a_conflict(replica, clients):
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            assert (await contribute(engine, session, 1, "a", one)).outcome == "accepted"
            again = await contribute(engine, session, 1, "a", one)
            assert (again.outcome, again.received) == ("duplicate", 1)
            for changed in ({"num_examples": 2.0}, {"kind": "gradient"}):
                with pytest.raises(ContributionConflict):
                    await contribute(engine, session, 1, "a", one, **changed)
            with pytest.raises(ContributionConflict):
                await contribute(engine, session, 1, "a", two)
            with pytest.raises(StepGap):
                await contribute(engine, session, 2, "a", one)
            assert await engine.rounds.task(session, "a") is None
            await contribute(engine, session, 1, "b", two)
            await stepped(engine, session, 1)
            for client, counted in (("a", True), ("c", False)):
                with pytest.raises(RoundClosed) as refused:
                    await contribute(engine, session, 1, client, one)
                assert refused.value.extra == {"round": 2, "counted": counted}

    run(scenario())


def test_a_client_that_is_rounds_behind_is_told_whether_it_counted(replica, clients):
    """For as long as the store keeps who has contributed; then nobody knows."""
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            for number in range(1, REMEMBERED + 2):
                await contribute(engine, session, number, "a", one)
                await stepped(engine, session, number)
                with pytest.raises(RoundClosed) as refused:
                    await contribute(engine, session, 1, "b", two)
                known = False if number <= REMEMBERED else None
                assert refused.value.extra == {"round": number + 1, "counted": known}
                if number == REMEMBERED:
                    with pytest.raises(RoundClosed) as refused:
                        await contribute(engine, session, 1, "a", two)
                    assert refused.value.extra == {"round": number + 1, "counted": True}

    run(scenario())


def test_steps_and_rounds_do_not_mix(replica, clients):
    (one,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            with pytest.raises(RoundsOnly):
                await engine.step(step_call(session, 1, one))
            plain = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            with pytest.raises(NoRounds):
                await contribute(engine, plain, 1, "a", one)
            with pytest.raises(NoRounds):
                await engine.rounds.task(plain, "a")
            assert (await engine.step(step_call(plain, 1, one))).step == 1

    run(scenario())


@pytest.mark.parametrize("kind", ["delta", "parameters", "gradient"])
def test_the_three_kinds_say_the_same(replica, clients, kind):
    (delta,) = clients(1).values()
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    sent = {"delta": delta, "parameters": start + delta, "gradient": -delta}[kind]

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, start=start)
            await contribute(engine, session, 1, "a", sent, kind=kind)
            np.testing.assert_allclose(await stepped(engine, session, 1), start + delta, rtol=1e-5, atol=1e-6)

    run(scenario())


def test_evaluations_are_weighted(replica, clients):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, evaluate=2)
            await engine.rounds.task(session, "a")
            await engine.rounds.task(session, "b")
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)
            for client, examples, accuracy in (("a", 10, 0.5), ("b", 30, 0.9)):
                task = await engine.rounds.task(session, client)
                assert (task.kind, task.round, task.base_step) == ("evaluate", 2, 1)
                call = EvaluateCall(session, 2, client, examples, {"accuracy": accuracy})
                assert (await engine.rounds.evaluate(call)).outcome == "accepted"
                assert (await engine.rounds.evaluate(call)).outcome == "duplicate"
                assert (await engine.rounds.task(session, client)).kind == "train"
            await contribute(engine, session, 2, "a", delta)
            await stepped(engine, session, 2)
            found = (await engine.rounds.read(session, 2)).evaluation
            assert (found.num_examples, found.clients) == (40, 2)
            assert found.metrics == {"accuracy": pytest.approx(0.8)}
            with pytest.raises(RoundClosed, match="go on with round 3") as late:
                await engine.rounds.evaluate(call)
            assert late.value.extra["counted"] is None  # it did count: nobody may say that it did not

    run(scenario())
