"""A pytree of parameters as named arrays, and the updates that lead optax from the old values to the new ones."""

from __future__ import annotations

from collections.abc import Mapping
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
    """What a pytree of parameters is, without its values; ``names`` and ``dtypes`` in the order of its leaves."""

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


def form(params: Any) -> Form:
    """Return the form of a pytree: a leaf is named by its path, as "layers/0/kernel".

    Raises:
        WrongLayout: no leaves at all, or two of one name.
        WrongDtype: a leaf is no floating-point array that a session takes.

    """
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    if not paths:
        raise WrongLayout("the parameters have no arrays at all; give a pytree with one at least")
    found: dict[str, Any] = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or BARE
        if name in found:
            raise WrongLayout(f"two parameters are named {name!r}; a session knows its tensors by name: rename one")
        found[name] = jnp.asarray(leaf)
        if found[name].dtype.name not in ITEMSIZE:
            raise WrongDtype(
                f"parameter {name!r} is {found[name].dtype}; {', '.join(ITEMSIZE)} can be trained. Leave the others "
                "out, as optax.masked does"
            )
    return Form(
        tree,
        tuple(found),
        tuple(leaf.shape for leaf in found.values()),
        tuple(np.dtype(leaf.dtype) for leaf in found.values()),
    )


def leaves_of(tree: Any, like: Form, what: str) -> list[Any]:
    """Return the leaves of a tree that has to be like another.

    Raises:
        InvalidRequest: it is of another structure.

    """
    leaves, structure = jax.tree.flatten(tree)
    if structure != like.tree:
        raise InvalidRequest(f"the {what} are a pytree of another structure ({structure}) than the parameters")
    return [jnp.asarray(leaf) for leaf in leaves]


def update_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of updates: the parameter's, or float32 where it is narrower, so that they round once."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


@dataclass(frozen=True, slots=True)
class Strays:
    """Where adding an update does not lead to the value that was meant: flat indices, and what it leads to."""

    index: Array
    value: Array


def updates(meant: Array, held: Array) -> tuple[Array, Strays]:
    """Return what `optax.apply_updates` has to add to ``held``, and where it misses ``meant`` by a rounding.

    meant - held is exact where meant lies between held/2 and 2·held (Sterbenz), and where held is 0; else it is
    rounded once, and the sum once more: the miss is at most half an ulp of each. With 24 bits for the 8 or 11 of a
    narrow parameter that does not show, unless it shrinks more than 4096-fold.
    """
    wide = update_dtype(held.dtype)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        delta = np.asarray(np.subtract(meant, held, dtype=wide))
        landed = np.asarray(np.add(held, delta, dtype=wide)).astype(held.dtype)
    index = np.flatnonzero(landed != meant)
    return delta, Strays(index, landed.reshape(-1)[index])


def agree(held: Array, meant: Array, strays: Strays | None) -> bool:
    """Say whether parameters are what a step gave, exactly or by adding its updates; XLA may flush subnormals."""
    index = np.flatnonzero(np.asarray(held != meant))
    if not index.size:
        return True
    expected = meant.reshape(-1)[index]
    if strays is not None and strays.index.size:
        place = np.minimum(np.searchsorted(strays.index, index), strays.index.size - 1)
        expected = np.where(strays.index[place] == index, strays.value[place], expected)
    apart = np.abs(held.reshape(-1)[index].astype(np.float64) - expected.astype(np.float64))
    return bool((apart <= float(jnp.finfo(held.dtype).tiny)).all())


def narrowed(masters: Mapping[str, Array], like: Form) -> dict[str, Array]:
    """Return the session's parameters in the leaves' dtypes, rounded to nearest even where those are narrower."""
    with np.errstate(over="ignore"):
        pairs = zip(like.names, like.dtypes, strict=True)
        return {name: masters[name].astype(dtype, copy=False) for name, dtype in pairs}
