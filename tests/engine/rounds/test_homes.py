"""Large contributions in both homes of bulk: chunks in the store, and extents that are overwritten afterwards."""

import asyncio
import contextlib
import time

import numpy as np
import pytest

from adamd.errors import BadGradient, ContributionConflict, RoundClosed, WrongLength
from adamd_service.engine import Engine, Limits
from adamd_service.store import RedisStore
from adamd_service.store.keys import BULK, BULK_SESSIONS
from adamd_service.store.opening import bulk_files

from ..conftest import LIMITS, run
from .conftest import contribute, opened, settled_keys, stepped
from .test_closing import Crash

LARGE = 400_003  # elements: 1.6 MB of float32, in several chunks, no multiple of a page


@pytest.fixture(params=["store", "files"])
def served(request, valkey, tmp_path):
    """Start servers one after the other on one home: ``async with served() as engine``."""
    valkey.client().delete(BULK, BULK_SESSIONS)

    @contextlib.asynccontextmanager
    async def make():
        store = RedisStore.connect(valkey.url, timeout=10.0)
        store.bulk.is_private = True
        files = bulk_files(tmp_path / "bulk", store, synced=True) if request.param == "files" else None
        with files or contextlib.nullcontext():
            engine = Engine(store, Limits(**LIMITS), f"r{id(store):x}")
            try:
                yield engine
            finally:
                await engine.close()
                store.close()

    make.home = request.param
    make.directory = tmp_path / "bulk"
    return make


def test_large_contributions(served, clients, valkey):
    deltas = clients(3, LARGE)

    async def scenario():
        async with served() as engine:
            session = await opened(engine, size=LARGE, quorum=3)
            for client, delta in deltas.items():
                assert (await contribute(engine, session, 1, client, delta)).outcome == "accepted"
                if client != "ward-2":
                    assert (await contribute(engine, session, 1, client, delta)).outcome == "duplicate"
            wanted = np.mean(list(deltas.values()), axis=0)
            np.testing.assert_allclose(await stepped(engine, session, 1), wanted, rtol=1e-4, atol=1e-6)
            keys = await settled_keys(valkey, session, ("garbage", "pending"))
            (record,) = await asyncio.to_thread(engine.store.records, session, 1, 1)
            assert [key for key in keys if key.startswith(("contribution", "garbage"))] == []
            bodies = {key.split(":")[1] for key in keys if key.startswith("body:")}
            assert bodies <= {record.attempt}

    run(scenario())


@pytest.mark.parametrize("median", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_crash_and_a_start(served, clients, monkeypatch, median):
    """What waits is not free at the start: the next server closes the round with the same bits."""
    deltas = clients(3, LARGE)
    aggregate = {"aggregate": "median"} if median else {}

    async def scenario():
        async with served() as engine:
            wanted = await opened(engine, size=LARGE, quorum=3, **aggregate)
            for client, delta in deltas.items():
                await contribute(engine, wanted, 1, client, delta)
            expected = (await stepped(engine, wanted, 1)).tobytes()
            session = await opened(engine, size=LARGE, quorum=3, **aggregate)

            def crash(*args, **more):
                raise Crash

            with monkeypatch.context() as patched:
                patched.setattr(type(engine._stepper), "run", crash)
                for client, delta in deltas.items():
                    await contribute(engine, session, 1, client, delta)
                while not engine.rounds._closer._failures and session not in engine.rounds._closer._failures:
                    head = (await engine.view(session)).head
                    look = await asyncio.to_thread(engine.store.rounds.look, head)
                    if look.standing.frozen is not None and session not in engine.rounds._closer._under_way:
                        break
                    await asyncio.sleep(0.02)
        async with served() as engine:
            other = await opened(engine, size=LARGE, quorum=9)  # takes what is free
            for client, delta in deltas.items():
                await contribute(engine, other, 1, client, -delta)
            await engine.keep_house()
            assert (await stepped(engine, session, 1)).tobytes() == expected

    run(scenario())


@pytest.mark.parametrize("how", ["changed", "cut"])
@pytest.mark.parametrize("more", [{}, {"clip_norm": 1.0}, {"aggregate": "median"}, {"averaged": ["*"]}])
@pytest.mark.parametrize("kind", ["delta", "parameters"])
def test_a_damaged_one_is_in_no_aggregate(served, clients, valkey, nothing_closes, kind, more, how):
    """A mean is made, and logged, while the digests are: it must be made again, by the others alone."""
    sent = clients(3, LARGE)

    async def scenario():
        async with served() as engine:
            wanted = await opened(engine, size=LARGE, quorum=3, **more)
            session = await opened(engine, size=LARGE, quorum=3, **more)
            for client, values in sent.items():
                await contribute(engine, session, 1, client, values, kind=kind)
                if client != "ward-1":
                    await contribute(engine, wanted, 1, client, values, kind=kind)
            waiting = await asyncio.to_thread(engine.store.rounds.waiting, session)
            (bad,) = [one for one in waiting if one.client == "ward-1"]
            spoil(served, valkey, session, bad, how)
            document = await engine.rounds.close(session, 1)
            rows = [(row.client, row.counted, row.reason) for row in document.contributions]
            assert rows == [("ward-0", True, None), ("ward-1", False, "damaged"), ("ward-2", True, None)]
            await engine.rounds.close(wanted, 1)
            expected = (await engine.parameters(wanted)).parameters
            assert (await engine.parameters(session)).parameters.tobytes() == expected.tobytes()
            assert expected.any()
            (record,) = await asyncio.to_thread(engine.store.records, session, 1, 1)
            keys = await settled_keys(valkey, session, ("garbage", "pending", "contribution"))
            bodies = {key.split(":")[1] for key in keys if key.startswith("body:")}
            assert bodies <= {record.attempt}  # what was logged of the first try is gone

    run(scenario())


def spoil(served, valkey, session, one, how):
    """Change or cut the last bytes of a contribution, where it lies."""
    if served.home == "files":
        path = served.directory / one.bulk.extent
        with path.open("r+b") as file:
            file.seek(one.nbytes - 4)
            last = file.read(4)
            file.seek(one.nbytes - 4)
            file.write(bytes(byte ^ 1 for byte in last))
            if how == "cut":
                file.truncate(one.nbytes - 4)
        return
    with valkey.client() as client:
        key = f"adamd:{{{session}}}:body:{one.attempt}:{len(one.bulk.chunks) - 1}"
        body = client.get(key)
        client.set(key, body[:-4] if how == "cut" else body[:-1] + bytes([body[-1] ^ 1]))


def test_nobodys_update_stays_on_the_disk(served, clients):
    """Extents that held a contribution are overwritten when they are free: counted, cancelled, refused or deleted."""
    marks = {client: np.full(LARGE, 3.0 + number, np.float32) for number, client in enumerate(clients(5))}

    def found():
        return {
            client
            for client, mark in marks.items()
            for path in served.directory.iterdir()
            if mark[:2048].tobytes() in path.read_bytes() and path.name.startswith("c")
        }

    async def gone(engine, which):
        until = time.monotonic() + 20
        while which & await asyncio.to_thread(found) and time.monotonic() < until:
            await asyncio.sleep(0.05)
            await engine.keep_house()
        return not which & found()

    async def scenario():
        async with served() as engine:
            if served.home == "store":
                return
            one, two, three, four, five = marks.items()
            session = await opened(engine, size=LARGE, quorum=2)
            await contribute(engine, session, 1, *one)
            assert found() == {one[0]}
            with pytest.raises(ContributionConflict):
                await contribute(engine, session, 1, one[0], five[1])
            await contribute(engine, session, 1, *two)
            await stepped(engine, session, 1)
            assert await gone(engine, {one[0], two[0], five[0]})
            await contribute(engine, session, 2, *three)
            await engine.rounds.cancel(session, 2)
            assert await gone(engine, {three[0]})
            with pytest.raises(RoundClosed):
                await contribute(engine, session, 1, *four)
            await contribute(engine, session, 2, *four)
            await engine.delete(session)
            assert await gone(engine, {four[0]})

    run(scenario())


def test_what_is_refused_leaves_nothing(served, clients, valkey):
    (delta,) = clients(1, LARGE).values()
    bad = delta.copy()
    bad[LARGE - 5] = np.nan

    async def scenario():
        async with served() as engine:
            session = await opened(engine, size=LARGE, quorum=2)
            with pytest.raises(BadGradient) as refused:
                await contribute(engine, session, 1, "a", bad)
            assert refused.value.extra["index"] == LARGE - 5
            with pytest.raises(WrongLength):
                await contribute(engine, session, 1, "a", delta[:-1])
            assert (await engine.rounds.read(session, 1)).received == 0
            keys = await settled_keys(valkey, session, ("body", "contribution"))
            assert not [key for key in keys if key.startswith(("body", "contribution", "pending"))]

    run(scenario())
