"""How a round's contributions become one gradient: the settings, parsed strictly, each with its default.

Every refusal is a SettingsError that names the place below `rounds` (`aggregate.trim`) and begins with the verb ("is 1;
wanted …"), so that whoever parses `rounds` puts its own path before it, as with schedules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from adamd_service.optim.validation import (
    SettingsError,
    Strict,
    first_error,
    not_null,
    number,
    one_of,
    path_of,
    shown,
    suggestion,
    whole,
)

MOST_WHOLE: Final = 2**53  # exact as a float64, and so in every client's JSON
# Norms of float32 vectors whose squares are finite lie below; what is clipped to it has room for noise above.
LARGEST: Final = 1e15
POSITIVE: Final = "a finite number above 0"
FEW: Final = "a whole number, 0 or more"
WANTED: Final[Mapping[str, str]] = {
    "weighting": '"num_examples" or "equal"',
    "max_weight": f"{POSITIVE}, or null for none",
    "clip_norm": f"{POSITIVE}, at most {LARGEST:g}, or null for none",
    "norm_filter": "a finite number above 1 (so many times the median norm), or null for none",
    "aggregate": 'a name, or an object such as {"name": "trimmed_mean", "trim": 0.2}',
    "aggregate.trim": "a finite number, 0 or more and below 0.5",
    "aggregate.byzantine": FEW,
    "aggregate.keep": "a whole number, 1 or more",
    "aggregate.iterations": "a whole number from 1 to 100",
    "aggregate.smoothing": "a finite number, 1e-30 or more",
    "staleness": 'a name, or an object such as {"name": "polynomial", "exponent": 0.5}',
    "staleness.exponent": "a finite number, 0 or more",
    "staleness.a": POSITIVE,
    "staleness.b": "a finite number, 0 or more",
    "max_staleness": f"{FEW}, or null for none",
    "privacy": 'an object such as {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5}, or null for none',
    "privacy.noise_multiplier": f"{POSITIVE}, at least 1e-6 and at most 1e6",
    "privacy.clip_norm": f"{POSITIVE}, at most {LARGEST:g}",
    "privacy.adaptive": 'an object such as {"target_quantile": 0.5}',
    "privacy.adaptive.target_quantile": "a finite number from 0 to 1",
    "privacy.adaptive.learning_rate": POSITIVE,
    "privacy.adaptive.initial": f"{POSITIVE}, at most {LARGEST:g}",
    "privacy.adaptive.count_noise": f"{POSITIVE}, or null for a twentieth of the quorum",
    "privacy.delta": "a number above 0 and below 1",
    "privacy.max_epsilon": f"{POSITIVE}, or null for no limit",
    "privacy.population": "a whole number, 1 or more, or null where it is not known",
    "privacy.sampling": '"none" or "poisson"',
    "privacy.seed": "a whole number, 0 or more and below 2^64, or null for one that is drawn",
}

Number: TypeAlias = Annotated[float, BeforeValidator(number)]
Positive: TypeAlias = Annotated[Number, Field(gt=0)]
Norm: TypeAlias = Annotated[Number, Field(gt=0, le=LARGEST)]
NotNegative: TypeAlias = Annotated[Number, Field(ge=0)]
Whole: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=0, le=MOST_WHOLE)]
Count: TypeAlias = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST_WHOLE)]


class Mean(Strict):
    """The weighted mean: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1."""

    name: Literal["mean"] = "mean"


class Median(Strict):
    """The median of each coordinate: Yin et al. 2018, arXiv:1803.01498, definition 1."""

    name: Literal["median"] = "median"


class TrimmedMean(Strict):
    """Each coordinate's mean without its smallest and largest values: Yin et al. 2018, arXiv:1803.01498, definition 2.

    trim: the share that is cut at either end, floor(trim n) of n values.
    """

    name: Literal["trimmed_mean"] = "trimmed_mean"
    trim: Annotated[Number, Field(ge=0, lt=0.5)] = 0.2


class Krum(Strict):
    """The contribution that is nearest to its neighbours: Blanchard et al. 2017, arXiv:1703.02757, section 4.

    byzantine: how many contributions may be of attackers, f.
    """

    name: Literal["krum"] = "krum"
    byzantine: Whole


class MultiKrum(Strict):
    """The mean of the `keep` contributions with the best scores: Blanchard et al. 2017, arXiv:1703.02757, section 5."""

    name: Literal["multi_krum"] = "multi_krum"
    byzantine: Whole
    keep: Count


class GeometricMedian(Strict):
    """The point with the least weighted sum of distances, by smoothed Weiszfeld steps: RFA, Pillutla et al. 2022,
    arXiv:1912.13445, algorithm 2.

    iterations: of Weiszfeld, beginning at the mean. smoothing: the least distance that is divided by, nu.
    """

    name: Literal["geometric_median"] = "geometric_median"
    iterations: Annotated[Count, Field(le=100)] = 8
    smoothing: Annotated[Number, Field(ge=1e-30)] = 1e-6


class ConstantStaleness(Strict):
    """A stale contribution counts as a fresh one."""

    name: Literal["constant"] = "constant"


class PolynomialStaleness(Strict):
    """(1 + staleness)^-exponent: Xie et al. 2019, arXiv:1903.03934, section 5.2; FedBuff's with 0.5."""

    name: Literal["polynomial"] = "polynomial"
    exponent: NotNegative = 0.5


class HingeStaleness(Strict):
    """1 up to staleness b, then 1 / (a (staleness - b) + 1): Xie et al. 2019, arXiv:1903.03934, section 5.2."""

    name: Literal["hinge"] = "hinge"
    a: Positive = 10.0
    b: NotNegative = 4.0


class AdaptiveClip(Strict):
    """A clip norm that follows a quantile of the norms: Andrew et al. 2021, arXiv:1905.03871, algorithm 1.

    target_quantile: the share of contributions that shall lie within. learning_rate: of the geometric update. initial:
    the first round's norm. count_noise: the standard deviation of the noise on how many lay within; None is a twentieth
    of the quorum.
    """

    target_quantile: Annotated[Number, Field(ge=0, le=1)] = 0.5
    learning_rate: Positive = 0.2
    initial: Norm = 0.1
    count_noise: Positive | None = None


class Privacy(Strict):
    """Differential privacy for whole clients: McMahan et al. 2018, arXiv:1710.06963.

    noise_multiplier: the noise's standard deviation, in units of the clip norm; where the clip is adaptive, of a round
    as a whole. delta, max_epsilon: of the guarantee. population, sampling: what the owner states of who takes part.
    """

    noise_multiplier: Annotated[Positive, Field(ge=1e-6, le=1e6)]  # below, its epsilon is beyond float64
    clip_norm: Norm | None = None
    adaptive: AdaptiveClip | None = None
    delta: Annotated[Positive, Field(lt=1)]
    max_epsilon: Positive | None = None
    population: Count | None = None
    sampling: Literal["none", "poisson"] = "none"
    seed: Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**64)] | None = None


Aggregate: TypeAlias = Mean | Median | TrimmedMean | Krum | MultiKrum | GeometricMedian
Staleness: TypeAlias = ConstantStaleness | PolynomialStaleness | HingeStaleness
Weighting: TypeAlias = Literal["num_examples", "equal"]
AGGREGATES: Final[Mapping[str, type[Aggregate]]] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "geometric_median": GeometricMedian,
}
STALENESSES: Final[Mapping[str, type[Staleness]]] = {
    "constant": ConstantStaleness,
    "polynomial": PolynomialStaleness,
    "hinge": HingeStaleness,
}
UNWEIGHTED: Final = (Median, TrimmedMean, Krum)  # their equations have no weights
ALIASES: Final[Mapping[str, str]] = {
    "beta": "trim",
    "f": "byzantine",
    "numbyzantine": "byzantine",
    "nummaliciousnodes": "byzantine",
    "m": "keep",
    "numnodestoselect": "keep",
    "nu": "smoothing",
    "alpha": "exponent",
    "z": "noise_multiplier",
    "clippingnorm": "clip_norm",
    "sensitivity": "clip_norm",
    "clipnormlr": "learning_rate",
    "targetclippedquantile": "target_quantile",
    "initialclippingnorm": "initial",
    "clippedcountstddev": "count_noise",
    "epsilon": "max_epsilon",
}
PLAIN_MEAN: Final = Mean()
FRESH: Final = ConstantStaleness()
Named = TypeVar("Named", Aggregate, Staleness)


@dataclass(frozen=True, slots=True)
class AggregationSettings:
    """The settings of a session's aggregation; `parse_aggregation` has checked that they fit together.

    quorum: the contributions that a round waits for, 1 or more; private sums are divided by it. The others are the
    `rounds` document's.
    """

    quorum: int
    weighting: Weighting = "num_examples"
    max_weight: float | None = None
    clip_norm: float | None = None
    norm_filter: float | None = None
    aggregate: Aggregate = PLAIN_MEAN
    staleness: Staleness = FRESH
    max_staleness: int | None = None
    privacy: Privacy | None = None


class _Plain(Strict):
    """The settings without an object of their own."""

    weighting: Annotated[Weighting | None, BeforeValidator(not_null)] = None
    max_weight: Positive | None = None
    clip_norm: Norm | None = None
    norm_filter: Annotated[Number, Field(gt=1)] | None = None
    max_staleness: Whole | None = None


FIELDS: Final = (*_Plain.model_fields, "aggregate", "staleness", "privacy")  # of `rounds`, that are parsed here


def parse_aggregation(raw: Mapping[str, object], *, quorum: int, buffered: bool) -> AggregationSettings:
    """The settings of the FIELDS that are in `raw`, which are decoded JSON, for rounds of that quorum and mode.

    Raises SettingsError at the first thing that is wrong, its path relative to `rounds`.
    """
    try:
        plain = _Plain.model_validate(
            {key: raw[key] for key in raw if key not in ("aggregate", "staleness", "privacy")}
        )
    except ValidationError as error:
        raise _explain("", _Plain, *first_error(error)) from None
    if not buffered and (given := [key for key in ("staleness", "max_staleness") if raw.get(key) is not None]):
        raise SettingsError(given[0], "is for buffered rounds; leave it out, or give mode buffered")
    aggregate = _named("aggregate", raw.get("aggregate", "mean"), AGGREGATES)
    staleness = _named("staleness", raw.get("staleness", "constant"), STALENESSES)
    privacy = _privacy(raw["privacy"]) if raw.get("privacy") is not None else None
    unweighted = privacy is not None or isinstance(aggregate, UNWEIGHTED)
    made = AggregationSettings(
        quorum=quorum,
        weighting=plain.weighting or ("equal" if unweighted else "num_examples"),
        max_weight=plain.max_weight,
        clip_norm=plain.clip_norm,
        norm_filter=plain.norm_filter,
        aggregate=aggregate,
        staleness=staleness,
        max_staleness=plain.max_staleness,
        privacy=privacy,
    )
    _check_weights(made)
    _check_aggregate(aggregate, quorum)
    if privacy is not None:
        _check_privacy(made, privacy)
    return made


def aggregation_to_json(settings: AggregationSettings) -> dict[str, Any]:
    """The settings as JSON values: parse_aggregation of them, with the same quorum and mode, is `settings` again.

    Complete, but for what only buffered rounds may give where it is at its default.
    """
    privacy = settings.privacy
    document: dict[str, Any] = {
        "weighting": settings.weighting,
        "max_weight": settings.max_weight,
        "clip_norm": settings.clip_norm,
        "norm_filter": settings.norm_filter,
        "aggregate": settings.aggregate.model_dump(mode="json"),
        "privacy": None if privacy is None else privacy.model_dump(mode="json", exclude_none=True),
    }
    if settings.staleness != FRESH:
        document["staleness"] = settings.staleness.model_dump(mode="json")
    if settings.max_staleness is not None:
        document["max_staleness"] = settings.max_staleness
    return document


def count_noise(adaptive: AdaptiveClip, quorum: int) -> float:
    """The standard deviation of the noise on how many norms lay within the clip norm: sigma_b of Andrew et al.

    Left out it is quorum / 20, as section 3 of the paper has it.
    """
    return quorum / 20 if adaptive.count_noise is None else adaptive.count_noise


def fewest(aggregate: Aggregate) -> int:
    """The contributions that an aggregate needs: Krum's 2 f + 3 (Blanchard et al. 2017, proposition 1: 2 f + 2 < n)."""
    match aggregate:
        case Krum(byzantine=f):
            return 2 * f + 3
        case MultiKrum(byzantine=f, keep=keep):
            return max(2 * f + 3, keep)
        case _:
            return 1


def _named(field: str, raw: object, models: Mapping[str, type[Named]]) -> Named:
    """One of the models, from its name alone or an object with it."""
    given = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        came = "an object without a name" if isinstance(given, dict) else shown(given)
        raise SettingsError(field, f"is {came}; wanted {WANTED[field]}")
    model = models.get(given["name"])
    if model is None:
        raise SettingsError(field if isinstance(raw, str) else f"{field}.name", one_of(given["name"], models))
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _explain(field, model, *first_error(error)) from None


def _privacy(raw: object) -> Privacy:
    try:
        return Privacy.model_validate(raw)
    except ValidationError as error:
        place, kind, came = first_error(error)
        model = AdaptiveClip if len(place) > 1 else Privacy
        raise _explain("privacy", model, place, kind, came) from None


def _explain(field: str, model: type[Strict], place: tuple[int | str, ...], kind: str, came: object) -> SettingsError:
    path = path_of((field, *place) if field else place)
    if kind == "extra_forbidden":
        known = [*model.model_fields] if field else FIELDS
        return SettingsError(path, f"is unknown; {suggestion(str(place[-1]), known, ALIASES)}")
    if kind == "missing":
        return SettingsError(path, f"is missing; wanted {WANTED[path]}")
    return SettingsError(path, f"is {shown(came)}; wanted {WANTED.get(path, 'an object whose keys are names')}")


def _check_weights(settings: AggregationSettings) -> None:
    unweighted = (
        "privacy, where every client counts alike"
        if settings.privacy is not None
        else f"aggregate {settings.aggregate.name}, which has no weights"
        if isinstance(settings.aggregate, UNWEIGHTED)
        else None
    )
    if unweighted is not None and settings.weighting != "equal":
        raise SettingsError("weighting", f'is num_examples beside {unweighted}; wanted "equal", or leave it out')
    if settings.max_weight is not None and settings.weighting == "equal":
        raise SettingsError("max_weight", 'is for weighting "num_examples", and weighting is equal; leave it out')


def _check_aggregate(aggregate: Aggregate, quorum: int) -> None:
    match aggregate:
        case TrimmedMean(trim=trim) if trim > 0 and int(trim * quorum) == 0:
            said = f"is {trim:g}, which cuts none of {quorum}, the quorum; wanted {1 / quorum:.3g} or more"
            raise SettingsError(
                "aggregate.trim", f"{said}, or 0" if quorum > 2 else f"{said[: said.index(';')]}; wanted 0"
            )
        case Krum(byzantine=f) | MultiKrum(byzantine=f) if quorum < 2 * f + 3:
            # Blanchard et al. 2017, proposition 1: 2 f + 2 < n.
            raise SettingsError("aggregate.byzantine", f"is {f}, which takes a quorum of {2 * f + 3}; it is {quorum}")
    if isinstance(aggregate, MultiKrum) and aggregate.keep > quorum:
        raise SettingsError("aggregate.keep", f"is {aggregate.keep}; wanted at most {quorum}, the quorum")


def _check_privacy(settings: AggregationSettings, privacy: Privacy) -> None:
    """Refuse what has no bound on what one client can change, or says a thing twice."""
    if not isinstance(settings.aggregate, Mean):
        name = settings.aggregate.name
        raise SettingsError("aggregate", f"is {name} beside privacy, whose noise is that of a mean; wanted mean")
    if settings.clip_norm is not None:
        raise SettingsError("clip_norm", "stands beside privacy, which has a clip of its own; wanted privacy.clip_norm")
    if settings.norm_filter is not None:
        raise SettingsError(
            "norm_filter", "stands beside privacy; one client's norm would decide about another's; leave it out"
        )
    if (privacy.clip_norm is None) == (privacy.adaptive is None):
        came = "is missing" if privacy.clip_norm is None else "stands beside privacy.adaptive"
        raise SettingsError("privacy.clip_norm", f"{came}; wanted one of privacy.clip_norm and privacy.adaptive")
    _check_sampling(privacy, settings.quorum)
    if privacy.adaptive is not None:
        noise, least = count_noise(privacy.adaptive, settings.quorum), privacy.noise_multiplier / 2
        if noise <= least:
            whence = " (a twentieth of the quorum)" if privacy.adaptive.count_noise is None else ""
            raise SettingsError(
                "privacy.adaptive.count_noise",
                f"is {noise:g}{whence}; wanted more than half of noise_multiplier, which is {least:g}",
            )


def _check_sampling(privacy: Privacy, quorum: int) -> None:
    if privacy.sampling == "poisson" and privacy.population is None:
        raise SettingsError("privacy.population", "is missing; sampling poisson takes the number of all clients")
    if privacy.population is None:
        return
    if privacy.sampling == "none":
        raise SettingsError(
            "privacy.population",
            f'is {privacy.population}, and sampling is none, which does not use it; give sampling "poisson", or leave '
            "population out",
        )
    if privacy.population < quorum:
        raise SettingsError("privacy.population", f"is {privacy.population}; wanted at least {quorum}, the quorum")
