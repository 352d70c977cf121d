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
from adamd.torch.kinds import buffered, kind_of
from adamd.wire import export_format

# What a session answers that is no more; WrongReplica: it was in the memory of a server that ended.
GONE = (UnknownSession, SessionDeleted, WrongReplica)


def successor(
    client: Client,
    old: Session,
    groups: Groups,
    state: Mapping[Any, Any],
    around: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    own: bool,
) -> Session:
    """Restore a session from ``state`` and the model, in place of the one before and under its name.

    A name is free only when its session is deleted; so the state is first restored without it. What surrounds the
    update is taken over from the old session. A moving average goes on where the state has one, and else begins anew,
    as the lowest loss and the progress of stop rules do. What an encoding left over is dropped.

    Args:
        client: of the server.
        old: the session before.
        groups: the optimizer's ``param_groups``.
        state: in torch's layout, checked.
        around: what the optimizer was made with, for where the old session is gone.
        options: of `Client.restore`, likewise.
        own: the state is the old session's, so the new one goes on at its step; else at the largest count.

    Raises:
        StepSuperseded: another client has moved the old one on, and that would be lost.

    """
    places, kind = parameters.places(groups), kind_of(groups)
    parameters.check(places)
    told = _told(old)
    if told is not None:
        around = {key: told["optimizer"][key] for key in SETTINGS if key in told["optimizer"]}
        options = {**options, "durability": told["durability"], "labels": told["labels"]}
    options = {**options, **{name: getattr(old, name) for name in TRAVEL}}
    bounds = _bounds(old, around)
    settings = group_settings.settings(groups, group_settings.members(places))
    settings |= {**around, **dict.fromkeys(bounds, "array")}
    settings = state_dicts.with_buffer(settings, state.values(), kind, had=buffered(old.settings))
    # SGD keeps no count in its state, and a schedule goes by it.
    step = old.step_number if own or not kind.counts else 0
    body = state_dicts.pack(places, state, settings, kind, step, bounds, options["answer_dtype"])
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
        named = client.restore(body, old.name, **options)
    except AdamdError as error:
        error.add_note(f"the state is safe in session {new.id}, which has no name")
        raise
    _drop(new)
    return named


def _drop(copy: Session) -> None:
    """Delete a copy that nobody needs, if that is possible."""
    with suppress(AdamdError):
        copy.delete()


def _told(old: Session) -> dict[str, Any] | None:
    """Return the old session's document; None where it is gone."""
    try:
        told = old.info()
    except GONE:
        return None
    if told["step"] > old.step_number:
        raise StepSuperseded(
            f"the session is at step {told['step']} by another client; this optimizer was at {old.step_number}, and "
            "would replace it. optimizer.refresh() follows it; then load the state again if it shall go",
            step=told["step"],
        )
    return told


def _bounds(old: Session, around: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return those bounds that have a number for each element: by side, then by tensor."""
    found = {side: around[side] for side in ("lower", "upper") if side in around}
    if "array" in found.values():  # the old session has them
        arrays = export_format.read(old.export()).arrays
        return {side: arrays[side] for side, bound in found.items() if bound == "array"}
    return {side: bound for side, bound in found.items() if isinstance(bound, Mapping)}
