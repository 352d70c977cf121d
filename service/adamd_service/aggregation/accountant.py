"""How much privacy the rounds so far have spent: (epsilon, delta) by Renyi differential privacy.

The accounting is dp-accounting's (Google; the extra `privacy`), for neighbours that differ in one client: each round
is a Gaussian mechanism with the settings' noise multiplier, to which each client contributes once at most. Without a
population and Poisson sampling nothing is gained by who was not asked: Mironov 2017, arXiv:1702.07476. With them, each
client takes part by itself with probability asked / population: Mironov et al. 2019, arXiv:1908.10530.
"""

from functools import lru_cache

from adamd_service.aggregation.settings import Privacy
from adamd_service.optim.validation import SettingsError

MOST_ROUNDS = 1 << 31  # that are looked at for a limit: more than any session makes


def epsilon(privacy: Privacy, rounds: int, asked: int) -> float:
    """The epsilon that so many closed rounds have spent, at the settings' delta; 0 for none.

    asked: how many clients take part in a round at most: the cohort, or else max_contributions. Raises SettingsError
    where dp-accounting is not installed.
    """
    return _epsilon(privacy.noise_multiplier, privacy.delta, _rate(privacy, asked), rounds)


def affords(privacy: Privacy, rounds: int, asked: int) -> bool:
    """Whether so many rounds stay within max_epsilon."""
    return privacy.max_epsilon is None or epsilon(privacy, rounds, asked) <= privacy.max_epsilon


def rounds_within(privacy: Privacy, asked: int) -> int | None:
    """How many rounds max_epsilon lets a session make; None where that is no limit, or one beyond MOST_ROUNDS."""
    if affords(privacy, MOST_ROUNDS, asked):
        return None
    low, high = 0, MOST_ROUNDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affords(privacy, middle, asked) else (low, middle)
    return low


def check_accounting(privacy: Privacy, asked: int) -> None:
    """Refuse what cannot be accounted for, or allows no round.

    Raises SettingsError, its path relative to `rounds`, as `settings.parse_aggregation` does.
    """
    if privacy.population is not None and asked > privacy.population:
        raise SettingsError(
            "privacy.population", f"is {privacy.population}, and a round asks {asked} clients; wanted that many or more"
        )
    first = epsilon(privacy, 1, asked)
    if privacy.max_epsilon is not None and first > privacy.max_epsilon:
        raise SettingsError(
            "privacy.max_epsilon",
            f"is {privacy.max_epsilon:g}, and one round spends {first:.3g}; wanted more, or a larger noise_multiplier",
        )


def _rate(privacy: Privacy, asked: int) -> float | None:
    """With which probability a client takes part in a round; None where nothing is known of it."""
    if privacy.sampling != "poisson" or privacy.population is None:
        return None
    return min(1.0, asked / privacy.population)


@lru_cache(maxsize=1024)
def _epsilon(noise_multiplier: float, delta: float, rate: float | None, rounds: int) -> float:
    if rounds == 0:
        return 0.0
    try:
        from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise SettingsError(
            "privacy", "needs an accountant, which this server does not have; install adamd[privacy] there"
        ) from None
    event = GaussianDpEvent(noise_multiplier)
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event if rate is None else PoissonSampledDpEvent(rate, event), rounds)
    return float(accountant.get_epsilon(delta))
