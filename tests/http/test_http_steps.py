"""Steps over HTTP: every status that docs/protocol.md has for them, and what each leaves unchanged."""

import json
import threading
import uuid

import numpy as np
import pytest
from safetensors.numpy import load, save
from talking import JSON, OCTETS, SAFETENSORS, Talk, packed, read_reply

OCTET = {"Accept": "application/octet-stream"}
G1, G2 = np.float32([1, -1, 0.5, 2]), np.float32([3, 1, -2, 1])


@pytest.fixture
def session(talk):
    return talk.vector(4)


def key():
    return {"Idempotency-Key": str(uuid.uuid4())}


def test_a_step_applies_once_and_replays(talk, session):
    first = talk.put(session, 1, G1).good()
    assert first.step == 1
    assert first.headers["Adamd-Dtype"] == "float32" and first.headers["Adamd-Durability"] == "committed"
    assert "Adamd-Replayed" not in first.headers
    start = np.linspace(-1, 1, 4).astype(np.float32)
    assert np.allclose(first.array(), start - 0.001 * np.sign(G1), atol=1e-6)
    again = talk.put(session, 1, G1).good()
    assert again.headers["Adamd-Replayed"] == "true"
    assert (again.step, again.chain, again.body) == (1, first.chain, first.body)
    assert talk.standing(session)[:4] == (1, first.chain, first.chain, first.body)


def test_another_gradient_for_the_same_step_is_a_conflict(talk, session):
    talk.put(session, 1, G1).good()
    before = talk.standing(session)
    told = talk.put(session, 1, G2).problem(409, "step_conflict")
    assert told["step"] == 1
    assert "step 1 is already applied with another gradient" in told["detail"] and "continue at 2" in told["detail"]
    assert talk.standing(session) == before


def test_a_step_further_back_is_superseded_and_told_whether_it_was_applied(talk, session):
    for n in range(1, 4):
        talk.put(session, n, G1 * n).good()
    before = talk.standing(session)
    told = talk.put(session, 1, G1).problem(409, "step_superseded")
    assert (told["applied"], told["step"]) == (True, 3)
    told = talk.put(session, 2, G1).problem(409, "step_superseded")
    assert (told["applied"], told["step"]) == (False, 3)
    assert talk.standing(session) == before


def test_beyond_the_ring_nobody_knows_whether_it_was_applied(talk):
    made = talk.create([1.0], durability="memory")["id"]
    for n in range(1, 260):
        talk("PUT", f"/v1/sessions/{made}/steps/{n}", {"gradient": [n]}, {"Prefer": "return=minimal"}).good(204)
    told = talk("PUT", f"/v1/sessions/{made}/steps/2", {"gradient": [2]}).problem(409, "step_superseded")
    assert (told["applied"], told["step"]) == ("unknown", 259)
    told = talk("PUT", f"/v1/sessions/{made}/steps/200", {"gradient": [200]}).problem(409, "step_superseded")
    assert told["applied"] is True


def test_a_step_ahead_is_a_gap(talk, session):
    before = talk.standing(session)
    assert talk.put(session, 3, G1).problem(409, "step_gap")["step"] == 0
    assert talk.put(session, 2**53, G1).problem(409, "step_gap")["step"] == 0
    assert talk.standing(session) == before


def test_if_match_names_the_chain_that_a_step_builds_on(talk, session):
    zero = talk("GET", f"/v1/sessions/{session}").chain
    first = talk.put(session, 1, G1, {"If-Match": zero}).good()
    replay = talk.put(session, 1, G1, {"If-Match": zero}).good()  # so that a replay matches too
    assert replay.headers["Adamd-Replayed"] == "true"
    talk.put(session, 2, G1, {"If-Match": "*"}).good()
    before = talk.standing(session)
    for wrong in (zero, first.chain, '"' + "0" * 64 + '"'):
        told = talk.put(session, 3, G1, {"If-Match": wrong}).problem(412, "history_lost")
        assert told["step"] == 2
    told = talk.put(session, 7, G1, {"If-Match": first.chain}).problem(412, "history_lost")
    assert told["step"] == 2 and "step 6" in told["detail"]
    assert talk.standing(session) == before
    talk.put(session, 3, G1, {"If-Match": before[1]}).good()


TAG = '"' + "0" * 64 + '"'


@pytest.mark.parametrize("junk", ["x", "0" * 64, "", '"', '"a', 'a"', "*, *", f"*, {TAG}", '"a" "b"', 'w/"a"', '"a b"'])
def test_if_match_that_is_no_list_of_tags_is_refused(talk, session, junk):
    before = talk.standing(session)
    for method, path in (("PUT", "/steps/1"), ("PATCH", ""), ("DELETE", "")):
        body = {"PUT": {"gradient": [1.0] * 4}, "PATCH": {"labels": {}}}.get(method)
        told = talk(method, f"/v1/sessions/{session}{path}", body, {"If-Match": junk})
        assert "If-Match is" in told.problem(422, "invalid_request")["detail"]
    assert talk.standing(session) == before


OTHERS = ['"nonsense"', '""', TAG, f"W/{TAG}", f'{TAG}, {TAG[:-2]}1"', '"a,b", "W/"', '"' + "G" * 64 + '"', '"\xe9"']


@pytest.mark.parametrize("tag", [*OTHERS, ", ,".join(OTHERS), '"' + "x" * 9000 + '"'], ids=lambda tag: tag[:20])
def test_a_tag_that_does_not_match_is_412_whatever_it_is(talk, session, tag):
    """RFC 9110, 8.8.3 and 13.1.1: a tag is opaque, and a weak one never matches."""
    before = talk.standing(session)
    here = f"/v1/sessions/{session}"
    talk("PUT", f"{here}/steps/1", {"gradient": [1.0] * 4}, {"If-Match": tag}).problem(412, "history_lost")
    weak = f"W/{before[1]}, {tag}"
    talk("PUT", f"{here}/steps/1", {"gradient": [1.0] * 4}, {"If-Match": weak}).problem(412, "history_lost")
    key = {"Idempotency-Key": "k"}
    talk("POST", f"{here}/steps", {"gradient": [1.0] * 4}, {"If-Match": tag, **key}).problem(412, "history_lost")
    talk("PATCH", here, {"labels": {}}, {"If-Match": tag}).problem(412, "moved")
    talk("DELETE", here, None, {"If-Match": tag}).problem(412, "moved")
    assert talk.standing(session) == before


def test_one_tag_of_a_list_has_to_match(talk, session):
    here = f"/v1/sessions/{session}"
    zero = talk("GET", here).chain
    many = f'"nonsense", {TAG} ,,{zero}, W/{TAG}'
    first = talk.put(session, 1, G1, {"If-Match": many}).good()
    assert "Adamd-Replayed" not in first.headers
    assert talk.put(session, 1, G1, {"If-Match": many}).good().headers["Adamd-Replayed"] == "true"
    talk.put(session, 2, G1, {"If-Match": many}).problem(412, "history_lost")
    talk("PATCH", here, {"labels": {}}, {"If-Match": many}).problem(412, "moved")
    with talk.socket() as sock:  # a list may come in several lines
        lines = [f"DELETE {here} HTTP/1.1", "Host: localhost", f"If-Match: {TAG}", f"If-Match: {first.chain}", "", ""]
        sock.sendall("\r\n".join(lines).encode())
        read_reply(sock).good(204)


@pytest.mark.parametrize(
    "number",
    ["0", "-1", "1e3", "%D9%A3", "1.0", "%201", "0x1", "9007199254740993", "1" * 40, "one", "%EF%BC%91", "+1", "1%0A"],
)
def test_a_step_number_that_is_none_is_refused(talk, session, number):
    before = talk.standing(session)
    talk.put(session, number, G1).problem(422, "invalid_request")
    assert talk.standing(session) == before


def test_post_applies_at_whatever_is_next(talk, session):
    mine, path = key(), f"/v1/sessions/{session}/steps"
    first = talk("POST", path, G1.tobytes(), {**OCTETS, **mine}).good()
    assert first.step == 1
    assert talk("POST", path, G1.tobytes(), {**OCTETS, **key()}).good().step == 2  # the same gradient, another step
    again = talk("POST", path, G1.tobytes(), {**OCTETS, **mine}).good()
    assert again.headers["Adamd-Replayed"] == "true"
    assert (again.step, again.headers["Adamd-Applied-Step"]) == (2, "1")  # today's parameters
    before = talk.standing(session)
    talk("POST", path, G2.tobytes(), {**OCTETS, **mine}).problem(422, "idempotency_mismatch")
    talk("POST", path, G1.tobytes(), OCTETS).problem(422, "invalid_request")
    assert talk.standing(session) == before


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_a_key_on_put_is_honoured_too(talk, durability):
    session, mine = talk.vector(4, durability=durability), key()
    talk.put(session, 1, G1, mine).good()
    assert talk.put(session, 1, G1, mine).good().headers["Adamd-Replayed"] == "true"
    before = talk.standing(session)
    talk.put(session, 2, G2, mine).problem(422, "idempotency_mismatch")
    assert talk.standing(session) == before


def test_the_same_request_twice_at_once_is_one_step(talk, server):
    session = talk.vector(200_000)
    gradient = np.ones(200_000, np.float32)
    replies = []

    def send():
        other = Talk(server)
        replies.append(other.put(session, 1, gradient).good())
        other.close()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({reply.body for reply in replies}) == 1
    assert sorted(reply.headers.get("Adamd-Replayed", "") for reply in replies) == ["", "true", "true", "true"]
    assert talk("GET", f"/v1/sessions/{session}").step == 1


def test_prefer_minimal_answers_nothing_but_the_standing(talk, session):
    reply = talk.put(session, 1, G1, {"Prefer": "respond-async, return=minimal"}).good(204)
    assert reply.body == b"" and reply.step == 1 and reply.headers["Preference-Applied"] == "return=minimal"
    assert reply.chain == talk("GET", f"/v1/sessions/{session}").chain
    assert talk.put(session, 1, G1, {"Prefer": "return=minimal"}).good(204).headers["Adamd-Replayed"] == "true"
    assert talk.put(session, 1, G1, {"Prefer": "return=representation"}).good().body
    assert talk.put(session, 1, G1, {"Prefer": 'foo; x="return=minimal"'}).good().body


def test_accept_picks_the_answer(talk, session):
    first = talk.put(session, 1, G1).good()
    flat = first.array()
    wanted = {
        None: "application/octet-stream",  # the step's own type
        "*/*": "application/octet-stream",
        "application/json": "application/json",
        "application/json;q=0.1, application/vnd.safetensors": "application/vnd.safetensors",
        "text/html, application/*;q=0.5": "application/octet-stream",
    }
    for accept, kind in wanted.items():
        reply = talk.put(session, 1, G1, {"Accept": accept} if accept else {}).good()
        assert reply.headers["Content-Type"] == kind, accept
        if kind == "application/json":
            assert reply.json == {"step": 1, "parameters": [float(x) for x in flat]}
        elif kind == "application/vnd.safetensors":
            assert load(reply.body)["parameters"].tobytes() == flat.tobytes()
        else:
            assert reply.body == flat.tobytes()
    before = talk.standing(session)
    for accept in ("text/html", "image/*", "application/json;q=0", "application/pdf, text/plain"):
        talk.put(session, 2, G2, {"Accept": accept}).problem(406, "not_acceptable")
        talk("GET", f"/v1/sessions/{session}/parameters", headers={"Accept": accept}).problem(406, "not_acceptable")
    assert talk.standing(session) == before


def test_every_encoding_of_one_gradient_moves_the_same_bits(talk):
    exact = np.float32([0.5, -0.25, 2, 1])  # exact in every dtype
    bfloat = (exact.view(np.uint32) >> 16).astype(np.uint16)
    bodies = [
        (exact.tobytes(), OCTETS),
        (np.float16(exact).tobytes(), {**OCTETS, "Adamd-Dtype": "float16"}),
        (bfloat.tobytes(), {**OCTETS, "Adamd-Dtype": "bfloat16"}),
        (exact.tobytes(), {}),  # a step without a type is octet-stream
        (json.dumps({"gradient": exact.tolist()}).encode(), JSON),
        (save({"parameters": exact}), SAFETENSORS),
        (packed({"parameters": ("BF16", [4], bfloat.tobytes())}), SAFETENSORS),
    ]
    seen = set()
    for body, kind in bodies:
        session = talk.vector(4)
        talk("PUT", f"/v1/sessions/{session}/steps/1", body, kind).good()
        seen.add(talk("GET", f"/v1/sessions/{session}/parameters", headers=OCTET).good().body)
    assert len(seen) == 1


def test_a_float64_session_takes_every_dtype(talk):
    for dtype in ("float64", "float32", "float16"):
        session = talk.vector(3, "float64")
        reply = talk.put(session, 1, np.array([1, 2, 3], dtype), {"Adamd-Dtype": dtype}).good()
        assert reply.headers["Adamd-Dtype"] == "float64" and len(reply.body) == 24


def test_a_wider_gradient_is_refused_never_rounded(talk, session):
    before = talk.standing(session)
    wide = np.zeros(4)
    told = talk.put(session, 1, wide, {"Adamd-Dtype": "float64"}).problem(422, "wrong_dtype")
    assert "rounded" in told["detail"] and told["step"] == 0
    talk("PUT", f"/v1/sessions/{session}/steps/1", save({"parameters": wide}), SAFETENSORS).problem(422, "wrong_dtype")
    for dtype in ("int32", "Float32", "", "float32, float32", "f" * 5000, "٣".encode()):
        talk.put(session, 1, G1, {"Adamd-Dtype": dtype}).problem(422, "wrong_dtype")
    assert talk.standing(session) == before


def test_the_length_is_explained(talk):
    session = talk.vector(1000)
    before = talk.standing(session)
    told = talk.put(session, 1, np.zeros(1000)).problem(422, "wrong_length")
    assert told["detail"] == "8000 bytes = 1000 float64; this session is float32 (4000 bytes)"
    assert told["step"] == 0
    told = talk.put(session, 1, b"x" * 4001).problem(422, "wrong_length")
    assert told["detail"] == "4001 bytes; this session is float32 (4000 bytes)"
    assert talk.standing(session) == before


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_tensors_left_out_are_not_touched_and_do_not_count(talk, durability):
    made = talk.create({"a": [1, 1], "b": [[2]], "c": 3}, dtype="float32", durability=durability)
    path = f"/v1/sessions/{made['id']}"
    one = talk("PUT", f"{path}/steps/1", {"gradient": {"a": [1, 1], "b": None}}).good().json["parameters"]
    assert (one["b"], one["c"]) == ([[2.0]], 3.0) and one["a"][0] < 1
    two = talk(
        "PUT", f"{path}/steps/2", save({"c": np.array(1, np.float32)}), {**SAFETENSORS, "Accept": "application/json"}
    )
    two = two.good().json["parameters"]
    assert (two["a"], two["b"]) == (one["a"], one["b"]) and two["c"] < 3
    again = talk("PUT", f"{path}/steps/2", save({"c": np.array(1, np.float32)}), SAFETENSORS).good()
    assert again.headers["Adamd-Replayed"] == "true"
    before = talk.standing(made["id"])
    talk("PUT", f"{path}/steps/2", {"gradient": {"c": 1, "a": [0, 0]}}).problem(409, "step_conflict")
    for nothing in ({"gradient": {}}, {"gradient": {"a": None}}):
        talk("PUT", f"{path}/steps/3", nothing).problem(422, "wrong_layout")
    talk("PUT", f"{path}/steps/3", save({}), SAFETENSORS).problem(422, "wrong_layout")
    assert talk.standing(made["id"]) == before


def test_settings_count_with_this_step_and_stay(talk, session):
    first = talk.put(session, 1, G1).good()
    second = talk.put(session, 2, G1, {"Adamd-Settings": '{"lr": 0}'}).good()
    assert second.body == first.body
    view = talk("GET", f"/v1/sessions/{session}").json
    assert view["optimizer"]["lr"] == 0 and view["settings_revision"] == 1
    third = talk.put(session, 3, G1).good()
    assert third.body == first.body
    # They belong to the digest: the same gradient with other settings is another step.
    talk.put(session, 3, G1, {"Adamd-Settings": '{"lr": 0.5}'}).problem(409, "step_conflict")
    body = {"gradient": G1.tolist(), "settings": {"lr": 0.5}, "metrics": {"loss": 0.31}}
    fourth = talk("PUT", f"/v1/sessions/{session}/steps/4", body).good()
    assert fourth.json["parameters"] != [float(x) for x in third.array()]
    assert talk("GET", f"/v1/sessions/{session}").json["optimizer"]["lr"] == 0.5


def test_a_session_is_told_with_the_metrics_of_its_last_step(talk, session):
    path = f"/v1/sessions/{session}"
    assert "metrics" not in talk("GET", path).good().json
    talk("PUT", f"{path}/steps/1", {"gradient": G1.tolist(), "metrics": {"loss": 0.31, "nan": None}}).good()
    assert talk("GET", path).good().json["metrics"] == {"loss": 0.31, "nan": None}
    talk("PUT", f"{path}/steps/2", {"gradient": G1.tolist()}).good()
    assert "metrics" not in talk("GET", path).good().json


def test_metrics_are_outside_the_digest_and_a_replay_keeps_the_first(talk, session):
    talk.put(session, 1, G1, {"Adamd-Metrics": '{"loss": 0.31, "acc": null, "größe": 1}'.encode()}).good()
    again = talk.put(session, 1, G1, {"Adamd-Metrics": '{"loss": 0.99}'}).good()
    assert again.headers["Adamd-Replayed"] == "true"


@pytest.mark.parametrize(
    "settings",
    [
        '{"lr": -1}',
        '{"lr": "0.1"}',
        '{"lr": null}',
        '{"lr": true}',
        '{"lr": 1e999}',
        '{"lr": [1e999]}',
        '{"lr": 1e300}',
        '{"betas": [0.9]}',
        '{"betas": [0.9, 1]}',
        '{"betas": [-0.1, 0.9]}',
        '{"betas": 0.9}',
        '{"eps": -1e-8}',
        '{"eps": 1e-300}',
        '{"weight_decay": -1}',
        '{"name": "sgd"}',
        '{"name": "sdg"}',
        '{"momentum": 0.9}',
        '{"amsgrad": true}',
        '{"maximize": 1}',
        '{"groups": {}}',
        '{"groups": [{"lr": 1}]}',
        '{"groups": [{"tensors": ["nobody"]}]}',
        '{"groups": [{"tensors": ["parameters", "parameters"]}]}',
        '{"learning_rate": 0.1}',
        '{"lr": ' + "9" * 400 + "}",
        '{"groups": [' + ", ".join(['{"tensors": []}'] * 500) + "]}",
    ],
)
def test_settings_out_of_range_are_refused_with_their_place(talk, session, settings):
    before = talk.standing(session)
    told = talk.put(session, 1, G1, {"Adamd-Settings": settings}).problem(422, "invalid_settings")
    assert "path" in told
    if "learning_rate" in settings:
        assert "did you mean lr?" in told["detail"]
    body = f'{{"gradient": [1, 2, 3, 4], "settings": {settings}}}'.encode()
    talk("PUT", f"/v1/sessions/{session}/steps/1", body, JSON).problem(422, "invalid_settings")
    assert talk.standing(session) == before


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '"x"',
        "NaN",
        '{"lr": NaN}',
        '{"lr": Infinity}',
        '{"lr": 1, "lr": 2}',
        "[" * 1000 + "]" * 1000,
        "\xff",
        "lr=1",
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("header", ["Adamd-Settings", "Adamd-Metrics"])
def test_a_header_that_is_no_json_object_is_refused(talk, session, header, text):
    before = talk.standing(session)
    talk.put(session, 1, G1, {header: text}).problem(422, "invalid_request")
    assert talk.standing(session) == before


@pytest.mark.parametrize(
    "metrics",
    [
        {str(i): i for i in range(1000)},
        {"loss": "low"},
        {"loss": True},
        {"loss": [1]},
        {"loss": {"a": 1}},
        {"x" * 129: 1},
        {"": 1},
        {"a\u0000": 1},
        {"loss": 10**400},
    ],
    ids=lambda metrics: str(metrics)[:20],
)
def test_metrics_that_are_none_are_refused(talk, session, metrics):
    before = talk.standing(session)
    talk.put(session, 1, G1, {"Adamd-Metrics": json.dumps(metrics)}).problem(422, "invalid_request")
    talk("PUT", f"/v1/sessions/{session}/steps/1", {"gradient": [1, 1, 1, 1], "metrics": metrics}).problem(
        422, "invalid_request"
    )
    assert talk.standing(session) == before


def test_a_header_that_comes_twice_is_refused(talk, session):
    before = talk.standing(session)
    for header in (
        "Adamd-Settings: {}",
        "If-Match: *",
        "Adamd-Dtype: float32",
        "Idempotency-Key: a",
        "Content-Type: application/octet-stream",
    ):
        request = f"PUT /v1/sessions/{session}/steps/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16\r\n{header}\r\n{header}\r\n\r\n"
        reply = talk.raw(request.encode() + G1.tobytes(), finish=False)
        reply.problem(422, "invalid_request")
    assert talk.standing(session) == before


def test_a_diverged_session_says_so_and_takes_no_more(talk):
    made = talk.create([1.0, 3.3e38], dtype="float32", optimizer={"lr": 3e37, "eps": 0})
    path = f"/v1/sessions/{made['id']}"
    first = talk("PUT", f"{path}/steps/1", {"gradient": [1, -1]}).good()
    assert first.headers["Adamd-Diverged"] == "true"
    assert first.json == {"step": 1, "parameters": None, "diverged": True}  # JSON has no NaN
    assert talk("GET", path).json["diverged"] is True
    told = talk("PUT", f"{path}/steps/2", {"gradient": [1, 1]}).problem(409, "diverged")
    assert told["step"] == 1
    talk("POST", f"{path}/steps", {"gradient": [1, 1]}, key()).problem(409, "diverged")
    assert talk("PUT", f"{path}/steps/1", {"gradient": [1, -1]}).good().headers["Adamd-Replayed"] == "true"
    octets = talk("GET", f"{path}/parameters", headers=OCTET).good().array()
    assert not np.isfinite(octets).all()  # octets carry it
    export = talk("GET", f"{path}/state").good()
    talk("POST", "/v1/sessions", export.body, SAFETENSORS).problem(422, "invalid_state")
