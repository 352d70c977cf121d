"""Converts a local optax optimizer's state to a session's export, and back.

optax keeps a tuple of states, one for each transformation of its chain. The state with the moments has a field for each
state array of the session, a pytree like the parameters, and usually a count.
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

MAX_COUNT = 2**31 - 1  # optax counts in int32


@dataclass(frozen=True, slots=True)
class OptaxLayout:
    """Where optax keeps a session's arrays: the state's class, its field for each array, and whether it has a count."""

    state: str
    fields: Mapping[str, str]
    counts: bool = True


_ADAM = OptaxLayout("ScaleByAdamState", {"exp_avg": "mu", "exp_avg_sq": "nu"})
# Only optimizers whose arrays mean the same in both. The others differ: optax's amsgrad keeps the largest corrected
# second moment, its nadam no product of momenta, and its rmsprop a momentum of updates that include the learning rate.
LAYOUTS: Mapping[str, OptaxLayout] = {
    "adam": _ADAM,
    "adamw": _ADAM,
    "radam": _ADAM,
    "yogi": _ADAM,
    "adamax": OptaxLayout("ScaleByAdamState", {"exp_avg": "mu", "exp_inf": "nu"}),
    "lion": OptaxLayout("ScaleByLionState", {"exp_avg": "mu"}),
    "adagrad": OptaxLayout("ScaleByRssState", {"sum": "sum_of_squares"}, counts=False),
    "sgd": OptaxLayout("TraceState", {"momentum_buffer": "trace"}, counts=False),
}
# States that only count steps: their count is set too.
CLOCKS = ("ScaleByScheduleState",)


def moved_in(state: Any, params: Any, settings: Mapping[str, Any], step: int) -> memoryview:
    """Return the export of a session with this optimizer's state.

    Raises:
        InvalidState, WrongDtype, WrongLayout: no session can have this state.

    """
    layout = _layout_of(settings)
    inner = _find_state(state, layout, str(settings["name"]))
    like = form(params)
    if not like.names:
        raise WrongLayout("the parameters have no arrays at all; give a pytree with one at least")
    arrays = {array: _leaves(getattr(inner, field), like, layout, field) for array, field in layout.fields.items()}
    count = _count(inner.count, layout) if layout.counts else int(step > 0 or any(map(np.any, _all_leaves(arrays))))
    is_double = any(dtype == np.float64 for dtype in like.dtypes)
    body, views = Draft(
        dtype="float64" if is_double else "float32",
        shapes=dict(zip(like.names, like.shapes, strict=True)),
        settings={key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
        names=tuple(layout.fields),
        counts=dict.fromkeys(like.names, count),
        step=step,
    ).laid_out()
    for array, leaves in {PARAMETERS: like.named(jax.tree.leaves(params)), **arrays}.items():
        for name, leaf in leaves.items():
            np.copyto(views[array][name], leaf, casting="same_kind")
    return body


def _all_leaves(arrays: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Return the arrays of all trees."""
    return [leaf for leaves in arrays.values() for leaf in leaves.values()]


def moved_out(export: bytes, params: Any, state: Any) -> tuple[Any, Any]:
    """Return an export's parameters and state, in these trees and dtypes.

    Raises:
        InvalidState, WrongLayout: the export, the parameters and the state do not fit together.

    """
    exported = export_format.read(export)
    layout = _layout_of(exported.settings)
    like = form(params)
    _check_same(exported, like)
    old = _find_state(state, layout, str(exported.settings["name"]))
    step = max(exported.counts.values())
    if layout.counts and min(exported.counts.values()) != step:
        raise InvalidState(
            "the session's tensors were updated a different number of times (some were left out of steps); optax has "
            "one count for all"
        )
    if step > MAX_COUNT:
        raise InvalidState(f"the session is at step {step}; optax counts to {MAX_COUNT}")
    moments = {}
    for array, field in layout.fields.items():
        shaped = _leaves(getattr(old, field), like, layout, field)
        leaves = [jnp.asarray(exported.arrays[array][name], shaped[name].dtype) for name in like.names]
        moments[field] = jax.tree.unflatten(jax.tree.structure(getattr(old, field)), leaves)
    count = jnp.asarray(step, jnp.int32)
    new = old._replace(**moments, **({"count": count} if layout.counts else {}))

    def swapped(node: Any) -> Any:
        if node is old:
            return new
        return node._replace(count=jnp.asarray(exported.step, jnp.int32)) if type(node).__name__ in CLOCKS else node

    moved = jax.tree.map(swapped, state, is_leaf=lambda node: node is old or type(node).__name__ in CLOCKS)
    values = [jnp.asarray(exported.arrays[PARAMETERS][n], d) for n, d in zip(like.names, like.dtypes, strict=True)]
    return like.built(values), moved


def _layout_of(settings: Mapping[str, Any]) -> OptaxLayout:
    name = str(settings.get("name"))
    plain = not (settings.get("amsgrad") or (name == "sgd" and not settings.get("momentum")))
    if name not in LAYOUTS or not plain:
        what = f"{name} with amsgrad" if settings.get("amsgrad") else name
        raise InvalidState(
            f"the state of {what} is not kept alike in optax, or there is none; it can travel for {', '.join(LAYOUTS)} "
            "(sgd: with momentum; amsgrad: not)"
        )
    return LAYOUTS[name]


def _find_state(state: Any, layout: OptaxLayout, name: str) -> Any:
    """Return the one state of the class that is somewhere in an optimizer's."""
    state_class = getattr(optax, layout.state)
    nodes = jax.tree.leaves(state, is_leaf=_is_named_tuple)
    matches = [node for node in _inside(nodes) if isinstance(node, state_class)]
    if len(matches) != 1:
        have = sorted({type(node).__name__ for node in _inside(nodes)} - {"EmptyState"})
        raise InvalidState(
            f"the state has {len(matches)} {layout.state}, wanted one for {name}; it has {', '.join(have) or 'nothing'}"
        )
    return matches[0]


def _inside(nodes: Any) -> list[Any]:
    """Return named tuples and those within them, as of `optax.masked`."""
    inside = []
    for node in nodes:
        if _is_named_tuple(node):
            inside.append(node)
            for part in node:
                inside += _inside(jax.tree.leaves(part, is_leaf=_is_named_tuple))
    return inside


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _leaves(tree: Any, like: Form, layout: OptaxLayout, field: str) -> dict[str, Any]:
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) != len(like.names):  # the trees themselves may be of other kinds, as flax.nnx has them
        raise InvalidState(f"{layout.state}.{field} is a pytree of another structure ({structure}) than the parameters")
    by_name = like.named(leaves)
    for name, shape in zip(like.names, like.shapes, strict=True):
        leaf = by_name[name]
        if leaf.shape != shape:
            raise InvalidState(f"{layout.state}.{field} of {name!r} has shape {leaf.shape}, the parameter {shape}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InvalidState(f"{layout.state}.{field} of {name!r} is {leaf.dtype}; wanted floats")
    return by_name


def _count(value: Any, layout: OptaxLayout) -> int:
    count = np.asarray(value)
    if count.shape != () or not np.issubdtype(count.dtype, np.integer) or not 0 <= count <= MAX_COUNT:
        raise InvalidState(f"{layout.state}.count is {str(value)[:40]}; wanted one whole number, 0 to {MAX_COUNT}")
    return int(count)


def _check_same(exported: ExportedState, like: Form) -> None:
    session_shapes = {name: values.shape for name, values in exported.arrays[PARAMETERS].items()}
    shapes = dict(zip(like.names, like.shapes, strict=True))
    for name in sorted(session_shapes.keys() | shapes.keys()):
        if session_shapes.get(name) != shapes.get(name):
            raise WrongLayout(
                f"parameter {name!r} has shape {shapes.get(name)} here, {session_shapes.get(name)} in the session "
                "(None: it is not there); give the parameters under the session's names"
            )
