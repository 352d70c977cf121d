"""The plain optax loop with adamd.optax beside the plain loop with optax."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import at_the_server, batches, bound, distance, loss_of, parameters, same, scanned, train

import adamd
import adamd.optax

pytestmark = pytest.mark.jax


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_100_steps_under_jit_are_optaxs(client, dtype, kind, capsys):
    start, given = parameters(dtype), batches(100, dtype)
    options = {} if kind == "adam" else {"weight_decay": 0.05}
    tx = getattr(adamd.optax, kind)(1e-2, 0.8, 0.99, 1e-6, client=client, durability="memory", **options)
    ours, state = train(tx, start, given)
    theirs, _ = train(getattr(optax, kind)(1e-2, 0.8, 0.99, 1e-6, **options), start, given)
    with capsys.disabled():
        print(f"\n{dtype} {kind}: L2 apart {distance(ours, theirs):.3g} after moving {distance(ours, start):.3g}")
    assert distance(ours, theirs) <= bound(dtype)
    assert distance(ours, start) > 1
    assert int(state.count) == tx.session(state).step_number == 100
    assert tx.session(state).info()["settings_revision"] == 0  # nothing travels that has not changed
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(ours))


def test_scan_jit_and_eager_take_the_same_steps(client):
    start, given = parameters(), batches(12)
    made = [adamd.optax.adam(1e-2, client=client) for _ in range(2)]
    jitted, _ = train(made[0], start, given)
    scan, state = scanned(made[1], start, given, jax.jit(made[1].init)(start))
    assert same(jitted, scan)
    assert int(state.count) == 12
    tx = adamd.optax.adam(1e-2, client=client)
    eager, state = start, tx.init(start)
    for batch in zip(*given, strict=True):
        grads = jax.jit(jax.grad(loss_of))(eager, batch)
        updates, state = tx.update(grads, state, eager)
        eager = optax.apply_updates(eager, updates)
    assert distance(eager, jitted) <= 1e-5


def test_updates_lead_to_the_sessions_parameters_within_a_rounding_and_step_returns_them(client):
    tx, start, given = adamd.optax.adam(0.3, client=client), parameters(), batches(20)
    params, state = train(tx, start, given)
    there = at_the_server(tx.session(state), params)
    for mine, its in zip(jax.tree.leaves(params), jax.tree.leaves(there), strict=True):
        ulp = np.spacing(np.abs(np.asarray(its)))
        update = np.float32(0.3 * 8)  # no update of Adam's is larger by far
        assert (np.abs(np.float64(mine) - np.float64(its)) <= ulp / 2 + np.spacing(update) / 2).all()
    equal = [np.asarray(a == b).mean() for a, b in zip(*map(jax.tree.leaves, (params, there)), strict=True)]
    assert min(equal) > 0.8

    exact = jax.jit(lambda p, s, b: tx.step(jax.grad(loss_of)(p, b), s, p))
    for batch in zip(*batches(5, seed=2), strict=True):
        params, state = exact(params, state, batch)
        assert same(params, at_the_server(tx.session(state), params))


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "mixed"])
def test_narrow_parameters_have_a_float32_master(client, kind):
    narrow = "bfloat16" if kind == "mixed" else kind
    start = jax.tree.map(lambda a: a.astype(narrow), parameters())
    if kind == "mixed":
        start["first"]["bias"] = start["first"]["bias"].astype("float32")
    given = batches(30)
    tx = adamd.optax.adam(1e-3, client=client)
    ours, state = train(tx, start, given)
    session = tx.session(state)
    assert session.dtype == "float32"
    for mine, its in zip(*map(jax.tree.leaves, (ours, at_the_server(session, ours))), strict=True):
        ulp = np.spacing(np.abs(np.asarray(its))) + np.spacing(np.asarray(0.01, its.dtype)) / 2
        assert (np.abs(np.float64(mine) - np.float64(its)) <= np.float64(ulp)).all()

    # The reference: optax on float32 masters, the model computed on their rounded copy.
    masters = jax.tree.map(lambda a: a.astype("float32"), start)
    reference = optax.adam(1e-3)

    def rounded(tree):
        return jax.tree.map(lambda a, like: a.astype(like.dtype), tree, start)

    @jax.jit
    def step(masters, inner, batch):
        grads = jax.grad(loss_of)(rounded(masters), batch)
        updates, inner = reference.update(jax.tree.map(lambda g: g.astype("float32"), grads), inner, masters)
        return optax.apply_updates(masters, updates), inner

    inner = reference.init(masters)
    for batch in zip(*given, strict=True):
        masters, inner = step(masters, inner, batch)
    assert distance(session.parameters()["first/kernel"], masters["first"]["kernel"]) <= 5e-3
    assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, start)
    exact, state = jax.jit(tx.step)(jax.tree.map(jnp.ones_like, ours), state, ours)
    assert same(exact, at_the_server(session, exact))


def test_schedules(client, dtype):
    start, given = parameters(dtype), batches(30, dtype)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 30)
    tx = adamd.optax.adam(schedule, client=client, durability="memory")
    ours, state = train(tx, start, given)
    theirs, _ = train(optax.adam(schedule), start, given)
    assert distance(ours, theirs) <= bound(dtype)
    assert tx.session(state).info()["optimizer"]["lr"] == float(schedule(jnp.int32(29)))


def test_a_mask_keeps_weight_decay_from_some(client):
    start, given = parameters(), batches(20)
    start = jax.tree.map(lambda a: a + 0.5, start)
    for mask in (lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree), {"first": False, "rest": True}):
        options = {"weight_decay": 0.5, "mask": mask}
        tx = adamd.optax.adamw(1e-2, client=client, **options)
        ours, state = train(tx, start, given)
        theirs, _ = train(optax.adamw(1e-2, **options), start, given)
        assert distance(ours, theirs) <= bound("float32")
        assert tx.session(state).info()["settings_revision"] == 0


def test_it_composes_as_optax_does(client):
    start, given = parameters(), batches(16)

    def both(wrap):
        ours, _ = train(wrap(adamd.optax.adam(1e-2, client=client)), start, given)
        theirs, _ = train(wrap(optax.adam(1e-2)), start, given)
        assert distance(ours, theirs) <= bound("float32")
        return ours

    both(lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx))
    both(lambda tx: optax.apply_if_finite(tx, 3))
    masked = both(lambda tx: optax.masked(optax.chain(tx), {"first": True, "rest": True}))
    labels = {"first": "adamd", "rest": "frozen"}
    frozen = both(lambda tx: optax.multi_transform({"adamd": tx, "frozen": optax.set_to_zero()}, labels))
    assert same(frozen["rest"], start["rest"])
    assert not same(masked["rest"], start["rest"])


def test_a_bare_array_and_a_recorded_loss(client):
    tx = adamd.optax.adam(0.1, client=client)
    x = jnp.array([1.0, -2.0])
    state = tx.init(x)
    updates, state = tx.update(2 * x, state, x, value=jnp.float32(5.0), other="ignored")
    assert np.allclose(x + updates, [0.9, -1.9])
    assert tx.session(state).layout.names == ("parameters",)


def test_resuming_by_name(client, name):
    start, given = parameters(), batches(40)
    first = tuple(part[:25] for part in given)
    rest = tuple(part[25:] for part in given)
    whole, _ = train(adamd.optax.adam(1e-2, client=client), start, given)
    train(adamd.optax.adam(1e-2, client=client, session=name), start, first)

    tx = adamd.optax.adam(1e-2, client=client, session=name)
    other = parameters(seed=9)
    state = tx.init(other)
    assert int(state.count) == 25
    with pytest.raises(adamd.errors.InvalidRequest, match="refresh"):
        tx.update(other, state, other)
    params, state = jax.jit(tx.refresh)(state, other)
    resumed, state = train(tx, params, rest, state)
    # Those who stopped hold the session's own bits; those who did not may miss them by a rounding.
    assert distance(resumed, whole) <= 1e-5
    assert tx.session(state).step_number == 40


def test_a_state_that_was_saved_goes_on_in_another_transformation(client):
    start, given = parameters(), batches(10)
    tx = adamd.optax.adam(1e-2, client=client)
    params, state = train(tx, start, given)
    saved = jax.tree.map(np.asarray, (params, state))
    restored = jax.tree.map(jnp.asarray, saved)
    again = adamd.optax.adam(1e-2, client=client)
    assert jax.tree.structure(jax.eval_shape(again.init, start)) == jax.tree.structure(state)
    params, state = again.refresh(restored[1], restored[0])
    assert distance(params, restored[0]) <= 1e-6
    _, state = train(again, params, given, state)
    assert (int(state.count), again.session(state).id) == (20, tx.session(state).id)


def test_a_server_that_is_killed_and_comes_back(server_factory):
    server = server_factory()
    start, given = parameters(), batches(40)
    with adamd.connect(server.url) as client:
        undisturbed, _ = train(adamd.optax.adam(1e-2, client=client), start, given)
        tx = adamd.optax.adam(1e-2, client=client)
        params, state = train(tx, start, tuple(part[:15] for part in given))
        server.kill()
        again = threading.Thread(target=lambda: (time.sleep(0.3), server.start()))
        again.start()
        params, state = train(tx, params, tuple(part[15:] for part in given), state)
        again.join()
        assert same(params, undisturbed)
        assert tx.session(state).step_number == 40
