"""Two gloo ranks, real processes: one optimizer, the same bits on both, and no rank left waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits import flat, network

import adamd
import adamd.torch
from servers import free_port

pytestmark = pytest.mark.torch
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(server, tmp_path_factory):
    """What the two ranks tell."""
    directory = tmp_path_factory.mktemp("ranks")
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    common |= {"PYTHONPATH": str(HERE), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "ranks.py"), server.url, str(directory), f"ranks-{os.getpid()}"]
    children = []
    try:
        for rank in range(2):
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (directory / f"rank{rank}.log").open("w") as log:
                children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        codes = [child.wait(120) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    logs = "\n".join((directory / f"rank{rank}.log").read_text()[-3000:] for rank in range(2))
    assert codes == [0, 0], logs
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_both_ranks_have_the_bits_of_a_single_process_with_the_mean_gradients(ranks, client, kind):
    zero, one = (told[kind] for told in ranks)
    assert torch.equal(zero["parameters"], one["parameters"])
    assert zero["id"] == one["id"]
    model = network().to(getattr(torch, kind))
    optimizer = adamd.torch.AdamW(model.parameters(), client=client)
    for number, (mine, its) in enumerate(zip(zero["gradients"], one["gradients"], strict=True)):
        for p, a, b in zip(model.parameters(), mine, its, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)  # DDP has averaged them
            p.grad = a
        if number == 7:
            optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    assert torch.equal(flat(model), zero["parameters"])
    assert zero["labels"] == one["labels"] == {"run": "ranks"}
    assert zero["at"] == one["at"] == 10


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("bad gradient", "BadGradient", "nan"),
        ("other gradients", "InvalidRequest", "gradients for 6, 5 parameters"),
        ("changed on rank 1", "InvalidRequest", "changed since step 10"),
        ("no server", "RetriesExhausted", ""),
        ("odd", "WrongLayout", "rank 1 has other parameters"),
        ("complex on rank 1", "WrongDtype", "view_as_real"),
        ("not a member", "InvalidRequest", "no member"),
        ("not yet", "InvalidRequest", "next step"),
    ],
)
def test_what_fails_on_one_rank_is_raised_on_both(ranks, what, kind, said):
    for told in ranks:
        assert told[what] is not None
        assert told[what][0] == kind
        assert said in told[what][1].lower() or said in told[what][1]


def test_they_go_on_after_errors(ranks):
    zero, one = ranks
    assert zero["refreshed"] and one["refreshed"]
    assert torch.equal(zero["went on"], one["went on"])
    assert not torch.equal(zero["went on"], zero["float32"]["parameters"])
    assert zero["step"] == 11


def test_the_state_is_read_by_any_rank_and_loaded_on_both(ranks):
    zero, one = ranks
    state = one["state"]["state"]
    assert [int(state[index]["step"]) for index in range(6)] == [9, 11, 11, 11, 11, 11]
    assert torch.equal(zero["loaded"], one["loaded"])
    assert torch.equal(zero["bias"], one["bias"])
    assert (zero["bias"] - zero["went on"][-10:]).abs().max() < 0.1  # rank 0's own values, not rank 1's


def test_names(ranks):
    zero, one = ranks
    assert zero["same"] and one["same"]
    assert torch.equal(zero["resumed"], one["resumed"])
    assert zero["resumed lr"] == one["resumed lr"] == 0.02
    assert (zero["resumed warnings"], one["resumed warnings"]) == (1, 0)
    assert torch.equal(zero["grown"], one["grown"])


def test_groups(ranks):
    zero, one = ranks
    assert (zero["alone"], one["alone"]) == (0, 1)
    assert zero["group of one"] != one["group of one"]
    assert zero["pair"] == one["pair"]
