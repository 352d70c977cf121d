"""A silent store, seen by clients: requests that need no store go on, the others fail once, clearly."""

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import adamd

WAIT = 60
READERS = 40


def asked(url, path, method="GET", document=None):
    """The status and the document that come back."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()) | {"retry_after": error.headers["Retry-After"]}


def comes(happened):
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def beside(server_factory, store_factory):
    """A server with few threads on a store that the test may stop; a durable session and a `memory` one."""
    store = store_factory(appendfsync="everysec")
    one = server_factory("--redis-url", store.url, env={"ADAMD_THREADS": "2", "ADAMD_STORE_TIMEOUT": "3"})
    with adamd.connect(one.url) as client:
        durable = client.create(np.zeros(4, np.float32))
        memory = client.create(np.zeros(4, np.float32), durability="memory")
        yield one, store, client, durable, memory
        store.resume()


def test_waiting_for_the_store_takes_no_place_of_computing(beside):
    one, store, client, durable, memory = beside
    told = []
    sessions = [durable, client.create(np.zeros(4, np.float32))]  # a thread waits for each: every one that may wait

    def reader(session):
        told.append(asked(one.url, f"/v1/sessions/{session.id}/parameters"))

    before = commands(store)
    store.pause()
    readers = [threading.Thread(target=reader, args=(sessions[n % 2],)) for n in range(READERS)]
    for each in readers:
        each.start()
    # All of this is answered while every reader waits for the store.
    for loss in range(20):
        memory.step(np.ones(4, np.float32), loss=float(loss))
    memory.parameters()
    client.create(np.zeros(200_000), durability="memory").step(np.ones(200_000))  # in threads
    assert asked(one.url, "/livez")[0] == 200
    assert told == []
    for each in readers:
        each.join(WAIT)
    codes = {(status, document["code"], document["retry_after"]) for status, document in told}
    assert len(told) == READERS and codes == {(503, "store_unavailable", "1")}

    # Now it is known, so nobody waits, and nothing is sent.
    for path, method, document in (
        ("/readyz", "GET", None),
        (f"/v1/sessions/{durable.id}", "GET", None),
        (f"/v1/sessions/{durable.id}", "PATCH", {"labels": {}}),
        (f"/v1/sessions/{durable.id}", "DELETE", None),
        (f"/v1/sessions/{durable.id}/steps/1", "PUT", {"gradient": [1, 1, 1, 1]}),
        ("/v1/sessions", "POST", {"parameters": [1.0]}),
        ("/v1/sessions", "GET", None),
    ):
        status, problem = asked(one.url, path, method, document)
        assert (status, problem["code"]) == (503, "store_unavailable"), (path, problem)
        assert "stopped answering" in problem["detail"] and problem["retry_after"]
    store.resume()
    comes(lambda: asked(one.url, "/readyz")[0] == 200)
    assert commands(store) - before <= 4, "one for each thread was sent, and nothing of what was refused"
    durable.step(np.ones(4, np.float32))
    assert durable.info()["step"] == 1


def commands(store):
    """How often the store was asked for what a session needs."""
    with store.client() as client:
        stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hgetall", "hmget", "zrangebyscore"))
