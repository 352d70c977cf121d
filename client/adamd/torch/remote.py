"""The machinery of every optimizer in `adamd.torch`: a `torch.optim.Optimizer` whose state lives at a server."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, Unpack

import torch

from adamd.client import Client, Durability, connect
from adamd.errors import AdamdError, InvalidRequest, InvalidState, WrongLayout
from adamd.sansio import settings_match
from adamd.sansio.options import Around, parted
from adamd.sansio.tracking import settings_document
from adamd.session import OnBadGradient, Session
from adamd.torch import group_settings, identity, kinds, parameters, schedulers, state_dicts
from adamd.torch.binding import Binding, Metrics
from adamd.torch.distributed import Ensemble, Ranks
from adamd.torch.kinds import Kind
from adamd.torch.lazy_state import LazyState
from adamd.torch.replacement import successor
from adamd.torch.schedulers import Resumed


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
    _given: frozenset[str]
    _held: LazyState
    _kind: ClassVar[Kind]
    _decoupled: ClassVar[bool | None] = None  # None: what the group says

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Note which arguments are given, so that only these are compared with a session that is resumed."""
        made: Self = super().__new__(cls)
        made._held = made._holder()
        made._given = group_settings.explicit_arguments(cls.__init__, given, named)
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
        self._bond: Binding | Ensemble | None = None
        self._made_up = False  # the constructor is through
        self._replaced: Session | None = None  # the one before load_state_dict or add_param_group
        self._own = False  # the state that the next session is made from is that session's
        self._loading: Mapping[str, Any] | None = None  # what load_state_dict reads now
        self._resumed: Resumed | None = None  # until the first step
        parameters.check_ordered(params)
        group_settings.check_as_torch(self._kind, self._decoupled, defaults)  # before the parameters, as torch does
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
        asked = group_settings.values(self.param_groups)  # before those of a session take their place
        found = None if session is None else self._metrics
        self._bond = self._bound(lambda: self._made(session), adopt=session is not None, resumed=found)
        self._made_up = True
        if self._bond.recalled is not None:
            self._welcome(asked, [self._given.union(item if isinstance(item, dict) else ()) for item in params])

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
        if self._ranks is not None or any(tensor.grad is not None for tensor in self._tensors()):
            bond = self._bonded()
            if self._resumed is not None:
                schedulers.resume_schedule(self, self._resumed)
                self._resumed = None
            with torch.no_grad():
                if not bond.step(self.param_groups, _scalar(loss), changed=self._held.changed()):
                    self._grow()
                    self._bonded().step(self.param_groups, _scalar(loss), changed=False)
            self._held.forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as torch does.

        Where the step before was left open, by Ctrl-C perhaps, the model first follows the session to where it is: the
        next gradients are then taken there. Not on ranks, where `refresh` does so on all of them.
        """
        if isinstance(self._bond, Binding):
            with torch.no_grad():
                if self._bond.settle():
                    self._held.forget()
        super().zero_grad(set_to_none)

    def refresh(self) -> None:
        """Follow the session to where it stands: its parameters into the model, its settings into ``param_groups``.

        For after `HistoryLost`, or when another client has stepped. A state that was loaded and not used is dropped.

        Raises:
            UnknownSession, SessionDeleted, WrongReplica: it is gone; `load_state_dict` makes a new one.

        """
        self._bond = self._bound(self._refreshed, adopt=True)
        self._replaced, self._resumed = None, None
        self._held.forget()

    def scheduled_lr(self) -> list[float]:
        """Return the lr that the next step takes, by param group: under a ``schedule`` not that in ``param_groups``.

        It asks the server. What a torch scheduler sets in ``param_groups`` is multiplied by the schedule's factor.
        """
        told = self.session.info()
        base = told["optimizer"]["lr"]
        factor = told["lr"] / base if base else 0.0
        return [one["lr"] * factor for one in group_settings.values(self.param_groups)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the settings in the layout of the ``state_dict()`` of torch's own, read from the server.

        Of narrow parameters the moments are float32, and their float32 value is beside them as "master_param".

        Raises:
            HistoryLost, StepSuperseded: the session is elsewhere than this model; `refresh` follows it.

        """
        if self._bond is not None and not self._held.changed():
            self._held.forget()  # another client may have moved the session since it was read
        first = self.register_state_dict_post_hook(lambda _, found: self._as_torchs(found), prepend=True)
        try:
            found: dict[str, Any] = super().state_dict()
            return found
        finally:
            first.remove()

    def _as_torchs(self, found: dict[str, Any]) -> None:
        """Leave out what torch has not: entries without anything, and of frozen parameters that were never updated."""
        tensors = list(self._tensors())
        state = found["state"]
        for key in [key for key in state if isinstance(key, int) and key < len(tensors)]:
            if not state[key] or not (tensors[key].requires_grad or state_dicts.has_updates(state[key], self._kind)):
                del state[key]

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
            InvalidState: it is another optimizer's, or arrays are missing, or of other shapes, or none that an update
                could follow from. After any error nothing was changed, also where a hook raised it.

        """
        state_dicts.check_document(state_dict)
        self._check_kind(state_dict)
        before = self._held, self.param_groups, self._bond, self._replaced, self._resumed, self._own

        def noted(_: Any, found: Mapping[str, Any]) -> None:
            state_dicts.check_document(found)
            self._loading = found

        last = self.register_load_state_dict_pre_hook(noted)  # after the user's own
        try:
            super().load_state_dict(state_dict)  # comes to __setstate__, and then to the user's hooks
        except BaseException:
            self._held, self.param_groups, self._bond, self._replaced, self._resumed, self._own = before
            raise
        finally:
            self._loading = None
            last.remove()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as of layers that are trained from now on.

        The next step makes a new session with them and with the state so far; a name moves to it, and the old session
        is deleted. Who resumes it by name later gives all of these groups at once.

        Raises:
            WrongDtype, WrongLayout: see `Adam`; nothing was added.

        """
        if isinstance(param_group, dict):  # else torch says so
            parameters.check_ordered(param_group.get("params"))
        super().add_param_group(param_group)
        if not self._made_up:
            return
        added = self.param_groups.pop()
        try:
            if self._bond is not None and self._leads():
                self._held.fill()  # with what there is, before another parameter is among them
            self.param_groups.append(added)
            self._check()
        except BaseException:
            if self.param_groups and self.param_groups[-1] is added:
                self.param_groups.pop()
            raise
        self._own = self._bond is not None or self._own
        self._unbind()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `load_state_dict` read, if all of it fits; an older torch saved fewer keys."""
        kept, saved = {**state}, self._loading
        loaded = kept.pop("state")
        if saved is not None:
            state_dicts.check_names(saved["param_groups"], kept["param_groups"], self.param_groups)
        super().__setstate__(kept)
        for group in self.param_groups:
            for key, default in self._kind.defaults.items():
                if key not in _NEEDED:
                    group.setdefault(key, default)
            if self._decoupled:  # AdamW stays AdamW, whatever it loads; Adam becomes what it loads: both as in torch
                group["decoupled_weight_decay"] = True
        if saved is not None:
            state_dicts.uncast(loaded, self.param_groups, saved)
        self._check()
        for group in self.param_groups:
            # which a scheduler may have brought to 0, and torch's constructor does not take with nesterov
            moving = {"momentum": group["momentum"] or 1.0} if group.get("nesterov") else {}
            group_settings.check_as_torch(self._kind, self._decoupled, {**group, **moving})
        places = parameters.places(self.param_groups)
        state_dicts.check(places, loaded, self.param_groups, self._kind)
        group_settings.settings(self.param_groups, group_settings.members(places))  # they can be said
        for place in places:
            mine = loaded.get(place.tensor)
            entry = mine or state_dicts.initial_entry(place, self.param_groups[place.group], self._kind)
            # torch keeps the tensors themselves; whoever saved them may go on
            loaded[place.tensor] = {name: _copied(value) for name, value in entry.items()}
        self._held = self._holder()
        self._held.take(loaded)
        self._own, self._resumed = False, None
        self._unbind()

    @property
    def state(self) -> LazyState:
        """An entry for each parameter, from the first moment: read from the server when it is looked into.

        Whoever writes into it changes the optimizer, as in torch: the next step makes a new session from it.
        """
        return self._held

    @state.setter
    def state(self, given: Mapping[Any, Any]) -> None:
        if not getattr(self, "_made_up", False):  # torch's constructor
            return
        self._held.clear()
        self._held.update(given)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be pickled or copied: two optimizers on one session would take each other's steps."""
        raise TypeError("an adamd optimizer cannot be pickled or copied; save optimizer.state_dict() instead")

    # -- sessions

    def _check(self) -> None:
        """Refuse what no session takes."""
        parameters.check(parameters.places(self.param_groups))
        group_settings.fixed(self.param_groups)

    def _check_kind(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse another optimizer's state. What an older torch saved may look like a plainer one's."""
        found = kinds.kind_of(state_dict["param_groups"])
        older = found is kinds.ADAMAX and self._kind is kinds.RADAM
        if found is not self._kind and not older:
            raise InvalidState(
                f"the state is of {found.torch}, this optimizer is {type(self).__name__}; load it into "
                f"adamd.torch.{found.torch}"
            )

    def _made(self, name: str | None) -> Session:
        """Create the first session, or open the one of this name."""
        places = parameters.places(self.param_groups)
        settings = group_settings.settings(self.param_groups, group_settings.members(places))
        given = {place.name: place.tensor for place in places}
        options = {"optimizer": settings.pop("name"), **settings, **self._around, **self._options}
        if name is None:
            return self._client.create(given, **options)
        try:
            return self._client.open(name, given, **options, on_other_settings="keep")  # adopted, and told
        except WrongLayout as error:
            raise self._named_otherwise(name, error) from None

    def _named_otherwise(self, name: str, error: WrongLayout) -> WrongLayout:
        """Say it where a session's tensors have names and these have none, or the other way round."""
        try:
            theirs = identity.by_position(self._client.session(name).layout.names)
        except AdamdError:
            return error
        mine = not any(group.get("param_names") for group in self.param_groups)
        if theirs == mine:
            return error
        how = "model.parameters(), in the order of then" if theirs else "model.named_parameters()"
        said = f"it was made {'without' if theirs else 'with'} names, and is resumed with {how}"
        return WrongLayout(f"{error.detail}. Or the names are all that differs: {said}", step=error.step)

    def _welcome(self, asked: list[dict[str, Any]], own: list[frozenset[str]]) -> None:
        """Set what schedulers need of a session that is resumed, and tell what is otherwise than the script has it.

        Args:
            asked: the groups' settings as the script has them.
            own: which of them it gives, by group.

        """
        bond, groups = self._bonded(), self.param_groups
        recalled, step = bond.recalled or [{} for _ in groups], bond.step_number
        for index, group in enumerate(groups):
            first = asked[index]["lr"] if "lr" in own[index] else group["lr"]
            for key, value in {"initial_lr": first, **recalled[index]}.items() if step else ():
                group.setdefault(key, _copied(value))
        who = f"session {bond.session.name or bond.session.id!r}" if self._leads() else "the session"
        if step:
            rates = tuple(one["lr"] for one in group_settings.values(groups))
            self._resumed = Resumed(who, step, rates, tuple(one.get("initial_lr") for one in recalled))
        if not self._leads():
            return
        changed = group_settings.overruled(asked, groups, own, recalled)
        how = "set them in optimizer.param_groups now"
        if any(one.startswith("lr is ") for one in changed):
            how = f"{how}. If a torch scheduler brought lr there: {schedulers.how_to_go_on(step)}"
        schedulers.warn_overruled(who, step, changed, how)
        schedulers.warn_overruled(who, step, self._differing(), "change them by optimizer.session.update(…)")
        schedulers.warn_doubt(who, bond.doubt)

    def _metrics(self, ref: str) -> Mapping[str, Any]:
        """Return what the last step of a session has told."""
        told: Mapping[str, Any] = next(self._client.watch(ref)).get("metrics") or {}
        return told

    def _differing(self) -> list[str]:
        """Return in words what surrounds the update in a session that is resumed otherwise than was given."""
        known = self.session.settings
        given = settings_document(self._around)
        if not settings_match.differing(given, known):
            return []
        defaults = self._client.info()["settings"][known["name"]]
        return settings_match.said(settings_match.differing(given, {**defaults, **known}))

    def _holder(self) -> LazyState:
        """Return a state that reads from here, without keeping this alive."""
        me = weakref.ref(self)
        return LazyState(
            lambda: () if (mine := me()) is None else mine._tensors(),
            lambda: {} if (mine := me()) is None else mine._read(),
        )

    def _tensors(self) -> Iterator[torch.Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _read(self) -> state_dicts.State:
        """Read the state from the server."""
        return {} if self._bond is None else self._bond.state()

    def _grow(self) -> None:
        """Let another session take the place of this one, with the state as it is now and what the groups need."""

        def ready() -> None:
            self._held.fill()
            places = parameters.places(self.param_groups)
            state_dicts.check(places, self._held, self.param_groups, self._kind)

        ready() if self._ranks is None else self._ranks.lead(ready)
        self._own = True
        self._unbind()

    def _leads(self) -> bool:
        return self._ranks is None or self._ranks.leads

    def _bound(self, make: Callable[[], Session], *, adopt: bool, resumed: Metrics | None = None) -> Binding | Ensemble:
        """Bind the model to a session, which rank 0 makes."""
        if self._ranks is None:
            return Binding(make(), self.param_groups, adopt=adopt, resumed=resumed)
        return Ensemble(self._ranks, make, self.param_groups, adopt=adopt, resumed=resumed, client=self._client)

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

    def _bonded(self) -> Binding | Ensemble:
        if self._bond is None:
            self._bond = self._bound(self._restored, adopt=False)
            self._replaced, self._own = None, False
            self._held.forget()
        return self._bond

    def _restored(self) -> Session:
        """Restore a session from ``self.state`` and the model, in place of the one before and under its name."""
        old, groups = self._latest(), self.param_groups
        return successor(self._client, old, groups, self._held, self._around, self._options, own=self._own)


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
