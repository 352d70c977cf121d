"""A failover to a replica that is behind: told as history_lost, and nothing destroyed."""

import os
import signal
import threading
from pathlib import Path

import pytest

from chaos.failover import AFTER, SNAPSHOT_RECORDS, Failovers
from servers import Server

SEED = int(os.environ.get("ADAMD_CHAOS_SEED", "1729"))


class Dying(Server):
    module = "chaos.dying"


def one_round(run):
    """Steps, a replica that gets a part of them, a failover: each client is told, and goes on at what survives."""
    run.follow()
    run.fall_behind()
    run.all(lambda writer: writer.steps(AFTER))
    acknowledged = {writer.number: writer.session.step_number for writer in run.writers}
    run.fail_over()
    told = {writer.number: len(writer.lost) for writer in run.writers}
    run.all(lambda writer: writer.steps(1))
    for writer in run.writers:
        assert len(writer.lost) == told[writer.number] + 1, "an acknowledged step was lost in silence"
        assert writer.lost[-1] == acknowledged[writer.number] - AFTER
    run.judge("the promoted store")
    run.all(lambda writer: writer.steps(6))
    run.judge("the server after it")
    run.server.restart()
    run.judge("a fresh server")


@pytest.mark.slow
def test_a_failover_to_a_replica_that_is_behind(tmp_path):
    with Failovers(tmp_path / "server", SEED) as run:
        one_round(run)


@pytest.mark.parametrize(
    "after",
    [pytest.param(after, marks=pytest.mark.slow if after == 1 else pytest.mark.chaos) for after in (0, 1, 2, 5)],
)
def test_a_collector_that_stood_still_meanwhile(tmp_path, after):
    """It has read the list of garbage of the primary that is gone: at the promoted one, all of that is still named."""
    now = tmp_path / "now"
    env = {"DIES_AT": "unlinking", "DIES_AFTER": after, "STANDS_STILL": now, "PYTHONPATH": Path(__file__).parents[1]}
    with Failovers(tmp_path / "server", SEED, Dying, env) as run:
        run.follow()
        run.fall_behind()
        run.all(lambda writer: writer.steps(SNAPSHOT_RECORDS))
        now.touch()
        (wide,) = (writer for writer in run.writers if writer.journal.name == "wide")
        stepping = threading.Thread(target=wide.steps, args=(AFTER,))  # it gets no answer, and asks again and again
        stepping.start()
        run.until(lambda: stands_still(run.server.pid))
        run.fail_over()
        run.server.process.send_signal(signal.SIGCONT)
        stepping.join()
        assert len(wide.lost) == 1
        run.all(lambda writer: writer.steps(1))
        assert [len(writer.lost) for writer in run.writers] == [1, 1, 1]
        run.judge("the server")
        run.server.env["DIES_AT"] = "never"
        run.server.restart()
        run.judge("a fresh server")


def stands_still(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_failover_after_failover(tmp_path):
    with Failovers(tmp_path / "server", SEED) as run:
        for number in range(8):
            one_round(run)
            print(
                f"chaos: failover {number + 1} of 8, {sum(len(one.journal) for one in run.writers):,} steps stand",
                flush=True,
            )
