"""The example runs as it is told to, and goes on by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_digits.py"


def test_the_example_learns_and_goes_on(server, name):
    environment = {**os.environ, "ADAMD_URL": server.url, "OMP_NUM_THREADS": "1"}
    for run in (1, 2):
        command = [sys.executable, "-W", "error", str(EXAMPLE), name]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert told.returncode == 0, told.stderr
        last = re.fullmatch(r"epoch 5, step (\d+): loss \S+, accuracy (\d+\.\d)%", told.stdout.splitlines()[-1])
        assert int(last[1]) == 150 * run
        assert float(last[2]) > 85
