"""What hostile clients, careless owners and bad luck try with rounds."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from adamd.errors import Busy, InvalidRequest, InvalidSettings, ParametersFixed, PrivacySpent, RoundClosed, WrongReplica
from adamd.wire import layout
from adamd_service.engine.rebuilding import Rebuilder
from adamd_service.engine.rounds import EvaluateCall
from adamd_service.engine.rounds.aggregating import FrozenRound, aggregate
from adamd_service.engine.rounds.values import Readings
from adamd_service.store.rounds import RoundStore

from ..conftest import body_of, create_call, run
from .conftest import SIZE, contribute, contribution, opened, shown, stepped

PRIVACY = {"noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5}
EXTRA = "an extra of the server; CI installs it"


async def frozen(engine, session, within=20.0):
    """Wait until the session's round is being closed."""
    until, head = time.monotonic() + within, (await engine.view(session)).head
    while (await asyncio.to_thread(engine.store.rounds.look, head)).standing.frozen is None:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


def test_metrics_at_the_end_of_the_range_stall_no_round(replica, clients):
    """Each is finite; their sum is not, and JSON has no infinity."""
    deltas, huge = clients(4), 8e307

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=4, evaluate=4)
            for client, delta in deltas.items():
                await contribute(engine, session, 1, client, delta, num_examples=2.0**53, metrics={"loss": huge})
                await engine.rounds.evaluate(EvaluateCall(session, 1, client, 2.0**53, {"loss": -huge}))
            await stepped(engine, session, 1)
            document = await engine.rounds.read(session, 1)
            assert document.metrics["loss"] == pytest.approx(huge)
            assert document.evaluation.metrics["loss"] == pytest.approx(-huge)

    run(scenario())


@pytest.mark.parametrize("num_examples", [5e-324, 1e-17, 2.0**54, 1e308])
def test_a_weight_beyond_what_can_be_added_is_refused(replica, clients, num_examples):
    """A denormal weight rounds its contribution to nothing; a huge one makes the sum infinite."""
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, max_weight=1e308)
            with pytest.raises(InvalidRequest, match="num_examples"):
                await contribute(engine, session, 1, "a", delta, num_examples=num_examples)
            with pytest.raises(InvalidRequest, match="num_examples"):
                await engine.rounds.evaluate(EvaluateCall(session, 1, "a", num_examples, {"loss": 1.0}))
            assert (await engine.rounds.read(session, 1)).received == 0

    run(scenario())


def test_what_comes_while_the_last_round_closes_makes_no_other(replica, clients, monkeypatch):
    """A buffered session takes contributions while it closes a round; after the last one nothing would take them."""
    one, two = clients(2).values()
    members, gate = RoundStore.members, asyncio.Event()

    async def scenario():
        async with replica() as engine:
            loop = asyncio.get_running_loop()

            def slow(self, session_id, its):
                asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20)
                return members(self, session_id, its)

            monkeypatch.setattr(RoundStore, "members", slow)
            session = await opened(engine, mode="buffered", quorum=1, max_contributions=9, total=1)
            await contribute(engine, session, 1, "a", one)
            await frozen(engine, session)
            with pytest.raises(RoundClosed):
                await contribute(engine, session, 1, "b", two)
            gate.set()
            await stepped(engine, session, 1)
            assert not await engine.rounds.wait_for_step(session, 2, 1.0)
            assert (await engine.rounds.read(session, 2)).received == 0
            with pytest.raises(RoundClosed):
                await engine.rounds.close(session, 2)

    run(scenario())


def test_the_closer_itself_knows_the_last_round(replica, clients, nothing_closes):
    """Whatever waits, and however it came there: a failover, an earlier version."""
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, total=1)
            await contribute(engine, session, 1, "a", delta)
            await engine.rounds.close(session, 1)
            head = (await engine.view(session)).head
            settings = replace(engine.rounds.settings_of(head), total=0)
            call = contribution(session, 2, "b", delta)
            with engine.hot.use(session) as hot:
                await engine.rounds._contributing.take(hot, head, settings, call, None)
            assert await engine.rounds._closer.close(head, engine.rounds.settings_of(head), 2, "quorum") is None
            assert (await engine.view(session)).head.step == 1

    run(scenario())


@pytest.mark.parametrize("how", ["late", "by hand", "frozen"])
def test_no_way_leads_beyond_max_epsilon(replica, clients, nothing_closes, how):
    """A contribution of an earlier round counts in the open one, which is the one that spends."""
    pytest.importorskip("dp_accounting", reason=EXTRA)
    from adamd_service.aggregation import epsilon
    from adamd_service.aggregation.settings import Privacy

    one, two = clients(2).values()
    spent = epsilon(Privacy(**PRIVACY), 1, 1)

    async def scenario():
        async with replica() as engine:
            limits = {**PRIVACY, "max_epsilon": 1.1 * spent}
            session = await opened(engine, mode="buffered", quorum=1, max_contributions=9, privacy=limits)
            await contribute(engine, session, 1, "a", one)
            if how == "frozen":
                head = (await engine.view(session)).head
                await asyncio.to_thread(engine.store.rounds.freeze, head, 1, "quorum", 1, 0.0, engine.replica)
                with pytest.raises(RoundClosed):
                    await contribute(engine, session, 1, "b", two)
            await engine.rounds.close(session, 1)
            with pytest.raises(PrivacySpent):
                await contribute(engine, session, 1, "b", two)
            if how == "by hand":
                with pytest.raises(PrivacySpent):
                    await engine.rounds.close(session, 2)
            nothing_closes()
            await engine.rounds.task(session, "a")
            assert not await engine.rounds.wait_for_step(session, 2, 0.5)

    run(scenario())


def test_the_seed_of_the_noise_is_not_the_one_that_is_shown(replica):
    pytest.importorskip("dp_accounting", reason=EXTRA)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2, privacy=PRIVACY)
            rounds = (await engine.view(session)).head.spec.rounds
            assert rounds["seed"] != rounds["privacy"]["seed"]

    run(scenario())


def test_other_members_get_other_noise(replica, clients, nothing_closes):
    """Else the difference of two aggregates is one client's contribution, without any noise."""
    pytest.importorskip("dp_accounting", reason=EXTRA)
    deltas = clients(3)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3, privacy={**PRIVACY, "clip_norm": 100.0})
            for client, delta in deltas.items():
                await contribute(engine, session, 1, client, delta)
            head, store = (await engine.view(session)).head, engine.store.rounds
            await asyncio.to_thread(store.freeze, head, 1, "quorum", 3, 0.0, engine.replica)
            standing = (await asyncio.to_thread(store.look, head)).standing
            members = await asyncio.to_thread(store.members, session, standing.frozen)
            settings = engine.rounds.settings_of(head)

            async def made(some):
                frozen = FrozenRound(head.spec, settings, standing, some, None)
                return (await asyncio.to_thread(aggregate, engine.rounds._around, frozen)).making.body

            every, again, fewer = await made(members), await made(members), await made(members[1:])
            np.testing.assert_array_equal(every, again)
            assert not np.allclose(fewer - every, deltas[members[0].client] / 3, atol=1e-3)

    run(scenario())


def test_a_private_round_does_not_tell_which_tensors_came(replica, nothing_closes):
    """Whether one client sent a tensor must not show: a private round steps every tensor that clients send."""
    pytest.importorskip("dp_accounting", reason=EXTRA)

    async def scenario():
        async with replica() as engine:
            call = create_call(np.zeros(4, np.float32), {"name": "sgd", "lr": 1.0})
            tensors = layout.Layout(tuple(layout.Tensor(name, (2,)) for name in "ab"))
            call = replace(call, layout=tensors, rounds={"quorum": 1, "privacy": PRIVACY})
            session = (await engine.create(call)).head.spec.id
            await contribute(engine, session, 1, "x", np.ones(2, np.float32), tensors=("a",))
            await engine.rounds.close(session, 1)
            assert np.all(await stepped(engine, session, 1) != 0)

    run(scenario())


def test_parameters_stay_while_contributions_wait(replica, clients):
    """They were made from these parameters, and would count at others."""
    one, two = clients(2).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=2)
            other = np.full(SIZE, 7, np.float32)
            await engine.set_parameters(session, body_of(other.tobytes()), "float32", None)
            await contribute(engine, session, 1, "a", one)
            before = (await engine.view(session)).head
            with pytest.raises(ParametersFixed, match="cancel"):
                await engine.set_parameters(session, body_of(bytes(4 * SIZE)), "float32", None)
            assert (await engine.view(session)).head.chain == before.chain
            await engine.rounds.cancel(session, 1)
            await engine.set_parameters(session, body_of(bytes(4 * SIZE)), "float32", None)
            await contribute(engine, session, 1, "a", two, kind="parameters")
            await contribute(engine, session, 1, "b", two, kind="parameters")
            np.testing.assert_allclose(await stepped(engine, session, 1), two, rtol=1e-6)

    run(scenario())


def test_a_round_that_cannot_be_loaded_here_is_not_frozen(replica, clients, nothing_closes, monkeypatch):
    """Its bytes lie in another server's directory: that one closes it, and would wait for who froze it."""
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            await contribute(engine, session, 1, "a", delta)
            head = (await engine.view(session)).head

            def elsewhere(self, hot, known=None):
                raise WrongReplica("another server has its bytes")

            with monkeypatch.context() as patched:
                patched.setattr(Rebuilder, "current", elsewhere)
                with pytest.raises(WrongReplica):
                    await engine.rounds.close(session, 1)
            assert (await asyncio.to_thread(engine.store.rounds.look, head)).standing.frozen is None
            await engine.rounds.close(session, 1)
            np.testing.assert_array_equal(await stepped(engine, session, 1), delta)

    run(scenario())


def test_a_busy_server_closes_as_soon_as_it_can(replica, clients, nothing_closes):
    """Being busy is no failure: the pauses do not grow."""
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine)
            await contribute(engine, session, 1, "a", delta)
            closer, loop, pauses = engine.rounds._closer, asyncio.get_running_loop(), []
            for _ in range(8):
                closer._retry_later(session, Busy("many bytes are in flight", retry_after=0.5))
                (timer,) = [timer for timer in loop._scheduled if timer._callback == closer._retry]
                pauses.append(timer.when() - loop.time())
                timer.cancel()
                loop._scheduled.remove(timer)
            assert max(pauses) < 2

    run(scenario())


def test_a_page_of_rounds_has_a_bound_in_bytes(replica, clients, monkeypatch):
    """Documents of many clients with many metrics: a page ends early, and the next one goes on."""
    deltas = clients(3)
    monkeypatch.setattr("adamd_service.store.rounds.PAGE_BYTES", 1500)

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, quorum=3)
            for number in range(1, 6):
                for client, delta in deltas.items():
                    await contribute(engine, session, number, client, delta, metrics={"loss": 0.5})
                await stepped(engine, session, number)
            found, following, pages = [], 1, 0
            while following is not None:
                documents, following = await engine.rounds.list(session, following, 100)
                found += [one.round for one in documents]
                pages += 1
            assert (found, pages > 2) == ([1, 2, 3, 4, 5, 6], True)

    run(scenario())


@pytest.mark.parametrize(
    "config",
    [{"a": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}, {"a": 10**400}, {"a": 2**53 + 1}],
    ids=["deep", "huge", "odd"],
)
def test_a_config_that_one_transport_cannot_tell_is_refused(replica, config):
    """gRPC's Struct nests less than JSON may, and its numbers are float64."""

    async def scenario():
        async with replica() as engine:
            with pytest.raises(InvalidSettings, match="config"):
                await opened(engine, config=config)
            session = await opened(engine, config={"a": 2**53})
            with pytest.raises(InvalidSettings, match="config"):
                await engine.patch(session, None, None, rounds={"config": config})

    run(scenario())


def test_evaluators_that_are_missing_keep_nobody_from_training(replica, clients):
    (delta,) = clients(1).values()

    async def scenario():
        async with replica() as engine:
            session = await opened(engine, cohort=1, evaluate=5)
            assert (await engine.rounds.task(session, "a")).kind == "train"
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)

    run(scenario())


def test_who_is_slower_learns_what_was_made(replica, clients, nothing_closes, monkeypatch):
    """Another replica has closed the round, and its contributions are gone while this one still reads them."""
    deltas = clients(2)

    async def scenario():
        async with replica() as one, replica() as two:
            session = await opened(one, quorum=2)
            for client, delta in deltas.items():
                await contribute(one, session, 1, client, delta)
            whole, loop = Readings.whole, asyncio.get_running_loop()

            def slow(self, members, pulled, lanes):
                if self._store is two.store:
                    closing = asyncio.run_coroutine_threadsafe(one.rounds.close(session, 1), loop)
                    closing.result(20)
                    self._store.collect(session)
                return whole(self, members, pulled, lanes)

            monkeypatch.setattr(Readings, "whole", slow)
            found = await two.rounds.close(session, 1)
            assert shown(found) == shown(await one.rounds.read(session, 1))
            assert [row.counted for row in found.contributions] == [True, True]
            assert (await two.view(session)).head.step == 1

    run(scenario())


def test_strangers_lock_nobody_out(replica, clients, monkeypatch):
    """A list of clients that somebody filled matters only where clients are drawn from it."""
    (delta,) = clients(1).values()
    monkeypatch.setattr("adamd_service.store.rounds.MOST_CLIENTS", 2)

    async def scenario():
        async with replica() as engine:
            session, drawing = await opened(engine), await opened(engine, cohort=2)
            for ref in (session, drawing):
                for stranger in "xy":
                    await engine.rounds.task(ref, stranger)
            with pytest.raises(Busy):
                await engine.rounds.task(drawing, "a")
            assert (await engine.rounds.task(session, "a")).kind == "train"
            await contribute(engine, session, 1, "a", delta)
            await stepped(engine, session, 1)

    run(scenario())


def test_a_watcher_reads_contributions_where_there_are_new_ones_alone(replica, clients, monkeypatch):
    """Each look at all of them would be a hundred megabytes a second in a round of ten thousand."""
    (delta,) = clients(1).values()
    reads, everything = [], RoundStore.everything

    def counted(self, head):
        reads.append(head)
        return everything(self, head)

    monkeypatch.setattr(RoundStore, "everything", counted)
    monkeypatch.setattr("adamd_service.engine.watching.POLL_SECONDS", 0.01)

    async def scenario():
        async with replica() as engine:
            session, seen = await opened(engine, quorum=2), []

            async def watch():
                async for event in engine.rounds.events(session):
                    seen.append(event.kind)

            watching = asyncio.ensure_future(watch())
            while len(seen) < 2:
                await asyncio.sleep(0.01)
            reads.clear()
            await asyncio.sleep(1)
            assert reads == []
            await contribute(engine, session, 1, "a", delta)
            while "contribution" not in seen:
                await asyncio.sleep(0.01)
            assert 1 <= len(reads) <= 2
            watching.cancel()

    run(scenario())
