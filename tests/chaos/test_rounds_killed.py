"""kill -9 in the middle of rounds: every contribution counts once or is refused, and nobody's update is kept.

ADAMD_CHAOS_SEED chooses another storm, ADAMD_CHAOS_ROUND_KILLS how many kills the long one has.
"""

import os

import pytest

from chaos.rounds_storm import Plan, RoundsStorm

SEED = int(os.environ.get("ADAMD_CHAOS_SEED", "1729"))
KILLS = int(os.environ.get("ADAMD_CHAOS_ROUND_KILLS", "200"))  # in both homes of bulk together


def storm(plan, directory):
    print(f"\nchaos: seed {plan.seed}", flush=True)
    summary = RoundsStorm(plan, directory, say=lambda line: print(line, flush=True)).run()
    print(f"chaos: {summary.seconds:.0f} s, {summary.late} contributions came too late, ", end="")
    print(f"{summary.replays} answers were duplicates, {summary.rewrites} rewrites of the log")
    print(summary, flush=True)
    assert (summary.lost, summary.twice, summary.bits, summary.remains) == ([], [], [], [])
    assert summary.kills >= plan.kills and summary.servers and summary.stores
    assert summary.rounds > 0 and summary.counted >= 2 * summary.rounds


@pytest.mark.slow
@pytest.mark.timeout(900)  # a start takes seconds on a busy machine
@pytest.mark.parametrize("bulk", ["files", "store"])
def test_a_short_storm_over_rounds(tmp_path, bulk):
    storm(Plan(SEED, kills=6, every=3, bulk=bulk), tmp_path / "server")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bulk", ["files", "store"])
def test_a_long_storm_over_rounds(tmp_path, bulk):
    storm(Plan(SEED, kills=KILLS // 2, every=20, bulk=bulk), tmp_path / "server")
