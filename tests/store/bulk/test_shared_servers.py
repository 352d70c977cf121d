"""Two servers on one store, one of them with a bulk directory: as their clients see them."""

import time
import urllib.request

import numpy as np
import pytest

import adamd
from adamd.errors import WrongReplica
from servers import Server, Store

LARGE = 200_000  # elements of float32: above what lies in the store
GRADIENT = np.linspace(-1, 1, LARGE, dtype=np.float32)


@pytest.fixture
def shared_store():
    store = Store().start()
    yield store
    store.stop()


@pytest.fixture
def start(tmp_path, shared_store):
    servers = []

    def make(name, *options):
        server = Server(tmp_path / name, "--redis-url", shared_store.url, *options)
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.stop()


def bytes_in_use(server):
    """Bytes of extents that something names or writes."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("adamd_bulk_"))
    return float(values["adamd_bulk_bytes"]) - float(values["adamd_bulk_free_bytes"])


@pytest.mark.slow
def test_one_server_has_the_large_sessions_and_all_have_the_others(start, tmp_path):
    one, two = start("one", "--bulk-dir", tmp_path / "bulk"), start("two")
    with adamd.connect(one.url) as first, adamd.connect(two.url) as second:
        large = first.create(np.zeros(LARGE, np.float32), lr=0.1)
        small = first.create(np.zeros(10, np.float32), lr=0.1)
        for _ in range(3):
            large.step(GRADIENT)
            small.step(np.ones(10, np.float32))
        with pytest.raises(WrongReplica, match="lies in the bulk directory of another server"):
            second.session(large.id).parameters()
        with pytest.raises(WrongReplica):
            second.session(large.id).step(GRADIENT)
        there = second.session(small.id)
        there.step(np.ones(10, np.float32))
        assert there.step_number == 4
        chunks = second.create(np.zeros(LARGE, np.float32), lr=0.1)
        chunks.step(GRADIENT)
        there = first.session(chunks.id)
        there.step(GRADIENT)
        assert there.step_number == 2
        before = large.parameters()
    one.kill()
    one.start()
    with adamd.connect(one.url) as first:
        again = first.session(large.id)
        np.testing.assert_array_equal(again.parameters(), before)
        again.step(GRADIENT)
        assert again.step_number == 4
        assert bytes_in_use(one)
        request = urllib.request.Request(
            f"{two.url}/v1/sessions/{large.id}", method="DELETE"
        )  # every server may do that
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 204
        deadline = time.monotonic() + 60
        while bytes_in_use(one) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not bytes_in_use(one)


def test_another_directory_is_refused_at_the_start(start, tmp_path):
    one = start("one", "--bulk-dir", tmp_path / "bulk")
    with adamd.connect(one.url) as client:
        client.create(np.zeros(LARGE, np.float32))
    with pytest.raises(RuntimeError, match="is not the bulk directory that this store used last"):
        start("two", "--bulk-dir", tmp_path / "other")
