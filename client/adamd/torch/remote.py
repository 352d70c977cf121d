"""The base of every optimizer in `adamd.torch`: a `torch.optim.Optimizer` whose state lives at a server.

`Remote.step` hands a step to `binding.Binding` (or, on several ranks, to `distributed.Ensemble`), which notices drift,
sends the gradient and copies the answer into the model. This module keeps the binding, and replaces its session where
`load_state_dict`, `add_param_group` or a write to ``optimizer.state`` asks for another.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, Unpack

import torch

from adamd.client import Client, Durability, connect
from adamd.errors import InvalidRequest, InvalidState
from adamd.sansio.options import Around, split_options
from adamd.session import OnBadGradient, Session
from adamd.torch import group_settings, kinds, parameters, resuming, schedulers, state_dicts
from adamd.torch.binding import Binding, Metrics
from adamd.torch.distributed import AnyBinding, Ensemble, Ranks
from adamd.torch.kinds import Kind
from adamd.torch.lazy_state import LazyState
from adamd.torch.replacement import successor
from adamd.torch.schedulers import Resumed


class Remote(torch.optim.Optimizer):  # type: ignore[misc]  # torch is absent where the house's mypy runs
    """A torch optimizer at a server. A subclass names its `Kind`, and has the signature of torch's own class.

    ``defaults`` are the subclass's settings by torch's names. All other arguments are those of `adamd.torch.Adam`.
    """

    param_groups: list[dict[str, Any]]
    _explicit: frozenset[str]  # the arguments that the caller passed
    _state: LazyState
    _kind: ClassVar[Kind]
    _decoupled: ClassVar[bool | None] = None  # None: the group's setting decides

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note which arguments the caller passed: only these are compared with a session that is resumed."""
        optimizer: Self = super().__new__(cls)
        optimizer._state = optimizer._lazy_state()
        optimizer._explicit = group_settings.explicit_arguments(cls.__init__, args, kwargs)
        return optimizer

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
        self._surroundings, travel = split_options(around, type(self).__name__)
        self._binding: AnyBinding | None = None  # None: the next step restores a session
        self._constructed = False
        self._replaced: Session | None = None  # the session before load_state_dict or add_param_group
        self._continues = False  # the next session's state is the replaced session's own
        self._loading: Mapping[str, Any] | None = None  # the document of a load_state_dict under way
        self._resumed: Resumed | None = None  # until the first step
        parameters.check_ordered(params)
        group_settings.check_as_torch(self._kind, self._decoupled, defaults)  # first, as in torch
        params = params if isinstance(params, torch.Tensor) else list(params)
        super().__init__(params, {**self._kind.defaults, **defaults})
        self._ranks = Ranks.of(process_group)
        if self._ranks is None:  # on several ranks all check together, in Ensemble
            self._check()
        if client is not None and (url is not None or timeout is not None):
            raise InvalidRequest("give a client, or a url and a timeout of a new one, not both")
        self._client = connect(url, timeout=timeout) if client is None else client
        self._close = weakref.finalize(self, self._client.close if client is None else _nothing)
        options = {"durability": durability, "labels": labels, "on_bad_gradient": on_bad_gradient}
        self._options: dict[str, Any] = options | travel
        script = group_settings.values(self.param_groups)  # before a resumed session's settings replace them
        adopt = session is not None
        metrics_of: Metrics | None = (lambda ref: resuming.last_metrics(self._client, ref)) if adopt else None
        self._binding = self._bind(lambda: self._first_session(session), adopt=adopt, metrics_of=metrics_of)
        self._constructed = True
        if self._binding.scheduler_values is not None:
            explicit = [self._explicit.union(item if isinstance(item, dict) else ()) for item in params]
            self._resumed = resuming.resume(
                self._binding, self.param_groups, script, explicit, self._surroundings, self._client, self._leads()
            )

    @property
    def session(self) -> Session:
        """The session; after `load_state_dict` or `add_param_group` it is made now, on several ranks by a step."""
        if self._binding is None and self._ranks is not None:
            raise InvalidRequest("the new session is made by the next step, on all ranks together")
        return self._current_binding().session

    def close(self) -> None:
        """Close the connections. The session lives on at the server. A client that the caller gave stays open."""
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
            binding = self._current_binding()
            if self._resumed is not None:
                schedulers.resume_schedule(self, self._resumed)
                self._resumed = None
            with torch.no_grad():
                if not binding.step(self.param_groups, _scalar(loss), changed=self._state.changed()):
                    self._request_replacement()
                    self._current_binding().step(self.param_groups, _scalar(loss), changed=False)
            self._state.forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as torch does.

        Where the last step was interrupted (by Ctrl-C, say), the model first follows the session to where it is, so
        that the next gradients are computed there. On several ranks only `refresh` does so.
        """
        if isinstance(self._binding, Binding):
            with torch.no_grad():
                if self._binding.follow_open_step():
                    self._state.forget()
        super().zero_grad(set_to_none)

    def refresh(self) -> None:
        """Copy the session's parameters into the model, and its settings into ``param_groups``.

        For after `HistoryLost`, or when another client has stepped. A state that was loaded and not used is dropped.

        Raises:
            UnknownSession, SessionDeleted, WrongReplica: the session is gone; `load_state_dict` makes a new one.

        """
        self._binding = self._bind(self._refreshed_session, adopt=True)
        self._replaced, self._resumed = None, None
        self._state.forget()

    def scheduled_lr(self) -> list[float]:
        """Return the lr of the next step by param group: the one in ``param_groups`` times the ``schedule``'s factor.

        The factor is asked of the server.
        """
        document = self.session.info()
        base = document["optimizer"]["lr"]
        factor = document["lr"] / base if base else 0.0
        return [settings["lr"] * factor for settings in group_settings.values(self.param_groups)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the settings in the layout of the ``state_dict()`` of torch's own, read from the server.

        A bfloat16 or float16 parameter has float32 moments, and its float32 value as "master_param".

        Raises:
            HistoryLost, StepSuperseded: the session is elsewhere than this model; `refresh` follows it.

        """
        if self._binding is not None and not self._state.changed():
            self._state.forget()  # another client may have moved the session since it was read
        hook = self.register_state_dict_post_hook(lambda _, document: self._drop_untouched(document), prepend=True)
        try:
            document: dict[str, Any] = super().state_dict()
            return document
        finally:
            hook.remove()

    def _drop_untouched(self, document: dict[str, Any]) -> None:
        """Drop entries that torch does not have: empty ones, and those of frozen parameters without an update."""
        tensors = list(self._tensors())
        state = document["state"]
        for key in [key for key in state if isinstance(key, int) and key < len(tensors)]:
            if not state[key] or not (tensors[key].requires_grad or state_dicts.has_updates(state[key], self._kind)):
                del state[key]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state of this class, or of torch's own.

        The next step (or ``optimizer.session``) makes a new session from it and from the model's parameters at that
        time. For narrow parameters "master_param" is used where it rounds to the model's value. The session's name
        moves to the new session, and the old one is deleted. So the model may be loaded before or after, and
        ``optimizer.load_state_dict(optimizer.state_dict())`` goes on from parameters that were changed by hand.

        Args:
            state_dict: as ``torch.load(path, weights_only=True)`` gives it.

        Raises:
            ValueError: the state has other groups.
            InvalidState: the state is another optimizer's, or has arrays that are missing, of other shapes, or invalid.
                After any error nothing was changed, also where a hook raised it.

        """
        state_dicts.check_document(state_dict)
        self._check_kind(state_dict)
        before = self._state, self.param_groups, self._binding, self._replaced, self._resumed, self._continues

        def note(_: Any, document: Mapping[str, Any]) -> None:
            state_dicts.check_document(document)
            self._loading = document

        hook = self.register_load_state_dict_pre_hook(note)  # runs after the user's own hooks
        try:
            super().load_state_dict(state_dict)  # calls __setstate__, then the user's hooks
        except BaseException:
            self._state, self.param_groups, self._binding, self._replaced, self._resumed, self._continues = before
            raise
        finally:
            self._loading = None
            hook.remove()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as of layers that are trained from now on.

        The next step makes a new session with them and with the state so far. The session's name moves to it, and the
        old session is deleted. To resume it by name later, pass all of these groups at once.

        Raises:
            WrongDtype, WrongLayout: see `Adam`; nothing was added.

        """
        if isinstance(param_group, dict):  # else torch refuses it
            parameters.check_ordered(param_group.get("params"))
        super().add_param_group(param_group)
        if not self._constructed:
            return
        added = self.param_groups.pop()
        try:
            if self._binding is not None and self._leads():
                self._state.fill()  # before the session lacks one of the parameters
            self.param_groups.append(added)
            self._check()
        except BaseException:
            if self.param_groups and self.param_groups[-1] is added:
                self.param_groups.pop()
            raise
        self._continues = self._binding is not None or self._continues
        self._unbind()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `load_state_dict` read, if all of it fits; an older torch saved fewer keys."""
        rest, saved = {**state}, self._loading
        loaded = rest.pop("state")
        if saved is not None:
            state_dicts.check_names(saved["param_groups"], rest["param_groups"], self.param_groups)
        super().__setstate__(rest)
        for group in self.param_groups:
            for key, default in self._kind.defaults.items():
                if key not in ALWAYS_SAVED:
                    group.setdefault(key, default)
            if self._decoupled:  # as in torch, AdamW stays AdamW, and Adam becomes what it loads
                group["decoupled_weight_decay"] = True
        if saved is not None:
            state_dicts.uncast(loaded, self.param_groups, saved)
        self._check()
        for group in self.param_groups:
            # A scheduler may have brought momentum to 0, which torch's constructor refuses with nesterov.
            momentum = {"momentum": group["momentum"] or 1.0} if group.get("nesterov") else {}
            group_settings.check_as_torch(self._kind, self._decoupled, {**group, **momentum})
        places = parameters.places(self.param_groups)
        state_dicts.check(places, loaded, self.param_groups, self._kind)
        group_settings.settings(self.param_groups, group_settings.members(places))  # raises what a session cannot have
        for place in places:
            group = self.param_groups[place.group]
            entry = loaded.get(place.tensor) or state_dicts.initial_entry(place, group, self._kind)
            # torch keeps the tensors themselves, and the optimizer that saved them may go on changing them
            loaded[place.tensor] = {name: parameters.copy_of(value) for name, value in entry.items()}
        self._state = self._lazy_state()
        self._state.replace(loaded)
        self._continues, self._resumed = False, None
        self._unbind()

    @property
    def state(self) -> LazyState:
        """An entry for each parameter, from the start. It is read from the server on first access.

        Writing to it changes the optimizer, as in torch: the next step makes a new session from it.
        """
        return self._state

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        if not getattr(self, "_constructed", False):  # torch's constructor sets an empty one
            return
        self._state.clear()
        self._state.update(state)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be pickled or copied: two optimizers on one session would take each other's steps."""
        raise TypeError("an adamd optimizer cannot be pickled or copied; save optimizer.state_dict() instead")

    # -- the session and its binding

    def _check(self) -> None:
        """Refuse parameters and groups that no session takes."""
        parameters.check(parameters.places(self.param_groups))
        group_settings.fixed(self.param_groups)

    def _check_kind(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse another optimizer's state. An older torch's RAdam saved the settings of an Adamax."""
        kind = kinds.kind_of(state_dict["param_groups"])
        older = kind is kinds.ADAMAX and self._kind is kinds.RADAM
        if kind is not self._kind and not older:
            raise InvalidState(
                f"the state is of {kind.torch}, this optimizer is {type(self).__name__}; load it into "
                f"adamd.torch.{kind.torch}"
            )

    def _lazy_state(self) -> LazyState:
        """Return a state that reads from this optimizer without keeping it alive."""
        weak = weakref.ref(self)
        return LazyState(
            lambda: () if (optimizer := weak()) is None else optimizer._tensors(),
            lambda: {} if (optimizer := weak()) is None else optimizer._read_state(),
        )

    def _tensors(self) -> Iterator[torch.Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _read_state(self) -> state_dicts.State:
        """Read the state from the server."""
        return {} if self._binding is None else self._binding.state()

    def _request_replacement(self) -> None:
        """Let the next binding restore a session from the state as it is now, with the arrays that the groups need."""

        def load() -> None:
            self._state.fill()
            places = parameters.places(self.param_groups)
            state_dicts.check(places, self._state, self.param_groups, self._kind)

        load() if self._ranks is None else self._ranks.lead(load)
        self._continues = True
        self._unbind()

    def _leads(self) -> bool:
        return self._ranks is None or self._ranks.leads

    def _first_session(self, name: str | None) -> Session:
        return resuming.open_or_create(self._client, name, self.param_groups, self._surroundings, self._options)

    def _bind(self, make: Callable[[], Session], *, adopt: bool, metrics_of: Metrics | None = None) -> AnyBinding:
        """Bind the model to the session that ``make`` returns; on several ranks rank 0 calls it."""
        if self._ranks is None:
            return Binding(make(), self.param_groups, adopt=adopt, metrics_of=metrics_of)
        client, groups = self._client, self.param_groups
        return Ensemble(self._ranks, make, groups, adopt=adopt, metrics_of=metrics_of, client=client)

    def _refreshed_session(self) -> Session:
        session = self._latest_session()
        session.refresh()
        return session

    def _latest_session(self) -> Session:
        """Return the current session, or the one that is about to be replaced."""
        session = self._replaced if self._binding is None else self._binding.session
        assert session is not None
        return session

    def _unbind(self) -> None:
        """Let the next step make a new session from ``self.state``."""
        self._replaced, self._binding = self._latest_session() if self._leads() else None, None

    def _current_binding(self) -> AnyBinding:
        """Return the binding; where there is none, restore a session first."""
        if self._binding is None:
            self._binding = self._bind(self._restored_session, adopt=False)
            self._replaced, self._continues = None, False
            self._state.forget()
        return self._binding

    def _restored_session(self) -> Session:
        """Restore a session from ``self.state`` and the model, in place of the one before and under its name."""
        old, groups = self._latest_session(), self.param_groups
        surroundings, options = self._surroundings, self._options
        return successor(self._client, old, groups, self._state, surroundings, options, own=self._continues)


ALWAYS_SAVED = ("lr", "betas", "eps", "weight_decay")  # by every version of torch


def _scalar(loss: Any) -> float | None:
    """Return a closure's loss as a number; None where it is not one number."""
    if isinstance(loss, torch.Tensor):
        return float(loss.detach().item()) if loss.numel() == 1 and not loss.is_complex() else None
    return float(loss) if isinstance(loss, int | float) else None


def _nothing() -> None:
    """Leave a client open that the caller gave."""
