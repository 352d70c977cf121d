"""Stores of the kinds that this machine has, and clients of them."""

import pytest

from adamd_service.store import RedisStore
from adamd_service.store.connection.connect import connect

from .proxies import Proxy


@pytest.fixture(scope="module")
def store(store_process):
    """The store over one server, shared by tests that use sessions of their own."""
    store = RedisStore.connect(store_process.url, timeout=10.0)
    yield store
    store.close()


@pytest.fixture(scope="module")
def client(store_process):
    """A plain client, to look behind the store's back."""
    client = store_process.client()
    yield client
    client.close()


@pytest.fixture
def connected():
    """Connect stores of the test's own: ``connected(process or url, timeout=…, connections=…)``."""
    made = []

    def make(where, *, timeout=10.0, connections=64):
        client = connect(where if isinstance(where, str) else where.url, timeout, connections)
        made.append(RedisStore(client, timeout))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def proxy():
    """Put a proxy before a store: ``proxy(process)``."""
    made = []

    def make(process):
        made.append(Proxy(process.port))
        return made[-1]

    yield make
    for one in made:
        one.close()
