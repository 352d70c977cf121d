"""flax's own training loops, with adamd.optax in the place of optax.

nnx's update has other paths than its init; linen is tested too.
"""

import flax.linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from network import batches, distance, same

import adamd.optax
from adamd import checkpoints, errors

pytestmark = pytest.mark.jax


class Net(nnx.Module):
    """A list of more than ten equal layers: by name "layers/10" comes before "layers/2"."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 10, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(10, 10, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(nnx.relu(x))
        return x


def trained(model, optimizer, given):
    @nnx.jit
    def step(model, optimizer, batch):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()

        optimizer.update(model, nnx.grad(loss_of)(model))

    for batch in zip(*given, strict=True):
        step(model, optimizer, batch)
    return nnx.state(model, nnx.Param)


@pytest.mark.parametrize("wrap", [lambda make: make, optax.inject_hyperparams], ids=["plain", "inject_hyperparams"])
def test_nnx(client, wrap):
    given = batches(20)
    local = Net(nnx.Rngs(0))
    theirs = trained(local, nnx.Optimizer(local, optax.adam(1e-2), wrt=nnx.Param), given)
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, wrap(adamd.optax.adam)(1e-2, client=client), wrt=nnx.Param)
    ours = trained(model, optimizer, given)
    assert distance(ours, theirs) <= 2e-3
    assert distance(ours, nnx.state(Net(nnx.Rngs(0)), nnx.Param)) > 1

    key = optax.tree_utils.tree_get(nnx.as_pure(optimizer.opt_state), "session")
    session = client.session(bytes(np.asarray(key)).rstrip(b"\0").decode())
    assert session.step_number == 20
    there = session.parameters()
    for path, leaf in jax.tree_util.tree_flatten_with_path(ours)[0]:
        its = there[jax.tree_util.keystr(path, simple=True, separator="/")]
        assert np.allclose(leaf, its, atol=1e-7)


def test_nnx_goes_on_by_name_and_from_a_saved_state(client, name):
    given, more = batches(8), batches(4, seed=2)
    model = Net(nnx.Rngs(0))
    tx = adamd.optax.adam(1e-2, client=client, session=name)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    trained(model, optimizer, given)
    saved = jax.tree.map(np.asarray, nnx.as_pure((nnx.state(model), nnx.state(optimizer))))

    other = Net(nnx.Rngs(1))
    again = nnx.Optimizer(other, adamd.optax.adam(1e-2, client=client), wrt=nnx.Param)
    nnx.update(other, saved[0])
    nnx.update(again, saved[1])
    trained(other, again, more)
    assert client.session(name).step_number == 12

    third = Net(nnx.Rngs(2))
    tx = adamd.optax.adam(1e-2, client=client, session=name)
    params, state = tx.refresh(tx.init(nnx.state(third, nnx.Param)), nnx.as_pure(nnx.state(third, nnx.Param)))
    assert int(state.count) == 12
    assert distance(params, nnx.as_pure(nnx.state(other, nnx.Param))) <= 1e-6
    with pytest.raises(errors.WrongLayout, match="give the parameters that the session was made with"):
        tx.refresh(state, {"other": jnp.ones(3)})


def test_nnxs_local_state_goes_into_a_session_and_back(client):
    given = batches(5)
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    trained(model, optimizer, given)
    state, params = nnx.as_pure(optimizer.opt_state), nnx.state(model, nnx.Param)
    session = checkpoints.from_optax(client, state, params, optimizer="adam", lr=1e-2)
    assert session.step_number == 5
    values, returned = checkpoints.to_optax(session, params, state)
    assert same(values, params) and same(returned, state)


class Dense(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(10)(flax.linen.relu(flax.linen.Dense(16)(x)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linen_and_its_train_state(client, dtype):
    model, given = Dense(), batches(20)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(jax.random.key(0), given[0][0])["params"])

    @jax.jit
    def step(state, batch):
        def loss_of(params):
            logits = state.apply_fn({"params": params}, batch[0].astype(dtype))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        return state.apply_gradients(grads=jax.grad(loss_of)(state.params))

    ends = []
    for make in (lambda: adamd.optax.adam(1e-3, client=client), lambda: optax.adam(1e-3)):
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.apply_if_finite(make(), 3))
        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        for batch in zip(*given, strict=True):
            state = step(state, batch)
        written = flax.serialization.to_bytes(state)
        fresh = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        state = step(flax.serialization.from_bytes(fresh, written), batch)
        ends.append(state)
    ours, theirs = ends
    assert distance(ours.params, theirs.params) <= (2e-3 if dtype == "float32" else 0.5)
    assert jax.tree.map(lambda a: a.dtype, ours.params) == jax.tree.map(lambda a: a.dtype, params)
    assert int(optax.tree_utils.tree_get(ours.opt_state[1].inner_state, "count")) == 21


def test_a_state_in_orbaxs_checkpoint(client, tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="flax brings it")
    given = batches(3)
    model, tx = Dense(), adamd.optax.adam(1e-2, client=client)
    params = model.init(jax.random.key(0), given[0][0])["params"]
    params, state = jax.jit(tx.step)(params, tx.init(params), params)
    with orbax.StandardCheckpointer() as saver:
        saver.save(tmp_path / "step-1", (params, state))
        saver.wait_until_finished()
        shapes = jax.eval_shape(lambda: (params, tx.init(params)))
        restored = saver.restore(tmp_path / "step-1", shapes)
    assert same(restored, (params, state))
    fresh = adamd.optax.adam(1e-2, client=client)
    assert int(fresh.step(params, restored[1], restored[0])[1].count) == 2
