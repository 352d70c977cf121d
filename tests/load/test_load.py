"""200 sessions stepped by 32 clients at once: no error, every step applied exactly once, memory bounded."""

from contextlib import closing

import pytest
from bench.crowd import Crowd

SESSIONS, PARAMETERS, CLIENTS = 200, 10_000, 32
STATE = 12 * PARAMETERS * SESSIONS  # bytes: p, m and v


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["memory", "committed"])
def test_many_sessions_and_many_clients(server, durability):
    host, port = server.url.removeprefix("http://").split(":")
    with closing(Crowd(host, int(port), durability, SESSIONS, PARAMETERS, CLIENTS)) as crowd:
        crowd.step(1)
        before = server.resident()
        # Every seventh step is sent twice in a row, as by a client that got no answer: it counts once.
        seconds, _ = crowd.step(4, again=7)
        assert len(seconds) > 4 * SESSIONS
        crowd.check()
        assert server.resident() - before < STATE + (64 << 20)


def test_the_check_sees_a_step_that_is_missing(server):
    host, port = server.url.removeprefix("http://").split(":")
    with closing(Crowd(host, int(port), "memory", sessions=3, parameters=100, clients=2)) as crowd:
        crowd.step(2)
        crowd.check()
        crowd.applied += 1
        with pytest.raises(SystemExit, match="is at step 2 after 3 steps"):
            crowd.check()


def test_a_refusal_ends_the_crowd(server):
    host, port = server.url.removeprefix("http://").split(":")
    with closing(Crowd(host, int(port), "memory", sessions=2, parameters=100, clients=1)) as crowd:
        crowd.applied = 5
        with pytest.raises(SystemExit, match="step_gap"):
            crowd.step(1)
