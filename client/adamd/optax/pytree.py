"""Turns a pytree of parameters into named arrays, and new values into optax's updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamd.errors import InvalidRequest, WrongDtype, WrongLayout
from adamd.wire.dtypes import ITEMSIZE, Array

BARE = "parameters"  # the name of a pytree that is one array


@dataclass(frozen=True, slots=True)
class Form:
    """A pytree of parameters without its values; ``names``, ``shapes`` and ``dtypes`` in the order of its leaves."""

    tree: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]

    def named(self, leaves: Any) -> dict[str, Array]:
        """Return leaves as NumPy arrays by their names."""
        return {name: np.asarray(leaf) for name, leaf in zip(self.names, leaves, strict=True)}

    def built(self, leaves: Any) -> Any:
        """Return leaves in the tree."""
        return jax.tree.unflatten(self.tree, leaves)

    def spelled(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes by their names."""
        return dict(zip(self.names, self.shapes, strict=True))


def form(params: Any) -> Form:
    """Return the form of a pytree, which may have no leaves. A leaf is named by its path, as "layers/0/kernel".

    Raises:
        WrongLayout: two leaves have one name.
        WrongDtype: a leaf is not a floating-point array that a session takes.

    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    arrays: dict[str, Any] = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or BARE
        if name in arrays:
            raise WrongLayout(f"two parameters are named {name!r}; a session knows its tensors by name: rename one")
        arrays[name] = _array(name, leaf)
    return Form(
        tree,
        tuple(arrays),
        tuple(leaf.shape for leaf in arrays.values()),
        tuple(np.dtype(leaf.dtype) for leaf in arrays.values()),
    )


def _array(name: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise InvalidRequest(
            f"parameter {name!r} is a jax.ShapeDtypeStruct, which has no values; give arrays. For the structure of the "
            "state alone: jax.eval_shape(tx.init, params), which makes no session"
        )
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError):
        raise WrongDtype(f"parameter {name!r} is {type(leaf).__name__}, no array. {_LEAVE_OUT}") from None
    if array.dtype.name not in ITEMSIZE:
        way = _LEAVE_OUT
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            way = "optax.contrib.split_real_and_imaginary(tx) trains both parts of a complex one"
        raise WrongDtype(f"parameter {name!r} is {array.dtype}; {', '.join(ITEMSIZE)} can be trained. {way}")
    return array


_LEAVE_OUT = "Leave what is not trained out of the parameters, or behind optax.masked(tx, mask)"


def leaves_of(tree: Any, like: Form) -> list[Any]:
    """Return the gradients' leaves; None for a parameter without a gradient.

    Raises:
        InvalidRequest: the gradients have another structure or other shapes than the parameters.

    """
    try:
        leaves = like.tree.flatten_up_to(tree)
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"the gradients are a pytree of another structure ({jax.tree.structure(tree)}) than the parameters "
            f"({like.tree})"
        ) from None
    gradients = []
    for name, shape, leaf in zip(like.names, like.shapes, leaves, strict=True):
        parts = jax.tree.leaves(leaf)
        if leaf is not None and not (len(parts) == 1 and parts[0] is leaf):
            raise InvalidRequest(f"the gradient of {name!r} is {type(leaf).__name__}; wanted an array of shape {shape}")
        array = None if leaf is None else jnp.asarray(leaf)
        if array is not None and array.shape != shape:
            raise InvalidRequest(f"the gradient of {name!r} has shape {array.shape}, the parameter {shape}")
        gradients.append(array)
    return gradients


def update_dtype(gradient: Any, parameter: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of an update, as in optax: the gradient's and the parameter's, promoted."""
    dtype: np.dtype[Any] = jnp.promote_types(gradient, parameter)
    return dtype


@dataclass(frozen=True, slots=True)
class Strays:
    """Elements where adding the update misses the intended value: their flat indices, and the values reached."""

    index: Array
    value: Array


def updates(meant: Array, old: Array, dtype: np.dtype[Any] | None = None) -> tuple[Array, Strays]:
    """Return the updates that `optax.apply_updates` adds to ``old``, and where the sum misses ``meant`` by a rounding.

    meant - old is exact where meant lies between old/2 and 2·old (Sterbenz's lemma), and where old is 0. Elsewhere it
    is rounded once, and the sum once more: the miss is at most half an ulp of each. ``dtype`` is the update's; the
    parameter's by default.
    """
    computed = old.dtype if dtype is None else dtype
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        delta = np.asarray(np.subtract(meant, old, dtype=_exact(computed))).astype(computed, copy=False)
        total = np.asarray(np.add(old, delta, dtype=_exact(computed))).astype(computed)
        landed = total.astype(old.dtype, copy=False)
    index = np.flatnonzero(landed != meant)
    return delta, Strays(index, landed.reshape(-1)[index])


def _exact(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to compute in: float32 for narrow dtypes, as in XLA."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def agree(held: Array, meant: Array, strays: Strays | None, slack: float | None = None) -> bool:
    """Say whether parameters are a step's result, exactly or by adding its updates; XLA may flush subnormals.

    ``slack`` is the largest possible update where the updates are unknown: a rounding of that size is allowed.
    """
    index = np.flatnonzero(np.asarray(held != meant))
    if not index.size:
        return True
    expected = meant.reshape(-1)[index]
    if strays is not None and strays.index.size:
        place = np.minimum(np.searchsorted(strays.index, index), strays.index.size - 1)
        expected = np.where(strays.index[place] == index, strays.value[place], expected)
    actual, intended = held.reshape(-1)[index].astype(np.float64), expected.astype(np.float64)
    most = np.full(index.size, float(jnp.finfo(held.dtype).tiny))
    if slack is not None:
        sizes = np.maximum(np.maximum(np.abs(actual), np.abs(intended)), slack)
        most += float(jnp.finfo(held.dtype).eps) * sizes
    return bool((np.abs(actual - intended) <= most).all())


def narrowed(masters: Mapping[str, Array], names: Sequence[str], like: Form) -> dict[str, Array]:
    """Return the session's parameters in the leaves' dtypes, rounded to nearest even where those are narrower."""
    with np.errstate(over="ignore"):
        pairs = zip(names, like.dtypes, strict=True)
        return {name: masters[name].astype(dtype, copy=False) for name, dtype in pairs}
