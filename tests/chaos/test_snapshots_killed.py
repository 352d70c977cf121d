"""kill -9 of the server, its store, or both, in every phase of a snapshot.

The phases are: written, named, and its predecessor unlinked.

The session has everything that a snapshot may hold; a second replica goes on where the first one died, the first one is
started again, and the bits are those of a session that nobody disturbed. Nothing but what is named stays in the store.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest

import adamd
from adamd.errors import AdamdError
from adamd.wire import safetensors
from servers import Server, Store

SIZE = 300_000  # two chunks an array, and a body of two
EVERY = 4  # steps from snapshot to snapshot
STEPS = 22
TOLD = {"step", "optimizer", "lr", "settings_revision", "layout", "stop", "state"}  # what two equal sessions share
AROUND = {
    "lr": 0.01,
    "clip_norm": 3.0,
    "ema_decay": 0.9,
    "keep_best": True,
    "schedule": {"name": "cosine", "total_steps": 30, "warmup_steps": 3},
}


class Dying(Server):
    module = "chaos.dying"


def gradient(step):
    rng = np.random.default_rng(step)
    made = {"w": rng.standard_normal(SIZE).astype(np.float32), "b": rng.standard_normal(3).astype(np.float32)}
    if step % 3 == 1:
        del made["b"]
    if step % 4 == 2:  # some elements of both
        rows = np.arange(step, SIZE, 7)
        sparse = adamd.Sparse(rows, made["w"][rows], lazy=True)
        return {"w": sparse, "b": adamd.Sparse([1], np.float32([0.5]), lazy=True)}
    return made


def create(client, **more):
    rng = np.random.default_rng(0)
    start = {"w": rng.uniform(-1, 1, SIZE).astype(np.float32), "b": np.zeros(3, np.float32)}
    lower, upper = {"w": np.full(SIZE, -1.01), "b": np.full(3, -0.05)}, {"w": np.full(SIZE, 1.01)}
    return client.create(start, lower=lower, upper=upper, **AROUND, **more)


def taken(session, until):
    for step in range(session.step_number + 1, until + 1):
        session.step(gradient(step), loss=float(np.cos(step)))


def told(exported):
    """What a state says, without what differs between two sessions."""
    view = memoryview(exported)
    header = safetensors.read_header(view)
    arrays = {
        one.tensor.name: bytes(view[header.data_start + one.start : header.data_start + one.end])
        for one in header.tensors
    }
    state = json.loads(header.metadata["adamd"])
    return arrays, {name: state[name] for name in state if name in TOLD}


@pytest.fixture(scope="module")
def undisturbed(server):
    with adamd.connect(server.url) as client:
        session = create(client, durability="memory")
        taken(session, STEPS)
        return told(session.export())


def reach_and_die(one, two, store, dead):
    """Steps at the first replica until somebody dies; a store is started again."""
    with adamd.connect(one.url, timeout=adamd.Timeout(total=20.0)) as client:
        create(client, name="run")
    patience = time.monotonic() + 120
    while not (one.process.poll() is not None or store.process.poll() is not None):
        assert time.monotonic() < patience, "nobody died"
        with adamd.connect(one.url, timeout=adamd.Timeout(total=2.0)) as client:
            try:
                session = client.session("run")
                if session.step_number < STEPS - 4:
                    taken(session, session.step_number + 1)
                else:
                    time.sleep(0.05)
            except AdamdError:
                continue
    if dead != "server":
        store.process.wait(10)
        store.start()
    if dead != "store":
        one.process.wait(10)


def keys(store):
    with store.client() as client:
        return set(client.scan_iter(count=10_000))


def ttl(store, key):
    with store.client() as client:
        return client.ttl(key) > 0


def strangers(store):
    """Keys of sessions that nothing names and that do not go away by themselves."""
    with store.client() as client:
        [head] = client.scan_iter(match="*:head")
        base, fields = head[: -len(b"head")], client.hgetall(head)
        named = {head, base + b"ring", base + b"readers", base + b"garbage"}
        garbage = [json.loads(entry) for entry in client.lrange(base + b"garbage", 0, -1)]  # named by it until it goes
        snapshots = json.loads(fields[b"snapshots"]) + [one["snapshot"] for one in garbage if one["kind"] == "snapshot"]
        for snapshot in snapshots:
            for array in snapshot["arrays"]:
                for index in range(len(array["chunks"])):
                    named.add(base + f"snapshot:{snapshot['id']}:{array['name']}:{index}".encode())
        logs = [(one["first"], one["last"]) for one in garbage if one["kind"] == "records"]
        for first, last in [(fields[b"log_first"], fields[b"step"]), *logs]:
            for step in range(int(first), int(last) + 1):
                record = base + f"record:{step}".encode()
                meta = json.loads(client.hget(record, "meta") or '{"chunks": [], "attempt": ""}')
                named.add(record)
                named |= {base + f"body:{meta['attempt']}:{index}".encode() for index in range(len(meta["chunks"]))}
        return [key for key in client.scan_iter(match=base + b"*") if key not in named and client.ttl(key) < 0]


def eventually(true, told=lambda: "", within=20):
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


MOMENTS = {
    "written": (0, 5, 13),  # chunks: of the first array, of a later one, all but the last
    "named": (0, 1),  # the chunks are there, the head does not name them yet
    "collecting": (0, 1),  # it names them, and nothing has been unlinked
    "unlinking": (0, 1, 5),  # of the snapshot before, and of the records that it covers
}
EVERY_DEATH = [
    (dead, at, after) for at, afters in MOMENTS.items() for after in afters for dead in ("server", "store", "both")
]
SOME = [("both", "named", 0), ("server", "written", 5), ("server", "unlinking", 1)]


@pytest.mark.parametrize(
    ("dead", "at", "after"),
    [pytest.param(*one, marks=pytest.mark.slow if one in SOME else pytest.mark.chaos) for one in EVERY_DEATH],
)
def test_a_snapshot_that_death_interrupts(undisturbed, tmp_path, dead, at, after):
    store = Store().start()
    env = {"ADAMD_SNAPSHOT_RECORDS": EVERY, "PYTHONPATH": str(Path(__file__).parents[1])}
    fate = {"DIES_AT": at, "DIES_AFTER": after} | ({} if dead == "server" else {"STORE_PID": store.process.pid})
    fate |= {"SPARED": 1} if dead == "store" else {}
    one = Dying(tmp_path / "one", "--redis-url", store.url, env={**env, **fate})
    two = Server(tmp_path / "two", "--redis-url", store.url, env=env)
    try:
        one.start(), two.start()
        reach_and_die(one, two, store, dead)
        with adamd.connect(two.url) as client:
            session = client.session("run")
            middle = session.step_number
            taken(session, middle + 3)
        one.env.pop("DIES_AT"), one.env.update(DIES_AT="never")
        one.restart()
        with adamd.connect(one.url) as client:
            session = client.session("run")
            assert session.step_number == middle + 3
            taken(session, STEPS)
            assert told(session.export()) == undisturbed
        with adamd.connect(two.url) as client:
            assert told(client.session("run").export()) == undisturbed
        eventually(lambda: strangers(store) == [], lambda: strangers(store))
        with adamd.connect(two.url) as client:
            client.session("run").delete()
        eventually(
            lambda: [key for key in keys(store) if b"}:" in key and b":gone" not in key and not ttl(store, key)] == []
        )
    finally:
        for each in (one, two):
            if each.process is not None:
                each.stop()
        store.stop()
