"""What surrounds the update, and how numbers travel: through optax's interface the same bits as through the plain SDK."""

import jax
import numpy as np
import pytest
from network import at_the_server, batches, loss_of, parameters, same

import adamd
import adamd.optax
from adamd import errors

pytestmark = pytest.mark.jax

COSINE = {"name": "cosine", "total_steps": 12, "warmup_steps": 3, "init_factor": 0.5}
CASES = {
    "int8": {"encoding": "int8", "schedule": COSINE, "clip_norm": 0.05},
    "topk, narrow answers": {"encoding": adamd.TopK(0.05), "answer_dtype": "bfloat16", "upper": 0.9, "ema_decay": 0.5},
    "float16 both ways": {
        "encoding": "float16",
        "answer_dtype": "float16",
        "lower": {"first/bias": np.full(32, -0.01, np.float32)},
        "clip_value": 0.01,
    },
}


def named(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in paths}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_bits_are_the_plain_sdks(client, kind, case):
    around = CASES[case]
    params = jax.tree.map(lambda a: a.clip(max=0.85), parameters())
    tx = getattr(adamd.optax, kind)(1e-2, client=client, **around)
    state = tx.init(params)
    decay = {"weight_decay": 1e-4 if kind == "adamw" else 0.0}
    session = client.create(named(params), 1e-2, optimizer=kind, **decay, **around)
    mine = tx.session(state)
    assert mine.settings == session.settings
    step = jax.jit(lambda p, s, b: (*tx.step(g := jax.grad(loss_of)(p, b), s, p), g))
    for batch in zip(*batches(9), strict=True):
        params, state, grads = step(params, state, batch)
        plain = session.step(named(grads))
        assert all(np.array_equal(value, plain[name]) for name, value in named(params).items())
    assert mine.step_number == session.step_number == 9
    assert mine.info()["settings_revision"] == 0  # nothing travels that has not changed
    mine.answer_dtype = session.answer_dtype = None
    for at in (None, "ema") if "ema_decay" in around else (None,):
        ours, theirs = mine.parameters(at=at), session.parameters(at=at)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_each_of_it_counts(client):
    found = []
    for around in ({}, {"encoding": "int8"}, {"schedule": COSINE}, {"clip_norm": 0.05}, {"answer_dtype": "float16"}):
        tx, params = adamd.optax.adam(1e-2, client=client, **around), parameters()
        state = tx.init(params)
        for batch in zip(*batches(3), strict=True):
            params, state = tx.step(jax.grad(loss_of)(params, batch), state, params)
        found.append(named(params)["first/kernel"].tobytes())
    assert len(set(found)) == len(found)


def test_a_resumed_session_takes_what_is_given(client, name):
    params, (batch, _) = parameters(), zip(*batches(2), strict=True)
    first = adamd.optax.adam(1e-2, client=client, session=name, clip_norm=0.5, answer_dtype="bfloat16")
    params, state = first.step(jax.grad(loss_of)(params, batch), first.init(params), params)
    tx = adamd.optax.adam(1e-2, client=client, session=name, clip_norm=0.25, schedule=COSINE, answer_dtype="bfloat16")
    again, state = tx.refresh(tx.init(params), params)
    assert same(again, params) and same(again, at_the_server(tx.session(state), params))
    tx.step(jax.grad(loss_of)(params, batch), state, params)
    told = tx.session(state).info()["optimizer"]
    assert told["clip_norm"] == 0.25 and told["schedule"]["name"] == "cosine"


def test_what_is_refused(client):
    with pytest.raises(TypeError, match="unexpected keyword argument 'clip'; known are schedule, "):
        adamd.optax.adam(1e-2, client=client, clip=1.0)
    with pytest.raises(errors.InvalidRequest, match="wanted 'raw'"):
        adamd.optax.adamw(1e-2, client=client, encoding="int4")
    with pytest.raises(errors.InvalidSettings, match="clip_norm"):
        adamd.optax.adamw(1e-2, client=client, clip_norm=-1.0).init(parameters())
