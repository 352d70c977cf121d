"""One damaged session, seen by clients of both transports: it is told as such, and nobody else notices."""

import json
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import adamd

HARM = {"head": ("hset", "spec", "{"), "wrong type": None, "missing": ("hset", "parameters_missing", "2")}


def asked(url, path, method="GET", document=None):
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_session_is_told_to_those_who_ask_for_it(server_factory, store_factory, harm):
    store = store_factory(appendfsync="everysec")
    one = server_factory("--redis-url", store.url)
    with adamd.connect(one.url) as client, store.client() as keys:
        whole = client.create(np.zeros(3), name="whole")
        broken, second = client.create(np.zeros(3), name="broken"), client.create(np.zeros(3), name="broken-too")
        for each in (broken, second):
            each.step(np.ones(3))
            head = f"adamd:{{{each.id}}}:head"
            if harm == "wrong type":
                keys.set(head, "text")
            else:
                keys.hset(head, *HARM[harm][1:])
            keys.rpush(f"adamd:{{{each.id}}}:garbage", "{", b"\xff")
            keys.sadd("adamd:{index.default}:littered", each.id, b"\xff")

        one.restart()  # a server that has the session in memory needs nothing that is damaged
    with adamd.connect(one.url) as client, adamd.connect(one.grpc_url) as other:
        for via in (client, other):
            rows = {row["id"]: row for row in via.sessions()}
            assert rows.keys() == {whole.id, broken.id, second.id}
            assert rows[whole.id]["step"] == 0 and "damaged" not in rows[whole.id]
            assert rows[broken.id]["damaged"] and rows[broken.id]["step"] is None
            with pytest.raises(adamd.errors.Damaged) as told:
                via.session(broken.id)
            assert told.value.code == "damaged" and broken.id in told.value.detail
        for method, path, document in (
            ("GET", "", None),
            ("GET", "/parameters", None),
            ("GET", "/state", None),
            ("PATCH", "", {"labels": {}}),
            ("PUT", "/steps/2", {"gradient": [1, 1, 1]}),
            ("PUT", "/parameters", {"parameters": [1, 1, 1]}),
        ):
            status, problem = asked(one.url, f"/v1/sessions/broken{path}", method, document)
            assert (status, problem["code"]) == (500, "damaged"), problem
        status, problem = asked(one.url, "/v1/sessions", "POST", {"name": "broken", "parameters": [1.0]})
        assert (status, problem["code"], problem["id"]) == (409, "session_exists", broken.id)

        assert asked(one.url, "/readyz")[0] == 200
        with grpc.insecure_channel(one.grpc_url.removeprefix("grpc://")) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        client.session("whole").step(np.ones(3))

        client.delete("broken")
        other.session(whole.id)
        other.delete(second.id)
        assert [row["id"] for row in client.sessions()] == [whole.id]
        assert asked(one.url, f"/v1/sessions/{broken.id}")[0] == 410
        client.create(np.zeros(3), name="broken").step(np.ones(3))
