"""Opens a torch optimizer's session, and warns where a resumed session differs from the script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adamd.client import Client
from adamd.errors import AdamdError, WrongLayout
from adamd.sansio import settings_match
from adamd.sansio.tracking import settings_document
from adamd.session import Session
from adamd.torch import group_settings, identity, parameters, schedulers
from adamd.torch.binding import Groups
from adamd.torch.distributed import AnyBinding
from adamd.torch.schedulers import Resumed


def open_or_create(
    client: Client, name: str | None, groups: Groups, surroundings: Mapping[str, Any], options: Mapping[str, Any]
) -> Session:
    """Create a session, or open the one of this name. An opened session keeps its settings, whatever the groups say."""
    places = parameters.places(groups)
    settings = group_settings.settings(groups, group_settings.members(places))
    tensors = {place.name: place.tensor for place in places}
    everything = {"optimizer": settings.pop("name"), **settings, **surroundings, **options}
    if name is None:
        return client.create(tensors, **everything)
    try:
        return client.open(name, tensors, **everything, on_other_settings="keep")
    except WrongLayout as error:
        raise _explain_names(client, name, groups, error) from None


def last_metrics(client: Client, ref: str) -> Mapping[str, Any]:
    """Return the metrics of a session's last step."""
    metrics: Mapping[str, Any] = next(client.watch(ref)).get("metrics") or {}
    return metrics


def resume(
    binding: AnyBinding,
    groups: Groups,
    script: Sequence[Mapping[str, Any]],
    explicit: Sequence[frozenset[str]],
    surroundings: Mapping[str, Any],
    client: Client,
    leads: bool,
) -> Resumed | None:
    """Set in the groups what schedulers need of a resumed session, and warn where it differs from the script.

    Args:
        binding: of the model and the session.
        groups: the optimizer's ``param_groups``, with the session's settings.
        script: the groups' settings as the script has them.
        explicit: the names of those that the script passes, by group.
        surroundings: the settings around the update that the script passes.
        client: of the server.
        leads: this process is rank 0, or trains by itself: it warns.

    Returns:
        What the first step needs; None where the session has no steps.

    """
    step, resumed = binding.step_number, None
    values = binding.scheduler_values or [{} for _ in groups]
    who = f"session {binding.session.name or binding.session.id!r}" if leads else "the session"
    if step:
        for index, group in enumerate(groups):
            # A scheduler that goes on begins where the script's lr is, unless the session's last step says otherwise.
            lr = script[index]["lr"] if "lr" in explicit[index] else group["lr"]
            for key, value in {"initial_lr": lr, **values[index]}.items():
                group.setdefault(key, parameters.copy_of(value))
        rates = tuple(settings["lr"] for settings in group_settings.values(groups))
        resumed = Resumed(who, step, rates, tuple(group_values.get("initial_lr") for group_values in values))
    if leads:
        overruled = group_settings.overruled(script, groups, explicit, values)
        how = "set them in optimizer.param_groups now"
        if any(line.startswith("lr is ") for line in overruled):
            how = f"{how}. If a torch scheduler brought lr there: {schedulers.how_to_go_on(step)}"
        schedulers.warn_overruled(who, step, overruled, how)
        differences = _surrounding_differences(client, binding.session, surroundings)
        schedulers.warn_overruled(who, step, differences, "change them by optimizer.session.update(…)")
        schedulers.warn_doubt(who, binding.doubt)
    return resumed


def _explain_names(client: Client, name: str, groups: Groups, error: WrongLayout) -> WrongLayout:
    """Add to the error where the session's tensors have names and the optimizer's have none, or the reverse."""
    try:
        session_by_position = identity.by_position(client.session(name).layout.names)
    except AdamdError:
        return error
    if session_by_position == (not any(group.get("param_names") for group in groups)):
        return error
    how = "model.parameters(), in the order of then" if session_by_position else "model.named_parameters()"
    hint = f"it was made {'without' if session_by_position else 'with'} names, and is resumed with {how}"
    return WrongLayout(f"{error.detail}. Or the names are all that differs: {hint}", step=error.step)


def _surrounding_differences(client: Client, session: Session, surroundings: Mapping[str, Any]) -> list[str]:
    """Return in words which settings around the update the session has otherwise than the script."""
    current, passed = session.settings, settings_document(surroundings)
    if not settings_match.differing(passed, current):
        return []
    defaults = client.info()["settings"][current["name"]]
    return settings_match.describe(settings_match.differing(passed, {**defaults, **current}))
