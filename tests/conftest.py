"""Fixtures that start real processes; each ends what it started."""

import signal

import hypothesis
import pytest

from forkserver import missing
from servers import Server, Store, no_fork_server, store_binaries

LONG = 100_000  # characters

# How long an example takes is the machine's business, and no test's.
hypothesis.settings.register_profile("adamd", deadline=None)
hypothesis.settings.load_profile("adamd")


def pytest_configure():
    """A shell has what it starts in the background ignore Ctrl-C, and so would whatever the tests start, and send it to."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_assertrepr_compare(config, left, right):
    """Say where two states differ; do not lay them side by side.

    Where CI is set, or at -vv, pytest makes a whole diff. Of 2 MB that takes hours, and a red test looks like a hung one.
    """
    with pytest.MonkeyPatch.context() as patch:
        if len(repr(left)) + len(repr(right)) > LONG:
            patch.setattr(config.option, "verbose", 0)
            for name in ("CI", "BUILD_NUMBER"):
                patch.delenv(name, raising=False)
        return (yield)


def pytest_terminal_summary(terminalreporter):
    if why := missing():
        terminalreporter.write_line(f"every server was spawned, none forked (which takes minutes longer): {why}")


def pytest_unconfigure():
    no_fork_server()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One adamd on an embedded store, for tests that need no server of their own."""
    running = Server(tmp_path_factory.mktemp("server")).start()
    yield running
    assert running.stop() == 0, running.log()


@pytest.fixture
def server_factory(tmp_path):
    """Start servers of the test's own: ``server_factory(*options, data_dir=None, env=None, port=0)``."""
    made = []

    def make(*options, data_dir=None, env=None, port=0):
        one = Server(data_dir or tmp_path / f"server{len(made)}", *options, env=env, port=port)
        made.append(one)
        return one.start()

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def store_factory():
    """Start stores of the test's own: ``store_factory(**settings)``, as in ``appendfsync="everysec"``."""
    made = []

    def make(executable=None, **settings):
        one = Store(executable, **settings)
        made.append(one)
        return one.start()

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="session", params=["valkey", pytest.param("redis-server", marks=pytest.mark.slow)])
def store_kind(request):
    """Each kind of store server that this machine has; the absent one is skipped by its name. The second look is CI's."""
    found = store_binaries()
    if request.param not in found:
        pytest.skip(f"{request.param} is not on this machine (CI installs it)")
    return found[request.param]


@pytest.fixture(scope="session")
def store_process(store_kind):
    """One store server of each kind, shared by tests that use sessions of their own."""
    running = Store(store_kind).start()
    yield running
    running.stop()
