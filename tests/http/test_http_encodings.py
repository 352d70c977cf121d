"""Encodings over HTTP: headers, statuses, logs that survive kill -9, rounded answers."""

import json
import time

import numpy as np
import pytest
from talking import JSON, OCTETS, Talk, packed, unpacked, watched

from adamd.wire import encodings
from adamd.wire.dtypes import narrow

OCTET = {"Accept": "application/octet-stream"}
ENCODINGS = ["int8", "sparse", "sparse-lazy"]


def encoded(encoding, rng, size):
    gradient = rng.standard_normal(size).astype("<f4")
    if encoding == "int8":
        return encodings.encode_int8(gradient).tobytes()
    chosen = np.sort(rng.choice(size, size // 3, replace=False))
    return encodings.encode_sparse(chosen, gradient[chosen]).tobytes()


def meaning(encoding, body, size):
    raw = np.frombuffer(body, np.uint8)
    out = np.zeros(size, "<f4")
    if encoding == "int8":
        encodings.decode_int8(*encodings.int8_parts(raw, size), 0, out)
    else:
        indices, values = encodings.sparse_parts(raw, "float32")
        out[indices] = values
    return out


def parameters(talk, session):
    return talk("GET", f"/v1/sessions/{session}/parameters", headers=OCTET).good().body


@pytest.mark.parametrize("size", [1000, 1_200_000], ids=["inline", "chunks"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoded_step_is_the_step_of_what_it_means_and_replays_after_kill_9(server_factory, encoding, size):
    server = server_factory()
    rng, talk = np.random.default_rng(0), Talk(server)
    one, other = talk.vector(size), talk.vector(size)
    for number in range(1, 5):
        body = encoded(encoding, rng, size)
        got = talk.put(one, number, body, {"Adamd-Encoding": encoding}).good()
        assert got.headers["Adamd-Dtype"] == "float32"
        if encoding != "sparse-lazy":
            assert got.body == talk.put(other, number, meaning(encoding, body, size)).good().body
        untouched = meaning(encoding, body, size) == 0
    if encoding == "sparse-lazy":
        before = np.frombuffer(got.body, "<f4")
    talk.close()
    server.restart()  # kill -9
    talk = Talk(server)
    assert parameters(talk, one) == got.body
    again = talk.put(one, 4, body, {"Adamd-Encoding": encoding}).good()
    assert (again.headers["Adamd-Replayed"], again.body, again.chain) == ("true", got.body, got.chain)
    told = talk.put(one, 4, meaning(encoding, body, size)).problem(409, "step_conflict")
    assert told["step"] == 4
    if encoding == "sparse-lazy":
        after = np.frombuffer(talk.put(one, 5, body, {"Adamd-Encoding": encoding}).good().body, "<f4")
        assert (after[untouched] == before[untouched]).all() and (after != before).any()
    talk.close()


def test_every_encoding_in_one_log_survives_kill_9_across_snapshots(server_factory):
    server = server_factory(env={"ADAMD_SNAPSHOT_RECORDS": "5"})
    rng, talk, size = np.random.default_rng(1), Talk(server), 5000
    session = talk.vector(size)
    for number in range(1, 24):
        encoding = [*ENCODINGS, "raw"][number % 4]
        body = rng.standard_normal(size).astype("<f4").tobytes() if encoding == "raw" else encoded(encoding, rng, size)
        got = talk.put(session, number, body, {"Adamd-Encoding": encoding}).good()
        if number % 6 == 0:
            until_snapshot(talk, session)
            talk.close()
            server.restart()  # kill -9
            talk = Talk(server)
            assert parameters(talk, session) == got.body
    talk.close()


def until_snapshot(talk, session):
    """Wait until the session has a snapshot of a step: it is written in the background."""
    deadline = time.monotonic() + 30
    while not talk("GET", f"/v1/sessions/{session}").good().json["snapshot_step"]:
        assert time.monotonic() < deadline, "no snapshot came"
        time.sleep(0.02)


def test_raw_may_be_said(talk):
    session = talk.vector(4)
    talk.put(session, 1, np.ones(4, "<f4"), {"Adamd-Encoding": "raw"}).good()
    talk("PUT", f"/v1/sessions/{session}/steps/2", {"gradient": [1, 1, 1, 1]}, {"Adamd-Encoding": "raw"}).good()


@pytest.mark.parametrize("name", ["int4", "INT8", "gzip", "", "sparse,int8"])
def test_an_unknown_encoding_is_refused_with_the_known_ones(talk, name):
    session = talk.vector(4)
    before = talk.standing(session)
    told = talk.put(session, 1, np.ones(4, "<f4"), {"Adamd-Encoding": name}).problem(415, "unsupported_media_type")
    assert all(known in told["detail"] for known in ("raw", *ENCODINGS))
    assert talk.standing(session) == before


def test_encodings_are_for_octet_streams_of_gradients(talk):
    session = talk.vector(4)
    before = talk.standing(session)
    headers = {"Adamd-Encoding": "int8"}
    talk("PUT", f"/v1/sessions/{session}/steps/1", {"gradient": [1, 1, 1, 1]}, headers).problem(422, "invalid_request")
    body = packed({"parameters": ("F32", [4], bytes(16))})
    kind = {"Content-Type": "application/vnd.safetensors", **headers}
    talk("PUT", f"/v1/sessions/{session}/steps/1", body, kind).problem(422, "invalid_request")
    talk("PUT", f"/v1/sessions/{session}/parameters", bytes(8), {**OCTETS, **headers}).problem(422, "invalid_request")
    talk.put(session, 1, bytes(8), {**headers, "Adamd-Dtype": "float64"}).problem(422, "wrong_dtype")
    assert talk.standing(session) == before


@pytest.mark.parametrize("size", [1000, 1_200_000], ids=["inline", "chunks"])
def test_hostile_bodies_get_a_clear_answer_and_change_nothing(tmp_path, size):
    with watched(tmp_path / "server") as server:
        talk = Talk(server)
        session, rng = talk.vector(size), np.random.default_rng(2)
        before = talk.standing(session)
        good = encodings.encode_int8(rng.standard_normal(size).astype("<f4"))

        def put(body, encoding, status, code, **more):
            told = talk.put(session, 1, np.ascontiguousarray(body), {"Adamd-Encoding": encoding}).problem(status, code)
            assert told["step"] == 0
            assert {name: told[name] for name in more} == more
            return told["detail"]

        assert "scales of 4 bytes" in put(good[:-1], "int8", 422, "wrong_length")
        for value in (np.nan, np.inf, -1.0):
            bad = good.copy()
            encodings.int8_parts(bad, size)[0][2] = value
            assert "scale 2" in put(bad, "int8", 422, "bad_gradient", index=512)
        bad = good.copy()
        encodings.int8_parts(bad, size)[0][:] = 3e38
        put(bad, "int8", 422, "bad_gradient")
        ones = np.ones(size, "<f4")
        for indices, told in (
            ([*range(size - 1), size], "this session has"),
            ([0, 0, *range(2, size)], "index 1 of the gradient is 0 after 0"),
            ([*range(size - 2), size - 1, size - 2], "ascending"),
        ):
            for encoding in ("sparse", "sparse-lazy"):
                body = encodings.encode_sparse(np.array(indices), ones)
                assert told in put(body, encoding, 400, "malformed_body")
        assert "multiple of 8" in put(np.zeros(8 * size + 8, np.uint8), "sparse", 422, "wrong_length")
        assert "multiple of 8" in put(np.zeros(12, np.uint8), "sparse-lazy", 422, "wrong_length")
        assert talk.standing(session) == before
        talk.close()


def test_naming_nothing_is_a_step(talk):
    session = talk.vector(4)
    start = talk.standing(session)[3]
    got = talk.put(session, 1, b"", {"Adamd-Encoding": "sparse-lazy"}).good()
    assert (got.step, got.body) == (1, start)
    assert talk.put(session, 2, b"", {"Adamd-Encoding": "sparse"}).good().body == start  # a gradient of zeros


def test_a_chunked_sparse_body_is_counted(talk):
    session, size = talk.vector(1000), 1000
    body = encodings.encode_sparse(np.arange(0, size, 7), np.ones(143, "<f4")).tobytes()

    def chunked(data):
        yield from (data[i : i + 100] for i in range(0, len(data), 100))

    headers = {**OCTETS, "Adamd-Encoding": "sparse"}
    path = f"/v1/sessions/{session}/steps/1"
    talk("PUT", path, chunked(body[:-1]), headers).problem(422, "wrong_length")
    got = talk("PUT", path, chunked(body), headers).good()
    assert talk.put(session, 1, body, {"Adamd-Encoding": "sparse"}).good().headers["Adamd-Replayed"] == "true"
    assert got.step == 1


@pytest.mark.parametrize("answer", ["float16", "bfloat16", "float32"])
def test_answers_rounded_on_request(talk, answer):
    session, size = talk.vector(1000, "float64"), 1000
    code, stored = {"float16": ("F16", "<f2"), "bfloat16": ("BF16", "<u2"), "float32": ("F32", "<f4")}[answer]
    asked = {"Adamd-Answer-Dtype": answer}
    gradient = np.random.default_rng(0).standard_normal(size)
    got = talk.put(session, 1, gradient, asked).good()
    exact = talk.standing(session)[3]
    wanted = np.empty(size, stored)
    narrow(np.frombuffer(exact, "<f8"), answer, wanted)
    assert (got.headers["Adamd-Dtype"], got.body) == (answer, wanted.tobytes())
    assert "Adamd-Overflowed" not in got.headers
    read = talk("GET", f"/v1/sessions/{session}/parameters", headers={**OCTET, **asked}).good()
    assert (read.headers["Adamd-Dtype"], read.body) == (answer, got.body)
    assert talk.put(session, 1, gradient, asked).good().body == got.body  # a replay
    safe = {**asked, "Accept": "application/vnd.safetensors"}
    read = talk("GET", f"/v1/sessions/{session}/parameters", headers=safe).good()
    arrays, told = unpacked(read.body)
    assert f'"dtype":"{code}"' in read.body[:300].decode("latin-1") and told == {"step": 1}
    assert arrays["parameters"].tobytes() == got.body
    minimal = talk.put(session, 2, gradient, {**asked, "Prefer": "return=minimal"}).good(204)
    assert minimal.body == b"" and "Adamd-Dtype" not in minimal.headers


def test_what_a_narrow_answer_cannot_hold_is_counted(talk):
    made = talk.create([1e5, 1.0, -1e6], dtype="float32")["id"]
    headers = {**OCTET, "Adamd-Answer-Dtype": "float16"}
    read = talk("GET", f"/v1/sessions/{made}/parameters", headers=headers).good()
    assert read.headers["Adamd-Overflowed"] == "2" and "Adamd-Diverged" not in read.headers
    assert np.isinf(np.frombuffer(read.body, "<f2")[[0, 2]]).all()


def test_a_wrong_answer_dtype_is_refused_before_the_step(talk):
    session = talk.vector(4)
    before = talk.standing(session)
    ones = np.ones(4, "<f4")
    talk.put(session, 1, ones, {"Adamd-Answer-Dtype": "float64"}).problem(422, "wrong_dtype")
    talk.put(session, 1, ones, {"Adamd-Answer-Dtype": "int8"}).problem(422, "wrong_dtype")
    as_json = {"Adamd-Answer-Dtype": "float16", "Accept": "application/json"}
    assert "JSON" in talk.put(session, 1, ones, as_json).problem(422, "invalid_request")["detail"]
    talk("GET", f"/v1/sessions/{session}/parameters", headers=as_json).problem(422, "invalid_request")
    body = json.dumps({"gradient": [1, 1, 1, 1]})
    talk("PUT", f"/v1/sessions/{session}/steps/1", body, {**JSON, "Adamd-Answer-Dtype": "float16"}).problem(
        422, "invalid_request"
    )
    assert talk.standing(session) == before


def test_info_tells_the_encodings(talk):
    told = talk("GET", "/v1/info").good().json
    assert told["encodings"] == ["raw", *ENCODINGS]
