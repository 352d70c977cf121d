"""Calls the host from traced JAX code, by an ordered callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from adamd.errors import InvalidRequest
from adamd.optax.binding import Desk


def call(desk: Desk, act: Callable[..., Any], results: tuple[jax.ShapeDtypeStruct, ...], *arguments: Any) -> Any:
    """Call the host: at once where nothing is traced, so that errors keep their type; else from compiled code."""
    if not traced(arguments):
        return [jnp.asarray(result) for result in desk.run(lambda: act(*arguments))]
    if any(kind == jax.sharding.AxisType.Manual for kind in jax.sharding.get_abstract_mesh().axis_types):
        raise InvalidRequest(
            "adamd.optax within pmap or shard_map would step once for every shard; average the gradients, and call it "
            "outside, under jit"
        )
    leaves, tree = jax.tree.flatten(arguments)
    *guarded, devices = _GUARD.bind(*map(jnp.asarray, leaves))
    shapes = [leaf.shape for leaf in guarded]

    def back(devices: Any, operands: Any) -> Any:
        arrays = [_joined(pieces, shape) for pieces, shape in zip(operands, shapes, strict=True)]
        values = jax.tree.unflatten(tree, arrays)
        return desk.run_compiled(lambda: act(*values), results, int(devices))

    return io_callback(back, list(results), devices, [_cut(leaf) for leaf in guarded], ordered=True)


PIECE_ELEMENTS = 16384


def _cut(leaf: Any) -> list[Any]:
    """Return an operand in pieces where JAX would deadlock on a large one.

    Several CPU devices share threads, which all wait for the callback. JAX copies an operand of more than 100 KiB on
    such a thread before it calls back, so the copy and the callback would wait for each other.
    """
    if leaf.size <= PIECE_ELEMENTS or jax.default_backend() != "cpu" or jax.local_device_count() == 1:
        return [leaf]
    flat = (jax.sharding.reshard(leaf, jax.sharding.PartitionSpec()) if _explicit(leaf) else leaf).reshape(-1)
    return [flat[start : start + PIECE_ELEMENTS] for start in range(0, leaf.size, PIECE_ELEMENTS)]


def _joined(pieces: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if len(pieces) == 1:
        return np.asarray(pieces[0])
    return np.concatenate([np.asarray(piece) for piece in pieces]).reshape(shape)


def traced(values: Any) -> bool:
    """Say whether JAX is tracing, with or without a traced argument (``init`` of constants under jit)."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (jnp.zeros(()), *jax.tree.leaves(values)))


def placed(arrays: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Return arrays on the devices of those like them; the host's results are on the first device."""
    return [_placed(array, model) for array, model in zip(arrays, like, strict=True)]


def _placed(array: Any, like: Any) -> Any:
    if isinstance(like, jax.core.Tracer):  # the compiler places it, unless its type does
        return _typed(array, like) if _explicit(like) else array
    return jax.device_put(array, like.sharding) if getattr(like, "committed", False) else array


def typed(arrays: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Return updates with the parameters' shardings, where those are part of the type."""
    return [_typed(array, model) if _explicit(model) else array for array, model in zip(arrays, like, strict=True)]


def _typed(array: Any, like: Any) -> Any:
    return jax.sharding.reshard(array, jax.typeof(like).sharding)


def _explicit(array: Any) -> bool:
    if not isinstance(array, jax.core.Tracer):
        return False
    mesh = getattr(jax.typeof(array).sharding, "mesh", None)
    return mesh is not None and any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


# Returns its operands and the number of devices that run the code. It cannot be vmapped or differentiated.
_GUARD = Primitive("adamd_update")
_GUARD.multiple_results = True


def _now(*operands: Any) -> list[Any]:
    return [*operands, jnp.int32(1)]


def _types(*operands: Any) -> list[Any]:
    return [*operands, jax.core.ShapedArray((), jnp.int32)]


def _lowered(context: Any, *operands: Any) -> list[Any]:
    axes = context.module_context.axis_context
    devices = getattr(axes, "num_devices", None) or jax.local_device_count()
    return [*operands, mlir.ir_constant(np.asarray(devices, np.int32))]


def _vmapped(operands: Any, axes: Any) -> Any:
    raise InvalidRequest(
        "adamd.optax under vmap would step once for every slice; vmap the gradients, and call it outside, or make "
        "one optimizer for each model"
    )


def _differentiated(operands: Any, tangents: Any) -> Any:
    raise InvalidRequest(
        "adamd.optax cannot be differentiated through: the update is computed at the server. Where it need not be, "
        "give it jax.lax.stop_gradient of gradients and parameters"
    )


_GUARD.def_impl(_now)
_GUARD.def_abstract_eval(_types)
mlir.register_lowering(_GUARD, _lowered)
batching.primitive_batchers[_GUARD] = _vmapped
ad.primitive_jvps[_GUARD] = _differentiated
