"""Attackers among the clients: a plain mean is lost to them, and each defence holds.

Li et al. 2019 (RSA), arXiv:1811.03761, section 5, have sign flips; Bagdasaryan et al. 2020, arXiv:1807.00459, one client
that sends many times its update.
"""

import threading
from dataclasses import replace

import pytest

import adamd
from adamd import fed
from federated.learning import accuracy, learned, open_run, shards

ROUNDS = 30
POINTS = 3.0  # of accuracy, in percent, that an attack may cost
LOST = 40.0  # percent, and less: one digit of ten is right by chance
ROBUST = {
    "median": {"aggregate": "median"},
    "trimmed_mean": {"aggregate": {"name": "trimmed_mean", "trim": 0.2}},
    "krum": {"aggregate": {"name": "krum", "byzantine": 3}},
    "multi_krum": {"aggregate": {"name": "multi_krum", "byzantine": 3, "keep": 10}},
    "geometric_median": {"aggregate": "geometric_median"},
}
HELD = {"norm_filter": {"norm_filter": 3.0}, "clip_norm": {"clip_norm": 1.0}}
pytestmark = pytest.mark.slow


def flipped():
    """Fifteen clients with shards alike (Dirichlet 100), of which three push the other way, five times as far."""
    clean = shards(15, 100.0, seed=5)
    return clean, [replace(one, times=-5.0) if place % 5 == 2 else one for place, one in enumerate(clean)]


def one_of_twelve():
    """Twelve clients with shards of their own (Dirichlet 0.3), of which one sends -50 times what it learned."""
    clean = shards(12, 0.3, seed=5)
    return clean, [replace(one, times=-50.0) if place == 4 else one for place, one in enumerate(clean)]


# Parameters that run away overflow in the attackers' and the victims' own training.
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("clients", [flipped, one_of_twelve])
def test_a_plain_mean_is_lost(clients):
    clean, attacked = clients()
    assert accuracy(learned(clean, ROUNDS)) > 90
    assert accuracy(learned(attacked, 10)) < LOST


@pytest.mark.parametrize("name", ROBUST)
def test_a_fifth_of_the_clients_flips_signs(name):
    clean, attacked = flipped()
    without = accuracy(learned(clean, ROUNDS, **ROBUST[name]))
    assert without > 90
    assert accuracy(learned(attacked, ROUNDS, **ROBUST[name])) > without - POINTS


@pytest.mark.parametrize("name", HELD)
def test_one_client_sends_fifty_times_too_much(name):
    clean, attacked = one_of_twelve()
    without = accuracy(learned(clean, ROUNDS, **HELD[name]))
    assert without > 90
    assert accuracy(learned(attacked, ROUNDS, **HELD[name])) > without - POINTS


@pytest.mark.parametrize(
    ("name", "aggregate"),
    [
        ("norm_filter", fed.Mean(norm_filter=3.0)),
        ("clip_norm", fed.Mean(clip_norm=1.0)),
        ("multi_krum", fed.MultiKrum(byzantine=3, keep=10)),
    ],
)
def test_a_server_makes_the_same_bits(server, name, aggregate):
    """What holds here holds there: over both transports, with the attacker named in the rounds' documents."""
    _, attacked = flipped() if name in ROBUST else one_of_twelve()
    rounds = 5
    with adamd.connect(server.url) as owner:
        run = open_run(owner, f"attacked-{name}", len(attacked), num_rounds=rounds, aggregate=aggregate)
        take_part(server, run.name, attacked)
        found, wanted = run.parameters(), learned(attacked, rounds, **{**ROBUST, **HELD}[name])
        assert {key: array.tobytes() for key, array in found.items()} == {
            key: array.tobytes() for key, array in wanted.items()
        }
        bad = {one.name for one in attacked if one.times != 1}
        for done in run.history()[:-1]:
            rows = {row.client: row for row in done.contributions}
            if name == "clip_norm":
                assert all(rows[client].clipped for client in bad)
            else:
                reason = "norm_filter" if name == "norm_filter" else "not_chosen"
                assert {rows[client].reason for client in bad} == {reason}
        run.delete()


def take_part(server, name, hospitals):
    """Let every hospital train until the last round is over."""
    faults = []

    def train(one, url):
        try:
            with adamd.connect(url) as client:
                for task in client.federation(name, client=one.name).rounds():
                    delta = one.delta(task.parameters, task.round)
                    answer = task.reply(delta=delta, num_examples=len(one.images))
                    assert answer.counted, answer
        except BaseException as error:
            faults.append(error)

    urls = server.url, server.grpc_url
    threads = [threading.Thread(target=train, args=(one, urls[place % 2])) for place, one in enumerate(hospitals)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not faults, faults
