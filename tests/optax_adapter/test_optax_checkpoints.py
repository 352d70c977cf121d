"""A run moves from a local optax optimizer into a session and back, and has lost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import at_the_server, batches, loss_of, parameters, same, train

import adamd.optax
from adamd import checkpoints, errors

pytestmark = pytest.mark.jax

MOVING = {
    "adam": (lambda: optax.adam(1e-2, 0.8, 0.99, 1e-6), {"lr": 1e-2, "betas": [0.8, 0.99], "eps": 1e-6}),
    "adamw": (lambda: optax.adamw(1e-2, weight_decay=0.1), {"lr": 1e-2, "weight_decay": 0.1}),
    "adamax": (lambda: optax.adamax(1e-2), {"lr": 1e-2}),
    "lion": (lambda: optax.lion(1e-3, weight_decay=0.0), {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.0}),
    "sgd": (lambda: optax.sgd(0.05, momentum=0.9), {"lr": 0.05, "momentum": 0.9}),
}


def close(ours, theirs):
    """The oracle's bounds, over all parameters."""
    mine, its = (np.concatenate([np.ravel(np.float64(a)) for a in jax.tree.leaves(tree)]) for tree in (ours, theirs))
    if jax.tree.leaves(ours)[0].dtype == "float64":
        return bool((np.abs(mine - its) <= 1e-9 * np.maximum(np.abs(its), 1e-3)).all())
    return np.abs(mine - its).max() <= 1e-6 * np.abs(its).max()


def split(given, *places):
    """Cut batches at these steps."""
    return [tuple(part[a:b] for part in given) for a, b in zip((0, *places), (*places, None), strict=True)]


def step_session(session, params, given):
    """The loop of a program that steps a session by itself."""
    gradient = jax.jit(jax.grad(loss_of))
    for batch in zip(*given, strict=True):
        leaves = jax.tree.leaves(gradient(params, batch))
        session.step(dict(zip(names(params), map(np.asarray, leaves), strict=True)))
        params = at_the_server(session, params)
    return params


def names(params):
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


@pytest.mark.parametrize("kind", MOVING)
def test_a_session_takes_over_and_gives_back(client, dtype, kind):
    make, settings = MOVING[kind]
    start, given = parameters(dtype), batches(15, dtype)
    whole, end = train(make(), start, given)
    first, second, third = split(given, 5, 10)

    params, state = train(make(), start, first)
    session = checkpoints.from_optax(client, state, params, optimizer=kind, **settings)
    again, returned = checkpoints.to_optax(session, params, make().init(params))
    assert same(again, params)
    assert same(returned, state)
    assert jax.tree.structure(returned) == jax.tree.structure(state)

    params = step_session(session, params, second)
    params, state = checkpoints.to_optax(session, params, make().init(params))
    ours, last = train(make(), params, third, state)
    assert close(ours, whole)
    assert [int(c) for c in counts(last)] == [int(c) for c in counts(end)]


def counts(state):
    return [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]


def test_the_adapter_goes_on_by_name_and_a_schedule_keeps_its_count(client, dtype, name):
    schedule = optax.cosine_decay_schedule(1e-2, 15)
    start, given = parameters(dtype), batches(15, dtype)
    whole, end = train(optax.adam(schedule), start, given)
    first, second, third = split(given, 5, 10)

    params, state = train(optax.adam(schedule), start, first)
    checkpoints.from_optax(client, state, params, optimizer="adam", name=name)
    tx = adamd.optax.adam(schedule, client=client, session=name)
    params, state = tx.refresh(tx.init(params), params)
    assert int(state.count) == 5
    params, state = train(tx, params, second, state)
    params, state = checkpoints.to_optax(tx.session(state), params, optax.adam(schedule).init(params))
    ours, last = train(optax.adam(schedule), params, third, state)
    assert close(ours, whole)
    assert [int(c) for c in counts(last)] == [int(c) for c in counts(end)] == [15, 15]


def test_within_a_chain_and_in_narrow_parameters(client):
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2, mu_dtype="float32"))
    start = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), parameters())
    params, state = train(tx, start, batches(3))
    session = checkpoints.from_optax(client, state, params, optimizer="adam")
    assert session.dtype == "float32"
    again, returned = checkpoints.to_optax(session, params, tx.init(params))
    assert same(again, params)
    assert same(returned, state)


def broken(params, state):
    """States that no Adam of these parameters has, and the words that they are refused with."""
    inner = state[0]
    rest = state[1:]
    bad = jax.tree.map(lambda leaf: leaf[:1], inner.mu)
    return {
        "another optimizer's": (optax.sgd(0.1, momentum=0.9).init(params), "0 ScaleByAdamState, .* it has TraceState"),
        "two": ((inner, inner, *rest), "2 ScaleByAdamState"),
        "none": (None, "it has nothing"),
        "another tree": ((inner._replace(mu={"w": jnp.ones(2)}), *rest), "mu is a pytree of another structure"),
        "another shape": (
            (inner._replace(nu=bad), *rest),
            r"nu of 'first/bias' has shape \(1,\), the parameter \(32,\)",
        ),
        "integers": (
            (inner._replace(mu=jax.tree.map(lambda leaf: leaf.astype("int32"), inner.mu)), *rest),
            "int32; wanted floats",
        ),
        "a count before the first": ((inner._replace(count=jnp.int32(-1)), *rest), "count is -1"),
        "half a count": ((inner._replace(count=jnp.float32(1.5)), *rest), "count is 1.5"),
        "counts": ((inner._replace(count=jnp.ones(2, "int32")), *rest), "count is"),
        "NaN": ((inner._replace(mu=jax.tree.map(lambda leaf: leaf * jnp.nan, inner.mu)), *rest), "finite"),
        "negative": ((inner._replace(nu=jax.tree.map(lambda leaf: leaf - 1, inner.nu)), *rest), "0 or more"),
    }


def test_what_does_not_fit_is_refused_and_makes_nothing(client):
    params, state = train(optax.adam(1e-2), parameters(), batches(2))
    there = {one["id"] for one in client.sessions()}
    for case, (wrong, said) in broken(params, state).items():
        with pytest.raises(errors.InvalidState, match=said):
            checkpoints.from_optax(client, wrong, params, optimizer="adam")
            pytest.fail(case)
    with pytest.raises(errors.WrongLayout, match="no arrays at all"):
        checkpoints.from_optax(client, optax.adam(1e-2).init({}), {}, optimizer="adam")
    with pytest.raises(errors.InvalidState, match="nadam is not kept alike"):
        checkpoints.from_optax(client, state, params, optimizer="nadam")
    with pytest.raises(errors.InvalidState, match="adam with amsgrad is not"):
        checkpoints.from_optax(client, state, params, optimizer="adam", amsgrad=True)
    with pytest.raises(errors.InvalidSettings, match="lr"):
        checkpoints.from_optax(client, state, params, optimizer="adam", lr=-1.0)
    assert {one["id"] for one in client.sessions()} == there


def test_what_a_session_cannot_give_optax_is_refused(client):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    session = client.create({"a": np.ones(2, "float32"), "b": np.ones(3, "float32")})
    local = optax.adam(1e-3).init(params)
    for values, state, said in [
        ({"a": jnp.ones(2)}, local, "'b' has shape None here"),
        (params, optax.sgd(1e-3).init(params), "0 ScaleByAdamState"),
        (params, optax.adam(1e-3).init({"a": jnp.ones(2)}), "another structure"),
    ]:
        with pytest.raises((errors.WrongLayout, errors.InvalidState), match=said):
            checkpoints.to_optax(session, values, state)
    session.step({"a": np.ones(2, "float32")})
    with pytest.raises(errors.InvalidState, match="different number of times"):
        checkpoints.to_optax(session, params, local)
