"""Three replicas serve one session in turn: one history, with the bits of a single server."""

import json

import numpy as np
import pytest

from adamd.wire import layout
from adamd.wire.encodings import LAZY, RAW, SPARSE, encode_sparse
from adamd_service.engine import CreateCall, StepCall

from .conftest import body_of, run

SHAPES = {"a": (40,), "b": (300,), "c": (5,)}
COSINE = {"name": "cosine", "total_steps": 40, "warmup_steps": 5}
AROUND = {
    "lr": 0.1,
    "schedule": COSINE,
    "clip_norm": 2.0,
    "gradient_scale": 1.5,
    "ema_decay": 0.75,
    "keep_best": True,
    "stop": {"gradient_norm": 1e-3, "relative_loss": {"window": 3, "tolerance": 0.01}},
}
BOUNDED = {"lower": "array", "upper": 0.9, "groups": [{"tensors": ["?"], "weight_decay": 0.01, "clip_value": 0.5}]}
OPTIMIZERS = {
    "adam": {**BOUNDED, "amsgrad": True},
    "nadam": BOUNDED,
    "rmsprop": {**BOUNDED, "centered": True, "momentum": 0.9},
    "schedule_free_adamw": {"warmup_steps": 3},
}
STEPS = 45
SWITCHES = {
    12: {"clip_norm": 0.0, "upper": None},
    20: {"schedule": {"name": "step", "step_size": 3}},
    31: {"clip_norm": 0.5},
}


def creation(name, optimizer, dtype, durability):
    made, more = layout.named_layout(SHAPES), {}
    start = np.random.default_rng(0).uniform(-0.9, 0.9, made.size).astype(dtype)
    settings = {"name": name, **AROUND, **optimizer}
    if settings.get("lower") == "array":
        more["bounds"] = {"lower": np.where(np.arange(made.size) % 3, -np.inf, start - 0.05).astype(dtype)}
    return CreateCall(made, dtype, settings, start, durability=durability, **more)


def steps(dtype, lazy):
    """(body, encoding, dtype, tensors, settings, metrics) of every step."""
    rng, size = np.random.default_rng(1), layout.named_layout(SHAPES).size
    for number in range(1, STEPS + 1):
        gradient = rng.standard_normal(size).astype(dtype)
        told = {"loss": float(rng.normal())} if number % 4 else {}
        kind = (RAW, LAZY if lazy else SPARSE, "left out")[rng.integers(3)]
        if kind == "left out":
            yield gradient[:40], RAW, dtype, ("a",), SWITCHES.get(number), told
        elif kind == RAW:
            yield gradient, RAW, dtype, (), SWITCHES.get(number), told
        else:
            chosen = np.flatnonzero(rng.random(size) < 0.1)
            yield encode_sparse(chosen, gradient[chosen]), kind, dtype, (), SWITCHES.get(number), told


async def taken(engine, session, number, one):
    body, encoding, dtype, tensors, settings, metrics = one
    call = StepCall(
        session,
        number,
        body_of(body.tobytes()),
        dtype,
        encoding=encoding,
        tensors=tensors,
        settings=settings,
        metrics=metrics,
    )
    return await engine.step(call)


@pytest.mark.parametrize(("name", "dtype"), [*zip(OPTIMIZERS, ["float32", "float64"] * 2, strict=True)])
def test_replicas_in_turn_make_what_one_makes(replica, name, dtype):
    """The third comes by seldom: what it holds is older than the oldest snapshot, or unnamed and unlinked since."""

    async def scenario():
        short = {"snapshot_records": 3, "snapshot_ratio": 1e-9}
        async with replica(**short) as one, replica(**short) as two, replica(**short) as three:
            mine = (await one.create(creation(name, OPTIMIZERS[name], dtype, "memory"))).head.spec.id
            shared = (await one.create(creation(name, OPTIMIZERS[name], dtype, "committed"))).head.spec.id
            rng = np.random.default_rng(2)
            for number, given in enumerate(steps(dtype, lazy=name != "schedule_free_adamw"), 1):
                here = three if number % 11 == 0 else (one, two)[rng.integers(2)]
                alone, answer = await taken(one, mine, number, given), await taken(here, shared, number, given)
                assert answer.parameters.tobytes() == alone.parameters.tobytes(), number
                assert answer.advice == alone.advice, number
                if number == 25:  # by PATCH, at one that has not seen the last steps
                    for engine, ref in ((one, mine), (three, shared)):
                        await engine.patch(ref, {"lr": 0.05, "stop": {"max_steps": 40}}, None)
            wanted = await one.export(mine)
            for engine in (three, two, one):
                found = await engine.export(shared)
                assert (found.counts, found.carried) == (wanted.counts, wanted.carried)
                assert found.head.progress == wanted.head.progress and found.head.settings == wanted.head.settings
                assert {k: a.tobytes() for k, a in found.arrays.items()} == {
                    k: a.tobytes() for k, a in wanted.arrays.items()
                }
            assert (await two.view(shared)).head.snapshots[0].step > 30

    run(scenario())


def test_a_replay_asks_nothing_of_the_groups(replica, valkey):
    """A store from before entries with `*` and `?` were patterns: its records say which tensors took which scalars."""
    shapes = {"a*": (3,), "ab": (4,), "b": (2,)}
    made = layout.named_layout(shapes)
    gradient = np.linspace(-1, 1, made.size, dtype=np.float32)

    async def scenario():
        async with replica() as one:
            start = np.ones(made.size, np.float32)
            settings = {"lr": 0.1, "groups": [{"tensors": ["a*"], "lr": 0.5}, {"tensors": ["ab"], "lr": 0.1}]}
            session = (await one.create(CreateCall(made, "float32", settings, start))).head.spec.id
            for number in (1, 2):
                answer = await one.step(StepCall(session, number, body_of(gradient.tobytes()), "float32"))
        with valkey.client() as client:  # as it would read there: the group of the one tensor with that name
            head = f"adamd:{{{session}}}:head"
            told = json.loads(client.hget(head, "settings"))
            told["groups"] = told["groups"][:1]
            client.hset(head, "settings", json.dumps(told))
            client.hdel(head, "sealed")
            client.hdel(head, "format")
        async with replica() as two:
            found = await two.parameters(session)
            assert (found.step, found.chain) == (2, answer.chain)
            assert found.parameters.tobytes() == answer.parameters.tobytes()

    run(scenario())
