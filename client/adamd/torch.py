"""`torch.optim.Adam` and AdamW whose state lives at a server.

optimizer = adamd.torch.Adam(model.parameters(), lr=0.001)      # the server at $ADAMD_URL
for x, y in batches:
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()

They are `torch.optim.Optimizer`s: param groups, closures, schedulers, hooks and ``state_dict()`` work as they do there,
and a ``state_dict()`` loads into torch's own Adam and back. Three things are different, because the session at the
server, not the model, holds the parameters:

- Who writes to the parameters between two steps (in place, or by ``p.data = …``) gets an error at the next one, which
  says what to do; before the first step such values are taken over. A write through ``p.data``'s own methods
  (``p.data.clamp_()``) leaves no trace in torch and is lost: write under ``torch.no_grad()`` instead.
- `torch.optim.Adam`'s ``foreach``, ``fused``, ``capturable`` choose between implementations; here they only travel.
- The optimizer cannot be pickled or deep-copied; its ``state_dict()`` can.

Where `torch.distributed` is initialised, the optimizers of all ranks are one, as under DistributedDataParallel: rank 0
sends its gradients (DDP has averaged them) and the others get the answer. So they are made, stepped and refreshed on
all ranks together, and what fails on one raises on all. Rank 0's settings count. ``state_dict()`` may be called on any.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("adamd.torch needs PyTorch: pip install 'adamd[torch]'", name="torch") from error

from adamd import _torch_layout, _torch_settings, _torch_state
from adamd._torch_bond import Bond
from adamd._torch_ranks import Ensemble, Ranks
from adamd.client import Client, Durability, connect
from adamd.errors import AdamdError, InvalidRequest, SessionDeleted, StepSuperseded, UnknownSession, WrongReplica
from adamd.session import OnBadGradient, Session

__all__ = ["Adam", "AdamW"]

# What a session answers that is no more; WrongReplica: it was in the memory of a server that ended.
_GONE = (UnknownSession, SessionDeleted, WrongReplica)


class Adam(torch.optim.Optimizer):  # type: ignore[misc]  # torch is absent where the house's mypy runs
    """Adam at a server, with the arguments, the meaning and the defaults of `torch.optim.Adam`.

    The session is made here, so that what the server refuses is known at once. A changed hyperparameter in
    ``param_groups`` travels with the step that it first counts for. Parameters whose ``grad`` is None are left out and
    their count stands still. After any error the model's parameters are what they were; the same ``step()`` again is
    safe.

    Args:
        params: tensors, (name, tensor) pairs as of ``model.named_parameters()``, or dicts of them with settings of
            their own (param groups); all float64, or any of float32, bfloat16 and float16. The narrow ones have a
            float32 master at the server, and are its value rounded to nearest even. The names become the session's;
            without names they are group.index, as "0.3".
        lr: a number, or a tensor of one element.
        betas: decay rates of exp_avg and exp_avg_sq, each in [0, 1).
        eps: added outside the square root.
        weight_decay: 0 or more; added to the gradient (Adam), or shrinking the parameters (AdamW).
        amsgrad: keep the largest exp_avg_sq; the same for all groups.
        maximize: ascend.
        url: the server's; by default ``$ADAMD_URL``, else this machine's port 8000.
        client: one of your own, instead of a URL; `close` leaves it open.
        session: a name (a-z, 0-9 and -, at most 63) to find it again. Where there is one of this name (or id), it is
            resumed: its parameters are copied into the model and its settings into ``param_groups``. A scheduler that
            is made then starts from that lr: load its own ``state_dict()`` too.
        durability: "memory" stores nothing: the session ends with the server's process.
        labels: your own words, to find it in the list; of a new session.
        on_bad_gradient: "skip" leaves the parameters alone where a gradient has NaN or infinity, and counts it in
            ``optimizer.session.skipped``; "raise" raises `BadGradient`.
        timeout: of a whole call, in seconds, or an `adamd.Timeout`.
        process_group: the ranks that train this model; None is torch.distributed's default group, where that is
            initialised. False: this process by itself.

    Raises:
        WrongDtype, WrongLayout: parameters that no session takes: complex, float64 among others, sharing memory, …; or
            not those of the session that is resumed.
        InvalidSettings: a setting is out of range, or the session is of another kind.
        RetriesExhausted: no server there.

    """

    param_groups: list[dict[str, Any]]
    state: defaultdict[Any, Any]
    _decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        url: str | None = None,
        client: Client | None = None,
        session: str | None = None,
        durability: Durability = "committed",
        labels: Mapping[str, str] | None = None,
        on_bad_gradient: OnBadGradient = "raise",
        timeout: Any = None,
        process_group: Any = None,
    ) -> None:
        self._bond: Bond | Ensemble | None = None
        self._made_up = False  # the constructor is through
        self._replaced: Session | None = None  # the one before load_state_dict or add_param_group
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(
            params,
            defaults | {"maximize": maximize, **_torch_settings.PASSIVE, "decoupled_weight_decay": self._decoupled},
        )
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
        }
        self._bond = self._bound(lambda: self._made(session), adopt=session is not None)
        self._made_up = True

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
        """Return the state and the settings in the layout of `torch.optim.Adam.state_dict`, read from the server.

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
        """Go on from a state: this class's, or `torch.optim.Adam`'s.

        The next step (or ``optimizer.session``) makes a new session from it and the model's parameters as they are
        then (of narrow ones the "master_param", if it rounds to what the model has); a name moves to it, and the old
        session is deleted. So the model may be loaded before or after, and
        ``optimizer.load_state_dict(optimizer.state_dict())`` goes on from parameters that were changed by hand.

        Args:
            state_dict: as ``torch.load(path, weights_only=True)`` gives it.

        Raises:
            ValueError: it has other groups.
            InvalidState: its moments are missing, or of other shapes; nothing was changed.

        """
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
            _torch_state.check(places, self.state, amsgrad=self.param_groups[0]["amsgrad"])
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
            for key, default in {"amsgrad": False, "maximize": False, **_torch_settings.PASSIVE}.items():
                group.setdefault(key, default)
            if self._decoupled:  # AdamW stays AdamW, whatever it loads; Adam becomes what it loads: both as in torch
                group["decoupled_weight_decay"] = True
            else:
                group.setdefault("decoupled_weight_decay", False)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be pickled or copied: two optimizers on one session would take each other's steps."""
        raise TypeError("an adamd optimizer cannot be pickled or copied; save optimizer.state_dict() instead")

    # -- sessions

    def _check(self) -> None:
        """Refuse what no session takes."""
        _torch_layout.check(_torch_layout.places(self.param_groups))
        _torch_settings.kind(self.param_groups)

    def _made(self, name: str | None) -> Session:
        """Create the first session, or open the one of this name."""
        places = _torch_layout.places(self.param_groups)
        settings = _torch_settings.settings(self.param_groups, _torch_settings.members(places))
        given = {place.name: place.tensor for place in places}
        options = {"optimizer": settings.pop("name"), **settings, **self._options}
        return self._client.create(given, **options) if name is None else self._client.open(name, given, **options)

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
        """Restore a session from ``self.state`` and the model, in place of the one before and under its name.

        A name is free only when its session is deleted; so the state is first restored without it.
        """
        old = self._latest()
        places = _torch_layout.places(self.param_groups)
        _torch_layout.check(places)
        settings = _torch_settings.settings(self.param_groups, _torch_settings.members(places))
        body = _torch_state.pack(places, self.state, settings)
        options = {**self._options, **_handed_down(old)}
        new = self._client.restore(body, **options)
        with suppress(*_GONE):
            old.delete()
        if old.name is None:
            return new
        try:
            named = self._client.restore(body, old.name, **options)
        except AdamdError as error:
            error.add_note(f"the state is safe in session {new.id}, which has no name")
            raise
        with suppress(AdamdError):  # a copy that nobody needs
            new.delete()
        return named


class AdamW(Adam):
    """AdamW at a server: `Adam` with decoupled weight decay, with the defaults of `torch.optim.AdamW`."""

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``maximize`` on."""
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)


def _handed_down(old: Session) -> dict[str, Any]:
    """Return what a session hands down to the one that takes its place.

    Raises:
        StepSuperseded: another client has moved it on, and that would be lost.

    """
    try:
        told = old.info()
    except _GONE:
        return {}
    if told["step"] > old.step_number:
        raise StepSuperseded(
            f"the session is at step {told['step']} by another client; this optimizer was at {old.step_number}, and "
            "would replace it. optimizer.refresh() follows it; then load the state again if it shall go",
            step=told["step"],
        )
    return {"durability": told["durability"], "labels": told["labels"]}


def _scalar(loss: Any) -> float | None:
    """Return a closure's loss where it is one number."""
    if isinstance(loss, torch.Tensor):
        return float(loss.detach().item()) if loss.numel() == 1 and not loss.is_complex() else None
    return float(loss) if isinstance(loss, int | float) else None


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _nothing() -> None:
    """Close a client that is not ours."""
