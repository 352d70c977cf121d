"""The machinery of every optimizer in `adamd.torch`: a `torch.optim.Optimizer` whose state lives at a server."""

from __future__ import annotations

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, Unpack

import torch

from adamd import _resuming, _torch_kinds, _torch_layout, _torch_settings, _torch_state
from adamd._around import Around, parted
from adamd._torch_bond import Bond
from adamd._torch_kinds import Kind
from adamd._torch_ranks import Ensemble, Ranks
from adamd._torch_successor import successor
from adamd._track import settings_document
from adamd.client import Client, Durability, connect
from adamd.errors import InvalidRequest, InvalidState
from adamd.session import OnBadGradient, Session


class Remote(torch.optim.Optimizer):  # type: ignore[misc]  # torch is absent where the house's mypy runs
    """A torch optimizer at a server. A subclass says which, and has torch's own signature.

    Args:
        params: as `adamd.torch.Adam` takes them.
        defaults: the class's settings, by torch's names.
        url: and the others: as in `adamd.torch.Adam`.
        client: as there.
        session: as there.
        durability: as there.
        labels: as there.
        on_bad_gradient: as there.
        timeout: as there.
        process_group: as there.
        around: as there.

    """

    param_groups: list[dict[str, Any]]
    state: defaultdict[Any, Any]
    _given: frozenset[str]
    _kind: ClassVar[Kind]
    _decoupled: ClassVar[bool | None] = None  # None: what the group says

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Note which arguments are given, so that only these are compared with a session that is resumed."""
        made: Self = super().__new__(cls)
        made._given = _torch_settings.named(cls.__init__, given, named)
        return made

    def __init__(
        self,
        params: Iterable[Any],
        defaults: Mapping[str, Any],
        *,
        url: str | None = None,
        client: Client | None = None,
        session: str | None = None,
        durability: Durability = "committed",
        labels: Mapping[str, str] | None = None,
        on_bad_gradient: OnBadGradient = "raise",
        timeout: Any = None,
        process_group: Any = None,
        **around: Unpack[Around],
    ) -> None:
        self._around, travel = parted(around, type(self).__name__)
        self._bond: Bond | Ensemble | None = None
        self._made_up = False  # the constructor is through
        self._asked: list[dict[str, Any]] = []  # the groups' settings, before those of a session take their place
        self._replaced: Session | None = None  # the one before load_state_dict or add_param_group
        params = params if isinstance(params, torch.Tensor) else list(params)
        super().__init__(params, {**self._kind.defaults, **defaults})
        self._ranks = Ranks.of(process_group)
        if self._ranks is None:  # else all ranks check together, in Ensemble
            self._check()
        if client is not None and (url is not None or timeout is not None):
            raise InvalidRequest("give a client, or a url and a timeout of a new one, not both")
        self._client = connect(url, timeout=timeout) if client is None else client
        self._close = weakref.finalize(self, self._client.close if client is None else _nothing)
        self._options: dict[str, Any] = {
            "durability": durability,
            "labels": labels,
            "on_bad_gradient": on_bad_gradient,
            **travel,
        }
        self._bond = self._bound(lambda: self._made(session), adopt=session is not None)
        self._made_up = True
        if self._asked:
            own = [self._given.union(item if isinstance(item, dict) else ()) for item in params]
            changed = _torch_settings.overruled(self._asked, self.param_groups, own)
            self._tell_overruled(changed, "set them in optimizer.param_groups now")
            self._tell_overruled(self._differing(), "change them by optimizer.session.update(…)")

    @property
    def session(self) -> Session:
        """The session, made now if `load_state_dict` or `add_param_group` asked for a new one; on ranks, by a step."""
        if self._bond is None and self._ranks is not None:
            raise InvalidRequest("the new session is made by the next step, on all ranks together")
        return self._bonded().session

    def close(self) -> None:
        """Close the connections. The session lives on, at the server; so does a client that was given."""
        self._close()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step at the server, and copy the new parameters into the model.

        Args:
            closure: reevaluates the model and returns the loss, which is recorded as the step's metric.

        Returns:
            What the closure returned. Without any gradient nothing is sent.

        Raises:
            InvalidRequest: someone else wrote to the parameters, or a gradient is sparse; nothing was sent.
            BadGradient: NaN, infinity, or a square that overflows; nothing was counted. Not with "skip".
            InvalidSettings: a hyperparameter in ``param_groups`` is out of range; nothing was counted.
            StepConflict, StepSuperseded, HistoryLost: the session is elsewhere than this model; `refresh` follows it.
            Diverged: a parameter is no longer finite.
            RetriesExhausted: no answer in time. The same step again is safe, and tells whether it counted.

        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = (tensor.grad for group in self.param_groups for tensor in group["params"])
        if self._ranks is not None or any(gradient is not None for gradient in given):
            bond = self._bonded()
            with torch.no_grad():
                bond.step(self.param_groups, _scalar(loss))
        return loss

    def refresh(self) -> None:
        """Follow the session to where it stands: its parameters into the model, its settings into ``param_groups``.

        For after `HistoryLost`, or when another client has stepped. A state that was loaded and not used is dropped.

        Raises:
            UnknownSession, SessionDeleted, WrongReplica: it is gone; `load_state_dict` makes a new one.

        """
        self._bond = self._bound(self._refreshed, adopt=True)
        self.state, self._replaced = defaultdict(dict), None

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the settings in the layout of the ``state_dict()`` of torch's own, read from the server.

        Of narrow parameters the moments are float32, and their float32 value is beside them as "master_param".

        Raises:
            HistoryLost, StepSuperseded: the session is elsewhere than this model; `refresh` follows it.

        """
        if self._bond is not None:
            self.state = defaultdict(dict, self._bond.state())
        try:
            found: dict[str, Any] = super().state_dict()
            return found
        finally:
            if self._bond is not None:
                self.state = defaultdict(dict)  # the next step would make the copy old

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state: this class's, or that of torch's own.

        The next step (or ``optimizer.session``) makes a new session from it and the model's parameters as they are
        then (of narrow ones the "master_param", if it rounds to what the model has); a name moves to it, and the old
        session is deleted. So the model may be loaded before or after, and
        ``optimizer.load_state_dict(optimizer.state_dict())`` goes on from parameters that were changed by hand.

        Args:
            state_dict: as ``torch.load(path, weights_only=True)`` gives it.

        Raises:
            ValueError: it has other groups.
            InvalidState: it is another optimizer's, or arrays are missing, or of other shapes; nothing was changed.

        """
        self._check_kind(state_dict)
        before = self.state, self.param_groups
        given = list[dict[str, Any]]()
        last = self.register_load_state_dict_pre_hook(lambda _, found: given.append(found))  # after the user's own
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        try:
            _torch_state.uncast(self.state, self.param_groups, given[0])
            self._check()
            places = _torch_layout.places(self.param_groups)
            _torch_state.check(places, self.state, self.param_groups[0], self._kind)
        except BaseException:
            self.state, self.param_groups = before
            raise
        for key, mine in self.state.items():  # torch keeps the tensors themselves; whoever saved them may go on
            self.state[key] = {name: _copied(value) for name, value in mine.items()} if mine else mine
        self._unbind()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as of layers that are trained from now on.

        The next step makes a new session with them and with the state so far; a name moves to it, and the old session
        is deleted. Who resumes it by name later gives all of these groups at once.

        Raises:
            WrongDtype, WrongLayout: see `Adam`; nothing was added.

        """
        super().add_param_group(param_group)
        if not self._made_up:
            return
        try:
            self._check()
            if self._bond is not None and self._leads():
                self.state = defaultdict(dict, self._bond.state())
        except BaseException:
            self.param_groups.pop()
            raise
        self._unbind()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `load_state_dict` read; an older torch saved fewer keys."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key, default in self._kind.defaults.items():
                if key not in _NEEDED:
                    group.setdefault(key, default)
            if self._decoupled:  # AdamW stays AdamW, whatever it loads; Adam becomes what it loads: both as in torch
                group["decoupled_weight_decay"] = True

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be pickled or copied: two optimizers on one session would take each other's steps."""
        raise TypeError("an adamd optimizer cannot be pickled or copied; save optimizer.state_dict() instead")

    # -- sessions

    def _check(self) -> None:
        """Refuse what no session takes."""
        _torch_layout.check(_torch_layout.places(self.param_groups))
        _torch_settings.fixed(self.param_groups)

    def _check_kind(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse another optimizer's state. What an older torch saved may look like a plainer one's."""
        found = _torch_kinds.kind_of(state_dict["param_groups"])
        older = found is _torch_kinds.ADAMAX and self._kind is _torch_kinds.RADAM
        if found is not self._kind and not older:
            raise InvalidState(
                f"the state is of {found.torch}, this optimizer is {type(self).__name__}; load it into "
                f"adamd.torch.{found.torch}"
            )

    def _made(self, name: str | None) -> Session:
        """Create the first session, or open the one of this name."""
        places = _torch_layout.places(self.param_groups)
        settings = _torch_settings.settings(self.param_groups, _torch_settings.members(places))
        given = {place.name: place.tensor for place in places}
        options = {"optimizer": settings.pop("name"), **settings, **self._around, **self._options}
        if name is None:
            return self._client.create(given, **options)
        self._asked = _torch_settings.values(self.param_groups)
        return self._client.open(name, given, **options, on_other_settings="keep")  # adopted, and told

    def _differing(self) -> list[str]:
        """Return in words what surrounds the update in a session that is resumed otherwise than was given."""
        known = self.session.settings
        given = settings_document(self._around)
        if not _resuming.differing(given, known):
            return []
        defaults = self._client.info()["settings"][known["name"]]
        return _resuming.said(_resuming.differing(given, {**defaults, **known}))

    def _tell_overruled(self, found: list[str], how: str) -> None:
        """Warn of settings that were given, and are not the session's: it keeps its own, as a loaded state would."""
        if found:
            session = self.session
            warnings.warn(
                f"session {session.name or session.id!r} is resumed at step {session.step_number} with its own "
                f"settings, as load_state_dict() would: {'; '.join(found)}. To go on with others, {how}; "
                "else give those of the session, or leave them out",
                UserWarning,
                stacklevel=4,
            )

    def _leads(self) -> bool:
        return self._ranks is None or self._ranks.leads

    def _bound(self, make: Callable[[], Session], *, adopt: bool) -> Bond | Ensemble:
        """Bind the model to a session, which rank 0 makes."""
        if self._ranks is None:
            return Bond(make(), self.param_groups, adopt=adopt)
        return Ensemble(self._ranks, make, self.param_groups, adopt=adopt, client=self._client)

    def _refreshed(self) -> Session:
        session = self._latest()
        session.refresh()
        return session

    def _latest(self) -> Session:
        """Return the session that there is, or the one that is about to be replaced."""
        session = self._replaced if self._bond is None else self._bond.session
        assert session is not None
        return session

    def _unbind(self) -> None:
        """Let the next step make a new session from ``self.state``."""
        self._replaced, self._bond = self._latest() if self._leads() else None, None

    def _bonded(self) -> Bond | Ensemble:
        if self._bond is None:
            self._bond = self._bound(self._restored, adopt=False)
            self._replaced, self.state = None, defaultdict(dict)
        return self._bond

    def _restored(self) -> Session:
        """Restore a session from ``self.state`` and the model, in place of the one before and under its name."""
        return successor(self._client, self._latest(), self.param_groups, self.state, self._around, self._options)


_NEEDED = ("lr", "betas", "eps", "weight_decay")  # what every torch has saved


def _scalar(loss: Any) -> float | None:
    """Return a closure's loss where it is one number."""
    if isinstance(loss, torch.Tensor):
        return float(loss.detach().item()) if loss.numel() == 1 and not loss.is_complex() else None
    return float(loss) if isinstance(loss, int | float) else None


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _nothing() -> None:
    """Close a client that is not ours."""
