"""Replaces a session by one that is restored from a torch state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from adamd.client import Client
from adamd.errors import AdamdError, Moved, SessionDeleted, StepSuperseded, UnknownSession, WrongReplica
from adamd.sansio.options import SETTINGS, TRAVEL
from adamd.session import Session
from adamd.torch import group_settings, parameters, state_dicts
from adamd.torch.binding import Groups
from adamd.torch.kinds import has_momentum_buffer, kind_of
from adamd.wire import export_format

# Errors of a session that no longer exists. WrongReplica: it was in the memory of a server that ended.
GONE = (UnknownSession, SessionDeleted, WrongReplica)


def successor(
    client: Client,
    old: Session,
    groups: Groups,
    state: Mapping[Any, Any],
    surroundings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    own: bool,
) -> Session:
    """Restore a session from ``state`` and the model, in place of the one before and under its name.

    A name is free only when its session is deleted, so the state is first restored without the name. The settings
    around the update come from the old session. A moving average goes on where the state has one; else it begins anew,
    as the lowest loss and the progress of stop rules do. Error feedback's remainder is dropped.

    Args:
        client: of the server.
        old: the session before.
        groups: the optimizer's ``param_groups``.
        state: in torch's layout, checked.
        surroundings: the optimizer's settings around the update, used where the old session is gone.
        options: of `Client.restore`, likewise.
        own: the state is the old session's, so the new one goes on at its step; else at the state's largest count.

    Raises:
        StepSuperseded: another client has stepped the old session, and those steps would be lost.

    """
    places, kind = parameters.places(groups), kind_of(groups)
    parameters.check(places)
    document = _document_of(old)
    if document is not None:
        surroundings = {key: document["optimizer"][key] for key in SETTINGS if key in document["optimizer"]}
        options = {**options, "durability": document["durability"], "labels": document["labels"]}
    options = {**options, **{name: getattr(old, name) for name in TRAVEL}}
    limits = _bounds(old, surroundings)
    settings = group_settings.settings(groups, group_settings.members(places))
    settings |= {**surroundings, **dict.fromkeys(limits, "array")}
    settings = state_dicts.with_buffer(settings, state.values(), kind, buffered=has_momentum_buffer(old.settings))
    # SGD keeps no count in its state, and a schedule goes by it.
    step = old.step_number if own or not kind.counts else 0
    body = state_dicts.pack(places, state, settings, kind, step, limits, options["answer_dtype"])
    new = client.restore(body, **options)
    try:
        with suppress(*GONE):
            old.delete()
    except Moved:  # by another client, a moment ago: its step is kept
        _drop(new)
        raise
    if old.name is None:
        return new
    try:
        renamed = client.restore(body, old.name, **options)
    except AdamdError as error:
        error.add_note(f"the state is safe in session {new.id}, which has no name")
        raise
    _drop(new)
    return renamed


def _drop(copy: Session) -> None:
    """Delete a copy that is not needed; a failure leaves it there."""
    with suppress(AdamdError):
        copy.delete()


def _document_of(old: Session) -> dict[str, Any] | None:
    """Return the old session's document; None where it is gone."""
    try:
        document = old.info()
    except GONE:
        return None
    if document["step"] > old.step_number:
        raise StepSuperseded(
            f"the session is at step {document['step']} by another client; this optimizer was at {old.step_number}, "
            "and would replace it. optimizer.refresh() follows it; then load the state again if it shall go",
            step=document["step"],
        )
    return document


def _bounds(old: Session, surroundings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the lower and upper limits that have a value for each element: by side, then by tensor."""
    limits = {side: surroundings[side] for side in ("lower", "upper") if side in surroundings}
    if "array" in limits.values():  # the old session has them
        arrays = export_format.read(old.export()).arrays
        return {side: arrays[side] for side, bound in limits.items() if bound == "array"}
    return {side: bound for side, bound in limits.items() if isinstance(bound, Mapping)}
