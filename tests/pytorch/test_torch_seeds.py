"""The two seeds train, draw both curves, and the curves are the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(("example", "steps", "learned"), [("torch_cnn", 60, 1.0), ("char_transformer", 30, 3.1)])
def test_a_seed_learns_as_it_does_with_torchs_own_adam(server, tmp_path, example, steps, learned):
    drawn = tmp_path / "curves.png"
    told = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{example}.py"), str(steps), str(drawn)],
        env={**os.environ, "ADAMD_URL": server.url, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    found = re.search(r"last losses (\S+) and (\S+), at most (\S+) apart in (\d+) steps", told.stdout)
    ours, theirs, apart, count = (float(group) for group in found.groups())
    assert count == steps
    assert max(ours, theirs) < learned  # from 2.3 and 4.1 that chance gives
    assert apart < 1e-3
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_the_text_is_the_sonnets():
    text = (EXAMPLES / "texts" / "sonnets.txt").read_text(encoding="ascii")
    assert len(text) > 90_000
    assert len(re.findall(r"^[CLXVI]+$", text, re.MULTILINE)) == 154
