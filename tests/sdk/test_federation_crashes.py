"""Federations whose client, coordinator or server is killed: nothing counts twice, nothing is lost, the bits are the same."""

import subprocess
import sys
import threading

import numpy as np
import pytest

import adamd
from adamd import fed

START = {"w": np.linspace(-1, 1, 300_000, dtype=np.float32)}  # beyond what travels inside a commit
CLIENT = """
import sys, adamd
with adamd.connect(sys.argv[1]) as server:
    task = server.federation("run", client="a").task()
    answer = task.reply(delta={"w": task.parameters["w"] * 0 + 1}) if sys.argv[2] == "reply" else None
    print("round", task.round, answer and answer.outcome, flush=True)
    sys.stdin.read()  # killed here
"""
COORDINATOR = """
import sys, numpy, adamd
from adamd import fed
with adamd.connect(sys.argv[1]) as server:
    start = {"w": numpy.linspace(-1, 1, 300_000, dtype=numpy.float32)}
    run = server.open_federation("run", start, strategy=fed.FedAdam(), quorum=1, num_rounds=3)
    for done in run.follow(after=0, every=0.05):
        print("round", done.round, flush=True)
"""


@pytest.fixture
def spawn():
    made = []

    def start(code, *words):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        made.append(process)
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


def opened(client, **options):
    return client.open_federation("run", START, strategy=fed.FedAdam(), **options)


def step(client, who, by):
    task = client.federation("run", client=who).task()
    return task.reply(delta={"w": np.full_like(START["w"], by)})


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_killed_client_goes_on_with_what_it_owes(server_factory, spawn, scheme):
    server = server_factory()
    url = server.url if scheme == "http" else server.grpc_url
    with adamd.connect(url) as client:
        run = opened(client, quorum=2, num_rounds=2)
        for when, outcome in (("pull", "None"), ("reply", "accepted")):
            process = spawn(CLIENT, url, when)
            assert process.stdout.readline() == f"round 1 {outcome}\n"
            process.kill()
        assert run.current().received == 1  # what was acknowledged is there
        assert step(client, "b", 3).counted
        task = client.federation("run", client="a").task()  # and is not asked for again
        assert task.round == 2
        assert task.reply(delta={"w": np.full_like(START["w"], 1)}).counted and step(client, "b", 3).counted
        assert [done.round for done in run.follow(after=0, every=0.05)] == [1, 2]
        assert [part.client for part in run.round(1).contributions] == ["a", "b"]


def test_a_killed_coordinator_is_started_again_by_the_name(server_factory, spawn):
    server = server_factory()
    first = spawn(COORDINATOR, server.url)
    with adamd.connect(server.url) as client:
        while not list(client.sessions()):
            pass
        member = client.federation("run", client="a")
        member.task().reply(delta={"w": START["w"]})
        assert first.stdout.readline() == "round 1\n"
        first.kill()
        for _ in range(2):  # the server closes rounds whether somebody looks on or not
            member.task().reply(delta={"w": START["w"]})
        assert member.task() is None
    second = spawn(COORDINATOR, server.url)
    assert [second.stdout.readline() for _ in range(3)] == ["round 1\n", "round 2\n", "round 3\n"]
    assert second.wait(60) == 0


def test_a_server_killed_within_a_round_loses_nothing(server_factory):
    """Clients and coordinator only wait; the parameters are those of a run that nobody disturbed."""
    calm, killed = server_factory(), server_factory()
    outcomes = []
    results = []
    for server, kills in ((calm, False), (killed, True)):
        with adamd.connect(server.url, timeout=120) as client:
            run = opened(client, quorum=2, num_rounds=3)

            def train(who, by, client=client):
                for task in client.federation("run", client=who).rounds():
                    rate = np.float32(by / task.round)
                    outcomes.append(task.reply(parameters={"w": task.parameters["w"] * rate}, num_examples=by))

            assert step(client, "a", 1).counted  # in the first round a is first, and the server dies after it
            if kills:
                server.kill()
                waiting = threading.Thread(target=train, args=("b", 2))
                waiting.start()
                server.restart()
            else:
                waiting = threading.Thread(target=train, args=("b", 2))
                waiting.start()
            train("a", 5)
            waiting.join(60)
            assert not waiting.is_alive()
            rounds = list(run.follow(after=0, every=0.05))
            assert [(done.round, done.received, done.closed_by) for done in rounds] == [
                (n, 2, "quorum") for n in (1, 2, 3)
            ]
            results.append(run.parameters()["w"])
    assert all(answer.counted for answer in outcomes)
    assert results[0].tobytes() == results[1].tobytes()
