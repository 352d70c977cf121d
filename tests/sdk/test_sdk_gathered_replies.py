"""A coordinator that gathers replies by other ways contributes them in its clients' names."""

import asyncio

import numpy as np
import pytest

import adamd
import adamd.aio
from adamd.errors import BadGradient, InvalidRequest

OPTIONS = {"quorum": 100}  # more than come: the coordinator closes
START = np.zeros(3, dtype=np.float32)


@pytest.fixture(params=["http", "grpc"])
def url(request, server):
    return server.url if request.param == "http" else server.grpc_url


def test_replies_are_contributed_and_the_round_is_closed_by_hand(url):
    with adamd.connect(url) as client:
        run = client.open_federation(f"gathered-{url[:4]}", START, **OPTIONS)
        run.parameters()
        first = run.contribute("1", round=1, delta=np.float32([1, 2, 3]), num_examples=3, metrics={"loss": 0.5})
        again = run.contribute("1", round=1, delta=np.float32([1, 2, 3]), num_examples=3, metrics={"loss": 0.5})
        other = run.contribute("2", round=1, parameters=np.float32([5, 2, -1]), num_examples=1)
        assert [answer.outcome for answer in (first, again, other)] == ["accepted", "duplicate", "accepted"]
        conflict = run.contribute("2", round=1, delta=np.float32([9, 9, 9]))
        assert (conflict.outcome, conflict.counted) == ("conflict", False)
        closed = run.close_round(1)
        assert (closed.closed_by, closed.received, closed.metrics) == ("hand", 2, {"loss": 0.5})
        np.testing.assert_array_equal(run.parameters(), np.float32([2, 2, 2]))
        assert run.contribute("3", round=1, delta=START).outcome == "too_late"
        with pytest.raises(BadGradient):
            run.contribute("3", round=2, delta=np.float32([1, np.nan, 1]))
        with pytest.raises(InvalidRequest, match="one of parameters, delta and gradient"):
            run.contribute("3", round=2)
        assert run.current().received == 0
        run.delete()


def test_the_same_with_asyncio(url):
    async def gather():
        async with adamd.aio.connect(url) as client:
            run = await client.open_federation(f"gathered-async-{url[:4]}", START, **OPTIONS)
            await run.parameters()
            deltas = [np.full(3, value, np.float32) for value in (1, 2, 3)]
            answers = await asyncio.gather(
                *(run.contribute(str(place), round=1, delta=delta) for place, delta in enumerate(deltas))
            )
            assert {answer.outcome for answer in answers} == {"accepted"}
            await run.close_round(1)
            np.testing.assert_array_equal(await run.parameters(), np.float32([2, 2, 2]))
            await run.delete()

    asyncio.run(gather())
