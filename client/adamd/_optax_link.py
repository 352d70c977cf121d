"""The host's side of an optax transformation: its sessions, and what is called back from compiled code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adamd._around import TRAVEL
from adamd._optax_tree import Form, Strays, agree, narrowed, updates
from adamd._resuming import differing
from adamd.client import Client
from adamd.errors import AdamdError, InvalidRequest, InvalidSettings, StepSuperseded, WrongLayout
from adamd.session import Session
from adamd.wire.dtypes import Array

HANDLE = 64  # bytes of a session's id in the optimizer's state


class Link:
    """A session, and its parameters as this process last read them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._masters = self._exact() if session.step_number == 0 else session.parameters()
        self._strays: dict[str, Strays] = {}

    def read(self, like: Form) -> dict[str, Array]:
        """Follow the session to where it stands, and return its parameters, in memory of the caller's own."""
        self._check(like)
        self.session.refresh()
        self._masters = self.session.parameters()
        self._strays = {}
        return {name: array.copy() for name, array in narrowed(self._masters, like).items()}

    def step(
        self,
        like: Form,
        count: int,
        gradients: Mapping[str, Array],
        held: Mapping[str, Array],
        settings: Mapping[str, Any],
        loss: float | None,
        *,
        exact: bool,
    ) -> dict[str, Array]:
        """Take step ``count`` + 1 and return the parameters after it (``exact``), or the updates that lead there."""
        session = self.session
        self._check(like)
        if count != session.step_number:
            raise StepSuperseded(
                f"the optimizer's state is of step {count}, its session is at {session.step_number}: a step counts "
                "once, so go on from what the last update returned; or follow the session: "
                "params, state = tx.refresh(state, params)",
                step=session.step_number,
            )
        self._check_held(like, held)
        changed = {key: value for key, _, value in differing(settings, session.settings)}
        try:
            self._masters = session.step(gradients, loss, settings=changed, out=self._room())
        except BaseException:  # an answer may have broken off in the masters
            for name, array in held.items():
                np.copyto(self._masters[name], array)
            raise
        meant = narrowed(self._masters, like)
        if exact:
            self._strays = {}
            return {name: array.copy() for name, array in meant.items()}
        made = {name: updates(array, held[name]) for name, array in meant.items()}
        self._strays = {name: strays for name, (_, strays) in made.items()}
        return {name: delta for name, (delta, _) in made.items()}

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

    def _check(self, like: Form) -> None:
        mine = dict(zip(like.names, like.shapes, strict=True))
        theirs = {tensor.name: tensor.shape for tensor in self.session.layout.tensors}
        if mine != theirs:
            name = min(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
            raise WrongLayout(
                f"parameter {name!r} has shape {mine.get(name)}, in the session {theirs.get(name)} (None: it is not "
                "there); give the parameters that the session was made with"
            )

    def _check_held(self, like: Form, held: Mapping[str, Array]) -> None:
        """Refuse parameters that are not the session's: the answer would overwrite them. Before step 1 take them."""
        meant = narrowed(self._masters, like)
        apart = [name for name in like.names if not agree(held[name], meant[name], self._strays.get(name))]
        if not apart:
            return
        if self.session.step_number == 0:
            self.session.set_parameters(dict(held))
            for name, array in held.items():
                np.copyto(self._masters[name], array)
            return
        raise InvalidRequest(
            f"{', '.join(apart[:4])}{', …' if apart[4:] else ''}: not the session's parameters at step "
            f"{self.session.step_number}. They were changed by something else, as by what follows adamd in a chain; "
            "or the session was resumed: params, state = tx.refresh(state, params) gives its own",
            step=self.session.step_number,
        )


@dataclass(slots=True, weakref_slot=True)
class Desk:
    """What a transformation keeps on the host: its client, its sessions by id, and the last error of a callback."""

    client: Client
    name: str | None
    options: Mapping[str, Any]
    failed: AdamdError | None = None
    links: dict[str, Link] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def kept(self, act: Callable[[], Any]) -> Any:
        """Run one call, and keep its error: XLA makes it a string."""
        with self.lock:
            try:
                return act()
            except AdamdError as error:
                self.failed = error
                raise

    def open(self, values: Mapping[str, Array], settings: Mapping[str, Any]) -> tuple[Array, Array]:
        """Create a session, or open the one of the name; return its step and its id as a handle.

        Raises:
            InvalidSettings: there is one, of another kind.

        """
        options = {"optimizer": settings["name"], **{k: v for k, v in settings.items() if k != "name"}, **self.options}
        if self.name is None:
            session = self.client.create(values, **options)
        else:
            # Settings that differ are the caller's to choose: they travel with the next step.
            session = self.client.open(self.name, values, **options, on_other_settings="keep")
        kind = session.settings["name"], session.settings.get("amsgrad"), session.settings.get("maximize")
        if kind != (settings["name"], False, False):
            raise InvalidSettings(
                f"session {session.name or session.id!r} is {kind[0]} with amsgrad={kind[1]} and maximize={kind[2]}; "
                f"this is adamd.optax.{settings['name']}, which has neither. Choose the same kind, or another name"
            )
        self.links[session.id] = Link(session)
        return np.asarray(session.step_number, np.int32), handle(session.id)

    def link(self, key: Array) -> Link:
        """Return the session of a handle; one that comes from another process is attached."""
        ref = bytes(np.asarray(key)).rstrip(b"\0").decode("ascii", "replace")
        if not ref:
            raise InvalidRequest("this optimizer state has no session; state = tx.init(params) makes one")
        if ref not in self.links:
            own = {key: self.options[key] for key in ("on_bad_gradient", *TRAVEL) if key in self.options}
            self.links[ref] = Link(self.client.session(ref, **own))
        return self.links[ref]


def handle(ref: str) -> Array:
    """Return a session's id as bytes, for the optimizer's state: a pytree of arrays."""
    return np.frombuffer(ref.encode("ascii").ljust(HANDLE, b"\0"), np.uint8)
