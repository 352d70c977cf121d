"""Calls the host from code that JAX has traced, by an ordered callback."""

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


def call(desk: Desk, act: Callable[..., Any], results: tuple[jax.ShapeDtypeStruct, ...], *given: Any) -> Any:
    """Call the host: now where nothing is traced, so that errors keep their type; else from compiled code, in order."""
    if not traced(given):
        return [jnp.asarray(result) for result in desk.run(lambda: act(*given))]
    if any(kind == jax.sharding.AxisType.Manual for kind in jax.sharding.get_abstract_mesh().axis_types):
        raise InvalidRequest(
            "adamd.optax within pmap or shard_map would step once for every shard; average the gradients, and call it "
            "outside, under jit"
        )
    leaves, tree = jax.tree.flatten(given)
    *guarded, devices = _GUARD.bind(*map(jnp.asarray, leaves))
    shapes = [leaf.shape for leaf in guarded]

    def back(devices: Any, operands: Any) -> Any:
        whole = [_joined(pieces, shape) for pieces, shape in zip(operands, shapes, strict=True)]
        arguments = jax.tree.unflatten(tree, whole)
        return desk.run_compiled(lambda: act(*arguments), results, int(devices))

    return io_callback(back, list(results), devices, [_cut(leaf) for leaf in guarded], ordered=True)


PIECE = 16384  # elements


def _cut(leaf: Any) -> list[Any]:
    """Return an operand in pieces where JAX cannot pass a large one.

    Several CPU devices share threads, which all wait for the callback. JAX copies an operand of more than 100 KiB on
    such a thread before it calls back, so the two would wait for each other.
    """
    if leaf.size <= PIECE or jax.default_backend() != "cpu" or jax.local_device_count() == 1:
        return [leaf]
    flat = (jax.sharding.reshard(leaf, jax.sharding.PartitionSpec()) if _explicit(leaf) else leaf).reshape(-1)
    return [flat[start : start + PIECE] for start in range(0, leaf.size, PIECE)]


def _joined(pieces: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if len(pieces) == 1:
        return np.asarray(pieces[0])
    return np.concatenate([np.asarray(piece) for piece in pieces]).reshape(shape)


def traced(given: Any) -> bool:
    """Say whether this is being traced; it may be without a traced argument, as ``init`` of constants under jit."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (jnp.zeros(()), *jax.tree.leaves(given)))


def placed(found: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Return arrays where those like them are; what a host gives is on the first device."""
    return [_placed(one, other) for one, other in zip(found, like, strict=True)]


def _placed(found: Any, like: Any) -> Any:
    if isinstance(like, jax.core.Tracer):  # the compiler decides, unless the type does
        return _typed(found, like) if _explicit(like) else found
    return jax.device_put(found, like.sharding) if getattr(like, "committed", False) else found


def typed(found: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Return updates of the types that the parameters have, where a type tells the sharding."""
    return [_typed(one, other) if _explicit(other) else one for one, other in zip(found, like, strict=True)]


def _typed(found: Any, like: Any) -> Any:
    return jax.sharding.reshard(found, jax.typeof(like).sharding)


def _explicit(array: Any) -> bool:
    if not isinstance(array, jax.core.Tracer):
        return False
    mesh = getattr(jax.typeof(array).sharding, "mesh", None)
    return mesh is not None and any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


# Passes its operands on, and tells how many devices run the compiled code. It cannot be vmapped or differentiated.
_GUARD = Primitive("adamd_update")
_GUARD.multiple_results = True


def _now(*operands: Any) -> list[Any]:
    return [*operands, jnp.int32(1)]


def _types(*operands: Any) -> list[Any]:
    return [*operands, jax.core.ShapedArray((), jnp.int32)]


def _lowered(context: Any, *operands: Any) -> list[Any]:
    around = context.module_context.axis_context
    devices = getattr(around, "num_devices", None) or jax.local_device_count()
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
