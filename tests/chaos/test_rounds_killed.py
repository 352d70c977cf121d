"""kill -9 of a server, and of its store, while clients contribute: every round is what it would have been.

Each client keeps nothing but its data, asks for its task, and sends until it is answered. At the end each round has
counted each client once, and the parameters have the bits of a session that nobody disturbed.
"""

import http.client
import json
import os
import random
import signal
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest

from servers import Server

SIZE = 200_000  # a body in bulk
CLIENTS = [f"ward-{i}" for i in range(5)]
ROUNDS = 8
KILLS = 10
SETTINGS = {"quorum": len(CLIENTS), "total": ROUNDS, "clip_norm": 300.0}
OPTIMIZER = {"name": "adam", "lr": 0.05}

pytestmark = pytest.mark.chaos


def delta(client, number):
    seed = [CLIENTS.index(client), number]
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def said(server, method, path, body=None, headers=None):
    """One request, sent until it is answered with something that is no failure of the server."""
    while True:
        try:
            url = urlsplit(server.url)
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
            try:
                connection.request(method, path, body, headers or {})
                answer = connection.getresponse()
                found = answer.read()
            finally:
                connection.close()
            if answer.status < 500 and answer.status != 429:
                return answer.status, found
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.02)


def opened(server, name):
    document = {"name": name, "optimizer": OPTIMIZER, "dtype": "float32", "rounds": SETTINGS}
    document["layout"] = [{"name": "w", "shape": [SIZE]}]
    status, _ = said(server, "POST", "/v1/sessions", json.dumps(document), {"Content-Type": "application/json"})
    assert status in (201, 409)  # an answer that was lost
    start = np.zeros(SIZE, np.float32).tobytes()
    path = f"/v1/sessions/{name}"
    assert said(server, "PUT", f"{path}/parameters", start, {"Content-Type": "application/octet-stream"})[0] == 200
    return path


def works(server, path, client, seen):
    headers = {"Content-Type": "application/octet-stream", "Adamd-Num-Examples": str(1 + len(client))}
    while True:
        status, body = said(server, "GET", f"{path}/rounds/current?client={client}&wait_s=1")
        if status == 204:
            continue
        task = json.loads(body)
        if task["kind"] == "stop":
            return
        number = task["round"]
        sent = f"{path}/rounds/{number}/contributions/{client}"
        status, body = said(server, "PUT", sent, delta(client, number).tobytes(), headers)
        seen.append((client, number, status, json.loads(body).get("counted")))


def played(server, name, disturbed=None):
    """All rounds of a session; returns the parameters' bytes, the documents and what the clients saw."""
    path, seen = opened(server, name), []
    threads = [threading.Thread(target=works, args=(server, path, client, seen)) for client in CLIENTS]
    for thread in threads:
        thread.start()
    if disturbed is not None:
        disturbed(threads)
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    _, parameters = said(server, "GET", f"{path}/parameters", headers={"Accept": "application/octet-stream"})
    _, page = said(server, "GET", f"{path}/rounds?from=1")
    return parameters, json.loads(page)["rounds"][:ROUNDS], seen


@pytest.mark.parametrize("bulk", ["files", "store"])
def test_rounds_survive_kills(tmp_path, bulk):
    rng = random.Random(5)  # noqa: S311 - no secret
    server = Server(tmp_path / "data", env={"ADAMD_BULK": bulk}).start()

    def disturbed(threads):
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.05, 1.5))
            if rng.random() < 0.3:
                store = server.store_pid

                os.kill(store, signal.SIGKILL)
            server.restart()

    try:
        wanted, plain, _ = played(server, "quiet")
        found, documents, seen = played(server, "stormy", disturbed)
    finally:
        server.stop()
    for document, other in zip(documents, plain, strict=True):
        assert (document["state"], document["received"]) == ("closed", len(CLIENTS))
        assert [row["client"] for row in document["contributions"]] == CLIENTS
        assert [row["norm"] for row in document["contributions"]] == [row["norm"] for row in other["contributions"]]
        assert all(row["counted"] for row in document["contributions"])
    assert found == wanted
    refused = [one for one in seen if one[2] not in (200, 202)]
    assert all(status == 409 and counted is True for _, _, status, counted in refused), refused
