"""The epsilon spent: published examples, bounds from both sides in closed form, and the refusals."""

import math
import sys

import pytest
from scipy import optimize, stats

from adamd_service.aggregation import affords, check_accounting, epsilon, rounds_within
from adamd_service.aggregation.settings import Privacy
from adamd_service.optim import SettingsError


def private(noise_multiplier=1.0, delta=1e-5, **more):
    return Privacy(noise_multiplier=noise_multiplier, clip_norm=1.0, delta=delta, **more)


@pytest.mark.parametrize(
    ("population", "asked", "z", "epochs", "delta", "published"),
    [
        # Those of dp-accounting's and TensorFlow Privacy's compute_dp_sgd_privacy_test.py, with RDP.
        (60_000, 150, 1.3, 15, 1e-5, 0.7242234026109595),
        (100_000, 100, 1.0, 30, 1e-7, 1.4154988495444845),
    ],
)
def test_published_examples(population, asked, z, epochs, delta, published):
    privacy = private(z, delta, population=population, sampling="poisson")
    rounds = math.ceil(epochs * population / asked)
    assert epsilon(privacy, rounds, asked) == pytest.approx(published, rel=1e-9)


def test_the_moments_accountants_example():
    """Abadi et al. 2016, arXiv:1607.00133, section 3.2: q = 0.01, sigma = 4, 10,000 steps: 1.26 by its conversion,
    which later ones improve, and no accountant can go below 0.9 there.
    """
    spent = epsilon(private(4.0, population=10_000, sampling="poisson"), 10_000, 100)
    assert 0.9 < spent < 1.26


def exact(z, rounds, delta):
    """The epsilon of composed Gaussian mechanisms: Balle & Wang 2018, arXiv:1805.06530, theorem 8, mu = sqrt(rounds) / z."""
    mu = math.sqrt(rounds) / z

    def beyond(eps):
        first = stats.norm.cdf(mu / 2 - eps / mu)
        return first - math.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu)) - delta

    return optimize.brentq(beyond, 0.0, 1e4)


@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (1.0, 50), (0.5, 10), (8.0, 1000), (20.0, 30)])
def test_without_sampling_it_lies_between_the_exact_one_and_mironovs(z, rounds):
    delta = 1e-6
    spent = epsilon(private(z, delta), rounds, 10)
    classic = rounds / (2 * z * z) + math.sqrt(2 * rounds * math.log(1 / delta)) / z  # Mironov 2017, proposition 3
    assert exact(z, rounds, delta) <= spent <= classic


def test_only_stated_poisson_sampling_helps():
    plain = epsilon(private(), 10, 100)
    assert plain == epsilon(private(), 10, 3)
    sampled = epsilon(private(population=10_000, sampling="poisson"), 10, 100)
    assert sampled < plain / 10
    everybody = epsilon(private(population=100, sampling="poisson"), 10, 100)
    assert everybody == pytest.approx(plain, rel=1e-9)


def test_no_round_spends_nothing_and_each_spends_something():
    spent = [epsilon(private(), rounds, 10) for rounds in range(6)]
    assert spent[0] == 0 and all(a < b for a, b in zip(spent, spent[1:], strict=False))


def test_max_epsilon():
    privacy = private(2.0, max_epsilon=8.0)
    most = rounds_within(privacy, 10)
    assert most > 1 and affords(privacy, most, 10) and not affords(privacy, most + 1, 10)
    assert epsilon(privacy, most, 10) <= 8.0 < epsilon(privacy, most + 1, 10)
    assert rounds_within(private(), 10) is None
    check_accounting(privacy, 10)


def test_refusals():
    with pytest.raises(SettingsError, match="is 0.5, and one round spends 4.73; wanted more") as refused:
        check_accounting(private(max_epsilon=0.5), 10)
    assert refused.value.path == "privacy.max_epsilon"
    with pytest.raises(SettingsError, match="is 50, and a round asks 51 clients") as refused:
        check_accounting(private(population=50, sampling="poisson"), 51)
    assert refused.value.path == "privacy.population"


def test_a_server_without_the_accountant_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SettingsError, match=r"install adamd\[privacy\]") as refused:
        check_accounting(private(1.2345678), 10)  # asked for nowhere else: nothing of it is remembered
    assert refused.value.path == "privacy"
