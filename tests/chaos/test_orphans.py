"""A store must not outlive the adamd that started it.

The next adamd would start a second store on the same files.
"""

import subprocess
import sys

import pytest

# A child that is slow: its parent is killed after the fork, and before the child could ask to be ended with it.
SCRIPT = """
import os, signal, sys, time
from adamd_service.store.embedded.server import _end_with_parent
ask = _end_with_parent()
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    ask()
    print("the child goes on", flush=True)
    os._exit(0)
os.kill(parent, signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
def test_a_store_whose_adamd_was_killed_before_it_came_up_does_not_come_up():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert run.returncode == -9
    assert (run.stdout, run.stderr) == ("", "")
