"""What goes wrong says so, as what it is, and changes nothing."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import batches, parameters, same, train, train_step

import adamd
import adamd.optax
from adamd import errors
from adamd.optax.pytree import agree, updates

pytestmark = pytest.mark.jax


@pytest.fixture
def trained(client):
    tx = adamd.optax.adam(1e-2, client=client)
    return tx, *train(tx, parameters(), batches(3))


def test_errors_of_compiled_code_are_typed_within_typed_errors(trained):
    tx, params, state = trained
    bad = jax.tree.map(lambda a: a * jnp.nan, params)
    update = jax.jit(tx.update)
    with pytest.raises(jax.errors.JaxRuntimeError, match="BadGradient"):
        jax.block_until_ready(update(bad, state, params))
    with pytest.raises(errors.BadGradient) as caught, tx.typed_errors():
        update(bad, state, params)
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)
    with pytest.raises(errors.BadGradient):
        tx.update(bad, state, params)
    with tx.typed_errors():
        _, state = update(params, state, params)
    assert int(state.count) == tx.session(state).step_number == 4


def test_other_errors_pass_through_typed_errors(trained):
    tx, _, _ = trained
    with pytest.raises(ZeroDivisionError), tx.typed_errors():
        1 / 0


def test_a_bad_gradient_is_skipped(client):
    tx = adamd.optax.adam(1e-2, client=client, on_bad_gradient="skip")
    params, state = train(tx, parameters(), batches(2))
    bad = jax.tree.map(lambda a: a * jnp.nan, params)
    stepped, state = jax.jit(tx.step)(bad, state, params)
    assert int(state.count) == 2
    assert tx.session(state).skipped == 1
    assert np.allclose(stepped["first"]["kernel"], params["first"]["kernel"], atol=1e-6)


def test_a_state_is_used_once(trained):
    tx, params, state = trained
    tx.update(params, state, params)
    with pytest.raises(errors.StepSuperseded, match="state is of step 3, its session is at 4"):
        tx.update(jax.tree.map(lambda a: a * 2, params), state, params)
    params, state = tx.refresh(state, params)
    tx.update(params, state, params)


def test_another_client_that_steps(trained, client):
    tx, params, state = trained
    client.session(tx.session(state).id).step({"first/bias": np.ones(32, np.float32)})
    with pytest.raises(errors.StepConflict):
        tx.update(params, state, params)
    params, state = tx.refresh(state, params)
    assert int(state.count) == 4
    tx.update(params, state, params)


def test_parameters_that_something_else_changed(trained):
    tx, params, state = trained
    changed = jax.tree.map(lambda a: a, params)
    changed["rest"][0] = (params["rest"][0][0].at[3, 4].add(1e-3), params["rest"][0][1])
    with pytest.raises(errors.InvalidRequest, match="rest/0/0: not the session's parameters at step 3"):
        tx.update(params, state, changed)
    tx.update(params, state, params)


def test_before_the_first_step_they_are_taken_over(client):
    tx = adamd.optax.adam(1e-2, client=client)
    state = tx.init(parameters())
    other = parameters(seed=5)
    stepped, state = tx.step(jax.tree.map(jnp.ones_like, other), state, other)
    assert np.allclose(stepped["first"]["kernel"], other["first"]["kernel"] - 0.01, atol=1e-6)


def test_what_follows_in_a_chain_must_not_change_the_updates(client):
    tx = optax.chain(adamd.optax.adam(1e-2, client=client), optax.scale(2.0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="follows adamd in a chain"):
        train(tx, parameters(), batches(3))


def test_a_wrapper_that_throws_updates_away(client):
    params = parameters()
    tx = optax.MultiSteps(adamd.optax.adam(1e-2, client=client), 2)
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    other = jax.tree.map(lambda a: a * 2, params)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a step counts once"):
        jax.block_until_ready(jax.jit(tx.update)(other, state, params))


def test_vmap_pmap_and_gradients_through_it(trained):
    tx, params, state = trained
    many = jax.tree.map(lambda a: jnp.stack([a, a]), (params, state, params))
    with pytest.raises(errors.InvalidRequest, match="vmap the gradients"):
        jax.vmap(tx.update)(*many)
    with pytest.raises(errors.InvalidRequest, match="vmap the gradients"):
        jax.vmap(jax.jit(tx.update))(*many)
    with pytest.raises(errors.InvalidRequest, match="vmap the gradients"):
        jax.vmap(tx.update, in_axes=(0, None, None))(many[0], state, params)
    one = jax.tree.map(lambda a: a[None], (params, state, params))
    with pytest.raises(errors.InvalidRequest, match="outside, under jit"):
        jax.pmap(tx.update)(*one)
    with pytest.raises(errors.InvalidRequest, match="cannot be differentiated"):
        jax.grad(lambda p: tx.update(p, state, params)[0]["first"]["bias"].sum())(params)
    assert tx.session(state).info()["step"] == 3


def test_arguments_that_do_not_fit(trained, client):
    tx, params, state = trained
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, state)
    with pytest.raises(errors.InvalidRequest, match="another structure"):
        tx.update(params["first"], state, params)
    with pytest.raises(errors.WrongLayout, match="first/bias"):
        tx.update({"other": params["first"]}, state, {"other": params["first"]})
    with pytest.raises(errors.WrongLayout, match=r"'a/b'"):
        tx.init({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
    with pytest.raises(errors.WrongDtype, match="int32"):
        tx.init({"a": jnp.ones(1, jnp.int32)})
    with pytest.raises(errors.InvalidRequest, match="has no session"):
        tx.update(params, adamd.optax.AdamState(state.count, jnp.zeros(64, jnp.uint8)), params)
    with pytest.raises(errors.InvalidSettings, match="b"):
        adamd.optax.adam(1e-3, 1.5, client=client).init(params)
    with pytest.raises(errors.InvalidRequest, match="b1 is str"):
        adamd.optax.adam(1e-3, "x", client=client)
    with pytest.raises(errors.InvalidRequest, match="not both"):
        adamd.optax.adam(1e-3, client=client, url="http://localhost:1")


def test_a_session_of_another_kind_is_not_resumed(client, name):
    params = parameters()
    adamd.optax.adam(1e-3, client=client, session=name).init(params)
    with pytest.raises(errors.InvalidSettings, match="another name"):
        adamd.optax.adamw(1e-3, client=client, session=name).init(params)
    with pytest.raises(errors.WrongLayout, match="another name"):
        adamd.optax.adam(1e-3, client=client, session=name).init(params["first"])


def test_tracing_alone_sends_nothing(client):
    before = sum(1 for _ in client.sessions())
    tx = adamd.optax.adam(1e-3, client=client)
    state = jax.eval_shape(tx.init, parameters())
    jax.jit(train_step(tx)).lower((parameters(), state), tuple(part[0] for part in batches(1)))
    assert sum(1 for _ in client.sessions()) == before


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, jnp.bfloat16])
def test_updates_miss_by_at_most_a_rounding(kind):
    draw = np.random.default_rng(7)
    size = 200_000
    scales = np.exp(draw.uniform(-9, 9, (2, size)))
    held, meant = ((draw.normal(size=size) * scale).astype(kind) for scale in scales)
    delta, strays = updates(meant, held)
    assert delta.dtype == kind
    reached = np.asarray(held + delta)
    wide = np.dtype(kind if np.dtype(kind).itemsize >= 4 else np.float32)
    near = (meant.astype(wide) * held.astype(wide) > 0) & (abs(meant) <= 2 * abs(held)) & (abs(held) <= 2 * abs(meant))
    assert near.sum() > 1000
    assert (reached == meant)[near].all()
    assert strays.index.size  # the draw has such cases, or the rest shows nothing
    ulp = [np.spacing(np.abs(part)).astype(np.longdouble) for part in (delta, meant)]
    miss = np.abs(reached.astype(np.longdouble) - meant.astype(np.longdouble))
    assert (miss <= ulp[0] / 2 + ulp[1]).all()
    assert agree(reached, meant, strays)
    assert agree(meant, meant, strays)
    wrong = reached.copy()
    wrong[strays.index[np.argmax(np.abs(strays.value))]] *= np.asarray(1.125, kind)
    assert not agree(wrong, meant, strays)
    wrong = meant.copy()
    wrong[11] = -wrong[11]
    assert not agree(wrong, meant, strays)


def test_without_jax_the_extra_is_named():
    code = "import sys; sys.modules['jax'] = None\nimport adamd\ntry: adamd.optax\nexcept ImportError as e: print(e)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'adamd[jax]'" in told.stdout


SHARDED = """
import sys, jax, jax.numpy as jnp, numpy as np, adamd, adamd.optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("d",))
params = jax.device_put({"w": jnp.arange(8.0)}, NamedSharding(mesh, PartitionSpec("d")))
tx = adamd.optax.adam(0.5, url=sys.argv[1])
state = jax.device_put(tx.init(params), NamedSharding(mesh, PartitionSpec()))
stepped, state = jax.jit(tx.step)(jax.tree.map(jnp.ones_like, params), state, params)
assert len(jax.devices()) == 2
assert np.allclose(stepped["w"], np.arange(8.0) - 0.5), stepped
assert tx.session(state).step_number == 1
one = jax.shard_map(tx.update, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
try:
    jax.jit(one)(params, state, params)
except adamd.errors.InvalidRequest as error:
    print("refused", error)
"""


def test_arrays_that_are_sharded_over_two_devices(server):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run(
        [sys.executable, "-c", SHARDED, server.url], env=environment, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("refused")


def test_two_transformations_share_nothing(client):
    one, two = (adamd.optax.adam(1e-2, client=client) for _ in range(2))
    params = parameters()
    states = one.init(params), two.init(params)
    first, _ = one.step(params, states[0], params)
    second, _ = two.step(params, states[1], params)
    assert same(first, second)
    assert one.session(states[0]).id != two.session(states[1]).id
    assert not one._desk.links.keys() & two._desk.links.keys()
    one.close()  # the client is the caller's
    assert client.session(two.session(states[1]).id).step_number == 1
