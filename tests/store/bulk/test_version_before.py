"""A data directory that the version before made opens, with the same bits; its chunks leave with the next snapshots."""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import redis

import adamd
from servers import Server

ROOT = Path(__file__).parents[3]
BEFORE = "cfa04e3757d0"  # the last version that kept large vectors in the store alone
SIZE = 300_000


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The code of that version."""
    into = tmp_path_factory.mktemp("before")
    packed = subprocess.run(["git", "-C", ROOT, "archive", BEFORE, "service", "client"], capture_output=True)
    if packed.returncode:
        pytest.skip(f"the version before, {BEFORE}, is not in this clone: {packed.stderr.decode()[:200]}")
    subprocess.run(["tar", "-x", "-C", into], input=packed.stdout, check=True)
    return into


def gradient(step):
    return np.random.default_rng(step).standard_normal(SIZE).astype(np.float32)


def chunks_of(server):
    with redis.Redis(unix_socket_path=str(server.data_dir / "store" / "valkey.sock"), protocol=2) as store:
        return sum(1 for key in store.scan_iter(count=10_000) if b":body:" in key or b":snapshot:" in key)


@pytest.mark.slow
def test_a_directory_of_the_version_before(before, tmp_path):
    start, env = np.ones(SIZE, np.float32), {"ADAMD_SNAPSHOT_RECORDS": 4}
    old = Server(tmp_path / "data", env={**env, "PYTHONPATH": f"{before}/service:{before}/client"})
    old.forked = False
    old.start()
    try:
        with adamd.connect(old.url) as client:
            session = client.create({"w": start}, name="run", lr=0.01)
            for step in range(1, 8):
                session.step({"w": gradient(step)})
        assert chunks_of(old) > 0 and not (tmp_path / "data" / "bulk").exists()
    finally:
        old.kill()
    new = Server(tmp_path / "data", env=env).start()
    try:
        with adamd.connect(new.url) as client:
            session, undisturbed = client.session("run"), client.create({"w": start}, lr=0.01, durability="memory")
            assert session.step_number == 7
            for step in range(1, 20):
                undisturbed.step({"w": gradient(step)})
                if step > 7:
                    session.step({"w": gradient(step)})
                if step in (7, 19):
                    assert session.parameters()["w"].tobytes() == undisturbed.parameters()["w"].tobytes()
        assert list((tmp_path / "data" / "bulk").glob("x*-*"))
        patience = time.monotonic() + 60  # snapshots are written in the background
        while chunks_of(new):
            assert time.monotonic() < patience, "chunks of the version before are left"
            time.sleep(0.1)
    finally:
        new.stop()
