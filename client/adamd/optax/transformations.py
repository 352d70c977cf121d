"""Defines `adamd.optax.adam` and `adamw`: optax's signatures and meaning, over one session for each state."""

from __future__ import annotations

import math
import numbers
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

try:
    import jax
    import jax.numpy as jnp
    import optax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("adamd.optax needs JAX and optax: pip install 'adamd[jax]'", name=error.name) from error
import numpy as np

from adamd.client import Client, Durability, connect
from adamd.errors import InvalidRequest
from adamd.optax.binding import HANDLE_BYTES, Desk, OptaxStep
from adamd.optax.callback import call, placed, typed
from adamd.optax.pytree import Form, form, leaves_of, update_dtype
from adamd.sansio.options import Around, split_options
from adamd.sansio.tracking import settings_document
from adamd.session import OnBadGradient, Session

__all__ = ["AdamState", "Around", "Transformation", "adam", "adamw"]

Schedule = Callable[[Any], Any]


class AdamState(NamedTuple):
    """The optimizer's state: ``count`` is the session's step, int32; ``session`` its id, 64 bytes."""

    count: Any
    session: Any


class Transformation(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax asks isinstance of it
    """An `optax.GradientTransformationExtraArgs`, with what a session adds.

    ``init(params)`` makes the session, or opens the one of the name. ``update(grads, state, params, value=None)`` takes
    one step and returns (updates, state); ``value`` is recorded as its loss. Both raise what `adamd.Client.open` and
    `adamd.Session.step` raise.
    """

    _desk: Desk
    _recipe: _Recipe
    _close: Callable[[], Any]

    def step(self, grads: Any, state: AdamState, params: Any, *, value: Any = None) -> tuple[Any, AdamState]:
        """Take one step and return (params, state): the session's parameters themselves, the same bits.

        As `update` with `optax.apply_updates` behind it.
        """
        return _step(self, grads, state, params, value, exact=True)

    def refresh(self, state: AdamState, params: Any) -> tuple[Any, AdamState]:
        """Return (params, state) from where the session is.

        For a session that ``init`` has resumed by its name, after `HistoryLost`, or when another client has stepped.
        ``params`` give the structure, shapes and dtypes.
        """
        like = form(params)
        if not like.names:
            return params, state

        def act(key: Any) -> list[Any]:
            link = self._desk.link(key)
            leaves = link.read(like)
            return [np.int32(link.session.step_number), *leaves]

        count, *leaves = call(self._desk, act, (_COUNT, *_shapes(like, like.dtypes)), _state(state).session)
        return like.built(placed(leaves, jax.tree.leaves(params))), AdamState(count, state.session)

    def session(self, state: AdamState) -> Session:
        """Return the session of a state: its settings, its export, its document. Not under ``jit``."""
        session: Session = self._desk.run(lambda: self._desk.link(_state(state).session)).session
        return session

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Raise what failed at the server as adamd's own error (`BadGradient`, …), from compiled code too.

        It waits for the steps within it.
        """
        desk = self._desk
        desk.failed, desk.poisoned = None, False
        try:
            yield
            jax.effects_barrier()
        except jax.errors.JaxRuntimeError as error:
            if desk.failed is None:
                raise
            raise desk.failed from error
        if desk.poisoned and desk.failed is not None:
            raise desk.failed

    def close(self) -> None:
        """Close the connections after the steps under way. Sessions live on; a client from the caller stays open."""
        self._close()


def adam(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    url: str | None = None,
    client: Client | None = None,
    session: str | None = None,
    durability: Durability = "committed",
    labels: Mapping[str, str] | None = None,
    on_bad_gradient: OnBadGradient = "raise",
    timeout: Any = None,
    **around: Unpack[Around],
) -> Transformation:
    """Adam at a server, with the equation and the defaults of `optax.adam` (eps outside the square root).

    Nothing is sent before ``init``. The settings are those given here, also for a session that is resumed: what differs
    from its own travels with the next step.

    Args:
        learning_rate: a number, or a schedule: a function of the count of steps, traced like the rest. In
            `optax.inject_hyperparams` it and the next three are what the state's ``hyperparams`` say.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: added outside the square root.
        url: the server's; by default ``$ADAMD_URL``, else this machine's port 8000.
        client: one of your own, instead of a URL; `Transformation.close` leaves it open.
        session: a name (``[A-Za-z0-9._-]``, at most 128). Where there is one of this name (or id), ``init``
            resumes it: ``params, state = tx.refresh(tx.init(params), params)`` gives its parameters.
        durability: "memory" stores nothing: the session ends with the server's process.
        labels: your own words, to find it in the list; of a new session.
        on_bad_gradient: "skip" leaves the parameters alone where a gradient has NaN or infinity; "raise" raises.
        timeout: of a whole call, in seconds, or an `adamd.Timeout`.
        around: what surrounds the update at the server (``schedule``, ``clip_norm``, ``lower``, ``ema_decay``,
            ``stop``, …), and how gradients and parameters travel (``encoding``, ``error_feedback``, ``answer_dtype``):
            `adamd.optax.Around` lists them.

    Parameters are float32, float64, or float16 and bfloat16 with a float32 master at the server, also mixed; the
    session is float64 where one of them is. A leaf is named by its path, as "layers/0/kernel".

    Raises:
        InvalidRequest: a setting is no number.

    """
    hyper = {"lr": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": 0.0}
    options = {"durability": durability, "labels": labels, "on_bad_gradient": on_bad_gradient}
    return _transformation("adam", hyper, None, (url, client, timeout), session, options, around)


def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    *,
    url: str | None = None,
    client: Client | None = None,
    session: str | None = None,
    durability: Durability = "committed",
    labels: Mapping[str, str] | None = None,
    on_bad_gradient: OnBadGradient = "raise",
    timeout: Any = None,
    **around: Unpack[Around],
) -> Transformation:
    """AdamW at a server: `adam` with decoupled weight decay, with the defaults of `optax.adamw`.

    ``weight_decay`` is multiplied by the learning rate, as in optax. ``mask`` is a pytree of booleans like the
    parameters (or a prefix of it), or a function of them that returns one: where it is False, nothing decays. All other
    arguments are as in `adam`.

    Raises:
        InvalidRequest: a setting is no number.

    """
    hyper = {"lr": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    options = {"durability": durability, "labels": labels, "on_bad_gradient": on_bad_gradient}
    return _transformation("adamw", hyper, mask, (url, client, timeout), session, options, around)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The sources of a session's settings: plain values, and those that are traced or computed from the count."""

    plain: Mapping[str, Any]
    fixed: Mapping[str, float]
    moving: Mapping[str, Any]
    mask: Any

    def now(self, count: Any) -> dict[str, Any]:
        """Return the moving settings at a count, as operands."""
        values = {key: value(count) if callable(value) else value for key, value in self.moving.items()}
        for key, value in values.items():
            _check_scalar(f"what {_argument(key)} returns" if callable(self.moving[key]) else _argument(key), value)
        return values

    def settings(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Return a function that makes the settings on the host from the moving ones. It holds nothing traced."""
        plain, fixed = self.plain, self.fixed

        def at(moved: Mapping[str, Any]) -> dict[str, Any]:
            now = {key: _finite(f"{_argument(key)} at this step", value) for key, value in moved.items()}
            merged = {**fixed, **now}
            return {**plain, "betas": [merged.pop("b1"), merged.pop("b2")], **merged}

        return at


def _transformation(
    name: str,
    hyper: Mapping[str, Any],
    mask: Any,
    way: tuple[str | None, Client | None, Any],
    session: str | None,
    options: dict[str, Any],
    surroundings: Mapping[str, Any],
) -> Transformation:
    checked = {key: _number(_argument(key), value) for key, value in hyper.items()}
    # optax.inject_hyperparams passes a function's **around as one argument "around".
    nested, own = surroundings.get("around", {}), {k: v for k, v in surroundings.items() if k != "around"}
    settings, travel = split_options({**nested, **own}, name)
    url, client, timeout = way
    if client is not None and (url is not None or timeout is not None):
        raise InvalidRequest("give a client, or a url and a timeout of a new one, not both")
    fixed = {key: value for key, value in checked.items() if isinstance(value, float)}
    moving = {key: value for key, value in checked.items() if key not in fixed}
    recipe = _Recipe({"name": name, **settings_document(settings)}, fixed, moving, mask)

    def init(params: Any) -> AdamState:
        return _init(transformation, params)

    def update(updates: Any, state: AdamState, params: Any = None, **extra: Any) -> tuple[Any, AdamState]:
        return _step(transformation, updates, state, params, extra.get("value"), exact=False)

    transformation = Transformation(init, update)
    connection = connect(url, timeout=_seconds(timeout)) if client is None else client
    transformation._desk = Desk(connection, session, options | travel)
    close = connection.close if client is None else _nothing
    transformation._close = weakref.finalize(transformation._desk, close)  # the tuple itself takes no weak reference
    transformation._recipe = recipe
    return transformation


def _init(tx: Transformation, params: Any) -> AdamState:
    like = form(params)
    if not like.names:
        return AdamState(jnp.zeros((), jnp.int32), jnp.zeros((HANDLE_BYTES,), jnp.uint8))
    desk, settings = tx._desk, tx._recipe.settings()
    undecayed = [like.names[place] for place in _undecayed(tx._recipe.mask, params)]
    groups = [{"tensors": sorted(undecayed), "weight_decay": 0.0}] if undecayed else []
    desk.orders.append(like)

    def act(moved: Mapping[str, Any], leaves: list[Any]) -> list[Any]:
        return [*desk.open(like, leaves, settings(moved) | {"groups": groups})]

    results = (_COUNT, jax.ShapeDtypeStruct((HANDLE_BYTES,), np.uint8))
    moved = tx._recipe.now(jnp.zeros((), jnp.int32))
    return AdamState(*call(desk, act, results, moved, [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]))


def _step(
    tx: Transformation, grads: Any, state: AdamState, params: Any, value: Any, *, exact: bool
) -> tuple[Any, AdamState]:
    if params is None:
        raise ValueError("adamd.optax needs the parameters: tx.update(grads, state, params)")
    like = form(params)
    count, key = _state(state)
    leaves, gradients = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)], leaves_of(grads, like)
    there = [place for place, gradient in enumerate(gradients) if gradient is not None]
    if not there:
        unmoved = params if exact else grads
        return unmoved, AdamState(count if gradients else optax.safe_increment(count), key)
    desk, settings, undecayed = tx._desk, tx._recipe.settings(), _undecayed(tx._recipe.mask, params)
    dtypes = {place: update_dtype(gradients[place].dtype, like.dtypes[place]) for place in there}
    if value is not None:
        _check_scalar("value", value)

    def act(key: Any, count: Any, moved: Any, loss: Any, arrays: list[Any], at: list[Any]) -> list[Any]:
        link = desk.link(key)
        request = OptaxStep(
            count=desk.checked(int(count)),
            gradients={place: np.asarray(array) for place, array in zip(there, arrays, strict=True)},
            params=[np.asarray(array) for array in at],
            settings=settings(moved),
            undecayed=undecayed,
            loss=None if loss is None else float(loss),
            dtypes=None if exact else dtypes,
        )
        results = link.step(like, request)
        return [np.int32(link.session.step_number), *results]

    shapes = _shapes(like, like.dtypes) if exact else tuple(_shape(like, place, d) for place, d in dtypes.items())
    operands = key, count, tx._recipe.now(count), value, [gradients[place] for place in there], leaves
    now, *results = call(desk, act, (_COUNT, *shapes), *operands)
    if exact:
        return like.built(placed(results, jax.tree.leaves(params))), AdamState(now, key)
    results = iter(typed(results, [leaves[place] for place in there]))
    return like.built([None if gradient is None else next(results) for gradient in gradients]), AdamState(now, key)


_COUNT = jax.ShapeDtypeStruct((), np.int32)


def _shapes(like: Form, dtypes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_shape(like, place, dtype) for place, dtype in enumerate(dtypes))


def _shape(like: Form, place: int, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(like.shapes[place], dtype)


def _state(state: Any) -> AdamState:
    """Return a state's count and handle.

    Raises:
        InvalidRequest: it is another optimizer's.

    """
    if not (hasattr(state, "count") and hasattr(state, "session")):
        raise InvalidRequest(
            f"this optimizer state is {type(state).__name__}, which is not adamd.optax's; state = tx.init(params) "
            "makes one. A local optax optimizer's goes on in a session by adamd.checkpoints.from_optax"
        )
    return AdamState(state.count, state.session)


def _undecayed(mask: Any, params: Any) -> list[int]:
    """Return the places of the parameters without weight decay: where the mask is False."""
    if mask is None:
        return []
    leaves = jax.tree.leaves(jax.tree.map(callable, mask))
    chosen = mask(params) if leaves and all(leaves) else mask  # as in optax.masked: a mask may be a callable pytree
    spread = jax.tree.map(lambda keep, below: jax.tree.map(lambda _: bool(keep), below), chosen, params)
    return [place for place, keep in enumerate(jax.tree.leaves(spread)) if not keep]


def _argument(setting: str) -> str:
    """Return the argument that a setting comes from."""
    return "learning_rate" if setting == "lr" else setting


def _number(name: str, value: Any) -> Any:
    """Return a checked number; a schedule or a traced value unchanged."""
    if name == "learning_rate" and callable(value):
        return value
    _check_scalar(name, value)
    return value if isinstance(value, jax.core.Tracer) else _finite(name, value)


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise InvalidRequest(f"{name} is {number}; wanted a finite number")
    return number


def _check_scalar(name: str, value: Any) -> None:
    """Refuse a value that is not one real number.

    Raises:
        InvalidRequest: the value is not one.

    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if value.shape != ():
            raise InvalidRequest(f"{name} has shape {value.shape}; wanted one number")
        if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
            raise InvalidRequest(f"{name} is {value.dtype}; wanted a number")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidRequest(f"{name} is {type(value).__name__}; wanted a number")


def _seconds(timeout: Any) -> Any:
    """Return a time-out, which optax.inject_hyperparams may have made an array.

    Raises:
        InvalidRequest: it is traced: nothing is known of it when the client is made.

    """
    if isinstance(timeout, jax.core.Tracer):
        raise InvalidRequest(
            "timeout is traced: optax.inject_hyperparams takes every number for a hyperparameter. Name it, as in "
            "optax.inject_hyperparams(adamd.optax.adam, static_args=('timeout',)), or give a client"
        )
    return float(timeout) if isinstance(timeout, jax.Array) else timeout


def _nothing() -> None:
    """Leave a client open that the caller gave."""
