"""The settings of a session's rounds: parsed strictly, checked against the layout, and written as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError

from adamd.wire import patterns
from adamd.wire.layout import Layout
from adamd.wire.patterns import GroupsError, places
from adamd_service.aggregation import (
    FIELDS,
    AggregationSettings,
    aggregation_to_json,
    check_accounting,
    parse_aggregation,
)
from adamd_service.aggregation.settings import MOST_WHOLE, Krum, MultiKrum, fewest
from adamd_service.optim.validation import (
    SettingsError,
    Strict,
    first_error,
    not_null,
    number,
    path_of,
    shown,
    suggestion,
    whole,
)

MOST_CONTRIBUTIONS: Final = 10_000  # of a round: each is a place in one hash of the store
MOST_COMPARED: Final = 1000  # of a round whose aggregate compares each two: 144 MB of distances
MOST_CONFIG_BYTES: Final = 16 * 1024  # of the owner's object, as JSON
DEEPEST_CONFIG: Final = 16  # lists and objects within each other
REMEMBERED_ROUNDS: Final = 100  # rounds for which a buffered session knows who has contributed
PATTERNS: Final = ("averaged", "carry", "private")
COUNT = "a whole number, 1 or more"
SECONDS = "a finite number of seconds above 0, or null"
LIST = "a list of tensor names, or patterns of them"
WANTED: Final[Mapping[str, str]] = {
    "mode": '"sync" or "buffered"',
    "quorum": f"{COUNT}, at most {MOST_CONTRIBUTIONS}",
    "min_contributions": f"{COUNT}, at most quorum",
    "deadline_s": SECONDS,
    "max_contributions": f"a whole number, at least quorum and at most {MOST_CONTRIBUTIONS}",
    "cohort": "a whole number: 0 for all, else at least quorum",
    "seed": "a whole number from 0 to 2^53, or null: then one is drawn",
    "total": "a whole number, 0 or more; 0 is no end",
    "evaluate": "a whole number: how many clients are asked to evaluate, 0 for none",
    "config": f"an object of at most {MOST_CONFIG_BYTES} bytes",
    "averaged": LIST,
    "carry": LIST,
    "private": LIST,
}


def _listed(value: object) -> object:
    """JSON has lists where the frozen models have tuples; nothing else is let through."""
    return tuple(value) if isinstance(value, list) else value


def _absent_or_number(value: object) -> object:
    return value if value is None else number(value)


Count: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST_CONTRIBUTIONS)]
CountOrZero: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=0, le=MOST_CONTRIBUTIONS)]
Patterns: TypeAlias = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed)]


class RoundsModel(Strict):
    """What the document of a session's rounds has to be, beside what `aggregation` reads of it."""

    mode: Literal["sync", "buffered"] = "sync"
    quorum: Count
    min_contributions: Annotated[Count | None, BeforeValidator(not_null)] = None
    deadline_s: Annotated[Annotated[float, Field(gt=0, le=1e9)] | None, BeforeValidator(_absent_or_number)] = None
    max_contributions: Annotated[Count | None, BeforeValidator(not_null)] = None
    cohort: CountOrZero = 0
    seed: Annotated[Annotated[int, Field(ge=0, le=MOST_WHOLE)] | None, BeforeValidator(whole)] = None
    total: Annotated[int, BeforeValidator(whole), Field(ge=0, le=MOST_WHOLE)] = 0
    evaluate: CountOrZero = 0
    config: dict[str, Any] = Field(default_factory=dict)
    averaged: Patterns = ()
    carry: Patterns = ()
    private: Patterns = ()


@dataclass(frozen=True, slots=True)
class RoundsSettings:
    """How a session's rounds go.

    Attributes:
        mode: "sync": a round takes contributions that were made for it; "buffered": also of earlier rounds.
        quorum: contributions that close a round.
        min_contributions: that are enough at the deadline.
        deadline_s: seconds from the first contribution of a round; None: there is none.
        max_contributions: that a round takes at most.
        cohort: how many clients are asked, drawn anew for each round; 0: all.
        seed: of the drawing; None only before the session is created.
        total: rounds after which clients are told to stop; 0: no end.
        evaluate: how many clients are asked to evaluate the parameters that a round begins with.
        config: the owner's object, handed to clients.
        aggregation: how contributions become one gradient; its ``max_staleness`` None: `REMEMBERED_ROUNDS`.
        averaged: places of the tensors that are averaged, not stepped.
        carry: places of those that take the maximum.
        private: places of those that never leave a client.
        document: all of it as JSON values, complete.

    """

    mode: Literal["sync", "buffered"]
    quorum: int
    min_contributions: int
    deadline_s: float | None
    max_contributions: int
    cohort: int
    seed: int | None
    total: int
    evaluate: int
    config: Mapping[str, Any]
    aggregation: AggregationSettings
    averaged: tuple[int, ...]
    carry: tuple[int, ...]
    private: tuple[int, ...]
    document: Mapping[str, Any]

    @property
    def buffered(self) -> bool:
        """Whether contributions of earlier rounds count."""
        return self.mode == "buffered"

    @property
    def asked(self) -> int:
        """How many clients a round asks or takes at most, as privacy's accountant counts them."""
        return self.cohort or self.max_contributions

    @property
    def remembered(self) -> int:
        """How many rounds a contribution may be behind. For so many a buffered session knows who has contributed."""
        if not self.buffered:
            return 0
        most = self.aggregation.max_staleness
        return REMEMBERED_ROUNDS if most is None else most

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values: parse_rounds(s.to_json(), layout) == s."""
        return dict(self.document)


def parse_rounds(raw: object, layout: Layout) -> RoundsSettings:
    """Return settings from decoded JSON.

    Raises:
        SettingsError: at the first thing that is wrong; its path begins with ``rounds``.

    """
    try:
        return _parsed(raw, layout)
    except SettingsError as error:
        path = f"rounds.{error.path}" if error.path else "rounds"
        raise SettingsError(path, f"{path} {error.message}") from None


def check_new(settings: RoundsSettings) -> None:
    """Raise SettingsError where no session is made with these settings; one that is there goes on with them.

    A round would take too much memory; what privacy spends cannot be accounted for, or allows no round.
    """
    aggregate, most = settings.aggregation.aggregate, settings.max_contributions
    if isinstance(aggregate, Krum | MultiKrum) and most > MOST_COMPARED:
        name = "quorum" if settings.quorum > MOST_COMPARED else "max_contributions"
        said = f"is {getattr(settings, name)}, and {aggregate.name} compares each two; wanted at most {MOST_COMPARED}"
        raise SettingsError(f"rounds.{name}", f"rounds.{name} {said}")
    if settings.aggregation.privacy is None:
        return
    try:
        check_accounting(settings.aggregation.privacy, settings.asked)
    except SettingsError as error:
        raise SettingsError(f"rounds.{error.path}", f"rounds.{error.path} {error.message}") from None


def _parsed(raw: object, layout: Layout) -> RoundsSettings:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise SettingsError("", f'is {shown(raw)}; wanted an object such as {{"quorum": 6}}')
    try:
        model = RoundsModel.model_validate({key: raw[key] for key in raw if key not in FIELDS})
    except ValidationError as error:
        raise _explain(*first_error(error)) from None
    least = model.quorum if model.min_contributions is None else model.min_contributions
    most = model.quorum if model.max_contributions is None else model.max_contributions
    _check_counts(model, least, most)
    check_config(model.config)
    aggregation = _aggregation(model, {key: raw[key] for key in raw if key in FIELDS})
    averaged, carry, private = _tensors(model, layout)
    document = model.model_dump(mode="json") | {"min_contributions": least, "max_contributions": most}
    document |= aggregation_to_json(aggregation)
    return RoundsSettings(
        mode=model.mode,
        quorum=model.quorum,
        min_contributions=least,
        deadline_s=model.deadline_s,
        max_contributions=most,
        cohort=model.cohort,
        seed=model.seed,
        total=model.total,
        evaluate=model.evaluate,
        config=model.config,
        aggregation=aggregation,
        averaged=averaged,
        carry=carry,
        private=private,
        document=document,
    )


def _check_counts(model: RoundsModel, least: int, most: int) -> None:
    """Raise SettingsError where counts that are each in their range do not fit together."""
    quorum = model.quorum
    if least > quorum:
        raise SettingsError("min_contributions", f"is {least}; wanted at most quorum, which is {quorum}")
    if most < quorum:
        raise SettingsError("max_contributions", f"is {most}; wanted at least quorum, which is {quorum}")
    if 0 < model.cohort < quorum:
        raise SettingsError(
            "cohort", f"is {model.cohort}; wanted at least quorum, which is {quorum}, or 0 for all clients"
        )
    if least < quorum and model.deadline_s is None:
        raise SettingsError(
            "min_contributions",
            f"is {least}, below quorum; it counts at the deadline, and there is none: give deadline_s",
        )
    if model.mode == "buffered" and model.cohort:
        raise SettingsError("cohort", f"is {model.cohort}; a buffered session asks all clients: leave it out")


def _aggregation(model: RoundsModel, raw: Mapping[str, object]) -> AggregationSettings:
    made = parse_aggregation(raw, quorum=model.quorum, buffered=model.mode == "buffered")
    if made.max_staleness is not None and made.max_staleness > REMEMBERED_ROUNDS:
        raise SettingsError("max_staleness", f"is {made.max_staleness}; wanted at most {REMEMBERED_ROUNDS}")
    least = model.min_contributions or model.quorum
    if isinstance(made.aggregate, Krum | MultiKrum) and least < fewest(made.aggregate):
        raise SettingsError(
            "min_contributions",
            f"is {least}, and {made.aggregate.name} with byzantine {made.aggregate.byzantine} takes "
            f"{fewest(made.aggregate)}; wanted that many or more",
        )
    if made.privacy is not None and (model.averaged or model.carry):
        name = "averaged" if model.averaged else "carry"
        raise SettingsError(name, "stands beside privacy, and would go out without noise; leave one of them out")
    return made


def check_config(config: Mapping[str, Any]) -> None:
    """Raise SettingsError where the owner's object is too large, or not every client could be told it.

    gRPC's Struct has float64 for every number, and decoders of protobuf bound how deep a message is.
    """
    _check_told(config, 1)
    try:
        length = len(json.dumps(config, allow_nan=False, separators=(",", ":")).encode(errors="surrogatepass"))
    except ValueError:
        raise SettingsError("config", "holds a number that is not finite") from None
    if length > MOST_CONFIG_BYTES:
        raise SettingsError("config", f"has {length} bytes as JSON; wanted at most {MOST_CONFIG_BYTES}")


def _check_told(value: object, depth: int) -> None:
    if isinstance(value, int) and abs(value) > MOST_WHOLE:
        raise SettingsError("config", "holds a whole number beyond 2^53, which is not exact everywhere; send a text")
    if isinstance(value, dict | list):
        if depth > DEEPEST_CONFIG:
            raise SettingsError("config", f"is nested deeper than {DEEPEST_CONFIG}")
        for part in value.values() if isinstance(value, dict) else value:
            _check_told(part, depth + 1)


def with_config(settings: RoundsSettings, patch: object) -> RoundsSettings:
    """Return settings with another ``config``: nothing else of them can change.

    Raises:
        SettingsError: something else is in ``patch``, or the object is refused.

    """
    if not isinstance(patch, dict):
        raise SettingsError("rounds", f'rounds is {shown(patch)}; wanted an object such as {{"config": {{…}}}}')
    if fixed := next((key for key in patch if key != "config"), None):
        path = path_of(("rounds", str(fixed)))
        raise SettingsError(path, f"{path} is fixed when a session is created; config alone can be changed")
    if "config" not in patch:
        return settings
    config = patch["config"]
    if not isinstance(config, dict):
        raise SettingsError("rounds.config", f"rounds.config is {shown(config)}; wanted {WANTED['config']}")
    try:
        check_config(config)
    except SettingsError as error:
        raise SettingsError("rounds.config", f"rounds.config {error.message}") from None
    return replace(settings, config=config, document={**settings.document, "config": config})


def with_seed(settings: RoundsSettings, seed: int, noise: int) -> RoundsSettings:
    """Return settings with the seeds that were drawn for them, where none were given.

    ``noise``: for the noise of privacy. It is another one than ``seed``, which everybody may see.
    """
    document, aggregation = dict(settings.document), settings.aggregation
    if settings.seed is None:
        document["seed"] = seed
    if aggregation.privacy is not None and aggregation.privacy.seed is None:
        privacy = aggregation.privacy.model_copy(update={"seed": noise})
        aggregation = replace(aggregation, privacy=privacy)
        document |= aggregation_to_json(aggregation)
    return replace(settings, seed=document["seed"], aggregation=aggregation, document=document)


def with_clip(settings: RoundsSettings, clip_norm: float | None) -> RoundsSettings:
    """Return settings whose adaptive clip begins with this norm; the same where none is given."""
    privacy = settings.aggregation.privacy
    if clip_norm is None or privacy is None or privacy.adaptive is None:
        return settings
    adaptive = privacy.adaptive.model_copy(update={"initial": clip_norm})
    aggregation = replace(settings.aggregation, privacy=privacy.model_copy(update={"adaptive": adaptive}))
    document = {**settings.document, **aggregation_to_json(aggregation)}
    return replace(settings, aggregation=aggregation, document=document)


def shown_to_all(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the seed of the noise: whoever knows it can take the noise away."""
    privacy = document.get("privacy")
    if not isinstance(privacy, Mapping):
        return dict(document)
    return {**document, "privacy": {name: value for name, value in privacy.items() if name != "seed"}}


def _tensors(model: RoundsModel, layout: Layout) -> tuple[tuple[int, ...], ...]:
    """Return the places of the tensors that each list of patterns names.

    A tensor that two lists match belongs to the first, and an exact name goes before a pattern (`adamd.wire.patterns`).
    """
    lists = [(name, entries) for name in PATTERNS if (entries := getattr(model, name))]
    found: dict[str, list[int]] = {name: [] for name in PATTERNS}
    try:
        matches = places([entries for _, entries in lists])
        patterns.check([entries for _, entries in lists], matches, layout.names)
    except GroupsError as error:
        raise _own_words(error, [name for name, _ in lists]) from None
    for place, name in enumerate(layout.names):
        group = matches.of(name)
        if group is not None:
            found[lists[group][0]].append(place)
    if len(found["private"]) == len(layout.tensors):
        raise SettingsError("private", "names every tensor: then no client sends anything; leave one out")
    return tuple(tuple(found[name]) for name in PATTERNS)


def _own_words(error: GroupsError, names: list[str]) -> SettingsError:
    """Return a refused pattern's error in the words of this document: `averaged[1]`, not `groups[0].tensors[1]`."""

    def renamed(text: str) -> str:
        return re.sub(r"groups\[(\d+)\]\.tensors", lambda found: names[int(found[1])], text)

    path = renamed(error.path)
    return SettingsError(path, renamed(error.message).removeprefix(path).lstrip())


def _explain(place: tuple[int | str, ...], kind: str, came: object) -> SettingsError:
    path = path_of(place)
    if kind == "extra_forbidden":
        known = [*RoundsModel.model_fields, *FIELDS]
        return SettingsError(path, f"is unknown; {suggestion(str(place[-1]), known, {})}")
    if kind == "missing":
        return SettingsError(path, f"is missing; wanted {WANTED[path]}")
    wanted = "a tensor name, or a pattern" if len(place) > 1 else WANTED.get(path, "another value")
    return SettingsError(path, f"is {shown(came)}; wanted {wanted}")
