"""Tensors that are averaged, that carry, that stay with the client, and contributions that have some tensors only."""

import numpy as np
import pytest

from adamd.errors import InvalidRequest, WrongLayout
from adamd.wire import layout
from adamd_service.engine import CreateCall

from ..conftest import run
from .conftest import contribute, stepped

SHAPES = {"a.count": (), "b.mean": (3,), "c.weight": (4,), "d.own": (2,)}
LAYOUT = layout.named_layout(SHAPES)
START = np.array([5, 1, 2, 3, 0.5, 0.5, 0.5, 0.5, 9, 9], np.float32)
RULES = {"averaged": ["*.mean"], "carry": ["*.count"], "private": ["d.*"]}
TRAINED = {
    "one": np.array([7, 2, 3, 4, 1, 1, 1, 1], np.float32),
    "two": np.array([6, 4, 1, 8, 0, 1, 2, 3], np.float32),
}


async def opened(engine, optimizer=None, **rounds):
    call = CreateCall(
        LAYOUT, "float32", optimizer or {"name": "sgd", "lr": 0.5}, START, rounds={"quorum": 2, **RULES, **rounds}
    )
    return (await engine.create(call)).head.spec.id


@pytest.mark.parametrize("kind", ["parameters", "delta"])
def test_each_tensor_by_its_rule(replica, kind):
    async def scenario():
        async with replica() as engine, replica() as other:
            session = await opened(engine)
            assert (await engine.rounds.task(session)).private == ("d.own",)
            for (client, trained), examples in zip(TRAINED.items(), (1, 3), strict=True):
                sent = trained if kind == "parameters" else trained - START[:8]
                await contribute(engine, session, 1, client, sent, kind=kind, num_examples=examples)
            found = await stepped(engine, session, 1)
            mean = 0.25 * TRAINED["one"] + 0.75 * TRAINED["two"]
            assert found[0] == 7  # the largest
            np.testing.assert_allclose(found[1:4], mean[1:4], rtol=1e-6)  # the mean itself
            np.testing.assert_allclose(found[4:8], (START[4:8] + mean[4:8]) / 2, rtol=1e-6)  # a step with lr 0.5
            assert found[8:].tolist() == [9, 9]
            again = await other.parameters(session)  # folded from the log
            assert again.parameters.tobytes() == found.tobytes()

    run(scenario())


def test_with_an_optimizer_that_keeps_more(replica):
    """Moments do not see what is averaged, and copies of parameters follow it."""

    async def scenario():
        async with replica() as engine, replica() as other:
            session = await opened(engine, {"name": "adam", "lr": 0.1, "ema_decay": 0.5, "clip_norm": 1.0})
            for number in (1, 2, 3):
                for client, trained in TRAINED.items():
                    await contribute(engine, session, number, client, trained, kind="parameters")
                await stepped(engine, session, number)
            found, again = await engine.export(session), await other.export(session)
            assert found.counts == again.counts == (0, 0, 3, 0)
            for name, array in found.arrays.items():
                assert array.tobytes() == again.arrays[name].tobytes(), name
            assert not found.arrays["exp_avg"][:4].any()
            assert found.arrays["ema"][1:4].tobytes() == found.arrays["params"][1:4].tobytes()

    run(scenario())


def test_private_tensors_are_not_taken(replica):
    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            with pytest.raises(WrongLayout, match="private"):
                await contribute(engine, session, 1, "a", START, kind="parameters", tensors=LAYOUT.names)
            with pytest.raises(InvalidRequest, match="averaged"):
                await contribute(engine, session, 1, "a", TRAINED["one"], kind="gradient")

    run(scenario())


def test_a_tensor_that_nobody_sends_is_not_stepped(replica):
    """And one that some send is the mean of theirs."""

    async def scenario():
        async with replica() as engine:
            start = np.zeros(LAYOUT.size, np.float32)
            call = CreateCall(LAYOUT, "float32", {"name": "sgd", "lr": 1.0}, start, rounds={"quorum": 2})
            session = (await engine.create(call)).head.spec.id
            await contribute(engine, session, 1, "a", np.array([1, 1, 1], np.float32), tensors=("b.mean",))
            both = np.array([3, 3, 3, 2, 2, 2, 2], np.float32)
            await contribute(engine, session, 1, "b", both, tensors=("b.mean", "c.weight"))
            found = await stepped(engine, session, 1)
            assert found.tolist() == [0, 2, 2, 2, 2, 2, 2, 2, 0, 0]
            assert (await engine.export(session)).counts == (0, 1, 1, 0)

    run(scenario())
