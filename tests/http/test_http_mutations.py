"""Valid requests with bytes changed at random: each answer is below 500, and the server lives on.

The seeds are fixed, so that a failure can be told by its number.
"""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import save
from talking import Talk, layout, watched

SIZE = 4


@pytest.fixture(scope="module")
def mutated(tmp_path_factory):
    with watched(tmp_path_factory.mktemp("mutated"), env={"ADAMD_UPLOAD_GAP": 0.3}) as one:
        yield one


def requests(session):
    """One true request of each kind, as bytes.

    Creations have no name: one that was given up by its client may still be under way, and the next one with its name
    is rightly told to come back (503).
    """
    gradient = np.float32([1, 2, 3, 4])
    steps = f"/v1/sessions/{session}/steps"
    document = {"layout": layout(w=[2, 2]), "dtype": "float32", "optimizer": {"lr": 0.1}, "labels": {"a": "b"}}
    several = [
        (
            "PUT",
            f"{steps}/1",
            'Content-Type: application/octet-stream\r\nAdamd-Settings: {"lr": 0.1}',
            gradient.tobytes(),
        ),
        ("PUT", f"{steps}/1", "Content-Type: application/vnd.safetensors", save({"w": gradient.reshape(2, 2)})),
        (
            "PUT",
            f"{steps}/1",
            "Content-Type: application/json",
            json.dumps({"gradient": {"w": [[1, 2], [3, 4]]}}).encode(),
        ),
        (
            "POST",
            steps,
            'Idempotency-Key: k\r\nAdamd-Metrics: {"loss": 1}\r\nPrefer: return=minimal',
            gradient.tobytes(),
        ),
        ("POST", "/v1/sessions", "Content-Type: application/json", json.dumps(document).encode()),
        (
            "POST",
            "/v1/sessions",
            "Content-Type: application/vnd.safetensors",
            save({"w": gradient}, {"adamd": '{"labels": {"a": "b"}}'}),
        ),
        (
            "PATCH",
            f"/v1/sessions/{session}",
            "Content-Type: application/json",
            b'{"optimizer": {"betas": [0.9, 0.99]}}',
        ),
        ("GET", "/v1/sessions?page_size=3&page_token=1.5~s_1", "Accept: application/json;q=0.5, */*;q=0.1", b""),
        ("GET", f"/v1/sessions/{session}/parameters", "Accept: application/vnd.safetensors", b""),
    ]
    for method, path, head, body in several:
        start = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode()
        yield start + b"Content-Length: %d\r\n\r\n" % len(body) + body
        if body:
            half = len(body) // 2
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]))
            yield start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def spoilt(request, rng):
    data = bytearray(request)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        place = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                data[place] ^= 1 << rng.randrange(8)
            case 2:
                del data[place : place + rng.choice([1, 2, 10])]
            case 3:
                data[place:place] = bytes(rng.choices(b'0123456789{}[]",:\r\n\x00\xff -', k=rng.choice([1, 2, 5])))
            case 4:
                end = min(len(data), place + rng.choice([1, 4, 20]))
                data[place:place] = data[place:end]
        if not data:
            break
    return bytes(data)


def attack(server, first, last):
    talk = Talk(server)
    answered = 0
    for seed in range(first, last):
        rng = random.Random(seed)
        if seed % 50 == first % 50:
            body = {"layout": layout(w=[2, 2]), "dtype": "float32", "durability": "memory"}
            session = talk("POST", "/v1/sessions", body).good(201).json["id"]
            talk("PUT", f"/v1/sessions/{session}/parameters", {"w": [[0, 0], [0, 0]]}).good()
            true = list(requests(session))
        reply = talk.raw(spoilt(rng.choice(true), rng))
        if reply is not None:
            answered += 1
            assert reply.status < 500, (seed, reply)
            if reply.status >= 400 and reply.body:
                reply.problem(reply.status, reply.json["code"])
    talk("GET", "/readyz").good()
    talk.close()
    return answered


def test_some_mutations(mutated):
    assert attack(mutated, 0, 600) > 300


@pytest.mark.slow
def test_many_mutations(mutated):
    assert attack(mutated, 1000, 21_000) > 10_000
