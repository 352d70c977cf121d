"""Several devices, and the end of a process.

Each runs in a process of its own, on 8 devices that one CPU plays.
"""

import os
import signal
import subprocess
import sys

import pytest

import adamd

pytestmark = pytest.mark.jax

# 20,000 elements: JAX copies an operand that large by a thread that waits for the callback, see adamd.optax.callback._cut.
BEGIN = """
import sys, threading, os, signal
import jax, jax.numpy as jnp, numpy as np, optax, adamd, adamd.optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("d",))
url, name, whole = sys.argv[1], sys.argv[2], NamedSharding(mesh, PartitionSpec())
params = jax.device_put({"w": jnp.arange(20000.0)}, NamedSharding(mesh, PartitionSpec("d")))

def start(**options):
    tx = adamd.optax.adam(0.5, session=name, **options)
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state
    return tx, jax.jit(step), jax.device_put(tx.init(params), whole)
"""
LOOP = """
for _ in range(STEPS):
    params, state = step(params, state)
"""
SCRIPTS = {
    "ends without waiting": ("tx, step, state = start(url=url)" + LOOP, 0, ""),
    "ends by an exception": ("tx, step, state = start(url=url)" + LOOP + "raise RuntimeError('a bug')", 1, "a bug"),
    "forgets everything": (
        "def main(params):\n    tx, step, state = start(url=url)" + LOOP.replace("\n", "\n    ") + "\nmain(params)",
        0,
        "",
    ),
    "leaves a client's with": (
        "with adamd.connect(url) as client:\n    tx, step, state = start(client=client)"
        + LOOP.replace("\n", "\n    ")
        + "\nassert int(state.count) == STEPS and np.allclose(params['w'][:2], [-1.5, -0.5], atol=0.01)",
        0,
        "",
    ),
}


def run(code, server, name, devices=8):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    given = [sys.executable, "-c", BEGIN + code.replace("STEPS", "3"), server.url, name]
    return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that(server, name, script, devices):
    code, status, said = SCRIPTS[script]
    told = run(code, server, name, devices)
    assert told.returncode == status, told.stderr
    assert said in told.stderr
    with adamd.connect(server.url) as client:
        assert client.session(name).step_number == 3


INTERRUPTED = """
tx, step, state = start(url=url)
params, state = step(params, state)
jax.block_until_ready(params)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
while True:
    params, state = step(params, state)
"""


@pytest.mark.parametrize("devices", [1, 8])
def test_ctrl_c(server, name, devices):
    told = run(INTERRUPTED, server, name, devices)
    assert told.returncode in (1, -signal.SIGINT), told.stderr  # on one device it may meet the callback itself
    assert "KeyboardInterrupt" in told.stderr
    with adamd.connect(server.url) as client:
        assert client.session(name).step_number >= 1


FAILING = """
tx, step, state = start(url=url)
good = params, state = step(params, state)
bad = jax.tree.map(lambda leaf: leaf + 1, params), state
params, state = step(*step(*bad))
assert np.isnan(np.asarray(params["w"])).all() and int(state.count) == -1
try:
    with tx.typed_errors():
        step(*bad)
except adamd.errors.InvalidRequest as error:
    assert "not the session's parameters" in str(error)
else:
    raise AssertionError("nothing was raised")
try:
    tx.update(params, state, params)
except adamd.errors.InvalidRequest as error:
    assert "not the session's parameters" in str(error)
params, state = tx.refresh(state, params)
with tx.typed_errors():
    params, state = step(params, jax.device_put(state, whole))
assert int(state.count) == tx.session(state).step_number == 2
"""


def test_an_error_over_several_devices_is_told_and_hangs_nobody(server, name):
    told = run(FAILING, server, name)
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("compiled code over several devices cannot raise it") == 2


SHARDED = """
def loss_of(p):
    return (p["w"] ** 2).sum()

for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        tx, theirs = adamd.optax.adam(0.1, url=url), optax.adam(0.1)
        start = {"w": jax.device_put(jnp.arange(1.0, 20001.0), NamedSharding(mesh, PartitionSpec("d")))}
        carry, local = (start, tx.init(start)), (start, theirs.init(start))
        def exact(carry, _):
            return tx.step(jax.grad(loss_of)(carry[0]), carry[1], carry[0]), None
        def added(carry, _, tx=tx):
            updates, state = tx.update(jax.grad(loss_of)(carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None
        for form in (exact, added):
            carry = jax.jit(lambda carry: jax.lax.scan(form, carry, None, length=2)[0])(carry)
            carry, _ = form(carry, None)
        for _ in range(6):
            local, _ = added(local, None, theirs)
        assert np.allclose(carry[0]["w"], local[0]["w"], atol=1e-4), kind
        assert int(carry[1].count) == 6
        if kind == AxisType.Explicit:
            assert carry[0]["w"].sharding.spec == PartitionSpec("d")
"""


def test_parameters_that_are_sharded_over_eight_devices(server, name):
    told = run(SHARDED, server, name)
    assert told.returncode == 0, told.stderr
