"""One server for every shell."""

import pytest

from contract import shells


@pytest.fixture(params=shells.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def connect(kind, server):
    """Connect by this kind's shell: ``connect()`` to the shared server, or to other ports or servers."""
    made = []

    def make(at=server, **options):
        one = shells.connect(kind, shells.url_of(kind, at.port, at.grpc_port), **options)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def client(connect):
    return connect()
