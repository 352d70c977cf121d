"""The host's side of an optax transformation: its sessions, and what is called back from compiled code."""

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
from typing import Any

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

HANDLE = 64  # bytes of a session's id in the optimizer's state
LARGEST = 16  # an update of Adam's is smaller than so many times lr, unless the parameter is large itself
log = logging.getLogger("adamd.optax")


@dataclass(frozen=True, slots=True)
class Asked:
    """One step as optax asks for it.

    Attributes:
        count: the step of the state that it goes on from.
        gradients: by the parameters' places; those that are not there have none.
        held: the parameters that they are at, all of them.
        settings: of the session; ``undecayed`` are the places of those without weight decay.
        dtypes: of the updates, by the parameters' places; None: the parameters themselves are wanted.

    """

    count: int
    gradients: Mapping[int, Array]
    held: Sequence[Array]
    settings: Mapping[str, Any]
    undecayed: Sequence[int]
    loss: float | None
    dtypes: Mapping[int, np.dtype[Any]] | None


class Link:
    """A session, and its parameters as this process last read them.

    A pytree's leaves are the session's tensors by their names; where those differ, as flax.nnx has other paths in
    ``update`` than in ``init``, by the order that ``init`` saw them in, or by the paths' beginning.
    """

    def __init__(self, session: Session, orders: Sequence[Form]) -> None:
        self.session = session
        self._orders = orders
        self._known: dict[Form, tuple[str, ...]] = {}
        self._masters = self._exact() if session.step_number == 0 else session.parameters()
        self._strays: dict[str, Strays] = {}
        self._sure = session.step_number == 0  # where the last updates led is known
        self._before: Standing | None = None  # where the last step began

    def read(self, like: Form) -> list[Array]:
        """Follow the session to where it stands, and return its parameters, in memory of the caller's own."""
        names = self._names(like)
        self._follow()
        self._sure = True
        return [array.copy() for array in narrowed(self._masters, names, like).values()]

    def step(self, like: Form, asked: Asked) -> list[Array]:
        """Take step ``count`` + 1 and return the parameters after it, or the updates that lead there.

        The same step again gets the same answer, as long as the session has not gone on.
        """
        session, names = self.session, self._names(like)
        held = dict(zip(names, asked.held, strict=True))
        gradients = {names[place]: array for place, array in asked.gradients.items()}
        groups = [_group([names[place] for place in asked.undecayed])] if asked.undecayed else []
        settings = {**asked.settings, "groups": groups}
        if asked.count != session.step_number and not self._is_before(asked.count):
            self._follow()
        if asked.count == session.step_number:
            self._check_held(like, names, held)
            self._take(gradients, held, settings, asked.loss)
        elif self._is_before(asked.count):
            self._take_again(gradients, settings, asked.loss)
        else:
            raise self._elsewhere(asked.count)
        meant = narrowed(self._masters, names, like)
        if asked.dtypes is None:
            self._strays = {}
            return [array.copy() for array in meant.values()]
        made = {names[place]: updates(meant[names[place]], held[names[place]], d) for place, d in asked.dtypes.items()}
        self._strays = {name: strays for name, (_, strays) in made.items()}
        return [delta for delta, _ in made.values()]

    def _take(
        self, gradients: Mapping[str, Array], held: Mapping[str, Array], settings: Mapping[str, Any], loss: float | None
    ) -> None:
        session = self.session
        before = session._track.now
        try:
            self._masters = session.step(gradients, loss, settings=self._changed(settings), out=self._room())
        except BaseException:  # an answer may have broken off in the masters
            for name, array in held.items():
                np.copyto(self._masters[name], array)
            raise
        self._before, self._sure = before, True

    def _take_again(self, gradients: Mapping[str, Array], settings: Mapping[str, Any], loss: float | None) -> None:
        """Send the last step once more: the server answers the same gradient as it did, and refuses another."""
        track, here = self.session._track, self.session._track.now
        assert self._before is not None
        track.now = self._before
        try:
            self._masters = self.session.step(gradients, loss, settings=self._changed(settings))
        except SessionError:
            track.now = here
            raise self._elsewhere(self._before.step) from None
        except BaseException:
            track.now = here
            raise

    def _changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, _, value in differing(settings, self.session.settings)}

    def _is_before(self, count: int) -> bool:
        """Say whether this process has taken the step after ``count``, and none since."""
        return self._before is not None and self._before.step == count == self.session.step_number - 1

    def _elsewhere(self, count: int) -> SessionError:
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
        """Read the parameters as the session has them, in whatever dtype answers are wanted."""
        before, self.session.answer_dtype = self.session.answer_dtype, None
        try:
            read: dict[str, Array] = self.session.parameters()
            return read
        finally:
            self.session.answer_dtype = before

    def _room(self) -> dict[str, Array] | None:
        """Return the memory for the next answer: that of the last one, if it was of the same dtype."""
        wanted = self.session.answer_dtype or self.session.dtype
        kind = "float32" if wanted == "bfloat16" else wanted  # NumPy has no bfloat16
        return self._masters if all(array.dtype == kind for array in self._masters.values()) else None

    def _names(self, like: Form) -> tuple[str, ...]:
        """Return the session's names for the leaves.

        Raises:
            WrongLayout: they are not the session's tensors.

        """
        if like not in self._known:
            theirs = {tensor.name: tensor.shape for tensor in self.session.layout.tensors}
            self._known[like] = _matched(like, theirs, self._orders)
        return self._known[like]

    def _check_held(self, like: Form, names: Sequence[str], held: Mapping[str, Array]) -> None:
        """Refuse parameters that are not the session's: the answer would overwrite them. Before step 1 take them."""
        meant = narrowed(self._masters, names, like)
        slack = None if self._sure else LARGEST * float(self.session.settings["lr"])
        apart = [name for name in names if not agree(held[name], meant[name], self._strays.get(name), slack)]
        if not apart:
            return
        if self.session.step_number == 0:
            self.session.set_parameters(dict(held))
            for name, array in held.items():
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


def _matched(like: Form, theirs: Mapping[str, tuple[int, ...]], orders: Sequence[Form]) -> tuple[str, ...]:
    """Return a session's names for the leaves: by their names, by the order of an ``init``, or by the paths' beginning.

    Raises:
        WrongLayout: they are not the session's tensors.

    """
    mine = like.spelled()
    if mine == theirs:
        return like.names
    for order in orders:
        if order.shapes == like.shapes and order.spelled() == theirs:
            return order.names
    begun = {name[:end]: name for name in theirs for end, sign in enumerate(name) if sign == "/"}
    longer = tuple(begun.get(name, name) for name in like.names)
    if dict(zip(longer, like.shapes, strict=True)) == theirs:
        return longer
    name = min(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    raise WrongLayout(
        f"parameter {name!r} has shape {mine.get(name)}, in the session {theirs.get(name)} (None: it is not "
        "there); give the parameters that the session was made with"
    )


class Desk:
    """What a transformation keeps on the host: its client, its sessions by id, and the last error of a callback.

    Compiled code runs behind the program, and calls back when it comes to a step: so the client is closed only when
    nothing is under way any more, at the end of the process too. After Ctrl-C steps that are still to come are dropped.
    """

    def __init__(self, client: Client, name: str | None, options: Mapping[str, Any]) -> None:
        self.client = client
        self.failed: BaseException | None = None  # in compiled code
        self.poisoned = False  # where it could not be raised
        self.links: dict[str, Link] = {}
        self.orders: list[Form] = []  # of the parameters that came to ``init``
        self._name = name
        self._options = options
        self.dropped = False
        self._lock = threading.RLock()
        mine = weakref.ref(self)
        weakref.finalize(self, client._before_closing(partial(_settle, mine))).atexit = False
        at_exit = partial(_end, mine)
        # JAX was imported before: what is registered now runs before it takes its devices down.
        atexit.register(at_exit)
        weakref.finalize(self, atexit.unregister, at_exit).atexit = False

    def run(self, act: Callable[[], Any]) -> Any:
        """Run one call: one at a time."""
        with self._lock:
            return act()

    def run_compiled(self, act: Callable[[], Any], results: Sequence[jax.ShapeDtypeStruct], devices: int) -> Any:
        """Run one call of compiled code, and keep its error: XLA makes it a string.

        Where several devices run the code, nothing is raised: the others would wait for this one until XLA ends the
        process. There the results are NaN, and the count is -1.
        """
        try:
            if self.dropped:
                raise InvalidRequest("the process ends after Ctrl-C: this step was not taken")
            return self.run(act)
        except BaseException as error:
            known = error is self.failed
            self.failed = error
            if devices == 1:
                raise
            self.poisoned = True
            if not (known or self.dropped):
                log.error("%s: %s (%s)", type(error).__name__, error, _NOT_RAISED)
            return [_poison(result) for result in results]

    def checked(self, count: int) -> int:
        """Return a state's count, if it is one.

        Raises:
            InvalidRequest, or what failed before: a step before it failed.

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
            InvalidSettings: there is one, of another kind.

        """
        values = like.named(leaves)
        own = {**{k: v for k, v in settings.items() if k != "name"}, **self._options}
        options: dict[str, Any] = {"optimizer": settings["name"], **own}
        if self._name is None:
            session = self.client.create(values, **options)
        else:
            # Settings that differ are the caller's to choose: they travel with the next step.
            session = self.client.open(self._name, values, **options, on_other_settings="keep")
        kind = session.settings["name"], session.settings.get("amsgrad"), session.settings.get("maximize")
        if kind != (settings["name"], False, False):
            raise InvalidSettings(
                f"session {session.name or session.id!r} is {kind[0]} with amsgrad={kind[1]} and maximize={kind[2]}; "
                f"this is adamd.optax.{settings['name']}, which has neither. Choose the same kind, or another name"
            )
        self.links[session.id] = Link(session, [like])
        return np.asarray(session.step_number, np.int32), handle(session.id)

    def link(self, key: Array) -> Link:
        """Return the session of a handle; one that comes from another process is attached."""
        ref = bytes(np.asarray(key).astype(np.uint8)).rstrip(b"\0").decode("ascii", "replace")
        if not ref:
            if self.failed is not None:
                raise self.failed
            raise InvalidRequest("this optimizer state has no session; state = tx.init(params) makes one")
        if ref not in self.links:
            own = {key: self._options[key] for key in ("on_bad_gradient", *TRAVEL) if key in self._options}
            self.links[ref] = Link(self.client.session(ref, **own), self.orders)
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


def _settle(mine: Callable[[], Desk | None]) -> None:
    """Wait for what is under way, before a client is closed. A desk that is gone has nothing under way."""
    desk = mine()
    if desk is not None and not desk.dropped:
        with suppress(jax.errors.JaxRuntimeError):
            jax.effects_barrier()


def _end(mine: Callable[[], Desk | None]) -> None:
    """At the end of the process: finish the steps under way; after Ctrl-C drop those that are still to come."""
    desk = mine()
    if desk is None:
        return
    if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
        desk.drop()
    with suppress(jax.errors.JaxRuntimeError):
        jax.effects_barrier()


def handle(ref: str) -> Array:
    """Return a session's id as bytes, for the optimizer's state: a pytree of arrays."""
    return np.frombuffer(ref.encode("ascii").ljust(HANDLE, b"\0"), np.uint8)
