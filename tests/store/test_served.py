"""`adamd serve` with someone else's store: what it says at the start and while the store changes."""

import json
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import adamd
from servers import ENVIRONMENT, gone, launched

from .clusters import until
from .test_trust import swap, two


def refusal(*words, **environment):
    """What `adamd serve` says where it has to refuse."""
    process = launched(["serve", "--port", "0", "--grpc-port", "off", *map(str, words)], {**ENVIRONMENT, **environment})
    said = process.stdout.read()
    process.stdout.close()
    assert gone(process, 60) == 1, said
    return said


def asked(url, body=None, method=None):
    """The status and the document of an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def until_ready(server, status, said=""):
    """Wait for this answer of /readyz, which counts for a second."""
    deadline = time.monotonic() + 60
    while True:
        came, document = asked(f"{server.url}/readyz")
        if came == status and said in str(document.get("detail", "")):
            return document
        assert time.monotonic() < deadline, (came, document)
        time.sleep(0.1)


def test_ready_is_what_the_store_takes_now(server_factory, store_factory):
    store = store_factory()
    with store.client() as client:
        client.execute_command("ACL", "SETUSER", "adamd", "on", ">w", "~*", "+@all")
        server = server_factory(env={"ADAMD_REDIS_URL": f"redis://adamd:w@127.0.0.1:{store.port}"})
        until_ready(server, 200)
        promise = asked(f"{server.url}/v1/info")[1]["store"]
        status, session = asked(
            f"{server.url}/v1/sessions", {"parameters": [1.0], "optimizer": {"name": "adam", "lr": 1}}
        )
        assert status == 201
        steps = f"{server.url}/v1/sessions/{session['id']}/steps"

        # NOREPLICAS, OOM, NOPERM, and a file that is switched off: each in its words, each over when it is over.
        for wrong, right, code, said in (
            (
                ("CONFIG SET", "min-replicas-to-write", 1),
                ("CONFIG SET", "min-replicas-to-write", 0),
                "store_unavailable",
                "NOREPLICAS",
            ),
            (("CONFIG SET", "maxmemory", 1), ("CONFIG SET", "maxmemory", 0), "store_full", "maxmemory"),
            (("ACL SETUSER", "adamd", "resetkeys"), ("ACL SETUSER", "adamd", "~*"), "store_unavailable", "~adamd:*"),
            (
                ("CONFIG SET", "appendonly", "no"),
                ("CONFIG SET", "appendonly", "yes"),
                "store_unavailable",
                "CONFIG REWRITE",
            ),
        ):
            client.execute_command(*wrong)
            assert until_ready(server, 503, said)["code"] == code
            status, problem = asked(f"{steps}/1", {"gradient": [1.0]}, "PUT")
            assert (status, problem["code"]) == (503, code), problem
            assert said in problem["detail"]
            if "appendonly" in wrong:
                assert "nothing is committed now" in asked(f"{server.url}/v1/info")[1]["store"]
                assert asked(f"{server.url}/v1/sessions/{session['id']}/parameters")[0] == 200
            client.execute_command(*right)
            until_ready(server, 200)
        assert asked(f"{server.url}/v1/info")[1]["store"] == promise
        assert asked(f"{steps}/1", {"gradient": [1.0]}, "PUT")[0] == 200
    assert "Traceback" not in server.log()


def test_a_store_that_takes_no_writes_yet(server_factory, store_factory):
    """It can be helped by somebody who deletes what fills it, so the server starts."""
    store = store_factory(maxmemory=1)
    server = server_factory("--redis-url", store.url)
    assert (
        "the store takes no writes now, so /readyz is 503 until it does: the store has no memory left" in server.log()
    )
    assert asked(f"{server.url}/readyz")[0] == 503
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        until(
            lambda: health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        )
    with store.client() as client:
        client.config_set("maxmemory", 0)
    until_ready(server, 200)


def test_a_failover_behind_a_proxy(server_factory, store_factory, proxy):
    """The old primary lives and answers, and its connections stay: the next step is taken at the new one all the same."""
    first, second = two(store_factory, None)
    before = proxy(first)
    server = server_factory("--redis-url", before.url)
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(4, np.float32))
        session.step(np.ones(4, np.float32))
        swap(first, second, before)
        session.step(np.ones(4, np.float32))
        assert session.info()["step"] == 2
    until_ready(server, 200)
    with second.client() as client:
        assert client.hget(f"adamd:{{{session.id}}}:head", "step") == b"2"


def test_a_store_that_loads_is_waited_for(server_factory, store_factory):
    store = store_factory()
    with store.client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(20_000):
            pipeline.set(f"other:{number}", 1)
        pipeline.execute()
    store.kill()
    store.settings["key-load-delay"] = "500"
    store.start(wait=False)

    def hurry():
        with store.client() as client:
            until(lambda: client.info("clients")["connected_clients"] > 1)  # adamd has come
            until(lambda: client.info("stats")["total_commands_processed"] > 6)  # and asked
            client.config_set("key-load-delay", 0)

    hurrying = threading.Thread(target=hurry)
    hurrying.start()
    server = server_factory("--redis-url", store.url)
    hurrying.join()
    assert "the store is loading its data (" in server.log()
    assert "appendfsync always" in server.lines[-1]


def test_a_user_who_may_not_write(store_factory):
    store = store_factory()
    with store.client() as client:
        client.execute_command("ACL", "SETUSER", "adamd", "on", ">w", "~other:*", "+@all")
    said = refusal(ADAMD_REDIS_URL=f"redis://adamd:w@127.0.0.1:{store.port}")
    assert "ACL SETUSER <user> ~adamd:*" in said and "Traceback" not in said


@pytest.mark.parametrize("how", ["option", "environment", "file"])
def test_a_wrong_url_is_not_repeated(tmp_path, how):
    url = "redis://:hunter2/x@127.0.0.1:1"
    (tmp_path / "url").write_text(f"{url}\n")
    words = {"option": ["--redis-url", url], "environment": [], "file": ["--redis-url-file", tmp_path / "url"]}[how]
    environment = {"ADAMD_REDIS_URL": url} if how == "environment" else {}
    said = refusal(*words, **environment)
    assert "%2F" in said and "hunter2" not in said
    assert ("every user of this machine can read" in said) == (how == "option")


def test_where_a_url_is_named(tmp_path):
    words = ["--redis-url-file", tmp_path / "none"]
    assert "--redis-url-file: cannot read" in refusal(*words)
    assert "both name a store" in refusal(*words, ADAMD_REDIS_URL="redis://127.0.0.1")


def test_a_file_names_the_store(server_factory, store_factory, tmp_path):
    (tmp_path / "url").write_text(f"{store_factory().url}\n")
    server = server_factory(env={"ADAMD_REDIS_URL_FILE": tmp_path / "url"})
    assert "private store" not in server.log()
    until_ready(server, 200)


def test_an_address_of_ipv6(server_factory, store_factory):
    store = store_factory(bind="::1 127.0.0.1")
    server = server_factory("--host", "::1", "--redis-url", f"redis://[::1]:{store.port}")
    assert server.url.startswith("http://[::1]:") and server.grpc_url.startswith("grpc://[::1]:")
    until_ready(server, 200)
    for url in (server.url, server.grpc_url):
        with adamd.connect(url) as client:
            assert client.create([1.0, 2.0], lr=0.1).step([1.0, 1.0]) is not None
