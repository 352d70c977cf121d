"""The judge of the storm can find guilty: journals and servers with a fault, each with one only."""

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, State, apply, parse_settings, plan
from chaos.journal import Acknowledged, Journal, Judge, Reading, digest

SIZE, STEPS = 50, 6


def honest(dtype="float32", amsgrad=False):
    """A journal, and what an honest server says of it; computed by the compiled kernel, which the judge does not use."""
    settings = {"lr": 0.01, "amsgrad": amsgrad}
    journal = Journal("one", np.linspace(-1, 1, SIZE).astype(dtype), settings)
    parsed = parse_settings(settings)
    state = State.fresh(journal.start, 1, parsed)
    for step in range(1, STEPS + 1):
        updates = plan(parsed, ["parameters"], state.counts, [True], state.params.dtype)
        apply(state, journal.gradient((7, step)), updates, [0, SIZE], None, FusedKernel())
        journal.add(Acknowledged(step, (7, step), step, f"chain {step}", digest(state.params)))
    return journal, Reading(STEPS, f"chain {STEPS}", state.copy().arrays)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_honest_server_is_good(dtype, amsgrad):
    journal, reading = honest(dtype, amsgrad)
    verdict = Judge(journal).compare(reading)
    assert verdict.good and str(verdict) == "good"


def test_it_can_be_asked_again_and_goes_on():
    journal, reading = honest()
    judge, seen = Judge(journal), list(journal.seen)
    journal.seen = seen[:3]
    state = Judge(journal)
    assert not state.compare(reading).good
    journal.seen = seen
    assert judge.compare(reading).good and judge.compare(reading).good


def test_a_lost_step_is_seen():
    journal, reading = honest()
    journal.add(Acknowledged(STEPS + 1, (7, STEPS + 1)))
    verdict = Judge(journal).compare(reading)
    assert len(verdict.lost) == 1 and not verdict.twice


def test_a_step_that_was_applied_twice_is_seen():
    journal, reading = honest()
    verdict = Judge(journal).compare(Reading(STEPS + 1, "chain", reading.arrays))
    assert len(verdict.twice) == 1 and not verdict.lost


def test_one_gradient_acknowledged_as_two_steps_is_seen():
    journal, reading = honest()
    journal.seen[-1] = Acknowledged(STEPS, (7, 1))
    verdict = Judge(journal).compare(reading)
    assert len(verdict.twice) == 1 and not verdict.lost


def test_two_gradients_acknowledged_as_one_step_are_seen():
    journal, reading = honest()
    journal.add(Acknowledged(STEPS, (8, STEPS)))
    verdict = Judge(journal).compare(reading)
    assert len(verdict.lost) == 1 and not verdict.twice


@pytest.mark.parametrize("array", ["params", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_one_bit_is_seen(array):
    journal, reading = honest(amsgrad=True)
    reading.arrays[array].view(np.uint32)[SIZE // 2] ^= 1
    verdict = Judge(journal).compare(reading)
    assert len(verdict.bits) == 1 and "differs in 1 bytes" in str(verdict)


def test_an_answer_with_other_bits_is_seen():
    journal, reading = honest()
    journal.seen[2] = Acknowledged(3, (7, 3), 3, "chain 3", digest(reading.arrays["params"]))
    assert len(Judge(journal).compare(reading).bits) == 1


def test_another_history_is_seen():
    journal, reading = honest()
    verdict = Judge(journal).compare(Reading(STEPS, "another", reading.arrays))
    assert len(verdict.bits) == 1 and "another history" in str(verdict)


def test_steps_that_were_swapped_are_seen():
    journal, reading = honest()
    journal.seen[0] = Acknowledged(1, (7, 2))
    journal.seen[1] = Acknowledged(2, (7, 1))
    assert Judge(journal).compare(reading).bits
