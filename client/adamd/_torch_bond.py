"""A session and the model that follows it: one step of both, and the watch that they stay together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from adamd import _torch_layout, _torch_settings, _torch_state
from adamd._torch_layout import Place
from adamd._torch_memory import Mirror
from adamd.errors import HistoryLost, InvalidRequest, StepSuperseded, WrongDtype, WrongLayout
from adamd.session import Session

Groups = Sequence[dict[str, Any]]


class Bond:
    """A session whose parameters the model's are.

    Args:
        session: of the groups' names, shapes and dtype.
        groups: the optimizer's ``param_groups``.
        adopt: copy the session's parameters and settings into the model and the groups; else they are the same already.

    Raises:
        WrongLayout, InvalidSettings: the session does not fit; nothing was copied.

    """

    def __init__(self, session: Session, groups: Groups, *, adopt: bool) -> None:
        self.session = session
        found = _torch_layout.places(groups)
        dtype = _torch_layout.check(found)
        mine = {place.name: tuple(place.tensor.shape) for place in found}
        if mine != {tensor.name: tensor.shape for tensor in session.layout.tensors} or session.dtype != dtype:
            raise WrongLayout("the session's tensors are not the parameters of this optimizer")
        named = {place.name: place for place in found}
        self._places = tuple(named[name] for name in session.layout.names)
        self._held = {id(place.tensor) for place in found}
        self._members = _torch_settings.members(found)
        self._mirror = Mirror(self._places, session.layout, dtype)
        with torch.no_grad():
            if adopt:
                with self._answered():
                    session.parameters(out=self._mirror.room)
                _torch_settings.adopt(groups, self._places, session.settings)
                self._mirror.write()
            else:
                self._mirror.read()
        self._seen = session.chain

    def step(self, groups: Groups, loss: float | None) -> None:
        """Send the gradients that there are, and what has changed in the groups; copy the answer into the model.

        Raises:
            InvalidRequest, WrongDtype: the model or the session is not what it was after the last step.
            AdamdError: whatever `Session.step` raises. The model is as it was, after any of them.

        """
        present = self._present(groups)
        if not present:
            return
        session = self.session
        self._check_followed()
        self._check_untouched()
        gradient = self._mirror.gradients(present)
        settings = self._changed(groups)
        skipped = session.skipped
        try:
            with self._answered():
                session.step(gradient, loss, settings=settings, out=self._mirror.room)
        except BaseException:
            self._mirror.read()  # an answer may have broken off in it
            raise
        # Where a bad gradient was skipped, the parameters were read anew, and others may have moved all of them.
        self._mirror.write(present if session.skipped == skipped else None)
        self._seen = session.chain

    def state(self) -> _torch_state.State:
        """Read the state from the server, where it stands as this model does.

        Raises:
            HistoryLost, StepSuperseded: it does not.

        """
        session = self.session
        found = _torch_state.unpack(session.export(), self._places)
        if found.chain != session.chain:
            kind = StepSuperseded if found.step > session.step_number else HistoryLost
            raise kind(
                f"the server is at step {found.step}, on another history than this model at {session.step_number}; "
                "optimizer.refresh() follows it",
                step=found.step,
            )
        return found.state

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Have answers come in the model's dtype; whoever else reads the session gets what they chose."""
        before, self.session.answer_dtype = self.session.answer_dtype, self._mirror.answer
        try:
            yield
        finally:
            self.session.answer_dtype = before

    def _present(self, groups: Groups) -> list[Place]:
        """Return the parameters that have a gradient."""
        given = {id(tensor) for group in groups for tensor in group["params"]}
        if given != self._held:
            raise InvalidRequest(
                "the parameters in param_groups are not those that the session was made with; add some with "
                "optimizer.add_param_group(), or make a new optimizer"
            )
        present = [place for place in self._places if place.tensor.grad is not None]
        for place in present:
            _torch_layout.check_gradient(place)
        return present

    def _changed(self, groups: Groups) -> dict[str, Any]:
        """Return the settings that the session does not have yet."""
        known = self.session.settings
        wanted = _torch_settings.settings(groups, self._members)
        found = {key: value for key, value in wanted.items() if value != known.get(key)}
        if not found.keys().isdisjoint(("name", "amsgrad")):
            raise InvalidRequest("amsgrad and decoupled_weight_decay are fixed; make a new optimizer to change them")
        return found

    def _check_followed(self) -> None:
        if self.session.chain != self._seen:
            now = self.session.step_number
            raise InvalidRequest(
                f"the session was moved to step {now} past this optimizer: these gradients are not for its parameters; "
                "optimizer.refresh() copies them into the model",
                step=now,
            )

    def _check_untouched(self) -> None:
        """Refuse a model that others have written to: the answer would overwrite it. Before step 1, take it over."""
        session = self.session
        suspects = self._mirror.suspects(every=session.step_number == 0)
        if not suspects:
            return
        for place in self._mirror.converted():
            raise WrongDtype(
                f"{place} was converted to {place.tensor.dtype}, the session was made before. Make the optimizer after "
                "the conversion"
            )
        differ = self._mirror.differ(suspects)
        if not differ:  # swapped out and back again, as for an average of the weights
            self._mirror.mark()
        elif session.step_number == 0:
            session.set_parameters({place.name: place.tensor.detach() for place in self._places})
            self._mirror.read()
            self._seen = session.chain
        else:
            names = ", ".join(str(place) for place in differ[:4]) + (", …" if len(differ) > 4 else "")
            raise InvalidRequest(
                f"{names}: changed since step {session.step_number} by something else than this optimizer, and the "
                "session's own would overwrite it. To go on from the changed values: "
                "optimizer.load_state_dict(optimizer.state_dict()); to drop them: optimizer.refresh()",
                step=session.step_number,
            )
