"""`adamd.flower` beside Flower's own strategies, while its server or its ServerApp is killed.

The Flower run is a process of the environment with Flower (`app.py`, $ADAMD_FLOWER_PYTHON), the server one of this.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from servers import ended

pytestmark = pytest.mark.flower
ROOT = Path(__file__).parents[2]
PYTHON = os.environ["ADAMD_FLOWER_PYTHON"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "client")])}
ROUNDS = 12
CASES = {
    "FedAdam": {},
    "FedYogi": {"eta": 0.03, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "FedAdagrad": {},
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5, "server_learning_rate": 0.7},
}


def command(**asked):
    return [PYTHON, str(ROOT / "tests/flower/app.py"), json.dumps(asked)]


def lines(out):
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def run(status=0, **asked):
    """Run it to its end; returns by round the line of that round, and the last line."""
    done = ended(command(rounds=ROUNDS, **asked), env=ENVIRONMENT)
    assert done.returncode == status, done.stdout + done.stderr
    told = lines(done.stdout)
    last = told.pop() if status == 0 else None
    return {line["round"]: line for line in told}, last


def apart(one, other, rounds=range(ROUNDS + 1)):
    return max(np.abs(np.subtract(one[number]["values"], other[number]["values"])).max() for number in rounds)


def durable(server, name, **more):
    return {"url": server.url, "session": name, **more}


@pytest.mark.parametrize(
    ("strategy", "dtype", "allowed"), [*((name, "float64", 1e-12) for name in CASES), ("FedAdam", "float32", 1e-6)]
)
def test_it_is_flowers_own_while_the_server_is_killed_between_rounds(server_factory, strategy, dtype, allowed):
    asked = {"strategy": strategy, "given": CASES[strategy], "dtype": dtype}
    theirs, told = run(**asked)
    assert apart(theirs, dict.fromkeys(theirs, theirs[0])) > 0.1  # there is something to be apart in
    server = server_factory("--grpc-port", "off")
    words = command(rounds=ROUNDS, waits=True, durable=durable(server, "killed"), **asked)
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as app:
        ours = {}
        for number in range(ROUNDS + 1):
            ours[number] = json.loads(app.stdout.readline() or json.dumps(app.stderr.read()))
            if number in (3, 8):
                server.kill()
            app.stdin.write("\n")
            app.stdin.flush()
            if number in (3, 8):
                server.restart()
        last = json.loads(app.stdout.readline())
    assert apart(theirs, ours) <= allowed
    assert last["trained"].keys() == told["trained"].keys()
    assert last["trained"]["12"]["mean"] == pytest.approx(told["trained"]["12"]["mean"], abs=1e-6)


@pytest.mark.parametrize("how", [{"dies_in": 6}, {"dies_after": 5 * 3 + 1}], ids=["before a round", "in contributions"])
def test_a_server_app_that_died_goes_on_with_its_moments(server, how):
    name = f"died-{next(iter(how))}"
    asked = {"strategy": "FedAdam", "given": {}, "fraction_evaluate": 1.0}
    theirs, told = run(**asked)
    first, _ = run(status=-9, durable=durable(server, name), **asked, **how)
    assert sorted(first) == [0, 1, 2, 3, 4, 5]
    second, last = run(durable=durable(server, name), **asked)
    assert sorted(second) == list(range(5, ROUNDS + 1))  # the last one that was made is evaluated again
    assert apart(theirs, first | second) <= 1e-12
    assert [second[number]["lr"] for number in (9, 12)] == [theirs[number]["lr"] for number in (9, 12)] == [0.5, 0.25]
    assert last["asked"] == [["evaluate", n] for n in range(5, 13)] + [["train", n] for n in range(6, 13)]
    assert last["trained"].keys() == told["trained"].keys()
    for number, record in told["trained"].items():
        assert last["trained"][number]["mean"] == pytest.approx(record["mean"], abs=1e-9)
    assert last["evaluated"]["12"] == pytest.approx(told["evaluated"]["12"], abs=1e-9)
    third, again = run(durable=durable(server, name), **asked)
    assert list(third) == [ROUNDS] and again["last"] == last["last"] and again["asked"] == [["evaluate", 12]]


def test_replies_that_fail_are_missing_as_in_flower(server):
    """NaN is no reply either: Flower's own would be NaN from there on, so it is compared where the client fails."""
    asked = {"strategy": "FedAdam", "given": {}}
    theirs, _ = run(fails=[(2, 3), (1, 4), (2, 4), (3, 4), (3, 7)], **asked)
    ours, _ = run(fails=[(2, 3), (1, 4), (2, 4), (3, 4)], nan=[(3, 7)], durable=durable(server, "fails"), **asked)
    assert theirs[4]["values"] == theirs[3]["values"]  # nobody replied
    # To round 4 nobody replied: Flower's bias correction counts it, and the session's does not.
    assert apart(theirs, ours, range(5)) <= 1e-12 < apart(theirs, ours)
    averaged = {"strategy": "FedAvg", "given": {}}
    theirs, _ = run(fails=[(2, 3), (1, 4), (2, 4), (3, 4), (3, 7)], **averaged)
    ours, _ = run(fails=[(2, 3), (1, 4), (2, 4), (3, 4)], nan=[(3, 7)], durable=durable(server, "nan"), **averaged)
    assert apart(theirs, ours) <= 1e-12


def test_an_aggregate_withstands_a_client_that_a_mean_does_not(server):
    nodes = dict.fromkeys(range(1, 8), 10)
    asked = {"strategy": "FedAvg", "given": {}, "nodes": nodes}
    honest, _ = run(**asked)
    poisoned = [(4, number) for number in range(1, ROUNDS + 1)]
    mean, _ = run(poisoned=poisoned, durable=durable(server, "mean"), **asked)
    robust, _ = run(poisoned=poisoned, durable=durable(server, "robust"), aggregate="Median", **asked)
    assert apart(honest, mean) > 1e5 and apart(honest, robust) < 10


def test_arrays_that_are_changed_between_rounds_are_refused(server):
    done = ended(
        command(strategy="FedAvg", given={}, rounds=ROUNDS, changes=4, durable=durable(server, "changed")),
        env=ENVIRONMENT,
    )
    assert done.returncode != 0 and "cannot be changed between two rounds" in done.stderr + done.stdout


def test_a_session_of_other_settings_is_refused_with_what_differs(server):
    run(strategy="FedAdam", given={}, durable=durable(server, "settings"))
    done = ended(
        command(strategy="FedAdam", given={"eta": 0.5}, rounds=ROUNDS, durable=durable(server, "settings")),
        env=ENVIRONMENT,
    )
    assert done.returncode != 0 and "0.5" in done.stderr and "0.1" in done.stderr, done.stderr
