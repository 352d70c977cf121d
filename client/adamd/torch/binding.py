"""Binds a model to its session: one step of both, and the check that they have not drifted apart.

A step, in `Binding.step`:

1. `Binding.check_drift` notices a session or a model that something else has changed since the last step.
2. `Binding.send_gradients` sends the gradient to the server. The answer arrives in the mirror's host buffer.
3. `Mirror.write_to_model` copies the answer from there into the model's tensors.
"""

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
from adamd.torch.kinds import Kind, has_momentum_buffer, kind_of
from adamd.torch.parameters import ParameterPlace
from adamd.wire.layout import Layout

Groups = Sequence[dict[str, Any]]
Metrics = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class BoundParameters:
    """The parameters in the session's order, the ids of their tensors, and the session's values of them."""

    places: tuple[ParameterPlace, ...]
    tensor_ids: frozenset[int]
    mirror: Mirror


class Binding:
    """A session, and the model whose parameters equal the session's.

    Args:
        session: has the groups' names, shapes and dtype.
        groups: the optimizer's ``param_groups``.
        adopt: copy the session's parameters and settings into the model and the groups; else both are equal already.
        metrics_of: returns the metrics of a session's last step. Given where the session may be a resumed one: then
            the order of tensors without names is checked, and what schedulers left in the metrics is read.

    Attributes:
        session: the session.
        bound: the parameters that are bound to it.
        doubt: how many tensors without names may be in another order than the session's.
        scheduler_values: what schedulers left in the metrics, by group; None where it was not read.

    Raises:
        WrongLayout, WrongDtype, InvalidSettings: the session does not fit; nothing was copied.

    """

    def __init__(self, session: Session, groups: Groups, *, adopt: bool, metrics_of: Metrics | None = None) -> None:
        self.session = session
        self.doubt = 0
        self.scheduler_values: list[dict[str, float]] | None = None
        self._kind = kind_of(groups)
        self._buffered = has_momentum_buffer(session.settings)
        self.bound = bind_parameters(groups, session.layout, session.dtype, session.answer_dtype)
        self._members = group_settings.members(self.bound.places)
        mirror = self.bound.mirror
        with torch.no_grad():
            if adopt:
                with self._answers_in_model_dtype():
                    session.parameters(out=mirror.answer_buffer)
                if metrics_of is not None:
                    self.doubt = count_doubtful(self.bound)
                    metrics = metrics_of(session.id) if session.step_number else {}
                    self.scheduler_values = schedulers.from_metrics(metrics, groups)
                group_settings.adopt(groups, self.bound.places, session.settings)
                mirror.write_to_model()
            else:
                mirror.read_from_model()
        self._model_chain = session.chain  # where the model is; another chain of the session means drift
        self._step_open = False

    @property
    def step_number(self) -> int:
        """The session's."""
        return self.session.step_number

    def step(self, groups: Groups, loss: float | None, *, changed: bool) -> bool:
        """Send the gradients and the changed settings to the server, and copy the answer into the model.

        Args:
            groups: the optimizer's ``param_groups``.
            loss: recorded as the step's metric.
            changed: the optimizer's state was written to.

        Returns:
            False, and does nothing, where the step needs another session: the state was changed, or the groups need
            arrays that this session does not have.

        Raises:
            InvalidRequest, WrongDtype: the model or the session is not what it was after the last step.
            AdamdError: whatever `Session.step` raises. The model is as it was, after any of them.

        """
        present = with_gradient(self.bound, groups, self._kind)
        if not present:
            return True
        self.check_drift(present)
        if changed or self.lacks_buffer(groups):
            return False
        all_moved = self.send_gradients(present, groups, loss)
        self.bound.mirror.write_to_model(None if all_moved else present)
        self.mark_followed()
        return True

    def check_drift(self, present: Sequence[ParameterPlace]) -> None:
        """Refuse a session or model that moved since the last step. Before step 1 the session takes the model's values.

        Raises:
            InvalidRequest, WrongDtype: one of them moved; nothing was sent.

        """
        if not present:
            return
        session, mirror = self.session, self.bound.mirror
        if session.chain != self._model_chain:
            now = session.step_number
            raise InvalidRequest(
                f"the session was moved to step {now} past this optimizer: these gradients are not for its parameters; "
                "optimizer.refresh() copies them into the model",
                step=now,
            )
        if check_model_untouched(mirror, session.step_number):
            session.set_parameters({place.name: place.tensor.detach() for place in self.bound.places})
            mirror.read_from_model()
            self._model_chain = session.chain

    def send_gradients(self, present: Sequence[ParameterPlace], groups: Groups, loss: float | None) -> bool:
        """Send the step; the answer arrives in the mirror's buffer. Return whether any parameter may have moved."""
        session, mirror = self.session, self.bound.mirror
        gradient = mirror.gather_gradients(present)
        settings = self._changed_settings(groups)
        skipped = session.skipped
        self._step_open = True
        try:
            with self._answers_in_model_dtype():
                metrics = schedulers.as_metrics(groups)
                session.step(gradient, loss, settings=settings, metrics=metrics, out=mirror.answer_buffer)
        except (StepConflict, StepSuperseded) as error:
            mirror.read_from_model()
            raise _explain_left_open(error) from None
        except BaseException:
            mirror.read_from_model()  # an answer may have broken off in the buffer
            raise
        # Where a bad gradient was skipped, the parameters were read anew, and others may have moved all of them.
        return session.skipped != skipped

    def mark_followed(self) -> None:
        """Note that the model has the answer. Until then the step is open, whatever interrupts it."""
        self._model_chain, self._step_open = self.session.chain, False

    def follow_open_step(self) -> bool:
        """Bring the model to where the session is after an interrupted step (Ctrl-C); return whether there was one.

        Only the server knows whether the step counts, so its parameters are read. A model that something else has
        written to meanwhile is left alone.
        """
        session, mirror = self.session, self.bound.mirror
        if not self._step_open or (session.left_open is None and session.chain == self._model_chain):
            return False
        if mirror.differing(mirror.suspects(everything=False)):
            return False
        try:
            with self._answers_in_model_dtype():
                session.parameters(out=mirror.answer_buffer)
        except BaseException:
            mirror.read_from_model()
            raise
        mirror.write_to_model()
        self.mark_followed()
        return True

    def lacks_buffer(self, groups: Groups) -> bool:
        """Say whether a step with these groups needs a momentum buffer, and the session has none."""
        return not self._buffered and group_settings.needs_momentum_buffer(groups)

    def state(self) -> state_dicts.State:
        """Read the state from the server; raises as `read_state`."""
        return read_state(self.session, self.bound.places, self._kind, self.session.step_number, self.session.chain)

    @contextmanager
    def _answers_in_model_dtype(self) -> Iterator[None]:
        """Have answers come in the model's dtype meanwhile; the user's own reads come in the dtype they chose."""
        before, self.session.answer_dtype = self.session.answer_dtype, self.bound.mirror.answer_dtype
        try:
            yield
        finally:
            self.session.answer_dtype = before
        self.bound.mirror.widen_answer()

    def _changed_settings(self, groups: Groups) -> dict[str, Any]:
        """Return the settings that the session does not have yet."""
        current = self.session.settings
        settings = group_settings.settings(groups, self._members)
        changed = {key: value for key, value in settings.items() if value != current.get(key)}
        if not changed.keys().isdisjoint(("name", *self._kind.fixed)):
            raise InvalidRequest(f"{', '.join(self._kind.fixed)} are fixed; make a new optimizer to change them")
        return changed


# -- what `Binding` and `Ensemble` share


def bind_parameters(
    groups: Groups, layout: Layout, dtype: str | None = None, answer_dtype: str | None = None
) -> BoundParameters:
    """Find a session's tensors in the groups.

    Args:
        groups: the optimizer's ``param_groups``.
        layout: the session's.
        dtype: the session's; None: not compared.
        answer_dtype: the dtype that the user chose for answers; None: the session's.

    Raises:
        WrongLayout: the groups have other tensors, or tensors of another dtype.
        WrongDtype: answers cannot come in ``answer_dtype``.

    """
    places = parameters.places(groups)
    model_dtype = parameters.check(places)
    shapes = {place.name: tuple(place.tensor.shape) for place in places}
    if shapes != {tensor.name: tensor.shape for tensor in layout.tensors} or dtype not in (None, model_dtype):
        raise WrongLayout("the session's tensors are not the parameters of this optimizer")
    by_name = {place.name: place for place in places}
    ordered = tuple(by_name[name] for name in layout.names)
    ids = frozenset(id(place.tensor) for place in places)
    return BoundParameters(ordered, ids, Mirror(ordered, layout, model_dtype, answer_dtype))


def count_doubtful(bound: BoundParameters) -> int:
    """Return how many tensors of a session without names may be in another order; 0 where their values show the order.

    Raises:
        WrongLayout: they are certainly in another order.

    """
    if not identity.by_position([place.name for place in bound.places]):
        return 0
    doubt = identity.compare(bound.places, bound.mirror.views)
    return 0 if doubt is None else doubt.tensors


def with_gradient(bound: BoundParameters, groups: Groups, kind: Kind) -> list[ParameterPlace]:
    """Return the parameters that have a gradient.

    Raises:
        InvalidRequest: the groups have other parameters than the session, or a gradient is sparse.

    """
    if {id(tensor) for group in groups for tensor in group["params"]} != bound.tensor_ids:
        raise InvalidRequest(
            "the parameters in param_groups are not those that the session was made with; add some with "
            "optimizer.add_param_group(), or make a new optimizer"
        )
    present = [place for place in bound.places if place.tensor.grad is not None]
    for place in present:
        parameters.check_gradient(place, kind.torch)
    return present


def check_model_untouched(mirror: Mirror, step: int) -> bool:
    """Refuse a model that something else wrote to: the answer would overwrite it. Return whether it did before step 1.

    Raises:
        InvalidRequest, WrongDtype: it wrote to the model, or converted it.

    """
    suspects = mirror.suspects(everything=step == 0)
    if not suspects:
        return False
    for place in mirror.converted():
        raise WrongDtype(
            f"{place} was converted to {place.tensor.dtype}, the session was made before. Make the optimizer after "
            "the conversion"
        )
    differing = mirror.differing(suspects)
    if not differing:  # swapped out and back again, as for an average of the weights
        mirror.remember_versions()
    elif step > 0:
        names = ", ".join(str(place) for place in differing[:4]) + (", …" if len(differing) > 4 else "")
        raise InvalidRequest(
            f"{names}: changed since step {step} by something else than this optimizer, and the "
            "session's own would overwrite it. To go on from the changed values: "
            "optimizer.load_state_dict(optimizer.state_dict()); to drop them: optimizer.refresh(). To clamp after each "
            "step, make the optimizer with lower=… and upper=…: the server keeps them",
            step=step,
        )
    return bool(differing)


def read_state(
    session: Session, places: Sequence[ParameterPlace], kind: Kind, step: int, chain: str
) -> state_dicts.State:
    """Read the state from the server.

    Raises:
        HistoryLost, StepSuperseded: the server is not at ``step`` of ``chain``, where the model is.

    """
    unpacked = state_dicts.unpack(session.export(), places, kind, rounded=session.answer_dtype is not None)
    if unpacked.chain != chain:
        moved = StepSuperseded if unpacked.step > step else HistoryLost
        raise moved(
            f"the server is at step {unpacked.step}, on another history than this model at {step}; "
            "optimizer.refresh() follows it",
            step=unpacked.step,
        )
    return unpacked.state


def _explain_left_open(error: StepConflict | StepSuperseded) -> AdamdError:
    """Say what to do with a model whose step before was interrupted."""
    number = error.extra.get("left_open")
    if number is None:
        return error
    error.reword(
        f"step {number} was sent before, and its answer was not waited for (Ctrl-C, or a time-out); it counts, and the "
        "model is at the parameters before it. So these gradients, which are others, were not applied. "
        "optimizer.refresh() brings the model to where the session is; so does optimizer.zero_grad(), before the next "
        "gradients are computed"
    )
    return error
