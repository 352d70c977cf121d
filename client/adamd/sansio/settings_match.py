"""What a caller gives for a session that is there: what the session has, or it is refused by name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from adamd.errors import InvalidRequest, InvalidSettings
from adamd.sansio.operations import Info, Standing
from adamd.sansio.tracking import Logic, settings_document

OnOtherSettings: TypeAlias = Literal["raise", "keep"]
BESIDE: Final = ("dtype", "durability", "labels")  # options of a creation that are no settings of its optimizer
SHOWN: Final = 200  # characters of a setting in a message
Differing: TypeAlias = tuple[str, Any, Any]  # a setting, the session's, the caller's


def choice(given: str) -> OnOtherSettings:
    """Check what is to be done with other settings than the session's.

    Raises:
        InvalidRequest: something else.

    """
    if given == "raise":
        return "raise"
    if given == "keep":
        return "keep"
    raise InvalidRequest(f"on_other_settings is {given!r}; wanted 'raise' or 'keep'")


def check_settings(standing: Standing, lr: float | None, options: Mapping[str, Any]) -> Logic[None]:
    """Refuse options of `Client.open` that are not the session's. None is not given; labels are not compared.

    A schedule is compared in what it says, stop rules and groups as a whole. Of bounds with a number for each element
    only that they are such is known here.

    Raises:
        InvalidSettings: a setting differs, or the session's optimizer has none of this name.

    """
    wanted = {key: value for key, value in options.items() if key not in (*BESIDE, "optimizer")}
    given = settings_document({"optimizer": options.get("optimizer"), "lr": lr, **wanted})
    name = standing.settings["name"]
    asked = given.pop("optimizer", name)
    if asked != name:
        raise _differ(standing, [("optimizer", name, asked)])
    theirs = {**standing.settings, **{key: standing.document[key] for key in ("dtype", "durability")}}
    if not given.keys() <= theirs.keys():  # unknown, or at a default that the document does not tell
        told: dict[str, Any] = yield Info()
        known = told["settings"].get(name, {})
        _check_names(standing, given, {*known, *standing.settings})
        theirs = {**known, **theirs}
    given |= {key: options[key] for key in ("dtype", "durability") if options.get(key) is not None}
    found = differing(given, theirs)
    if found:
        raise _differ(standing, found)


def differing(given: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Differing]:
    """Return which settings that are given are not as a session has them; what it does not tell is None."""
    pairs = ((key, theirs.get(key), value) for key, value in given.items())
    return [(key, has, value) for key, has, value in pairs if not _alike(key, value, has)]


def _check_names(standing: Standing, given: Iterable[str], known: set[str]) -> None:
    for key in given:
        if key in known:
            continue
        near = difflib.get_close_matches(key.lower(), sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known - {'name'}))}"
        raise InvalidSettings(
            f"{_who(standing)} is {standing.settings['name']}, which has no setting {key!r}; {hint}",
            step=standing.step,
            path=f"optimizer.{key}",
        )


def _alike(key: str, mine: Any, theirs: Any) -> bool:
    if theirs == "array" and isinstance(mine, list | dict):
        return True
    if key == "schedule" and theirs is None:
        return bool(mine == {"name": "constant"})
    return _within(mine, theirs, whole=key in ("groups", "stop"))


def _within(mine: Any, theirs: Any, *, whole: bool) -> bool:
    """Say whether what is given is as it is there; ``whole``: and nothing else is there, in the outermost objects."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        if whole and mine.keys() != theirs.keys():
            return False
        return all(key in theirs and _within(value, theirs[key], whole=False) for key, value in mine.items())
    if isinstance(mine, list) and isinstance(theirs, list):
        pairs = zip(mine, theirs, strict=False)
        return len(mine) == len(theirs) and all(_within(one, other, whole=whole) for one, other in pairs)
    return bool(mine == theirs)


def said(found: Iterable[Differing]) -> list[str]:
    """Return in words what is there and here."""
    return [f"{key} is {_shown(theirs)} there and {_shown(mine)} here" for key, theirs, mine in found]


def _differ(standing: Standing, found: list[Differing]) -> InvalidSettings:
    leave = "leave it out" if len(found) == 1 else "leave them out"
    ways = [f"{leave} to go on with the session's"]
    changing = {key: mine for key, _, mine in found if key not in (*BESIDE, "optimizer")}
    if changing:
        words = ", ".join(f"{key}={_shown(value, python=True)}" for key, value in changing.items())
        ways.append(f"change them by client.session({(standing.name or standing.id)!r}).update({words})")
    return InvalidSettings(
        f"{_who(standing)} has other settings than these: {'; '.join(said(found))}. "
        f"{', '.join(ways).capitalize()}, or choose another name; on_other_settings='keep' takes the session's "
        "without a word",
        step=standing.step,
        path=f"optimizer.{found[0][0]}" if found[0][0] not in BESIDE else found[0][0],
        id=standing.id,
    )


def _who(standing: Standing) -> str:
    return f"session {standing.name or standing.id!r} at step {standing.step}"


def _shown(value: Any, *, python: bool = False) -> str:
    said = repr(value) if python else json.dumps(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
