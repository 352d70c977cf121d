"""The transformations of `adamd.optax`: optax's signatures and meaning, over one session for each state."""

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
from adamd.optax.binding import HANDLE, Asked, Desk
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
        """Follow the session to where it stands, and return (params, state) to go on from.

        For a session that ``init`` has resumed by its name; after `HistoryLost`, or when another client has stepped.
        ``params`` say the structure, shapes and dtypes.
        """
        like = form(params)
        if not like.names:
            return params, state

        def act(key: Any) -> list[Any]:
            link = self._desk.link(key)
            found = link.read(like)
            return [np.int32(link.session.step_number), *found]

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
        """Close the connections, after the steps under way. Sessions live on, at the server; so does a given client."""
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
    return _made("adam", hyper, None, (url, client, timeout), session, options, around)


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

    Args:
        learning_rate: and the others that are not named here: as in `adam`.
        b1: as there.
        b2: as there.
        eps: as there.
        weight_decay: times the learning rate, as in optax.
        mask: a pytree of booleans like the parameters (or a prefix of it), or a function of them that returns one:
            where it is False, nothing decays.
        url: as in `adam`.
        client: as in `adam`.
        session: as in `adam`.
        durability: as in `adam`.
        labels: as in `adam`.
        on_bad_gradient: as in `adam`.
        timeout: as in `adam`.
        around: as in `adam`.

    Raises:
        InvalidRequest: a setting is no number.

    """
    hyper = {"lr": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    options = {"durability": durability, "labels": labels, "on_bad_gradient": on_bad_gradient}
    return _made("adamw", hyper, mask, (url, client, timeout), session, options, around)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What a session's settings are made of: plain values, and those that are traced, or computed from the count."""

    plain: Mapping[str, Any]
    fixed: Mapping[str, float]
    moving: Mapping[str, Any]
    mask: Any

    def now(self, count: Any) -> dict[str, Any]:
        """Return the moving ones at a count, as operands."""
        found = {key: value(count) if callable(value) else value for key, value in self.moving.items()}
        for key, value in found.items():
            _check_scalar(f"what {_said(key)} returns" if callable(self.moving[key]) else _said(key), value)
        return found

    def settings(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Return what makes settings on the host, where the moving ones are known. It holds nothing that is traced."""
        plain, fixed = self.plain, self.fixed

        def at(moved: Mapping[str, Any]) -> dict[str, Any]:
            known = {**fixed, **{key: _finite(f"{_said(key)} at this step", value) for key, value in moved.items()}}
            betas = [known.pop("b1"), known.pop("b2")]
            return {**plain, "betas": betas, **known}

        return at


def _made(
    name: str,
    hyper: Mapping[str, Any],
    mask: Any,
    way: tuple[str | None, Client | None, Any],
    session: str | None,
    options: dict[str, Any],
    around: Mapping[str, Any],
) -> Transformation:
    checked = {key: _number(_said(key), value) for key, value in hyper.items()}
    # optax.inject_hyperparams gives what a function takes as **around by that name.
    given, travel = split_options(
        {**around.get("around", {}), **{k: v for k, v in around.items() if k != "around"}}, name
    )
    url, client, timeout = way
    if client is not None and (url is not None or timeout is not None):
        raise InvalidRequest("give a client, or a url and a timeout of a new one, not both")
    fixed = {key: value for key, value in checked.items() if isinstance(value, float)}
    moving = {key: value for key, value in checked.items() if key not in fixed}
    recipe = _Recipe({"name": name, **settings_document(given)}, fixed, moving, mask)

    def init(params: Any) -> AdamState:
        return _init(made, params)

    def update(updates: Any, state: AdamState, params: Any = None, **extra: Any) -> tuple[Any, AdamState]:
        return _step(made, updates, state, params, extra.get("value"), exact=False)

    made = Transformation(init, update)
    held = connect(url, timeout=_seconds(timeout)) if client is None else client
    made._desk = Desk(held, session, options | travel)
    made._close = weakref.finalize(made._desk, held.close if client is None else _nothing)  # a tuple takes no weakref
    made._recipe = recipe
    return made


def _init(tx: Transformation, params: Any) -> AdamState:
    like = form(params)
    if not like.names:
        return AdamState(jnp.zeros((), jnp.int32), jnp.zeros((HANDLE,), jnp.uint8))
    desk, settings = tx._desk, tx._recipe.settings()
    undecayed = [like.names[place] for place in _undecayed(tx._recipe.mask, params)]
    groups = [{"tensors": sorted(undecayed), "weight_decay": 0.0}] if undecayed else []
    desk.orders.append(like)

    def act(moved: Mapping[str, Any], leaves: list[Any]) -> list[Any]:
        return [*desk.open(like, leaves, settings(moved) | {"groups": groups})]

    results = (_COUNT, jax.ShapeDtypeStruct((HANDLE,), np.uint8))
    moved = tx._recipe.now(jnp.zeros((), jnp.int32))
    return AdamState(*call(desk, act, results, moved, [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]))


def _step(
    tx: Transformation, grads: Any, state: AdamState, params: Any, value: Any, *, exact: bool
) -> tuple[Any, AdamState]:
    if params is None:
        raise ValueError("adamd.optax needs the parameters: tx.update(grads, state, params)")
    like = form(params)
    count, key = _state(state)
    held, gradients = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)], leaves_of(grads, like)
    there = [place for place, gradient in enumerate(gradients) if gradient is not None]
    if not there:
        unmoved = params if exact else grads
        return unmoved, AdamState(count if gradients else optax.safe_increment(count), key)
    desk, settings, undecayed = tx._desk, tx._recipe.settings(), _undecayed(tx._recipe.mask, params)
    dtypes = {place: update_dtype(gradients[place].dtype, like.dtypes[place]) for place in there}
    if value is not None:
        _check_scalar("value", value)

    def act(key: Any, count: Any, moved: Any, loss: Any, given: list[Any], at: list[Any]) -> list[Any]:
        link = desk.link(key)
        asked = Asked(
            count=desk.checked(int(count)),
            gradients={place: np.asarray(array) for place, array in zip(there, given, strict=True)},
            held=[np.asarray(array) for array in at],
            settings=settings(moved),
            undecayed=undecayed,
            loss=None if loss is None else float(loss),
            dtypes=None if exact else dtypes,
        )
        found = link.step(like, asked)
        return [np.int32(link.session.step_number), *found]

    wanted = _shapes(like, like.dtypes) if exact else tuple(_shape(like, place, d) for place, d in dtypes.items())
    operands = key, count, tx._recipe.now(count), value, [gradients[place] for place in there], held
    now, *found = call(desk, act, (_COUNT, *wanted), *operands)
    if exact:
        return like.built(placed(found, jax.tree.leaves(params))), AdamState(now, key)
    found = iter(typed(found, [held[place] for place in there]))
    return like.built([None if one is None else next(found) for one in gradients]), AdamState(now, key)


_COUNT = jax.ShapeDtypeStruct((), np.int32)


def _shapes(like: Form, dtypes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_shape(like, place, dtype) for place, dtype in enumerate(dtypes))


def _shape(like: Form, place: int, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(like.shapes[place], dtype)


def _state(given: Any) -> AdamState:
    """Return a state's count and handle.

    Raises:
        InvalidRequest: it is another optimizer's.

    """
    if not (hasattr(given, "count") and hasattr(given, "session")):
        raise InvalidRequest(
            f"this optimizer state is {type(given).__name__}, which is not adamd.optax's; state = tx.init(params) "
            "makes one. A local optax optimizer's goes on in a session by adamd.checkpoints.from_optax"
        )
    return AdamState(given.count, given.session)


def _undecayed(mask: Any, params: Any) -> list[int]:
    """Return the places of the parameters that a mask keeps from weight decay: where it is False."""
    if mask is None:
        return []
    leaves = jax.tree.leaves(jax.tree.map(callable, mask))
    chosen = mask(params) if leaves and all(leaves) else mask  # as in optax.masked: a mask may be a callable pytree
    spread = jax.tree.map(lambda keep, below: jax.tree.map(lambda _: bool(keep), below), chosen, params)
    return [place for place, keep in enumerate(jax.tree.leaves(spread)) if not keep]


def _said(setting: str) -> str:
    """Return the argument that a setting comes from."""
    return "learning_rate" if setting == "lr" else setting


def _number(name: str, value: Any) -> Any:
    """Return a number; a schedule and what is traced as they are."""
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
    """Refuse what is no single real number.

    Raises:
        InvalidRequest: it is none.

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
    """Close a client that is not ours."""
