"""A channel to the shared server, and servers that have to end without a complaint."""

import pytest
from calling import Caller, watched


@pytest.fixture(scope="session")
def grpc_server(tmp_path_factory):
    """A server for these tests; at its end it has not written a traceback, and ends cleanly."""
    with watched(tmp_path_factory.mktemp("grpc"), "--fsync", "everysec") as running:
        yield running


@pytest.fixture
def caller(grpc_server):
    one = Caller(grpc_server)
    yield one
    one.close()
