"""The example with four processes that do not wait for each other."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from servers import ended

EXAMPLE = Path(__file__).parents[2] / "examples" / "many_clients.py"


@pytest.mark.slow
def test_four_processes_train_one_model_and_each_of_their_gradients_counts_once(server):
    run = ended([sys.executable, str(EXAMPLE)], env={**os.environ, "ADAMD_URL": server.url})
    assert run.returncode == 0, run.stderr
    assert "480 gradients pushed, 480 steps taken, by 4 processes" in run.stdout
    (accuracy,) = re.findall(r"accuracy ([\d.]+)%", run.stdout)
    assert float(accuracy) > 85


@pytest.mark.slow
def test_a_worker_that_begins_again_counts_nothing_twice(server, monkeypatch):
    monkeypatch.setenv("ADAMD_URL", server.url)
    example = runpy.run_path(str(EXAMPLE))
    import adamd

    with adamd.connect(server.url) as client:
        session = client.create([[0.0] * 10] * 65, lr=0.01)
        first, again = (example["work"](session.id, 0) for _ in range(2))
        assert session.info()["step"] == len(first) == 120
        assert again == []
