"""optax's contract, point by point: trees, dtypes, wrappers, transformations of JAX, and words where it cannot be kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import distance, same

import adamd.optax
from adamd import errors

pytestmark = pytest.mark.jax


def small(dtype="float32"):
    narrow, wide = ("bfloat16", "float32") if dtype == "mixed" else (dtype, dtype)
    return {"a": jnp.array([-1.0, 10.0, 1.0], narrow), "b": jnp.array([[2.0, 3.0]], wide)}


def loss_of(params):
    return sum(jnp.sum(jnp.square(leaf)).astype("float32") for leaf in jax.tree.leaves(params))


def stepping(tx):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, params, steps=4, state=None):
    step, state = jax.jit(stepping(tx)), tx.init(params) if state is None else state
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def sessions(client):
    return sum(1 for _ in client.sessions())


WRAPPERS = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 0),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step < 9),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("adam", tx)),
    "flatten": optax.flatten,
    "extra args": lambda tx: optax.chain(optax.with_extra_args_support(tx), optax.identity()),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": False}),
    "MultiSteps of one": lambda tx: optax.MultiSteps(tx, 1, should_skip_update_fn=optax.skip_not_finite),
    "partition": lambda tx: optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}),
    "a label that nothing has": lambda tx: optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"a": "y", "b": "y"}),
    "masked all": lambda tx: optax.masked(tx, {"a": False, "b": False}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_dtypes(client, wrapper, dtype):
    if wrapper == "flatten" and dtype == "mixed":
        dtype = "bfloat16"  # it joins the parameters into one array
    results = []
    for tx in (adamd.optax.adam(0.1, client=client), optax.adam(0.1)):
        wrapped = WRAPPERS[wrapper](tx)
        params, state = train(wrapped, small(dtype))
        updates, _ = jax.eval_shape(wrapped.update, params, state, params)
        results.append((params, updates, optax.tree_utils.tree_get_all_with_path(state, "count")[-1][1]))
    (ours, mine, count), (theirs, its, other) = results
    assert mine == its
    assert distance(ours, theirs) <= (1e-5 if dtype == "float32" else 0.13)
    assert int(count) == int(other) == (2 if wrapper == "conditionally_mask" else 4)


def test_updates_promote_as_optaxs_do(client):
    params, grads = small("bfloat16"), small("float32")
    tx = adamd.optax.adam(0.1, client=client)
    ours, _ = tx.update(grads, tx.init(params), params)
    theirs, _ = optax.adam(0.1).update(grads, optax.adam(0.1).init(params), params)
    assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, theirs)


@pytest.mark.parametrize("tree", [{}, (), {"a": None}, [optax.MaskedNode()], optax.EmptyState()])
def test_a_tree_without_leaves_makes_no_session(client, tree):
    before = sessions(client)
    tx = adamd.optax.adamw(0.1, client=client, mask={"a": True})
    state = jax.jit(tx.init)(tree)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == adamd.optax.AdamState(((), "int32"), ((64,), "uint8"))
    for update in (tx.update, jax.jit(tx.update), tx.step):
        updates, state = update(tree, state, tree)
        assert jax.tree.structure(updates) == jax.tree.structure(tree)
    assert int(state.count) == 3  # as optax counts
    assert tx.refresh(state, tree) == (tree, state)
    assert sessions(client) == before


def test_leaves_without_elements_and_gradients_that_are_none(client):
    params = {"a": jnp.zeros((0, 3)), "b": jnp.ones(2), "c": jnp.ones(1)}
    tx = adamd.optax.adam(0.1, client=client)
    state = tx.init(params)
    updates, state = jax.jit(tx.update)({**params, "c": None}, state, params)
    assert updates["c"] is None and updates["a"].shape == (0, 3)
    params["b"] = params["b"] + updates["b"]
    params, state = tx.step({"a": None, "b": params["b"], "c": None}, state, params)
    assert np.allclose(params["b"], 0.8, atol=1e-3) and params["c"] == 1.0
    nothing = dict.fromkeys(params)
    assert tx.update(nothing, state, params) == (nothing, state)
    assert tx.session(state).step_number == 2


def test_a_state_is_mapped_searched_and_shaped_without_a_session(client):
    before = sessions(client)
    tx = optax.chain(optax.clip(1.0), adamd.optax.adamw(0.1, client=client, mask={"a": True, "b": False}))
    shapes = jax.eval_shape(tx.init, jax.eval_shape(small))
    made = jax.eval_shape(stepping(tx), jax.eval_shape(small), shapes)
    jax.make_jaxpr(tx.init)(small())
    assert sessions(client) == before
    params, state = train(tx, small())
    assert jax.tree.structure(shapes) == jax.tree.structure(state) == jax.tree.structure(made[1])
    assert sessions(client) == before + 1
    assert same(optax.tree_utils.tree_map_params(tx, lambda leaf: leaf * 0, state), state)
    assert int(optax.tree_utils.tree_get(state, "count")) == 4
    assert sessions(client) == before + 1
    with pytest.raises(errors.InvalidRequest, match=r"ShapeDtypeStruct, which has no values.*jax.eval_shape\(tx.init"):
        tx.init(jax.eval_shape(small))


def test_the_same_update_twice_is_the_same_answer_and_one_step(client):
    tx = adamd.optax.adam(lambda count: 0.1 / (1 + count), client=client)
    params, state = train(tx, small(), 2)
    grads = jax.grad(loss_of)(params)
    once, twice = (tx.update(grads, state, params) for _ in range(2))
    exact = jax.jit(tx.step)(grads, state, params)
    assert same(once, twice) and same(once[1], exact[1])
    assert tx.session(state).info()["step"] == 3
    with pytest.raises(errors.StepSuperseded, match="a step counts once.*MultiSteps"):
        tx.update(params, state, params)
    assert same(tx.update(grads, state, params), once)
    train(tx, optax.apply_updates(params, once[0]), 2, once[1])
    with pytest.raises(errors.StepSuperseded, match="state is of step 2, its session is at 5"):
        tx.update(grads, state, params)


def test_control_flow_and_donation(client):
    theirs, _ = train(optax.adam(0.1), small(), 5)
    for run in (
        lambda step, carry: jax.lax.while_loop(lambda c: c[1].count < 5, lambda c: step(*c), carry),
        lambda step, carry: jax.lax.fori_loop(0, 5, lambda _, c: step(*c), carry),
        lambda step, carry: jax.lax.scan(lambda c, _: (jax.checkpoint(step)(*c), None), carry, None, length=5)[0],
    ):
        tx = adamd.optax.adam(0.1, client=client)
        carry = small(), tx.init(small())
        ours, state = jax.jit(lambda carry, tx=tx, run=run: run(stepping(tx), carry), donate_argnums=0)(carry)
        assert distance(ours, theirs) <= 1e-5
        assert int(state.count) == 5


def test_a_state_ahead_of_its_session_is_told(client):
    tx = adamd.optax.adam(0.1, client=client)
    params, state = train(tx, small(), 2)
    with pytest.raises(errors.HistoryLost, match="state is of step 7, its session is at 2"):
        tx.update(params, state._replace(count=jnp.int32(7)), params)


def test_a_checkpoint_goes_on_in_another_process_without_a_refresh(client):
    params, state = train(adamd.optax.adam(0.3, client=client), small(), 9)  # a sign has changed: roundings
    again = adamd.optax.adam(0.3, client=client)
    params, state = train(again, params, 1, state)
    assert int(state.count) == 10
    other = adamd.optax.adam(0.3, client=client)
    with pytest.raises(errors.InvalidRequest, match="not the session's parameters at step 10"):
        other.update(params, state, jax.tree.map(lambda leaf: leaf * 1.001, params))


def test_hyperparams_are_injected(client):
    before = sessions(client)
    wrapped = [optax.inject_hyperparams(make) for make in (adamd.optax.adamw, optax.adamw)]
    ours = wrapped[0](lambda count: 0.1 / (1 + count), client=client, clip_norm=1e9, weight_decay=0.1)
    theirs = wrapped[1](lambda count: 0.1 / (1 + count), weight_decay=0.1)
    found = []
    for tx in (ours, theirs):
        params, state = train(tx, small(), 3)
        state.hyperparams["weight_decay"] = jnp.float32(0.5)
        params, state = train(tx, params, 3, state)
        found += [(params, state.hyperparams), stepping(tx)(params, state)[0]]
    (mine, told), last, (its, wanted), end = found
    assert distance(mine, its) <= 1e-5 and distance(last, end) <= 1e-5
    assert told.keys() == wanted.keys() - {"eps_root"}
    assert same(told, {key: wanted[key] for key in told})
    assert sessions(client) == before + 1

    named = optax.inject_hyperparams(adamd.optax.adam, static_args=("b1", "b2", "eps", "timeout"))
    params, state = train(named(0.1, url=client.url, timeout=60.0), small(), 2)
    assert set(state.hyperparams) == {"learning_rate"} and int(state.inner_state.count) == 2
    with pytest.raises(errors.InvalidRequest, match=r"timeout is traced.*static_args=\('timeout',\)"):
        train(optax.inject_hyperparams(adamd.optax.adam)(0.1, url=client.url, timeout=60.0), small())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (jnp.array([0.1, 0.2]), r"learning_rate has shape \(2,\); wanted one number"),
        (np.array([0.1]), r"learning_rate has shape \(1,\); wanted one number"),
        ([0.1], "learning_rate is list; wanted a number"),
        ("0.1", "learning_rate is str; wanted a number"),
        (None, "learning_rate is NoneType; wanted a number"),
        (True, "learning_rate is bool; wanted a number"),
        (jnp.array(True), "learning_rate is bool; wanted a number"),
        (1j, "learning_rate is complex; wanted a number"),
        (float("nan"), "learning_rate is nan; wanted a finite number"),
        (lambda count: jnp.ones(2), r"what learning_rate returns has shape \(2,\); wanted one number"),
        (lambda count: jnp.nan * count, "learning_rate at this step is nan; wanted a finite number"),
    ],
)
def test_words_for_a_learning_rate(client, given, said):
    before = sessions(client)
    with pytest.raises(errors.InvalidRequest, match=said):
        adamd.optax.adam(given, client=client).init(small())
    assert sessions(client) == before


def test_words_for_what_does_not_fit(client):
    tx, params = adamd.optax.adam(0.1, client=client), small()
    state = tx.init(params)
    for words, act in {
        r"value has shape \(3,\); wanted one number": lambda: tx.update(params, state, params, value=jnp.ones(3)),
        "this optimizer state is tuple, which is not": lambda: tx.update(params, optax.adam(1.0).init(params), params),
        r"the gradient of 'a' has shape \(1, 2\), the parameter \(3,\)": lambda: tx.update(
            {"a": params["b"], "b": params["a"]}, state, params
        ),
        "the gradient of 'b' is dict": lambda: tx.update({**params, "b": {"c": params["b"]}}, state, params),
        "'a' is complex64; .* optax.contrib.split_real": lambda: tx.init({"a": jnp.ones(2, "complex64")}),
        "'a' is str, no array": lambda: tx.init({"a": "x"}),
    }.items():
        with pytest.raises(errors.RequestError, match=words):
            act()
    for wrap in (
        lambda tx: optax.chain(tx, optax.keep_params_nonnegative()),
        lambda tx: optax.chain(tx, optax.scale(0.5)),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="changed by something else.*follows adamd in a chain"):
            jax.block_until_ready(train(wrap(adamd.optax.adam(0.6, client=client)), small(), 4))


def test_complex_parameters_are_two_real_ones(client):
    tx = optax.contrib.split_real_and_imaginary(adamd.optax.adam(0.1, client=client))
    params = {"z": jnp.array([1 + 2j], "complex64")}
    updates, _ = tx.update(params, tx.init(params), params)
    assert np.allclose(updates["z"], -0.1 - 0.1j)


def test_a_client_is_closed_after_the_steps_under_way(server):
    params = small()
    with adamd.connect(server.url) as client:
        tx = adamd.optax.adam(0.1, client=client)
        step, state = jax.jit(stepping(tx)), tx.init(params)
        for _ in range(20):
            params, state = step(params, state)
    assert int(state.count) == 20
