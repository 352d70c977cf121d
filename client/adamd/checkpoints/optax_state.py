"""A local optax optimizer's state as the export of a session, and back; see `checkpoints`.

optax keeps a tuple of states, one for each transformation of its chain. The one that has the moments has a field for
each state array of the session, a pytree like the parameters, and mostly a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import optax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("this needs JAX and optax: pip install 'adamd[jax]'", name=error.name) from error
import numpy as np

from adamd.errors import InvalidState, WrongLayout
from adamd.optax.pytree import Form, form
from adamd.wire import export_format
from adamd.wire.export_format import PARAMETERS, Draft, ExportedState

MOST = 2**31 - 1  # optax counts in int32


@dataclass(frozen=True, slots=True)
class Kept:
    """Where optax keeps a session's arrays: the state's class, its fields by the array's name, whether it counts."""

    state: str
    fields: Mapping[str, str]
    counts: bool = True


_ADAM = Kept("ScaleByAdamState", {"exp_avg": "mu", "exp_avg_sq": "nu"})
# Only where the arrays mean the same in both. Others keep them otherwise: optax's amsgrad the largest of the corrected
# second moments, its nadam no product of momenta, its rmsprop a momentum of whole updates, learning rate and all.
KEPT: Mapping[str, Kept] = {
    "adam": _ADAM,
    "adamw": _ADAM,
    "radam": _ADAM,
    "yogi": _ADAM,
    "adamax": Kept("ScaleByAdamState", {"exp_avg": "mu", "exp_inf": "nu"}),
    "lion": Kept("ScaleByLionState", {"exp_avg": "mu"}),
    "adagrad": Kept("ScaleByRssState", {"sum": "sum_of_squares"}, counts=False),
    "sgd": Kept("TraceState", {"momentum_buffer": "trace"}, counts=False),
}
# States that count steps, and nothing else: to be moved along.
CLOCKS = ("ScaleByScheduleState",)


def moved_in(state: Any, params: Any, settings: Mapping[str, Any], step: int) -> memoryview:
    """Return the export of the session that this optimizer is.

    Raises:
        InvalidState, WrongDtype, WrongLayout: it is none.

    """
    kept = _kept(settings)
    found = _found(state, kept, str(settings["name"]))
    like = form(params)
    if not like.names:
        raise WrongLayout("the parameters have no arrays at all; give a pytree with one at least")
    held = {array: _leaves(getattr(found, field), like, kept, field) for array, field in kept.fields.items()}
    count = _count(found.count, kept) if kept.counts else int(step > 0 or any(map(np.any, held_leaves(held))))
    wide = any(dtype == np.float64 for dtype in like.dtypes)
    body, views = Draft(
        dtype="float64" if wide else "float32",
        shapes=dict(zip(like.names, like.shapes, strict=True)),
        settings={key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
        names=tuple(kept.fields),
        counts=dict.fromkeys(like.names, count),
        step=step,
    ).laid_out()
    for array, leaves in {PARAMETERS: like.named(jax.tree.leaves(params)), **held}.items():
        for name, leaf in leaves.items():
            np.copyto(views[array][name], leaf, casting="same_kind")
    return body


def held_leaves(held: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Return the arrays of all trees."""
    return [leaf for leaves in held.values() for leaf in leaves.values()]


def moved_out(export: bytes, params: Any, state: Any) -> tuple[Any, Any]:
    """Return an export's parameters and state, in these trees and dtypes.

    Raises:
        InvalidState, WrongLayout: they are not of each other.

    """
    found = export_format.read(export)
    kept = _kept(found.settings)
    like = form(params)
    _check_same(found, like)
    old = _found(state, kept, str(found.settings["name"]))
    step = max(found.counts.values())
    if kept.counts and min(found.counts.values()) != step:
        raise InvalidState(
            "the session's tensors were updated a different number of times (some were left out of steps); optax has "
            "one count for all"
        )
    if step > MOST:
        raise InvalidState(f"the session is at step {step}; optax counts to {MOST}")
    fields = {}
    for array, field in kept.fields.items():
        shaped = _leaves(getattr(old, field), like, kept, field)
        leaves = [jnp.asarray(found.arrays[array][name], shaped[name].dtype) for name in like.names]
        fields[field] = jax.tree.unflatten(jax.tree.structure(getattr(old, field)), leaves)
    count = jnp.asarray(step, jnp.int32)
    new = old._replace(**fields, **({"count": count} if kept.counts else {}))

    def swapped(node: Any) -> Any:
        if node is old:
            return new
        return node._replace(count=jnp.asarray(found.step, jnp.int32)) if type(node).__name__ in CLOCKS else node

    moved = jax.tree.map(swapped, state, is_leaf=lambda node: node is old or type(node).__name__ in CLOCKS)
    values = [jnp.asarray(found.arrays[PARAMETERS][n], d) for n, d in zip(like.names, like.dtypes, strict=True)]
    return like.built(values), moved


def _kept(settings: Mapping[str, Any]) -> Kept:
    name = str(settings.get("name"))
    plain = not (settings.get("amsgrad") or (name == "sgd" and not settings.get("momentum")))
    if name not in KEPT or not plain:
        what = f"{name} with amsgrad" if settings.get("amsgrad") else name
        raise InvalidState(
            f"the state of {what} is not kept alike in optax, or there is none; it can travel for {', '.join(KEPT)} "
            "(sgd: with momentum; amsgrad: not)"
        )
    return KEPT[name]


def _found(state: Any, kept: Kept, name: str) -> Any:
    """Return the one state of the class that is somewhere in an optimizer's."""
    wanted = getattr(optax, kept.state)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, tuple) and hasattr(node, "_fields"))
    found = [node for node in _inside(nodes) if isinstance(node, wanted)]
    if len(found) != 1:
        have = sorted({type(node).__name__ for node in _inside(nodes)} - {"EmptyState"})
        raise InvalidState(
            f"the state has {len(found)} {kept.state}, wanted one for {name}; it has {', '.join(have) or 'nothing'}"
        )
    return found[0]


def _inside(nodes: Any) -> list[Any]:
    """Return named tuples and those within them, as of `optax.masked`."""
    found = []
    for node in nodes:
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            found.append(node)
            for part in node:
                inner = jax.tree.leaves(part, is_leaf=lambda one: isinstance(one, tuple) and hasattr(one, "_fields"))
                found += _inside(inner)
    return found


def _leaves(tree: Any, like: Form, kept: Kept, field: str) -> dict[str, Any]:
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) != len(like.names):  # the trees themselves may be of other kinds, as flax.nnx has them
        raise InvalidState(f"{kept.state}.{field} is a pytree of another structure ({structure}) than the parameters")
    found = like.named(leaves)
    for name, shape in zip(like.names, like.shapes, strict=True):
        leaf = found[name]
        if leaf.shape != shape:
            raise InvalidState(f"{kept.state}.{field} of {name!r} has shape {leaf.shape}, the parameter {shape}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InvalidState(f"{kept.state}.{field} of {name!r} is {leaf.dtype}; wanted floats")
    return found


def _count(given: Any, kept: Kept) -> int:
    count = np.asarray(given)
    if count.shape != () or not np.issubdtype(count.dtype, np.integer) or not 0 <= count <= MOST:
        raise InvalidState(f"{kept.state}.count is {str(given)[:40]}; wanted one whole number, 0 to {MOST}")
    return int(count)


def _check_same(found: ExportedState, like: Form) -> None:
    theirs = {name: values.shape for name, values in found.arrays[PARAMETERS].items()}
    mine = dict(zip(like.names, like.shapes, strict=True))
    for name in sorted(theirs.keys() | mine.keys()):
        if theirs.get(name) != mine.get(name):
            raise WrongLayout(
                f"parameter {name!r} has shape {mine.get(name)} here, {theirs.get(name)} in the session (None: it is "
                "not there); give the parameters under the session's names"
            )
