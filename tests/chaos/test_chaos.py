"""kill -9, again and again: an acknowledged step is applied once, whatever dies (the promise of the first page).

ADAMD_CHAOS_SEED chooses another storm; the moments of death also depend on the machine.
"""

import os

import pytest

from chaos.storm import Plan, Storm
from small_disk import Hog, small_disk

SEED = int(os.environ.get("ADAMD_CHAOS_SEED", "1729"))


def storm(plan, directory, hog=None):
    print(f"\nchaos: seed {plan.seed}", flush=True)
    summary = Storm(plan, directory, say=lambda line: print(line, flush=True), hog=hog).run()
    print(f"chaos: {summary.seconds:.0f} s, {summary.replays} answers were lost and came by retrying, ", end="")
    print(f"{summary.rewrites} rewrites of the log, {summary.comparisons} comparisons of every array")
    print(summary, flush=True)
    assert (summary.lost, summary.twice, summary.bits) == ([], [], [])
    assert summary.servers >= plan.servers and summary.stores >= plan.stores
    assert summary.acknowledged > plan.servers + plan.stores
    assert summary.full >= plan.full and (summary.refused > 0) == (plan.full > 0)
    return summary


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bulk", ["files", "store"])
def test_a_short_storm(tmp_path, bulk):
    storm(Plan(SEED, servers=5, stores=2, large=300_000, every=4, bulk=bulk), tmp_path / "server")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bulk", ["files", "store"])
def test_a_long_storm(tmp_path, bulk):
    storm(Plan(SEED, servers=100, stores=30, large=600_000, every=20, bulk=bulk), tmp_path / "server")


@pytest.mark.slow
@pytest.mark.timeout(900)  # on two busy cores it was not done within 240
def test_a_short_storm_on_a_disk_that_is_full_now_and_then(tmp_path):
    with small_disk(tmp_path / "disk", 256) as disk:
        plan = Plan(SEED, servers=4, stores=1, large=300_000, every=3, full=3)
        assert storm(plan, disk / "server", Hog(disk)).killed_while_full > 0


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_long_storm_on_a_disk_that_is_full_now_and_then(tmp_path):
    with small_disk(tmp_path / "disk", 512) as disk:
        plan = Plan(SEED, servers=60, stores=20, large=600_000, every=15, full=30)
        assert storm(plan, disk / "server", Hog(disk)).killed_while_full > 0
