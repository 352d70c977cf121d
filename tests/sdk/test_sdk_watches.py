"""Many watches over gRPC from one client: its steps do not wait for them.

Here a watch never ends by itself.
"""

import asyncio
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

import adamd
from adamd.errors import AdamdError
from adamd.transports.grpc import calls
from servers import Server

WATCHES = 140  # a connection has 128 streams


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A server that takes so many calls, whatever memory the machine has."""
    one = Server(tmp_path_factory.mktemp("roomy"), env={"ADAMD_GRPC_CALLS": "512"}).start()
    yield one
    assert one.stop() == 0, one.log()


@pytest.fixture(autouse=True)
def endless(monkeypatch):
    monkeypatch.setattr(calls, "WATCH_SECONDS", 3600.0)


def until(reached):
    for _ in range(600):
        if reached():
            return
        time.sleep(0.05)
    raise AssertionError("not reached")


def test_the_steps_of_an_asyncio_client_do_not_wait_for_its_watches(roomy):
    async def scene():
        seen = []
        async with adamd.aio.connect(roomy.grpc_url) as client:
            session = await client.create(np.zeros(2), lr=0.1, durability="memory")

            async def watch():
                async for one in client.watch(session.id, every=0, away=lambda error: None):
                    seen.append(one["step"])

            watches = [asyncio.create_task(watch()) for _ in range(WATCHES)]
            while seen.count(0) < WATCHES:
                await asyncio.sleep(0.05)
            for step in (1, 2, 3):
                async with asyncio.timeout(30):
                    await session.step(np.ones(2))
                    while seen.count(step) < WATCHES:
                        await asyncio.sleep(0.05)  # and each is told of it
            for one in watches:
                one.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await session.delete(anyway=True)

    asyncio.run(asyncio.wait_for(scene(), 120))


def test_the_steps_of_a_threaded_client_do_not_wait_for_its_watches(roomy):
    with adamd.connect(roomy.grpc_url) as client:
        session = client.create(np.zeros(2), lr=0.1, durability="memory")
        seen = []

        def watch():
            with suppress(AdamdError):  # at its end the client is closed
                for one in client.watch(session.id, every=0, away=lambda error: None):
                    seen.append(one["step"])

        threads = [threading.Thread(target=watch, daemon=True) for _ in range(WATCHES)]
        for thread in threads:
            thread.start()
        until(lambda: len(seen) >= WATCHES)
        stepped = threading.Thread(target=session.step, args=(np.ones(2),), daemon=True)
        stepped.start()
        stepped.join(30)
        assert not stepped.is_alive()
        until(lambda: seen.count(1) >= WATCHES)
        client.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    with adamd.connect(roomy.grpc_url) as client:
        client.session(session.id).delete(anyway=True)
