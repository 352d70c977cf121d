"""Holds an optax transformation's sessions on the host, and runs the steps that compiled code calls back for."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np

from adamd.client import Client
from adamd.errors import (
    HistoryLost,
    InvalidRequest,
    InvalidSettings,
    SessionError,
    StepSuperseded,
    WrongLayout,
)
from adamd.optax.pytree import Form, Strays, agree, narrowed, updates
from adamd.sansio.operations import Standing
from adamd.sansio.options import TRAVEL
from adamd.sansio.settings_match import differing
from adamd.session import Session
from adamd.wire.dtypes import Array

HANDLE_BYTES = 64  # of a session's id in the optimizer's state
LARGEST_UPDATE = 16  # times lr; larger updates of Adam occur only in large parameters
NamedArrays: TypeAlias = Mapping[str, Array]
log = logging.getLogger("adamd.optax")


@dataclass(frozen=True, slots=True)
class OptaxStep:
    """One step as optax requests it.

    Attributes:
        count: the step of the state that it starts from.
        gradients: by the parameters' places; a place without one has no gradient.
        params: all parameters, at which the gradients were computed.
        settings: the session's.
        undecayed: the places of the parameters without weight decay.
        loss: recorded as the step's metric.
        dtypes: of the updates, by the parameters' places; None: the result is the parameters themselves.

    """

    count: int
    gradients: Mapping[int, Array]
    params: Sequence[Array]
    settings: Mapping[str, Any]
    undecayed: Sequence[int]
    loss: float | None
    dtypes: Mapping[int, np.dtype[Any]] | None


class SessionLink:
    """A session, and its parameters as this process last read them.

    A pytree's leaves are matched to the session's tensors by name. Where the names differ, as flax.nnx has other paths
    in ``update`` than in ``init``, they are matched by ``init``'s order and shapes, or by the beginning of the paths.
    """

    def __init__(self, session: Session, orders: Sequence[Form]) -> None:
        self.session = session
        self._orders = orders
        self._known: dict[Form, tuple[str, ...]] = {}
        self._masters = self._exact() if session.step_number == 0 else session.parameters()
        self._strays: dict[str, Strays] = {}
        self._sure = session.step_number == 0  # the caller's parameters are known exactly
        self._before: Standing | None = None  # where the session was before the last step

    def read(self, like: Form) -> list[Array]:
        """Follow the session to where it is, and return copies of its parameters."""
        names = self._names(like)
        self._follow()
        self._sure = True
        return [array.copy() for array in narrowed(self._masters, names, like).values()]

    def step(self, like: Form, request: OptaxStep) -> list[Array]:
        """Take step ``count`` + 1 and return the parameters after it, or the updates that lead there.

        Repeating the last step returns the same answer, as long as the session has not gone on.
        """
        session, names = self.session, self._names(like)
        params = dict(zip(names, request.params, strict=True))
        gradients = {names[place]: array for place, array in request.gradients.items()}
        groups = [_group([names[place] for place in request.undecayed])] if request.undecayed else []
        settings = {**request.settings, "groups": groups}
        if request.count != session.step_number and not self._is_before(request.count):
            self._follow()
        if request.count == session.step_number:
            self._check_parameters(like, names, params)
            self._take(gradients, params, settings, request.loss)
        elif self._is_before(request.count):
            self._take_again(gradients, settings, request.loss)
        else:
            raise self._position_error(request.count)
        meant = narrowed(self._masters, names, like)
        if request.dtypes is None:
            self._strays = {}
            return [array.copy() for array in meant.values()]
        dtypes = {names[place]: dtype for place, dtype in request.dtypes.items()}
        results = {name: updates(meant[name], params[name], dtype) for name, dtype in dtypes.items()}
        self._strays = {name: strays for name, (_, strays) in results.items()}
        return [delta for delta, _ in results.values()]

    def _take(
        self, gradients: NamedArrays, params: NamedArrays, settings: Mapping[str, Any], loss: float | None
    ) -> None:
        session = self.session
        before = session._track.now
        try:
            self._masters = session.step(gradients, loss, settings=self._changed(settings), out=self._room())
        except BaseException:  # an answer may have broken off in the masters
            for name, array in params.items():
                np.copyto(self._masters[name], array)
            raise
        self._before, self._sure = before, True

    def _take_again(self, gradients: Mapping[str, Array], settings: Mapping[str, Any], loss: float | None) -> None:
        """Send the last step again: the server repeats its answer for the same gradient, and refuses another."""
        track, current = self.session._track, self.session._track.now
        assert self._before is not None
        track.now = self._before
        try:
            self._masters = self.session.step(gradients, loss, settings=self._changed(settings))
        except SessionError:
            track.now = current
            raise self._position_error(self._before.step) from None
        except BaseException:
            track.now = current
            raise

    def _changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, _, value in differing(settings, self.session.settings)}

    def _is_before(self, count: int) -> bool:
        """Say whether this process's last step was the one after ``count``."""
        return self._before is not None and self._before.step == count == self.session.step_number - 1

    def _position_error(self, count: int) -> SessionError:
        now = self.session.step_number
        follow = "params, state = tx.refresh(state, params)"
        if count > now:
            return HistoryLost(
                f"the optimizer's state is of step {count}, its session is at {now}: the server has lost steps. To go "
                f"on from what it has: {follow}",
                step=now,
            )
        return StepSuperseded(
            f"the optimizer's state is of step {count}, its session is at {now}: a step counts once, so go on from "
            "what the last update returned, and let nothing throw updates away, as optax.MultiSteps does (take the "
            f"mean of the gradients instead); or follow the session: {follow}",
            step=now,
        )

    def _follow(self) -> None:
        self.session.refresh()
        self._masters = self.session.parameters()
        self._strays, self._sure, self._before = {}, False, None

    def _exact(self) -> dict[str, Array]:
        """Read the parameters in the session's dtype, whatever dtype the user chose for answers."""
        before, self.session.answer_dtype = self.session.answer_dtype, None
        try:
            read: dict[str, Array] = self.session.parameters()
            return read
        finally:
            self.session.answer_dtype = before

    def _room(self) -> dict[str, Array] | None:
        """Return the last answer's memory for the next one, where the dtype is the same."""
        dtype = self.session.answer_dtype or self.session.dtype
        buffer_dtype = "float32" if dtype == "bfloat16" else dtype  # NumPy has no bfloat16
        return self._masters if all(array.dtype == buffer_dtype for array in self._masters.values()) else None

    def _names(self, like: Form) -> tuple[str, ...]:
        """Return the session's names for the leaves.

        Raises:
            WrongLayout: the leaves are not the session's tensors.

        """
        if like not in self._known:
            session_shapes = {tensor.name: tensor.shape for tensor in self.session.layout.tensors}
            self._known[like] = _matched(like, session_shapes, self._orders)
        return self._known[like]

    def _check_parameters(self, like: Form, names: Sequence[str], params: Mapping[str, Array]) -> None:
        """Refuse parameters that differ from the session's. Before step 1 the session takes them instead."""
        meant = narrowed(self._masters, names, like)
        slack = None if self._sure else LARGEST_UPDATE * float(self.session.settings["lr"])
        apart = [name for name in names if not agree(params[name], meant[name], self._strays.get(name), slack)]
        if not apart:
            return
        if self.session.step_number == 0:
            self.session.set_parameters(dict(params))
            for name, array in params.items():
                np.copyto(self._masters[name], array)
            return
        raise InvalidRequest(
            f"{', '.join(apart[:4])}{', …' if apart[4:] else ''}: not the session's parameters at step "
            f"{self.session.step_number}. They were changed by something else, as by what follows adamd in a chain "
            "(bounds are lower= and upper=, a changing lr is a schedule); or the session was resumed: "
            "params, state = tx.refresh(state, params) gives its own",
            step=self.session.step_number,
        )


def _group(undecayed: list[str]) -> dict[str, Any]:
    return {"tensors": sorted(undecayed), "weight_decay": 0.0}


def _matched(like: Form, session_shapes: Mapping[str, tuple[int, ...]], orders: Sequence[Form]) -> tuple[str, ...]:
    """Return a session's names for the leaves: by name, by an ``init``'s order and shapes, or by the paths' beginning.

    Raises:
        WrongLayout: the leaves are not the session's tensors.

    """
    shapes = like.spelled()
    if shapes == session_shapes:
        return like.names
    for order in orders:
        if order.shapes == like.shapes and order.spelled() == session_shapes:
            return order.names
    by_beginning = {name[:end]: name for name in session_shapes for end, sign in enumerate(name) if sign == "/"}
    longer = tuple(by_beginning.get(name, name) for name in like.names)
    if dict(zip(longer, like.shapes, strict=True)) == session_shapes:
        return longer
    name = min(name for name in shapes.keys() | session_shapes.keys() if shapes.get(name) != session_shapes.get(name))
    raise WrongLayout(
        f"parameter {name!r} has shape {shapes.get(name)}, in the session {session_shapes.get(name)} (None: it is not "
        "there); give the parameters that the session was made with"
    )


class Desk:
    """A transformation's state on the host: its client, its sessions by id, and the last error of a callback.

    Compiled code runs asynchronously, and calls back when it reaches a step. So the client is closed only when no step
    is under way, also at the end of the process. After Ctrl-C steps that have not begun are dropped.
    """

    def __init__(self, client: Client, name: str | None, options: Mapping[str, Any]) -> None:
        self.client = client
        self.failed: BaseException | None = None  # the last error in compiled code
        self.poisoned = False  # the error could not be raised there
        self.links: dict[str, SessionLink] = {}
        self.orders: list[Form] = []  # of the parameters that ``init`` got
        self._name = name
        self._options = options
        self.dropped = False
        self._lock = threading.RLock()
        weak = weakref.ref(self)
        weakref.finalize(self, client._before_closing(partial(_settle, weak))).atexit = False
        at_exit = partial(_end, weak)
        # JAX was imported earlier, so this runs before JAX shuts its devices down.
        atexit.register(at_exit)
        weakref.finalize(self, atexit.unregister, at_exit).atexit = False

    def run(self, act: Callable[[], Any]) -> Any:
        """Run one call at a time."""
        with self._lock:
            return act()

    def run_compiled(self, act: Callable[[], Any], results: Sequence[jax.ShapeDtypeStruct], devices: int) -> Any:
        """Run one call of compiled code, and keep its error, which XLA turns into a string.

        On several devices nothing is raised: the others would wait for this one until XLA ends the process. There the
        results are NaN and the count is -1.
        """
        try:
            if self.dropped:
                raise InvalidRequest("the process ends after Ctrl-C: this step was not taken")
            return self.run(act)
        except BaseException as error:
            is_repeated = error is self.failed
            self.failed = error
            if devices == 1:
                raise
            self.poisoned = True
            if not (is_repeated or self.dropped):
                log.error("%s: %s (%s)", type(error).__name__, error, _NOT_RAISED)
            return [_poison(result) for result in results]

    def checked(self, count: int) -> int:
        """Return a state's count.

        Raises:
            InvalidRequest, or the earlier error: the state comes from a step that failed.

        """
        if count >= 0:
            return count
        if self.failed is not None:
            raise self.failed
        raise InvalidRequest(
            "this optimizer state comes from a step that failed; params, state = tx.refresh(state, params) goes on "
            "from the session"
        )

    def drop(self) -> None:
        """Take no more steps of compiled code."""
        self.dropped = True
        self.client.close()

    def open(self, like: Form, leaves: Sequence[Array], settings: Mapping[str, Any]) -> tuple[Array, Array]:
        """Create a session, or open the one of the name; return its step and its id as a handle.

        Raises:
            InvalidSettings: the session of the name is of another kind.

        """
        values = like.named(leaves)
        own = {**{k: v for k, v in settings.items() if k != "name"}, **self._options}
        options: dict[str, Any] = {"optimizer": settings["name"], **own}
        if self._name is None:
            session = self.client.create(values, **options)
        else:
            # The caller's settings count: those that differ are sent with the next step.
            session = self.client.open(self._name, values, **options, on_other_settings="keep")
        kind = session.settings["name"], session.settings.get("amsgrad"), session.settings.get("maximize")
        if kind != (settings["name"], False, False):
            raise InvalidSettings(
                f"session {session.name or session.id!r} is {kind[0]} with amsgrad={kind[1]} and maximize={kind[2]}; "
                f"this is adamd.optax.{settings['name']}, which has neither. Choose the same kind, or another name"
            )
        self.links[session.id] = SessionLink(session, [like])
        return np.asarray(session.step_number, np.int32), handle(session.id)

    def link(self, key: Array) -> SessionLink:
        """Return the session of a handle; attach to it where another process made it."""
        ref = bytes(np.asarray(key).astype(np.uint8)).rstrip(b"\0").decode("ascii", "replace")
        if not ref:
            if self.failed is not None:
                raise self.failed
            raise InvalidRequest("this optimizer state has no session; state = tx.init(params) makes one")
        if ref not in self.links:
            own = {key: self._options[key] for key in ("on_bad_gradient", *TRAVEL) if key in self._options}
            self.links[ref] = SessionLink(self.client.session(ref, **own), self.orders)
        return self.links[ref]


_NOT_RAISED = (
    "compiled code over several devices cannot raise it: parameters and updates are NaN from here on, the state's "
    "count is -1; `with tx.typed_errors():` raises it, and params, state = tx.refresh(state, params) goes on from the "
    "session"
)


def _poison(result: jax.ShapeDtypeStruct) -> Array:
    kind = np.dtype(result.dtype)
    fill = {"i": -1, "u": 0}.get(kind.kind, np.nan)
    return np.full(result.shape, fill, kind)


def _settle(weak: Callable[[], Desk | None]) -> None:
    """Wait for the steps under way, before a client is closed."""
    desk = weak()
    if desk is not None and not desk.dropped:
        with suppress(jax.errors.JaxRuntimeError):
            jax.effects_barrier()


def _end(weak: Callable[[], Desk | None]) -> None:
    """Finish the steps under way at the end of the process; after Ctrl-C drop those that have not begun."""
    desk = weak()
    if desk is None:
        return
    if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
        desk.drop()
    with suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()


def handle(ref: str) -> Array:
    """Return a session's id as bytes, for the optimizer's state: a pytree of arrays."""
    return np.frombuffer(ref.encode("ascii").ljust(HANDLE_BYTES, b"\0"), np.uint8)
