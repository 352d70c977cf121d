"""A small network on scikit-learn's digits, in plain JAX, and the plain optax loop."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits


@cache
def images():
    data = load_digits()
    return data.images.reshape(len(data.images), -1) / 16, data.target


def batches(steps, dtype="float32", size=32, seed=1):
    """Return images and labels, stacked by steps, as lax.scan wants them."""
    x, y = images()
    picked = np.random.default_rng(seed).integers(0, 1500, (steps, size))
    return jnp.asarray(x[picked], dtype), jnp.asarray(y[picked])


def parameters(dtype="float32", seed=0):
    """Two layers; a dict, a list and a tuple, so that names have every kind of path."""
    draw = np.random.default_rng(seed)
    first, second = draw.normal(0, 0.2, (64, 32)), draw.normal(0, 0.2, (32, 10))
    made = {"first": {"kernel": first, "bias": np.zeros(32)}, "rest": [(second, np.zeros(10))]}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), made)


def loss_of(params, batch):
    x, y = batch
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    ((kernel, bias),) = params["rest"]
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel + bias, y).mean()


def train_step(tx):
    """Return the step that an optax user writes: (params, state), batch -> (params, state), loss."""

    def step(carry, batch):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return step


def train(tx, params, given, state=None):
    """The plain loop under jit; returns (params, state)."""
    step = jax.jit(train_step(tx))
    carry = params, tx.init(params) if state is None else state
    for batch in zip(*given, strict=True):
        carry, _ = step(carry, batch)
    return carry


def scanned(tx, params, given, state):
    return jax.jit(lambda carry, xs: jax.lax.scan(train_step(tx), carry, xs))((params, state), given)[0]


def distance(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return float(np.sqrt(sum(np.square(np.float64(a) - np.float64(b)).sum() for a, b in pairs)))


def same(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def at_the_server(session, params):
    """The session's own parameters, in the tree and the dtypes of params."""
    found = session.parameters()
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    leaves = [jnp.asarray(found[name]).astype(leaf.dtype) for name, (_, leaf) in zip(names, paths, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def bound(dtype):
    return 1e-9 if dtype == "float64" else 2e-3
