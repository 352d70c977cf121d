"""Attackers among the clients of a federation: a plain mean is lost to them, and each defence keeps what it had.

Karimireddy et al. 2021, arXiv:2012.10333, and Li et al. 2019 (RSA), arXiv:1811.03761, have these attacks.
"""

import pytest

ROUNDS = 30
POINTS = 3.0  # of accuracy, in percent, that an attack may cost
CHANCE = 30.0  # percent; one digit of ten is right by chance
ROBUST = {
    "median": {"aggregate": "median"},
    "trimmed_mean": {"aggregate": {"name": "trimmed_mean", "trim": 0.2}},
    "krum": {"aggregate": {"name": "krum", "byzantine": 3}},
    "multi_krum": {"aggregate": {"name": "multi_krum", "byzantine": 3, "keep": 10}},
    "geometric_median": {"aggregate": "geometric_median"},
}
HELD = {"norm_filter": {"norm_filter": 3.0}, "clip_norm": {"clip_norm": 1.0}}
pytestmark = pytest.mark.slow
