"""Compares the settings of `Client.open` with those of a session that exists."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from adamd.errors import InvalidRequest, InvalidSettings
from adamd.sansio.operations import Info, Standing
from adamd.sansio.tracking import Logic, own_names, settings_document

OnOtherSettings: TypeAlias = Literal["raise", "keep"]
BESIDE: Final = ("dtype", "durability", "labels")  # options of a creation that are no settings of its optimizer
SHOWN: Final = 200  # characters of a setting in a message
Differing: TypeAlias = tuple[str, Any, Any]  # a setting, the session's, the caller's


def choice(value: str) -> OnOtherSettings:
    """Check an ``on_other_settings``.

    Raises:
        InvalidRequest: something else.

    """
    if value == "raise":
        return "raise"
    if value == "keep":
        return "keep"
    raise InvalidRequest(f"on_other_settings is {value!r}; wanted 'raise' or 'keep'")


def check_settings(standing: Standing, lr: float | None, options: Mapping[str, Any]) -> Logic[None]:
    """Refuse options of `Client.open` that are not the session's.

    Raises:
        InvalidSettings: a setting differs, or the session's optimizer has none of this name.

    """
    differences = yield from differences_of(standing, lr, options)
    if differences:
        raise _differ(standing, differences)


def differences_of(standing: Standing, lr: float | None, options: Mapping[str, Any]) -> Logic[list[Differing]]:
    """Return where options differ from the session's. None is not given; labels are not compared.

    A schedule is compared in what it says, stop rules and groups as a whole. Of bounds with a number for each element
    only that they are such is known here.

    Raises:
        InvalidSettings: the session's optimizer has no setting of this name.

    """
    own_options = {key: value for key, value in options.items() if key not in (*BESIDE, "optimizer")}
    settings = settings_document({"optimizer": options.get("optimizer"), "lr": lr, **own_options})
    name = standing.settings["name"]
    optimizer = settings.pop("optimizer", name)
    if optimizer != name:
        return [("optimizer", name, optimizer)]
    settings = own_names(settings, standing.settings)
    current = {**standing.settings, **{key: standing.document[key] for key in ("dtype", "durability")}}
    if not settings.keys() <= current.keys():  # unknown, or at a default that the document does not tell
        server: dict[str, Any] = yield Info()
        defaults = server["settings"].get(name, {})
        _check_names(standing, settings, {*defaults, *standing.settings})
        current = {**defaults, **current}
    settings |= {key: options[key] for key in ("dtype", "durability") if options.get(key) is not None}
    return differing(settings, current)


def differing(settings: Mapping[str, Any], current: Mapping[str, Any]) -> list[Differing]:
    """Return the settings that differ from a session's; one that the session does not tell counts as None."""
    pairs = ((key, current.get(key), value) for key, value in settings.items())
    return [(key, stored, value) for key, stored, value in pairs if not _alike(key, value, stored)]


def _check_names(standing: Standing, names: Iterable[str], known_names: set[str]) -> None:
    for key in names:
        if key in known_names:
            continue
        near = difflib.get_close_matches(key.lower(), sorted(known_names), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known_names - {'name'}))}"
        raise InvalidSettings(
            f"{_who(standing)} is {standing.settings['name']}, which has no setting {key!r}; {hint}",
            step=standing.step,
            path=f"optimizer.{key}",
        )


def _alike(key: str, value: Any, stored: Any) -> bool:
    if stored == "array" and isinstance(value, list | dict):
        return True
    if key == "schedule" and stored is None:
        return bool(value == {"name": "constant"})
    return _within(value, stored, exact=key in ("groups", "stop"))


def _within(expected: Any, actual: Any, *, exact: bool) -> bool:
    """Say whether ``expected`` is part of ``actual``; ``exact``: the outermost objects have the same members."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if exact and expected.keys() != actual.keys():
            return False
        return all(key in actual and _within(value, actual[key], exact=False) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(actual, list):
        pairs = zip(expected, actual, strict=False)
        return len(expected) == len(actual) and all(_within(item, other, exact=exact) for item, other in pairs)
    return bool(expected == actual)


def describe(differences: Iterable[Differing]) -> list[str]:
    """Describe each difference for an error's text."""
    return [f"{key} is {_shown(stored)} there and {_shown(value)} here" for key, stored, value in differences]


def _differ(standing: Standing, differences: list[Differing]) -> InvalidSettings:
    leave = "leave it out" if len(differences) == 1 else "leave them out"
    ways = [f"{leave} to go on with the session's"]
    changing = {key: value for key, _, value in differences if key not in (*BESIDE, "optimizer")}
    if changing:
        words = ", ".join(f"{key}={_shown(value, python=True)}" for key, value in changing.items())
        ways.append(f"change them by client.session({(standing.name or standing.id)!r}).update({words})")
    return InvalidSettings(
        f"{_who(standing)} has other settings than these: {'; '.join(describe(differences))}. "
        f"{', '.join(ways).capitalize()}, or choose another name; on_other_settings='keep' takes the session's "
        "without a word",
        step=standing.step,
        path=f"optimizer.{differences[0][0]}" if differences[0][0] not in BESIDE else differences[0][0],
        id=standing.id,
    )


def _who(standing: Standing) -> str:
    return f"session {standing.name or standing.id!r} at step {standing.step}"


def _shown(value: Any, *, python: bool = False) -> str:
    text = repr(value) if python else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
