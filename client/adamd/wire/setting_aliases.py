"""Other names of settings that FedOpt's optimizers take: the paper's, which are Flower's."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from adamd.wire.layout import shown

TAKEN_BY: Final = ("fedadam", "fedyogi", "fedadagrad")


class Meant(NamedTuple):
    """The setting that an alias stands for, and the place in it where that is a list."""

    setting: str
    place: int | None = None


# Reddi et al. 2021, "Adaptive Federated Optimization", arXiv:2003.00295, algorithm 2, as Flower spells it.
ALIASES: Final[Mapping[str, Meant]] = {
    "eta": Meant("lr"),
    "beta_1": Meant("betas", 0),
    "beta_2": Meant("betas", 1),
    "tau": Meant("eps"),
}


class AliasError(ValueError):
    """An alias that is refused. path: the place, as `groups[0].tau`; message: what came and what is wanted."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


def canonical(optimizer: str, given: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with every alias under the name of its setting, those of groups too.

    Args:
        optimizer: its name; only those in `TAKEN_BY` take aliases.
        given: the settings, as decoded JSON.
        current: what they change, or the defaults: a lone beta_1 leaves the other beta as it is there.

    Raises:
        AliasError: an alias is out of its range, or its setting is given too, with another value.

    """
    if optimizer not in TAKEN_BY:
        return dict(given)
    made = _renamed(given, current, "")
    groups = made.get("groups")
    if isinstance(groups, list):
        now = {**current, **made}
        made["groups"] = [
            _renamed(group, now, f"groups[{index}].") if isinstance(group, Mapping) else group
            for index, group in enumerate(groups)
        ]
    return made


def _renamed(given: Mapping[str, Any], current: Mapping[str, Any], place: str) -> dict[str, Any]:
    made = {name: value for name, value in given.items() if name not in ALIASES}
    for alias, (setting, index) in ALIASES.items():
        if alias not in given:
            continue
        value = given[alias]
        _check_number(place + alias, value, is_beta=index is not None)
        if setting in given:
            _check_same(place, alias, value, given[setting])
        pair = made.get(setting, current.get(setting))
        if index is None:
            made[setting] = value
        elif pair is None:  # the other one is for whoever knows the defaults
            made[alias] = value
        elif _is_pair(pair):  # anything else is refused by its own name
            made[setting] = [*pair[:index], value, *pair[index + 1 :]]
    return made


def _is_pair(betas: object) -> bool:
    return isinstance(betas, list | tuple) and len(betas) == 2


def _check_number(path: str, value: object, *, is_beta: bool) -> None:
    """Raise AliasError where a value is not what its setting may be."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]  # a number, as was just seen
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= 0.0 and (number < 1.0 or not is_beta)):
        wanted = "a finite number, 0 or more and below 1" if is_beta else "a finite number, 0 or more"
        raise AliasError(path, f"{path} is {_words(value)}; wanted {wanted}")


def _words(value: object) -> str:
    """Return a value as JSON spells it, cut to a length that fits into an error's words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return shown(value)


def _check_same(place: str, alias: str, value: object, given: Any) -> None:
    """Raise AliasError where a setting is given by both of its names, with two values."""
    setting, index = ALIASES[alias]
    own, name = given, f"{place}{setting}"
    if index is not None:
        if not _is_pair(given):
            return  # refused by its own name
        own, name = given[index], f"{place}{setting}[{index}]"
    if isinstance(own, bool) or own != value:
        path = place + alias
        said = f"{path} is {_words(value)}, and {name}, which is the same setting, is {_words(own)}; give one of them"
        raise AliasError(path, said)
