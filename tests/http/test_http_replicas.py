"""Two replicas on one store, over HTTP: each serves any session, except `memory` sessions.

These say where they live.
"""

import numpy as np
import pytest
from talking import SAFETENSORS, Talk, watched

from servers import Store

SIZE = 200_000  # large enough that a body is logged in chunks


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    store = Store(appendfsync="everysec").start()
    try:
        with (
            watched(tmp_path_factory.mktemp("one"), "--redis-url", store.url) as one,
            watched(tmp_path_factory.mktemp("two"), "--redis-url", store.url) as two,
        ):
            talks = [Talk(one), Talk(two)]
            yield talks
            for talk in talks:
                talk.close()
    finally:
        store.stop()


def test_what_one_replica_did_the_other_knows(pair):
    one, two = pair
    session = one.vector(SIZE, name="shared")
    gradient = np.ones(SIZE, np.float32)
    first = one.put(session, 1, gradient).good()
    two.put("shared", 1, gradient, {"If-Match": first.chain}).problem(412, "history_lost")  # that is step 1's, not 0's
    replay = two.put("shared", 1, gradient).good()
    assert replay.headers["Adamd-Replayed"] == "true" and replay.body == first.body
    second = two.put(session, 2, gradient, {"If-Match": first.chain}).good()
    told = one.put(session, 2, gradient * 2).problem(409, "step_conflict")  # on the store's word, not its cache's
    assert told["step"] == 2
    third = one.put(session, 3, gradient, {"If-Match": second.chain}).good()
    assert third.step == 3
    two("PATCH", f"/v1/sessions/{session}", {"optimizer": {"lr": 0.0}}).good()
    assert one.put(session, 4, gradient).good().body == third.body
    twin = two("POST", "/v1/sessions", one("GET", f"/v1/sessions/{session}/state").body, SAFETENSORS)
    twin.problem(409, "session_exists")  # the export has its name
    two("DELETE", f"/v1/sessions/{session}").good(204)
    one.put(session, 5, gradient).problem(410, "session_deleted")
    one("GET", f"/v1/sessions/{session}").problem(410, "session_deleted")


def test_a_memory_session_lives_in_one_replica_and_the_other_says_421(pair):
    one, two = pair
    made = one.create([1.0, 2.0], durability="memory")
    path = f"/v1/sessions/{made['id']}"
    for method, suffix, body in [
        ("GET", "", None),
        ("PATCH", "", {"labels": {}}),
        ("DELETE", "", None),
        ("GET", "/parameters", None),
        ("PUT", "/parameters", [1, 2]),
        ("GET", "/state", None),
        ("PUT", "/steps/1", {"gradient": [1, 1]}),
    ]:
        told = two(method, path + suffix, body).problem(421, "wrong_replica")
        assert one("GET", "/v1/info").json["replica"] in told["detail"]
    assert one("PUT", f"{path}/steps/1", {"gradient": [1, 1]}).good().step == 1
    assert [item["id"] for item in two("GET", "/v1/sessions").good().json["sessions"]] == []


def test_the_same_key_at_two_replicas_is_one_session_and_one_step(pair):
    one, two = pair
    key = {"Idempotency-Key": "once"}
    first = one("POST", "/v1/sessions", {"parameters": [1.0]}, key).good(201)
    again = two("POST", "/v1/sessions", {"parameters": [1.0]}, key).good(201)
    assert again.json["id"] == first.json["id"] and again.headers["Adamd-Replayed"] == "true"
    steps = f"/v1/sessions/{first.json['id']}/steps"
    one("POST", steps, {"gradient": [1]}, key).good()
    again = two("POST", steps, {"gradient": [1]}, key).good()
    assert again.headers["Adamd-Replayed"] == "true" and again.headers["Adamd-Applied-Step"] == "1" and again.step == 1
    two("POST", steps, {"gradient": [2]}, key).problem(422, "idempotency_mismatch")
