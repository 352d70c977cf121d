"""The demo of rounds: its shards and roles, its training, what it shows, and the whole of it."""

import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from adamd.demo import digits
from adamd.demo.federated import picture, shards, table, training
from adamd.demo.federated.roles import CLIENTS, MEMBERS, REPLIES, Role
from adamd.demo.federated.table import Scene
from adamd.demo.federated.trial import Trial
from adamd.demo.federated.worker import Event
from servers import ended

ADAMD = Path(sys.executable).parent / "adamd"


def test_every_image_is_at_one_client_and_no_client_has_all_digits_alike():
    learn, _ = digits.load()
    parts = shards.partition(learn, CLIENTS)
    together = np.concatenate([part.pixels for part in parts])
    assert len(parts) == CLIENTS and sorted(map(bytes, together)) == sorted(map(bytes, learn.pixels))
    assert min(map(len, parts)) >= shards.LEAST
    shares = [np.bincount(part.digits, minlength=10) / len(part) for part in parts]
    assert all(share.max() > 0.2 for share in shares)  # 0.1 is even
    again = shards.partition(learn, CLIENTS)
    assert all(one.pixels.tobytes() == other.pixels.tobytes() for one, other in zip(parts, again, strict=True))


def test_each_round_has_the_same_number_of_replies_and_other_clients():
    here = [{member.name for member in MEMBERS if not member.away(number)} for number in (1, 2, 3)]
    assert {len(names) for names in here} == {REPLIES} and here[0] == here[2] != here[1]
    roles = [member.role for member in MEMBERS]
    assert len(roles) == CLIENTS == 20 and roles.count(Role.POISONED) == 2 and set(roles) == set(Role)


def test_training_has_the_same_bits_and_an_attacker_goes_the_other_way():
    learn, _ = digits.load()
    part, params = shards.partition(learn, CLIENTS)[0], digits.start()
    before = {name: array.copy() for name, array in params.items()}
    trained, loss = training.train(params, part, (0, 1))
    assert digits.same_bits(params, before) and loss < 2.3
    assert digits.same_bits(trained, training.train(params, part, (0, 1))[0])
    assert not digits.same_bits(trained, training.train(params, part, (0, 2))[0])
    bad = training.poisoned(params, trained)
    for name, array in params.items():
        np.testing.assert_allclose(bad[name] - array, -30 * (trained[name] - array))


def test_a_loss_that_is_infinite_is_told_as_a_number():
    learn, _ = digits.load()
    params = {name: 1e4 * array for name, array in digits.start().items()}
    _, loss = training.train(params, shards.partition(learn, CLIENTS)[0], (0, 1))
    assert 0 < loss <= training.LARGEST_LOSS


EVENTS = {
    0: [Event(0, 3, "trains")],
    1: [Event(1, 2, "accepted"), Event(1, 3, "trains"), Event(1, 3, "accepted")],
    2: [Event(2, 3, "away")],
    8: [Event(8, 3, "trains"), Event(8, 3, "accepted"), Event(8, 3, "duplicate")],
    9: [Event(9, 3, "too_late")],
    19: [Event(19, 0, "over")],
}


@pytest.mark.parametrize("plain", [False, True])
def test_the_table_fits_a_terminal(plain):
    learn, _ = digits.load()
    scene = Scene("trimmed mean", 3, 16, 11, 18, [0.1, 0.525], "[red]kill -9[/] in round 3")
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table.table(scene, shards.partition(learn, CLIENTS), EVENTS, plain))
    lines = console.export_text().splitlines()
    assert len(lines) < 24 and all(len(line) <= 80 for line in lines)
    shown = "\n".join(lines)
    assert all(member.name in shown for member in MEMBERS)
    assert "round 3 of 16" in shown and "11 of 18 replies" in shown and "accuracy 52.5%" in shown
    assert "3 away" in shown and "3 trains" in shown and "once" in shown
    assert shown.isascii() == plain and ("3 x" if plain else "3 ✗") in shown


def test_a_sparkline_has_one_width_and_rises():
    assert len(table.sparkline([0.1], False)) == table.WIDTH == len(table.sparkline([0.2] * 99, False))
    assert table.sparkline([0.0, 1.0], False) == "▁" * 15 + "█" * 15
    assert table.sparkline([0.1, 0.5, 0.9], True) == "10% 50% 90%"


def test_the_picture_has_two_panels(tmp_path):
    path = tmp_path / "plot.png"
    one, other = Trial([0.1, 0.9], [1.0, 2.0]), Trial([0.2, 0.1, 0.1], [1.0, 2.0, 3.0])
    picture.picture(path, {"a": one, "b": other}, {"c": one, "d": other}, 2)
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG") and int.from_bytes(raw[16:20], "big") == 1200


@pytest.mark.slow  # a minute: four trainings of twenty processes
@pytest.mark.timeout(600)
def test_a_server_that_dies_in_a_round_changes_no_bit(tmp_path):
    run = ended([ADAMD, "demo", "federated"], within=580, cwd=tmp_path, env={**os.environ, "COLUMNS": "80"})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "killed in a round and resumed: bits equal" in run.stdout
    assert re.search(r"kill -9 in round \d+, when that had \d+ replies", run.stdout)
    assert "0 of them were lost" in run.stdout and "0 clients trained twice" in run.stdout
    assert all(len(line) <= 80 for line in run.stdout.splitlines())
    found = {
        title.strip(): float(share)
        for title, share in re.findall(r"^  (\w[\w ,]+?)\s+[▁-█]+ +([\d.]+)%", run.stdout, re.MULTILINE)
    }
    assert found["trimmed mean"] == found["trimmed mean, undisturbed"] > 85 > 50 > found["plain mean"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo-federated.png"]  # nothing else is left


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_there_is_left_alive(server, tmp_path):
    run = ended([ADAMD, "demo", "federated", "--url", server.url], within=580, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "two runs, without a kill: bits equal" in run.stdout and server.process.poll() is None
