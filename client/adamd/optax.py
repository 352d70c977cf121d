"""`optax.adam` and `optax.adamw` whose state lives at a server.

tx = adamd.optax.adam(1e-3)                                    # the server at $ADAMD_URL
state = tx.init(params)

@jax.jit
def train_step(params, state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state

They are `optax.GradientTransformationExtraArgs`: they run under ``jax.jit``, in ``jax.lax.scan`` and in `optax.chain`,
by an ordered callback to the host; the state is a pytree of two small arrays, a count and the session's id, and may be
checkpointed. Four things are different, because the session at the server holds the parameters:

- ``update`` needs the parameters, and they have to be what its last updates led to: what follows adamd in a chain must
  not change the updates. What comes before it (clipping, say) may do as it likes.
- ``params + updates`` is the session's parameter bit for bit where that lies between half of the old one and twice it
  (for float16 and bfloat16: where it does not shrink more than 4096-fold in one step); elsewhere (a sign changes, say)
  it may miss by one rounding of the update and one of the sum. That does not add up: each update leads to the
  session's parameters anew. `Transformation.step` returns them themselves, always the same bits.
- A state is used once: a step that counted cannot be taken again with another gradient. So `optax.MultiSteps`, which
  computes updates and throws them away, gets an error at its second: take the mean of the gradients instead.
- Compiled code turns an error into `jax.errors.JaxRuntimeError`, with adamd's words in it; within
  ``with tx.typed_errors():`` it is raised as what it was, and without ``jit`` always.

``vmap``, ``pmap``, ``shard_map`` and differentiation through the update are refused: each would step once for every
slice. Under ``jit`` with sharded arrays it works: one device calls back with the whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Unpack

try:
    import jax
    import jax.numpy as jnp
    import optax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("adamd.optax needs JAX and optax: pip install 'adamd[jax]'", name=error.name) from error
import numpy as np
from jax.experimental import io_callback

from adamd._around import Around, parted
from adamd._optax_link import HANDLE, Desk
from adamd._optax_tree import Form, form, leaves_of, update_dtype
from adamd._track import settings_document
from adamd.client import Client, Durability, connect
from adamd.errors import InvalidRequest
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
    _settings: Callable[[Any, Form], dict[str, Any]]
    _rate: float | Schedule
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

        def act(key: Any) -> tuple[Any, ...]:
            def read() -> tuple[Any, ...]:
                link = self._desk.link(key)
                found = link.read(like)
                return np.int32(link.session.step_number), *(found[name] for name in like.names)

            result: tuple[Any, ...] = self._desk.kept(read)
            return result

        count, *leaves = _ordered(act, (_COUNT, *_shapes(like, like.dtypes)), state.session)
        return like.built(leaves), AdamState(count, state.session)

    def session(self, state: AdamState) -> Session:
        """Return the session of a state: its settings, its export, its document. Not under ``jit``."""
        session: Session = self._desk.kept(lambda: self._desk.link(state.session).session)
        return session

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Raise what failed at the server as adamd's own error (`BadGradient`, …), from compiled code too.

        It waits for the steps within it.
        """
        self._desk.failed = None
        try:
            yield
            jax.effects_barrier()
        except jax.errors.JaxRuntimeError as error:
            failed, self._desk.failed = self._desk.failed, None
            if failed is None:
                raise
            raise failed from error

    def close(self) -> None:
        """Close the connections. Sessions live on, at the server; so does a client that was given."""
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
        learning_rate: a number, or a schedule: a function of the count of steps, traced like the rest.
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
    numbers = {"betas": [_number("b1", b1), _number("b2", b2)], "eps": _number("eps", eps), "weight_decay": 0.0}
    options = {"durability": durability, "labels": labels, "on_bad_gradient": on_bad_gradient}
    given, travel = parted(around, "adam")
    settings = {"name": "adam", **numbers, **settings_document(given)}
    return _made(learning_rate, settings, None, (url, client, timeout), session, options | travel)


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
    numbers = {"betas": [_number("b1", b1), _number("b2", b2)], "eps": _number("eps", eps)}
    numbers |= {"weight_decay": _number("weight_decay", weight_decay)}
    options = {"durability": durability, "labels": labels, "on_bad_gradient": on_bad_gradient}
    given, travel = parted(around, "adamw")
    settings = {"name": "adamw", **numbers, **settings_document(given)}
    return _made(learning_rate, settings, mask, (url, client, timeout), session, options | travel)


def _made(
    learning_rate: float | Schedule,
    settings: dict[str, Any],
    mask: Any,
    way: tuple[str | None, Client | None, Any],
    session: str | None,
    options: dict[str, Any],
) -> Transformation:
    url, client, timeout = way
    if client is not None and (url is not None or timeout is not None):
        raise InvalidRequest("give a client, or a url and a timeout of a new one, not both")
    rate = learning_rate if callable(learning_rate) else _number("learning_rate", learning_rate)

    def init(params: Any) -> AdamState:
        return _init(made, params)

    def update(updates: Any, state: AdamState, params: Any = None, **extra: Any) -> tuple[Any, AdamState]:
        return _step(made, updates, state, params, extra.get("value"), exact=False)

    made = Transformation(init, update)
    held = connect(url, timeout=timeout) if client is None else client
    made._desk = Desk(held, session, options)
    made._close = weakref.finalize(made._desk, held.close if client is None else _nothing)  # a tuple takes no weakref
    made._rate = rate
    made._settings = lambda params, like: settings | {"groups": _undecayed(mask, params, like)}
    return made


def _init(tx: Transformation, params: Any) -> AdamState:
    like = form(params)
    settings = tx._settings(params, like)

    def act(lr: Any, leaves: list[Any]) -> Any:
        first = {**settings, "lr": _lr(tx, lr)}
        return tx._desk.kept(lambda: tx._desk.open(like.named(leaves), first))

    shapes = (_COUNT, jax.ShapeDtypeStruct((HANDLE,), np.uint8))
    given = _scheduled(tx, jnp.zeros((), jnp.int32)), leaves_of(params, like, "parameters")
    return AdamState(*_ordered(act, shapes, *given))


def _step(
    tx: Transformation, grads: Any, state: AdamState, params: Any, value: Any, *, exact: bool
) -> tuple[Any, AdamState]:
    if params is None:
        raise ValueError("adamd.optax needs the parameters: tx.update(grads, state, params)")
    like = form(params)
    settings = tx._settings(params, like)

    def act(key: Any, count: Any, lr: Any, loss: Any, gradients: list[Any], held: list[Any]) -> Any:
        def take() -> tuple[Any, ...]:
            link = tx._desk.link(key)
            told = {**settings, "lr": _lr(tx, lr)}
            measured = None if loss is None else float(loss)
            now = int(count), like.named(gradients), like.named(held)
            found = link.step(like, *now, told, measured, exact=exact)
            return np.int32(link.session.step_number), *(found[name] for name in like.names)

        return tx._desk.kept(take)

    dtypes = like.dtypes if exact else tuple(map(update_dtype, like.dtypes))
    given = (state.session, state.count, _scheduled(tx, state.count), value)
    trees = leaves_of(grads, like, "gradients"), leaves_of(params, like, "parameters")
    count, *leaves = _ordered(act, (_COUNT, *_shapes(like, dtypes)), *given, *trees)
    return like.built(leaves), AdamState(count, state.session)


def _scheduled(tx: Transformation, count: Any) -> Any:
    """Return a schedule's lr as an operand; a number stays in float64 on the host."""
    return tx._rate(count) if callable(tx._rate) else None


def _lr(tx: Transformation, scheduled: Any) -> float:
    return float(tx._rate if scheduled is None else scheduled)  # type: ignore[arg-type]  # a schedule was called


_COUNT = jax.ShapeDtypeStruct((), np.int32)


def _shapes(like: Form, dtypes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(like.shapes, dtypes, strict=True))


def _ordered(act: Callable[..., Any], results: tuple[Any, ...], *given: Any) -> Any:
    """Call the host: now where nothing is traced, so that errors keep their type; else from compiled code, in order."""
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in (jnp.zeros(()), *jax.tree.leaves(given))):
        return jax.tree.map(jnp.asarray, act(*given))
    if any(kind == jax.sharding.AxisType.Manual for kind in jax.sharding.get_abstract_mesh().axis_types):
        raise InvalidRequest(
            "adamd.optax within pmap or shard_map would step once for every shard; average the gradients, and call it "
            "outside, under jit"
        )
    try:
        return io_callback(act, results, *given, ordered=True)
    except ValueError as error:
        if "vmap" not in str(error):
            raise
        raise InvalidRequest(
            "adamd.optax under vmap would step once for every slice; vmap the gradients, and call it outside, or make "
            "one optimizer for each model"
        ) from error


def _undecayed(mask: Any, params: Any, like: Form) -> list[dict[str, Any]]:
    """Return the groups that a mask makes: no weight decay where it is False."""
    if mask is None:
        return []
    chosen = mask(params) if callable(mask) else mask
    spread = jax.tree.map(lambda keep, below: jax.tree.map(lambda _: bool(keep), below), chosen, params)
    names = [name for name, keep in zip(like.names, jax.tree.leaves(spread), strict=True) if not keep]
    return [{"tensors": sorted(names), "weight_decay": 0.0}] if names else []


def _number(name: str, value: Any) -> float:
    if isinstance(value, jax.Array):
        raise InvalidRequest(
            f"{name} is an array: optax.inject_hyperparams would make the optimizer anew in every update. Give a "
            "number, or a schedule as learning_rate"
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name} is {type(value).__name__}; wanted a number") from None


def _nothing() -> None:
    """Close a client that is not ours."""
