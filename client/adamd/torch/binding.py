"""A session and the model that follows it: one step of both, and the watch that they stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from adamd.errors import (
    AdamdError,
    HistoryLost,
    InvalidRequest,
    StepConflict,
    StepSuperseded,
    WrongDtype,
    WrongLayout,
)
from adamd.session import Session
from adamd.torch import group_settings, identity, parameters, schedulers, state_dicts
from adamd.torch.host_mirror import Mirror
from adamd.torch.kinds import Kind, buffered, kind_of
from adamd.torch.parameters import Place
from adamd.wire.layout import Layout

Groups = Sequence[dict[str, Any]]
Metrics = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Kept:
    """The parameters in a session's order, their tensors' ids, and the session's values beside them."""

    places: tuple[Place, ...]
    held: frozenset[int]
    mirror: Mirror


def found_in(groups: Groups, layout: Layout, dtype: str | None = None, answer: str | None = None) -> Kept:
    """Find a session's tensors in the groups. ``answer`` is the dtype that the user chose for its answers.

    Raises:
        WrongLayout: they are others, or of another dtype than the session's.
        WrongDtype: answers cannot come in what was chosen.

    """
    found = parameters.places(groups)
    kind = parameters.check(found)
    mine = {place.name: tuple(place.tensor.shape) for place in found}
    if mine != {tensor.name: tensor.shape for tensor in layout.tensors} or dtype not in (None, kind):
        raise WrongLayout("the session's tensors are not the parameters of this optimizer")
    named = {place.name: place for place in found}
    places = tuple(named[name] for name in layout.names)
    return Kept(places, frozenset(id(place.tensor) for place in found), Mirror(places, layout, kind, answer))


def in_order(kept: Kept) -> int:
    """Return how many tensors of a session without names may be given in another order; 0 where that can be seen.

    Raises:
        WrongLayout: they certainly are.

    """
    if not identity.by_position([place.name for place in kept.places]):
        return 0
    found = identity.compare(kept.places, kept.mirror.views)
    return 0 if found is None else found.tensors


def present_in(kept: Kept, groups: Groups, kind: Kind) -> list[Place]:
    """Return the parameters that have a gradient."""
    if {id(tensor) for group in groups for tensor in group["params"]} != kept.held:
        raise InvalidRequest(
            "the parameters in param_groups are not those that the session was made with; add some with "
            "optimizer.add_param_group(), or make a new optimizer"
        )
    present = [place for place in kept.places if place.tensor.grad is not None]
    for place in present:
        parameters.check_gradient(place, kind.torch)
    return present


def check_untouched(mirror: Mirror, step: int) -> bool:
    """Refuse a model that others have written to: the answer would overwrite it. Before step 1, say whether they did.

    Raises:
        InvalidRequest, WrongDtype: they have, or have converted it.

    """
    suspects = mirror.suspects(every=step == 0)
    if not suspects:
        return False
    for place in mirror.converted():
        raise WrongDtype(
            f"{place} was converted to {place.tensor.dtype}, the session was made before. Make the optimizer after "
            "the conversion"
        )
    differ = mirror.differ(suspects)
    if not differ:  # swapped out and back again, as for an average of the weights
        mirror.mark()
    elif step > 0:
        names = ", ".join(str(place) for place in differ[:4]) + (", …" if len(differ) > 4 else "")
        raise InvalidRequest(
            f"{names}: changed since step {step} by something else than this optimizer, and the "
            "session's own would overwrite it. To go on from the changed values: "
            "optimizer.load_state_dict(optimizer.state_dict()); to drop them: optimizer.refresh(). To clamp after each "
            "step, make the optimizer with lower=… and upper=…: the server keeps them",
            step=step,
        )
    return bool(differ)


def read_state(session: Session, places: Sequence[Place], kind: Kind, step: int, chain: str) -> state_dicts.State:
    """Read the state from the server, where it stands as this model does, at ``step`` of ``chain``.

    Raises:
        HistoryLost, StepSuperseded: it does not.

    """
    found = state_dicts.unpack(session.export(), places, kind, rounded=session.answer_dtype is not None)
    if found.chain != chain:
        moved = StepSuperseded if found.step > step else HistoryLost
        raise moved(
            f"the server is at step {found.step}, on another history than this model at {step}; "
            "optimizer.refresh() follows it",
            step=found.step,
        )
    return found.state


def _left_open(error: StepConflict | StepSuperseded) -> AdamdError:
    """Say what to do with a model where one stepped before, and was interrupted."""
    number = error.extra.get("left_open")
    if number is None:
        return error
    return type(error)(
        f"step {number} was sent before, and its answer was not waited for (Ctrl-C, or a time-out); it counts, and the "
        "model is at the parameters before it. So these gradients, which are others, were not applied. "
        "optimizer.refresh() brings the model to where the session is; so does optimizer.zero_grad(), before the next "
        "gradients are computed",
        step=error.step,
        **error.extra,
    )


class Bond:
    """A session whose parameters the model's are.

    Args:
        session: of the groups' names, shapes and dtype.
        groups: the optimizer's ``param_groups``.
        adopt: copy the session's parameters and settings into the model and the groups; else they are the same already.
        resumed: it was found by its name, perhaps: look whether the tensors are in its order, where it has no names,
            and what schedulers had left in the metrics of its last step, which this returns.

    Attributes:
        doubt: how many tensors without names may stand in another order than the session's.
        recalled: what schedulers had left, by group; None where it was not looked for.

    Raises:
        WrongLayout, WrongDtype, InvalidSettings: the session does not fit; nothing was copied.

    """

    def __init__(self, session: Session, groups: Groups, *, adopt: bool, resumed: Metrics | None = None) -> None:
        self.session = session
        self.doubt = 0
        self.recalled: list[dict[str, float]] | None = None
        self._kind = kind_of(groups)
        self._buffered = buffered(session.settings)
        self.kept = found_in(groups, session.layout, session.dtype, session.answer_dtype)
        self._members = group_settings.members(self.kept.places)
        mirror = self.kept.mirror
        with torch.no_grad():
            if adopt:
                with self._answered():
                    session.parameters(out=mirror.room)
                if resumed is not None:
                    self.doubt = in_order(self.kept)
                    metrics = resumed(session.id) if session.step_number else {}
                    self.recalled = schedulers.recalled(metrics, groups)
                group_settings.adopt(groups, self.kept.places, session.settings)
                mirror.write()
            else:
                mirror.read()
        self._seen = session.chain
        self._open = False

    @property
    def step_number(self) -> int:
        """The session's."""
        return self.session.step_number

    def step(self, groups: Groups, loss: float | None, *, changed: bool) -> bool:
        """Send the gradients that there are, and what has changed in the groups; copy the answer into the model.

        ``changed``: the optimizer's state was written to. Returns False, and does nothing, where that or the groups ask
        for another session: one from the state as it is now, or with arrays that this one does not have.

        Raises:
            InvalidRequest, WrongDtype: the model or the session is not what it was after the last step.
            AdamdError: whatever `Session.step` raises. The model is as it was, after any of them.

        """
        present = present_in(self.kept, groups, self._kind)
        if not present:
            return True
        self.check(present)
        if changed or self.lacks(groups):
            return False
        every = self.take(present, groups, loss)
        self.kept.mirror.write(None if every else present)
        self.written()
        return True

    def written(self) -> None:
        """Note that the model has the answer: until then a step is open, whatever interrupts it."""
        self._seen, self._open = self.session.chain, False

    def settle(self) -> bool:
        """Follow the session where a step was left open, by Ctrl-C perhaps; say whether one was.

        It counts or not: the server knows, and its parameters are those to go on from. A model that somebody has
        written to meanwhile is left alone.
        """
        session, mirror = self.session, self.kept.mirror
        if not self._open or (session.left_open is None and session.chain == self._seen):
            return False
        if mirror.differ(mirror.suspects(every=False)):
            return False
        try:
            with self._answered():
                session.parameters(out=mirror.room)
        except BaseException:
            mirror.read()
            raise
        mirror.write()
        self.written()
        return True

    def lacks(self, groups: Groups) -> bool:
        """Say whether a step with these groups needs a momentum buffer, and the session has none."""
        return not self._buffered and group_settings.heavy(groups)

    def check(self, present: Sequence[Place]) -> None:
        """Check that model and session are what they were; before step 1 the session takes the model's values."""
        if not present:
            return
        session, mirror = self.session, self.kept.mirror
        if session.chain != self._seen:
            now = session.step_number
            raise InvalidRequest(
                f"the session was moved to step {now} past this optimizer: these gradients are not for its parameters; "
                "optimizer.refresh() copies them into the model",
                step=now,
            )
        if check_untouched(mirror, session.step_number):
            session.set_parameters({place.name: place.tensor.detach() for place in self.kept.places})
            mirror.read()
            self._seen = session.chain

    def take(self, present: Sequence[Place], groups: Groups, loss: float | None) -> bool:
        """Take the step, into the buffer; return whether all parameters have to be written, not only those present."""
        session, mirror = self.session, self.kept.mirror
        gradient = mirror.gradients(present)
        settings = self._changed(groups)
        skipped = session.skipped
        self._open = True
        try:
            with self._answered():
                metrics = schedulers.remembered(groups)
                session.step(gradient, loss, settings=settings, metrics=metrics, out=mirror.room)
        except (StepConflict, StepSuperseded) as error:
            mirror.read()
            raise _left_open(error) from None
        except BaseException:
            mirror.read()  # an answer may have broken off in it
            raise
        # Where a bad gradient was skipped, the parameters were read anew, and others may have moved all of them.
        return session.skipped != skipped

    def state(self) -> state_dicts.State:
        """Read the state from the server, where it stands as this model does; raises as `read_state`."""
        return read_state(self.session, self.kept.places, self._kind, self.session.step_number, self.session.chain)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Have answers come in the model's dtype; whoever else reads the session gets what they chose."""
        before, self.session.answer_dtype = self.session.answer_dtype, self.kept.mirror.answer
        try:
            yield
        finally:
            self.session.answer_dtype = before
        self.kept.mirror.landed()

    def _changed(self, groups: Groups) -> dict[str, Any]:
        """Return the settings that the session does not have yet."""
        known = self.session.settings
        wanted = group_settings.settings(groups, self._members)
        found = {key: value for key, value in wanted.items() if value != known.get(key)}
        if not found.keys().isdisjoint(("name", *self._kind.fixed)):
            raise InvalidRequest(f"{', '.join(self._kind.fixed)} are fixed; make a new optimizer to change them")
        return found
