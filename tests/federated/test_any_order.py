"""The same contributions in any order, over both transports and three replicas: a round has one step, bit for bit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import adamd
from adamd import fed
from servers import Server, Store, store_binaries

CLIENTS = 8
START = {"bias": np.linspace(-1, 1, 300, dtype=np.float32), "weight": np.zeros((40, 50), np.float32)}
ORDERS = {  # of each aggregate; the others sort or choose, and then sum as the mean does
    fed.Mean(clip_norm=30.0): 50,
    fed.Median(): 5,
    fed.TrimmedMean(0.2, norm_filter=3.0): 5,
    fed.MultiKrum(byzantine=2, keep=4): 5,
    fed.GeometricMedian(): 5,
}


@pytest.fixture(scope="module", params=["valkey", "redis-server"])
def replicas(request, tmp_path_factory):
    """Three servers on one store, each reached over HTTP and over gRPC; yields the six clients of the SDK."""
    found = store_binaries()
    if request.param not in found:
        pytest.skip(f"{request.param} is not on this machine (CI installs it)")
    store = Store(found[request.param]).start()
    made = []
    try:
        for number in range(3):
            home = tmp_path_factory.mktemp(f"replica{number}")
            made.append(Server(home, "--redis-url", store.url).start())
        clients = [adamd.connect(url, timeout=120) for one in made for url in (one.url, one.grpc_url)]
        yield clients
        for client in clients:
            client.close()
    finally:
        for one in made:
            one.stop()
        store.stop()


def sent():
    """Return what each client sends: kind, values by tensor, number of examples. Of all magnitudes: sums differ by order."""
    rng = np.random.default_rng(7)
    made = {}
    for number in range(CLIENTS):
        kind = ("delta", "parameters", "gradient")[number % 3]
        names = list(START) if number % 4 else ["weight"]
        values = {
            name: (rng.standard_normal(START[name].shape) * 10.0 ** rng.integers(-6, 2, START[name].shape)).astype("f4")
            for name in names
        }
        made[f"ward-{number}"] = kind, values, float(rng.integers(1, 500))
    return made


@pytest.mark.slow
@pytest.mark.timeout(600)  # seventy sessions on a busy machine
def test_fifty_orders_make_the_same_bits(replicas):
    contributions, rng = sent(), np.random.default_rng(11)
    every = set()
    for aggregate, orders in ORDERS.items():
        bits, documents = set(), set()
        for order in range(orders):
            run = replicas[rng.integers(6)].open_federation(
                f"{type(aggregate).__name__}-{order}",
                START,
                strategy=fed.FedAdam(),
                quorum=CLIENTS,
                aggregate=aggregate,
            )
            outcomes = contribute(replicas, run.name, contributions, rng)
            assert outcomes.count("accepted") == CLIENTS
            assert set(outcomes) <= {"accepted", "duplicate", "too_late"}
            done = next(run.follow(after=0, every=0.02))
            assert [row.client for row in done.contributions] == sorted(contributions)
            bits.add(b"".join(array.tobytes() for array in run.parameters().values()))
            documents.add(tuple((row.client, row.weight, row.norm, row.counted) for row in done.contributions))
            run.delete()
        assert (len(bits), len(documents)) == (1, 1), aggregate
        every |= bits
    assert len(every) == len(ORDERS)


def contribute(replicas, name, contributions, rng):
    """Send every contribution at least once, in a random order, several at a time; returns the outcomes."""
    calls = [client for client in contributions for _ in range(1 + int(rng.integers(0, 3)))]
    rng.shuffle(calls)
    ways = rng.integers(0, 6, len(calls))

    def send(client, way):
        kind, values, num_examples = contributions[client]
        task = tasks[client, way]
        answer = task.reply(**{kind: values}, num_examples=num_examples)
        assert answer.counted, answer
        return answer.outcome

    with ThreadPoolExecutor(4) as threads:
        pairs = [(client, int(way)) for client, way in zip(calls, ways, strict=True)]
        asked = threads.map(lambda pair: replicas[pair[1]].federation(name, client=pair[0]).task(), set(pairs))
        tasks = dict(zip(set(pairs), asked, strict=True))
        return list(threads.map(lambda pair: send(*pair), pairs))
