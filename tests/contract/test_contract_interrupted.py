"""Steps that nobody waited for: Ctrl-C, cancelled tasks, time-outs. They count once or not at all, and it is told."""

import asyncio
import ctypes
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import adamd
import adamd.aio
from adamd import errors
from contract import shells
from sdk.peers import Relay


@pytest.fixture
def relay(kind, server):
    with Relay(server.grpc_port if kind.startswith("grpc") else server.port) as made:
        yield made


@pytest.fixture
def through(relay, connect):
    """Connect through the relay, by this kind's shell."""
    return connect(SimpleNamespace(port=relay.port, grpc_port=relay.port), timeout=adamd.Timeout(total=30))


def interrupted(kind, session, gradient, arrived):
    """Take a step, and interrupt it as this shell's users can, once ``arrived``: it has been sent, say."""
    if kind.endswith("aio"):
        return cancelled(session, gradient, arrived)
    caught, begun = [], threading.Event()

    def work():
        begun.set()
        try:
            session.step(gradient)
        except KeyboardInterrupt as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    arrived()
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
    )
    assert raised == 1
    return thread, caught


def cancelled(session, gradient, arrived):
    async def work():
        task = asyncio.ensure_future(session._inner.step(gradient))
        await asyncio.get_running_loop().run_in_executor(None, arrived)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run_coroutine_threadsafe(work(), shells._loop()).result()


def at_step(session, step):
    def arrived():
        while session.info()["step"] < step:
            pass

    return arrived


def interrupt(kind, relay, session, gradient, arrived):
    """Leave a step open whose answer does not come."""
    relay.down.clear()
    work = interrupted(kind, session, gradient, arrived)
    if work is not None:  # the interrupt is met where the thread runs Python again: when the connection ends
        thread, caught = work
        relay.drop()
        thread.join(20)
        assert caught, "the step was not interrupted"
    relay.empty()
    relay.hold(False)


def made(client, through, **options):
    session = client.create(np.zeros(3, "f4"), lr=1.0, optimizer="sgd", **options)
    mine = through.session(session.id)
    assert (mine.step(np.ones(3, "f4")) == -1).all()
    return session, mine


def test_a_step_that_was_interrupted_and_counts_is_told_once_and_the_session_goes_on(kind, client, relay, through):
    session, mine = made(client, through)
    interrupt(kind, relay, mine, np.full(3, 2, "f4"), at_step(session, 2))
    assert (mine.step_number, mine.left_open) == (1, 2)
    for _ in range(2):  # as often as it is asked: this gradient is for other parameters
        with pytest.raises(errors.StepConflict, match=r"Ctrl-C.*session\.parameters\(\)") as caught:
            mine.step(np.full(3, 5, "f4"))
        assert (caught.value.extra["left_open"], caught.value.step, mine.left_open) == (2, 2, 2)
    assert (mine.parameters() == -3).all()  # applied once, and the refused one not at all
    assert (mine.step_number, mine.left_open) == (2, None)
    assert (mine.step(np.ones(3, "f4")) == -4).all()


def test_the_same_step_again_takes_the_answer_that_was_not_waited_for(kind, client, relay, through):
    session, mine = made(client, through)
    interrupt(kind, relay, mine, np.full(3, 2, "f4"), at_step(session, 2))
    assert (mine.step(np.full(3, 2, "f4")) == -3).all()
    assert (mine.step_number, mine.left_open, session.info()["step"]) == (2, None, 2)


def test_others_may_have_gone_on_past_the_step_that_was_left_open(kind, client, relay, through):
    session, mine = made(client, through)
    interrupt(kind, relay, mine, np.full(3, 2, "f4"), at_step(session, 2))
    session.refresh()
    session.step(np.ones(3, "f4"))
    with pytest.raises(errors.StepSuperseded, match=r"step 3.*session\.parameters\(\)"):
        mine.step(np.full(3, 5, "f4"))
    assert (mine.parameters() == -4).all()


def test_a_step_that_never_arrived_does_not_stand_in_the_way(kind, client, relay, through):
    session, mine = made(client, through)
    relay.up.clear()
    interrupt(kind, relay, mine, np.full(3, 2, "f4"), relay.holding.wait)
    assert mine.left_open == 2
    assert (mine.step(np.full(3, 5, "f4")) == -6).all()
    assert (mine.step_number, mine.left_open, session.info()["step"]) == (2, None, 2)


def test_a_refused_step_is_not_left_open(client):
    session = client.create(np.zeros(3, "f4"))
    with pytest.raises(errors.BadGradient):
        session.step(np.full(3, np.nan, "f4"))
    with pytest.raises(errors.InvalidSettings):
        session.step(np.ones(3, "f4"), lr=-1.0)
    assert session.left_open is None


def test_a_warning_that_is_an_error_leaves_the_step_open_and_nothing_is_taken_at_old_parameters(client):
    session = client.create(np.zeros(300, "f4"), answer_dtype="float16", lr=1e6, optimizer="sgd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="came as infinity"):
            session.step(np.ones(300, "f4"))
    assert (session.step_number, session.left_open) == (0, 1)
    with pytest.raises(errors.StepConflict, match=r"session\.parameters\(\)"):
        session.step(np.full(300, 2, "f4"))
    session.answer_dtype = None
    assert (session.parameters() == -1e6).all()
    session.step(np.ones(300, "f4"))


def test_out_changes_whole_or_not_at_all(client, kind, server, connect):
    session, cuts = client.create(np.zeros(300_000, "f4"), lr=1.0, optimizer="sgd"), []
    with Relay(server.grpc_port if kind.startswith("grpc") else server.port, lambda _: (None, *cuts, False)) as relay:
        at = SimpleNamespace(port=relay.port, grpc_port=relay.port)
        cuts.append(None)
        mine = connect(at, timeout=adamd.Timeout(total=2)).session(session.id)
        out = np.full(300_000, 7, "f4")
        cuts[0] = 600_000
        relay.drop()
        with pytest.raises(errors.RetriesExhausted):
            mine.step(np.ones(300_000, "f4"), out=out)
        assert (out == 7).all()
        cuts[0] = None
        relay.drop()
        assert mine.step(np.ones(300_000, "f4"), out=out) is out
        assert (out == -1).all() and mine.step_number == 1
