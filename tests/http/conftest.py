"""One connection to the shared server for each test."""

import pytest
from talking import Talk


@pytest.fixture
def talk(server):
    """A client of the shared server."""
    one = Talk(server)
    yield one
    one.close()
