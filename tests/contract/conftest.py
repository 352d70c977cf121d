"""One server for every shell.

The shells share what is said and all its rules, and differ in the transport alone. So ``make test`` has each test speak
through one of them, the next test through the next one; ``.ci/run`` has every test speak through all four.
"""

from itertools import cycle
from pathlib import Path

import pytest

from contract import shells

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before those that are marked are left out
def pytest_collection_modifyitems(items):
    turns, whose = cycle(shells.KINDS), {}
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if not params or "kind" not in params or HERE not in item.path.parents:
            continue
        case = (item.path, item.originalname, item.callspec.id.replace(params["kind"], "", 1))
        if whose.setdefault(case, None) is None:
            whose[case] = next(turns)
        if whose[case] != params["kind"]:
            item.add_marker(pytest.mark.slow)


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
