"""Moves a local optimizer's state into a session, and a session's state back, without losing a step.

    session = adamd.checkpoints.from_torch(client, optimizer.state_dict(), model.named_parameters())
    …                                                                      # steps at the server
    optimizer.load_state_dict(adamd.checkpoints.to_torch(session, model.named_parameters()))

    session = adamd.checkpoints.from_optax(client, state, params, optimizer="adam", lr=1e-3)
    params, state = adamd.checkpoints.to_optax(session, params, optax.adam(1e-3).init(params))

They are for a session that a program steps itself; the optimizers of `adamd.torch` load such states by
``load_state_dict``. A state that does not fit is refused before anything is made or written. torch, JAX and optax are
imported only by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adamd.client import Client
from adamd.sansio.options import TRAVEL
from adamd.session import Session

__all__ = ["from_optax", "from_torch", "to_optax", "to_torch"]


def from_torch(
    client: Client, state_dict: Mapping[str, Any], params: Iterable[Any], *, name: str | None = None, **options: Any
) -> Session:
    """Make a session that goes on where a local torch optimizer stands.

    Args:
        client: of the server where it shall be.
        state_dict: the optimizer's, as ``optimizer.state_dict()`` or ``torch.load(path, weights_only=True)`` give it:
            of Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, RMSprop or SGD.
        params: what the optimizer was made with (``model.named_parameters()``, or dicts of param groups), in the same
            order; their values become the session's.
        name: the session's.
        options: ``step``, where it is more than the largest count (SGD keeps none); ``durability``, ``labels``,
            ``on_bad_gradient`` and the others of `Client.restore`.

    Raises:
        InvalidState: it is another optimizer's, or of other groups, entries or shapes; the message says where.
        WrongDtype, WrongLayout: parameters that no session takes; see `adamd.torch.Adam`.
        SessionExists: the name is taken.

    """
    from adamd.checkpoints import torch_state

    step = options.pop("step", 0)
    body = torch_state.moved_in(state_dict, params, step)
    return client.restore(body, name, **options)


def to_torch(session: Session, params: Iterable[Any]) -> dict[str, Any]:
    """Copy a session's parameters into a model, and return the state for its local optimizer.

    Args:
        session: any of an optimizer that torch has.
        params: what the optimizer is made with: ``model.named_parameters()``, or dicts of param groups. They get the
            session's values, rounded where they are narrower.

    Returns:
        What ``load_state_dict`` of torch's optimizer of that name takes. Parameters and state are of one step: the one
        where the server stands.

    Raises:
        InvalidState: torch has no such optimizer, or it has one that computes otherwise.
        WrongLayout, WrongDtype, InvalidSettings: the parameters are not the session's; nothing was written.

    """
    from adamd.checkpoints import torch_state

    return torch_state.moved_out(session.export(), params)


def from_optax(
    client: Client, state: Any, params: Any, *, optimizer: str, name: str | None = None, **options: Any
) -> Session:
    """Make a session that goes on where a local optax optimizer stands.

    Args:
        client: of the server where it shall be.
        state: the optimizer's, also within `optax.chain`; it has one of the states in `Raises`, once.
        params: the parameters as they are now: a pytree. A leaf is named by its path, as in `adamd.optax`.
        optimizer: which it is: optax does not keep that.
        name: the session's.
        options: its settings, which optax does not keep either: ``lr``, ``betas``, ``eps``, …; ``step`` where the state
            has no count; ``durability``, ``labels`` and the others of `Client.restore`.

    Raises:
        InvalidState: the state has none of ``optimizer``'s (`ScaleByAdamState` of adam and adamw, …), or several, or
            one of another structure or shape, or a count that is none.
        InvalidSettings: as in `Client.create`.
        SessionExists: the name is taken.

    """
    from adamd.checkpoints import optax_state

    names = ("durability", "labels", "on_bad_gradient", *TRAVEL)
    passed = {key: options.pop(key) for key in names if key in options}
    step = options.pop("step", 0)
    body = optax_state.moved_in(state, params, {"name": optimizer, **options}, step)
    return client.restore(body, name, **passed)


def to_optax(session: Session, params: Any, state: Any) -> tuple[Any, Any]:
    """Return a session's parameters and its state for a local optax optimizer.

    Args:
        session: any of an optimizer whose state optax keeps alike.
        params: a pytree like the session's: its structure, shapes and dtypes count.
        state: what the optimizer's ``init(params)`` gives: its structure counts.

    Returns:
        (params, state) to go on from, both of the step where the server stands.

    Raises:
        InvalidState: the state is of another optimizer.
        WrongLayout: the parameters are not the session's.

    """
    from adamd.checkpoints import optax_state

    return optax_state.moved_out(session.export(), params, state)
