"""Sessions over HTTP: made, listed, named, changed, deleted, exported and restored."""

import json
import uuid

import numpy as np
import pytest
from safetensors.numpy import load, save
from talking import JSON, OCTETS, SAFETENSORS, layout, packed, unpacked

OCTET = {"Accept": "application/octet-stream"}


def name():
    return f"t-{uuid.uuid4().hex[:12]}"


def test_creation_by_json_is_told_in_full(talk):
    called = name()
    reply = talk("POST", "/v1/sessions", {"name": called, "parameters": {"w": [[1, 2], [3, 4]], "b": [0.5]}})
    made = reply.good(201).json
    assert reply.headers["Location"] == f"/v1/sessions/{made['id']}"
    assert reply.headers["Adamd-Durability"] == made["durability"] == "committed"
    assert reply.step == made["step"] == 0
    assert reply.chain == f'"{made["chain"]}"'
    assert made["name"] == called
    assert made["dtype"] == "float64"  # JSON numbers without a dtype
    assert made["layout"] == layout(b=[1], w=[2, 2])  # sorted by name: a JSON object has no order
    assert made["vector"] is False
    assert made["optimizer"] == {
        "name": "adam",
        "lr": 0.001,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "maximize": False,
        "groups": [],
    }
    for ref in (made["id"], called):
        again = talk("GET", f"/v1/sessions/{ref}").good()
        assert again.json == {**made, "warnings": []}  # but that the tensors are sorted, which a creation says
        assert (again.step, again.chain) == (reply.step, reply.chain)
    assert talk("GET", f"/v1/sessions/{called}/parameters").good().json == {
        "step": 0,
        "parameters": {"b": [0.5], "w": [[1.0, 2.0], [3.0, 4.0]]},
    }


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_plain_array_comes_back_in_its_shape(talk, shape, dtype):
    start = np.random.default_rng(1).normal(size=shape).astype(dtype)
    made = talk.create(start.tolist(), dtype=dtype)
    assert made["vector"] is True
    back = talk("GET", f"/v1/sessions/{made['id']}/parameters").good().json["parameters"]
    assert np.array_equal(np.array(back, dtype), start)  # exactly: JSON carries every bit
    octets = talk("GET", f"/v1/sessions/{made['id']}/parameters", headers=OCTET).good()
    assert octets.headers["Adamd-Dtype"] == dtype
    assert octets.body == start.tobytes()
    arrays = load(
        talk("GET", f"/v1/sessions/{made['id']}/parameters", headers={"Accept": "application/vnd.safetensors"}).body
    )
    assert arrays["parameters"].tobytes() == start.tobytes() and arrays["parameters"].shape == shape


def test_creation_by_safetensors_keeps_the_dtype_and_the_settings(talk):
    w, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([7])
    document = {"name": name(), "optimizer": {"name": "adamw", "lr": 0.1}, "labels": {"team": "ml"}}
    body = save({"w": w, "b": b}, {"adamd": json.dumps(document)})
    made = talk("POST", "/v1/sessions", body, SAFETENSORS).good(201).json
    assert made["dtype"] == "float32"
    assert made["layout"] == layout(b=[1], w=[2, 3])
    assert made["optimizer"]["name"] == "adamw" and made["optimizer"]["weight_decay"] == 0.01
    assert made["labels"] == {"team": "ml"}
    flat = talk("GET", f"/v1/sessions/{made['id']}/parameters", headers=OCTET).body
    assert flat == b.tobytes() + w.tobytes()


def test_half_precision_makes_a_float32_session_with_the_same_values(talk):
    half = np.float16([1.5, -2.25, 65504])
    body = packed({"h": ("F16", [3], half.tobytes()), "k": ("BF16", [1], b"\x80\x3f")})
    made = talk("POST", "/v1/sessions", body, SAFETENSORS).good(201).json
    assert made["dtype"] == "float32"
    flat = talk("GET", f"/v1/sessions/{made['id']}/parameters", headers=OCTET).array()
    assert flat.tolist() == [1.5, -2.25, 65504.0, 1.0]


def test_a_layout_keeps_its_order_and_waits_for_its_parameters(talk):
    made = talk("POST", "/v1/sessions", {"layout": layout(w=[2, 2], b=[1]), "dtype": "float32"}).good(201).json
    assert made["layout"] == layout(w=[2, 2], b=[1])
    assert made["parameters_missing"] is True
    path = f"/v1/sessions/{made['id']}"
    for reply in (
        talk.put(made["id"], 1, np.zeros(5, np.float32)),
        talk("GET", f"{path}/parameters"),
        talk("GET", f"{path}/state"),
    ):
        assert reply.problem(409, "parameters_missing")["step"] == 0
    start = np.float32([1, 2, 3, 4, 5])
    put = talk("PUT", f"{path}/parameters", start.tobytes(), OCTETS).good()
    assert put.json["parameters_missing"] is False
    assert put.chain != f'"{made["chain"]}"'  # another start is another history
    assert talk("GET", f"{path}/parameters").json["parameters"] == {"w": [[1.0, 2.0], [3.0, 4.0]], "b": [5.0]}
    assert talk.put(made["id"], 1, np.ones(5, np.float32), {"If-Match": put.chain}).good().step == 1


def test_parameters_can_be_set_in_every_encoding_before_step_1_and_not_after(talk):
    made = talk.create({"w": [[0, 0]], "b": [0]}, dtype="float32")
    path = f"/v1/sessions/{made['id']}/parameters"
    wanted = [9.0, 1.0, 2.0]
    encodings = [
        ({"w": [[1, 2]], "b": [9]}, JSON),
        (save({"w": np.float32([[1, 2]]), "b": np.float32([9])}), SAFETENSORS),
        (np.float32(wanted).tobytes(), OCTETS),
        (np.float16(wanted).tobytes(), {**OCTETS, "Adamd-Dtype": "float16"}),
    ]
    for body, kind in encodings:
        talk("PUT", path, np.zeros(3, np.float32).tobytes(), OCTETS).good()
        talk("PUT", path, body, kind).good()
        assert talk("GET", path, headers=OCTET).array().tolist() == wanted
    talk.put(made["id"], 1, np.ones(3, np.float32)).good()
    before = talk.standing(made["id"])
    for body, kind in encodings:
        assert talk("PUT", path, body, kind).problem(409, "parameters_fixed")["step"] == 1
    assert talk.standing(made["id"]) == before


def test_a_plain_array_may_have_a_name_of_its_own(talk):
    made = (
        talk("POST", "/v1/sessions", {"layout": layout(theta=[2]), "vector": True, "dtype": "float64"}).good(201).json
    )
    path = f"/v1/sessions/{made['id']}"
    talk("PUT", f"{path}/parameters", [1, 2]).good()
    assert talk("PUT", f"{path}/steps/1", {"gradient": [0, 0]}).good().json == {"step": 1, "parameters": [1.0, 2.0]}


@pytest.mark.slow
def test_the_list_has_pages(talk):
    made = [talk.create([0.0])["id"] for _ in range(5)]
    seen, token, pages = [], "", 0
    while True:
        page = talk("GET", f"/v1/sessions?page_size=2&page_token={token}").good().json
        pages += 1
        assert len(page["sessions"]) <= 2
        seen += [item["id"] for item in page["sessions"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert [one for one in seen if one in made] == made  # oldest first, each once
    assert len(seen) == len(set(seen)) and pages >= 3
    line = next(item for item in talk("GET", "/v1/sessions?page_size=1000").json["sessions"] if item["id"] == made[0])
    assert line == {**line, "step": 0, "optimizer": "adam", "parameters": 1, "dtype": "float64", "labels": {}}


@pytest.mark.parametrize(
    "query",
    ["page_size=0", "page_size=1001", "page_size=x", "page_size=1e3", "page_token=nonsense", "page_token=" + "x" * 300],
)
def test_a_page_that_is_none_is_refused(talk, query):
    told = talk("GET", f"/v1/sessions?{query}").problem(422, "invalid_request")
    assert told["path"] == query.split("=")[0] and "wanted" in told["detail"] and "Input" not in told["detail"]


@pytest.mark.parametrize(
    ("wrong", "path", "said"),
    [
        ({"name": "A b"}, "name", "name is 'A b'; wanted 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'"),
        ({"name": 3}, "name", "name is 3; wanted 1 to 128 of"),
        ({"optimizer": "adam"}, "optimizer", 'optimizer is \'adam\'; wanted an object such as {"name": "adam"'),
        ({"optimizer": None}, "optimizer", "optimizer is null; wanted an object"),
        ({"optimizer": {"name": "adma"}}, "name", "optimizer is 'adma'; did you mean adam? wanted one of adam, adamw"),
        ({"dtype": "float16"}, "dtype", "dtype is 'float16'; wanted float32 or float64"),
        ({"durability": "always"}, "durability", "durability is 'always'; wanted committed or memory"),
        ({"durability": True}, "durability", "durability is true; wanted"),
        ({"labels": []}, "labels", "labels is a list of 0; wanted an object of at most 64 texts"),
        ({"labels": {str(i): "" for i in range(65)}}, "labels", "labels is an object of 65; wanted an object of at"),
        ({"labels": {"a": 1}}, "labels.a", "labels.a is 1; wanted a text"),
        ({"vector": "yes"}, "vector", "vector is 'yes'; wanted true or false"),
        ({"state": 3}, "state", "state is 3; wanted the counts"),
        ({"state": {"step": 1}}, "state.counts", "state.counts is missing; wanted the counts"),
        ({"layout": {}}, "layout", "layout is an object of 0; wanted a list such as"),
        ({"layout": [3]}, "layout.0", "layout.0 is 3; wanted an object such as"),
        ({"lr": 0.1}, "lr", "lr: unknown; did you mean optimizer.lr?"),
    ],
)
def test_what_is_wrong_in_a_creation_is_told_with_what_came_and_what_is_wanted(talk, wrong, path, said):
    told = talk("POST", "/v1/sessions", {"parameters": [1.0], **wrong})
    told = told.problem(422, "invalid_settings" if path == "name" and "optimizer" in wrong else "invalid_request")
    assert told["path"] == path and said in told["detail"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([3], "the body is a list of 1; wanted a JSON object"),
        ({"optimizer": 3}, "optimizer is 3; wanted an object"),
        ({"labels": {"a": None}}, "labels.a is null; wanted a text"),
    ],
)
def test_what_is_wrong_in_a_change_is_told_so_too(talk, wrong, said):
    one = talk.create([1.0])["id"]
    assert said in talk("PATCH", f"/v1/sessions/{one}", wrong).problem(422, "invalid_request")["detail"]


def test_the_list_is_the_oldest_first_with_memory_sessions_in_it(talk):
    kinds = ["committed", "memory", "memory", "committed", "memory", "committed", "memory", "memory", "committed"]
    every = [talk.create([0.0], durability=kind)["id"] for kind in kinds]
    made = [one for one in every if one.startswith("m_")]
    talk("GET", f"/v1/sessions/{made[0]}").good()  # being used does not change the order
    for size in (1, 2, 5, 1000):
        seen, token = [], ""
        while token is not None:
            page = talk("GET", f"/v1/sessions?page_size={size}&page_token={token}").good().json
            assert len(page["sessions"]) <= size
            seen += [item["id"] for item in page["sessions"]]
            token = page["next_page_token"]
        assert len(seen) == len(set(seen))
        assert [one for one in seen if one in every] == every
    for one in made:
        talk("DELETE", f"/v1/sessions/{one}").good(204)


def test_a_taken_name_is_refused_with_its_owner(talk):
    called = name()
    made = talk.create([1.0], name=called)
    talk("PUT", f"/v1/sessions/{called}/steps/1", {"gradient": [1]}).good()
    told = talk("POST", "/v1/sessions", {"name": called, "parameters": [1]}).problem(409, "session_exists")
    assert (told["id"], told["step"]) == (made["id"], 1)
    told = talk("POST", "/v1/sessions", {"name": called, "parameters": [1], "durability": "memory"}).problem(
        409, "session_exists"
    )
    assert told["id"] == made["id"]


@pytest.mark.parametrize("called", [None, 7, ["a"], {"a": 1}, True], ids=repr)
def test_a_name_that_is_none_is_refused(talk, called):
    if called is None:
        talk("POST", "/v1/sessions", {"name": None, "parameters": [1]}).good(201)  # null is absent
        return
    talk("POST", "/v1/sessions", {"name": called, "parameters": [1]}).problem(422, "invalid_request")


def test_a_repeated_creation_answers_the_same_session(talk):
    key = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    first = talk("POST", "/v1/sessions", {"parameters": [1, 2]}, key).good(201)
    assert "Adamd-Replayed" not in first.headers
    again = talk("POST", "/v1/sessions", {"parameters": [1, 2]}, key).good(201)
    assert again.json["id"] == first.json["id"]
    assert again.headers["Adamd-Replayed"] == "true"
    talk("POST", "/v1/sessions", {"parameters": [1, 3]}, key).problem(422, "idempotency_mismatch")


def test_a_repeated_creation_in_memory_answers_the_same_session(talk):
    key = {"Idempotency-Key": str(uuid.uuid4())}
    document = {"parameters": [1, 2], "durability": "memory"}
    first = talk("POST", "/v1/sessions", document, key).good(201)
    again = talk("POST", "/v1/sessions", document, key).good(201)
    assert again.json["id"] == first.json["id"] and again.headers["Adamd-Replayed"] == "true"
    talk("POST", "/v1/sessions", {**document, "parameters": [2]}, key).problem(422, "idempotency_mismatch")


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "tab\tin", "\xe9"], ids=repr)
def test_an_idempotency_key_that_is_none_is_refused(talk, key):
    talk("POST", "/v1/sessions", {"parameters": [1]}, {"Idempotency-Key": key}).problem(422, "invalid_request")


def test_a_change_of_settings_counts_from_the_next_step(talk):
    made = talk.create([1.0, 1.0], optimizer={"name": "adam", "lr": 0.1})
    path = f"/v1/sessions/{made['id']}"
    first = talk("PUT", f"{path}/steps/1", {"gradient": [1, 1]}).good()
    changed = talk("PATCH", path, {"optimizer": {"lr": 0.0}, "labels": {"a": "b"}}).good()
    assert changed.json["optimizer"]["lr"] == 0.0 and changed.json["labels"] == {"a": "b"}
    assert changed.json["settings_revision"] == made["settings_revision"] + 1
    assert changed.chain == first.chain  # the history has not moved
    second = talk("PUT", f"{path}/steps/2", {"gradient": [1, 1]}).good()
    assert second.json["parameters"] == first.json["parameters"]  # lr is 0
    assert talk("PATCH", path, {"labels": {}}).good().json["labels"] == {}
    assert talk("GET", path).json["optimizer"]["lr"] == 0.0


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ({"optimizer": {"lr": -1}}, "invalid_settings"),
        ({"optimizer": {"name": "adamw"}}, "invalid_settings"),
        ({"optimizer": {"amsgrad": True}}, "invalid_settings"),
        ({"optimizer": {"groups": [{"tensors": ["nobody"], "lr": 1}]}}, "invalid_settings"),
        ({"optimizer": 1}, "invalid_request"),
        ({"labels": {"a": 1}}, "invalid_request"),
        ({"labels": {"a": "x" * 1025}}, "invalid_request"),
        ({"labels": {"x" * 129: "a"}}, "invalid_request"),
        ({"labels": {str(i): "" for i in range(65)}}, "invalid_request"),
        ({"labels": {"": "a"}}, "invalid_request"),
        ({"step": 7}, "invalid_request"),
        ([], "invalid_request"),
    ],
)
def test_a_change_that_is_none_changes_nothing(talk, patch, code):
    made = talk.create([1.0])
    talk("PATCH", f"/v1/sessions/{made['id']}", patch).problem(422, code)
    assert talk("GET", f"/v1/sessions/{made['id']}").json == made


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_a_deleted_session_is_gone_and_its_name_is_free(talk, durability):
    called = name()
    made = talk.create([1.0], name=called, durability=durability)
    reply = talk("DELETE", f"/v1/sessions/{called}").good(204)
    assert reply.body == b""
    for method, path, body in [
        ("GET", "", None),
        ("PATCH", "", {"labels": {}}),
        ("DELETE", "", None),
        ("GET", "/parameters", None),
        ("PUT", "/parameters", [1]),
        ("GET", "/state", None),
        ("PUT", "/steps/1", {"gradient": [1]}),
    ]:
        talk(method, f"/v1/sessions/{made['id']}{path}", body).problem(410, "session_deleted")
    assert made["id"] not in [item["id"] for item in talk("GET", "/v1/sessions?page_size=1000").json["sessions"]]
    assert talk.create([2.0], name=called, durability=durability)["id"] != made["id"]
    assert talk("GET", f"/v1/sessions/{called}/parameters").good().json["parameters"] == [2.0]


@pytest.mark.parametrize(
    "ref",
    [
        "nobody",
        "s_0123456789abcdef0123",
        "m_nobody_1",
        "S_UP",
        "x" * 300,
        "%2e%2e",
        "a%00b",
        "%F0%9F%92%A9",
        "m_",
        "s_",
    ],
)
def test_an_unknown_session_is_404_everywhere(talk, ref):
    for method, path, body in [
        ("GET", "", None),
        ("PATCH", "", {"labels": {}}),
        ("DELETE", "", None),
        ("GET", "/parameters", None),
        ("PUT", "/parameters", [1]),
        ("GET", "/state", None),
        ("PUT", "/steps/1", {"gradient": [1]}),
    ]:
        talk(method, f"/v1/sessions/{ref}{path}", body).problem(404, "unknown_session")


def test_a_memory_session_says_so_in_every_answer(talk):
    made = talk.create([1.0, 2.0], durability="memory", name=name())
    path = f"/v1/sessions/{made['name']}"
    assert made["id"].startswith("m_")
    assert made["id"] in [item["id"] for item in talk("GET", "/v1/sessions?page_size=1000").json["sessions"]]
    for method, suffix, body in [
        ("GET", "", None),
        ("PATCH", "", {"labels": {}}),
        ("GET", "/parameters", None),
        ("PUT", "/parameters", [3, 4]),
        ("PUT", "/steps/1", {"gradient": [1, 1]}),
        ("PUT", "/steps/1", {"gradient": [1, 1]}),
        ("GET", "/state", None),
    ]:
        assert talk(method, path + suffix, body).good().headers["Adamd-Durability"] == "memory"
    talk("GET", "/v1/sessions/m_0_0").problem(404, "unknown_session")


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_an_export_restores_the_same_bits(talk, amsgrad, durability):
    rng = np.random.default_rng(7)
    start = {"w": rng.normal(size=(3, 2)).tolist(), "b": rng.normal(size=4).tolist()}
    settings = {"name": "adam", "lr": 0.05, "amsgrad": amsgrad, "groups": [{"tensors": ["b"], "lr": 0.5}]}
    made = talk.create(start, dtype="float32", optimizer=settings, durability=durability, labels={"k": "v"})
    path = f"/v1/sessions/{made['id']}"
    for n in range(1, 6):
        gradient = {"w": rng.normal(size=(3, 2)).tolist()} | ({"b": rng.normal(size=4).tolist()} if n % 2 else {})
        talk("PUT", f"{path}/steps/{n}", {"gradient": gradient}).good()
    export = talk("GET", f"{path}/state").good()
    assert export.headers["Content-Type"] == "application/vnd.safetensors"
    assert export.step == 5
    arrays, told = unpacked(export.body)
    assert told["state"] == {"step": 5, "counts": {"w": 5, "b": 3}}
    moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    assert set(arrays) == {f"{kind}:{tensor}" for kind in ["param", *moments] for tensor in "wb"}
    assert set(load(export.body)) == set(arrays)  # the library reads it too
    restored = talk("POST", "/v1/sessions", export.body, SAFETENSORS).good(201)
    twin = restored.json
    assert twin["id"] != made["id"] and restored.step == 5
    assert (twin["optimizer"], twin["layout"], twin["labels"]) == (made["optimizer"], made["layout"], {"k": "v"})
    twin_path = f"/v1/sessions/{twin['id']}"
    again, _ = unpacked(talk("GET", f"{twin_path}/state").good().body)
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in arrays.items()}
    gradient = np.float32(rng.normal(size=10))
    one, two = talk.put(made["id"], 6, gradient).good(), talk.put(twin["id"], 6, gradient).good()
    assert one.body == two.body
    assert one.chain != two.chain  # another incarnation is another history


def test_a_restored_history_is_another_one(talk):
    made = talk.create([1.0])
    path = f"/v1/sessions/{made['id']}"
    first = talk("PUT", f"{path}/steps/1", {"gradient": [1]}).good()
    twin = talk("POST", "/v1/sessions", talk("GET", f"{path}/state").body, SAFETENSORS).good(201).json
    told = talk("PUT", f"/v1/sessions/{twin['id']}/steps/2", {"gradient": [1]}, {"If-Match": first.chain})
    assert told.problem(412, "history_lost")["step"] == 1


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_if_match_guards_a_change_and_an_end(talk, durability):
    made = talk.create([1.0, 1.0], durability=durability, labels={"a": "b"})
    path, zero = f"/v1/sessions/{made['id']}", f'"{made["chain"]}"'
    talk("PATCH", path, {"labels": {"a": "c"}}, {"If-Match": zero}).good()
    one = talk("PUT", f"{path}/steps/1", {"gradient": [1, 1]}).good()
    told = talk("PATCH", path, {"labels": {}}, {"If-Match": zero}).problem(412, "moved")
    assert told["step"] == 1
    assert talk("DELETE", path, None, {"If-Match": zero}).problem(412, "moved")["step"] == 1
    for method, body in (("PATCH", {"labels": {}}), ("DELETE", None)):
        talk(method, path, body, {"If-Match": "junk"}).problem(422, "invalid_request")
    assert talk("GET", path).good().json["labels"] == {"a": "c"}
    talk("PATCH", path, {"labels": {}}, {"If-Match": "*"}).good()
    talk("DELETE", path, None, {"If-Match": one.chain}).good(204)
    talk("DELETE", path, None, {"If-Match": one.chain}).problem(410, "session_deleted")


def test_the_page_of_calls_is_in_no_foreign_frame(talk):
    told = talk("GET", "/docs").good().headers
    assert "frame-ancestors 'none'" in told["Content-Security-Policy"] and told["X-Frame-Options"] == "DENY"
    talk("GET", "/redoc").problem(404, "no_route")


def test_info_and_operations(talk):
    info = talk("GET", "/v1/info").good().json
    assert info["dtypes"] == ["float32", "float64"]
    assert info["limits"]["body_bytes"] > 0 and info["limits"]["json_bytes"] > 0
    assert "appendfsync" in info["store"]
    assert talk("GET", "/livez").good().json == {"status": "alive"}
    assert talk("GET", "/readyz").good().json == {"status": "ready"}
    metrics = talk("GET", "/metrics").good().body
    assert b"adamd_request_seconds" in metrics
    assert b'route="/v1/sessions/{session}/steps/{number}"' in metrics or b'route="/v1/info"' in metrics
    assert talk("GET", "/docs").good().headers["Content-Type"].startswith("text/html")
    assert talk("GET", "/openapi.json").good().json["info"]["title"] == "adamd"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_parameters_to_evaluate(talk, dtype):
    """Schedule-free AdamW's x, by y + (1 - 1/b1) (z - y) of the exported arrays; exact, and rounded as others are."""
    optimizer = {"name": "schedule_free_adamw", "lr": 0.1, "betas": [0.8, 0.99]}
    start = np.linspace(-1, 1, 50).astype(dtype)
    session = talk.create(start.tolist(), dtype=dtype, optimizer=optimizer)["id"]
    path = f"/v1/sessions/{session}/parameters"
    assert talk("GET", path + "?at=average", headers=OCTET).good().body == start.tobytes()
    for number in range(1, 4):
        talk.put(session, number, np.full(50, number, dtype)).good()
    before = talk.standing(session)
    state = load(talk("GET", f"/v1/sessions/{session}/state").good().body)
    y, z = state["param:parameters"], state["z:parameters"]
    x = y + np.dtype(dtype).type(1 - 1 / 0.8) * (z - y)
    reply = talk("GET", path + "?at=average", headers=OCTET).good()
    assert reply.body == x.tobytes() != y.tobytes()
    assert (reply.step, reply.headers["Adamd-Dtype"]) == (3, dtype)
    assert talk("GET", path + "?at=average").good().json == {"step": 3, "parameters": x.astype(float).tolist()}
    narrow = talk("GET", path + "?at=average", headers={**OCTET, "Adamd-Answer-Dtype": "float16"}).good()
    assert narrow.body == x.astype(np.float16).tobytes()
    assert talk.standing(session) == before
    assert (
        talk("GET", path + "?at=worst").problem(422, "invalid_request")["detail"].startswith("at is 'worst'; known are")
    )


def test_an_optimizer_without_an_average_says_so(talk):
    session = talk.create([1.0, 2.0])["id"]
    problem = talk("GET", f"/v1/sessions/{session}/parameters?at=average").problem(422, "invalid_request")
    assert "adam has none: its parameters are those to evaluate" in problem["detail"]
    session = talk.create([1.0], optimizer={"name": "schedule_free_adamw", "betas": [0, 0.9]})["id"]
    talk("GET", f"/v1/sessions/{session}/parameters?at=average").problem(422, "invalid_request")


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_a_state_at_step_0_is_restored_whole(talk, durability):
    """Whoever makes a state may begin with moments of their own: they are no zeros, though no step was made."""
    arrays = {"param:w": [1.0, 2.0], "exp_avg:w": [5.0, -5.0], "exp_avg_sq:w": [1.0, 4.0], "best:w": [7.0, 8.0]}
    told = {
        "dtype": "float64",
        "durability": durability,
        "optimizer": {"name": "adam", "keep_best": True},
        "state": {"step": 0, "counts": {"w": 0}},
    }
    body = save({name: np.array(values) for name, values in arrays.items()}, {"adamd": json.dumps(told)})
    made = talk("POST", "/v1/sessions", body, SAFETENSORS)
    assert made.status == 201, made.json
    state = load(talk("GET", f"/v1/sessions/{made.json['id']}/state").body)
    assert {name: array.tolist() for name, array in state.items()} == arrays


@pytest.mark.parametrize("size", [10**15, 10**6])
def test_bounds_without_parameters_take_no_memory(talk, size):
    """A layout may name any size: bounds for it are refused before there is a number for each element."""
    body = {
        "layout": [{"name": "w", "shape": [size]}],
        "dtype": "float32",
        "optimizer": {"name": "adam", "lower": {"w": 0.0}},
    }
    refused = talk("POST", "/v1/sessions", json.dumps(body).encode(), JSON)
    assert (refused.status, refused.json["code"]) == (422, "invalid_settings")
    assert refused.json["path"] == "lower"


def _restored(talk, body, change):
    """The export again as a session, its document changed; returns the new session's."""
    arrays, document = unpacked(body)
    change(document)
    del document["name"]
    kinds = {name: ("F64", array.shape, array.tobytes()) for name, array in arrays.items()}
    return talk("POST", "/v1/sessions", packed(kinds, document), SAFETENSORS).good(201).json


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_a_restored_session_takes_no_other_parameters_for_the_best(talk, durability):
    """The lowest loss came along, but not the parameters that had it."""
    made = talk.create([1.0, 2.0], optimizer={"lr": 0.1, "stop": {"target_loss": 0.0}}, durability=durability)
    for number, loss in enumerate([0.125, 4.0], 1):
        talk(
            "PUT",
            f"/v1/sessions/{made['id']}/steps/{number}",
            {"gradient": [1.0, 1.0], "metrics": {"loss": loss}},
        ).good()
    body = talk("GET", f"/v1/sessions/{made['id']}/state").good().body
    again = _restored(talk, body, lambda document: document["optimizer"].update(keep_best=True))
    path = f"/v1/sessions/{again['id']}"
    assert again["progress"]["loss"] == 4.0 and "lowest" not in again["progress"]
    talk("GET", f"{path}/parameters?at=best").problem(409, "parameters_missing")
    before = talk("GET", f"{path}/parameters").good().json
    talk("PUT", f"{path}/steps/3", {"gradient": [1.0, 1.0], "metrics": {"loss": 2.0}}).good()
    best = talk("GET", f"{path}/parameters?at=best").good().json
    assert best["parameters"] == before["parameters"]


@pytest.mark.parametrize("durability", ["committed", "memory"])
def test_a_session_without_steps_remembers_none(talk, durability):
    made = talk.create([1.0, 2.0], optimizer={"keep_best": True}, durability=durability)
    body = talk("GET", f"/v1/sessions/{made['id']}/state").good().body
    progress = {"loss": 0.1, "lowest": 0.1, "lowest_step": 0, "norm": 1.0, "first_norm": 1.0}
    again = _restored(talk, body, lambda document: document["state"].update(progress=progress))
    assert again["progress"] == {}
    path = f"/v1/sessions/{again['id']}/parameters"
    talk("PUT", path, [3.0, 4.0], JSON).good()
    talk("GET", f"{path}?at=best").problem(409, "parameters_missing")


TWELVE = {f"p{n}": float(n) for n in range(1, 13)}


def test_an_order_that_is_not_the_callers_is_told(talk):
    """p1, p2, p10 are sorted as p1, p10, p2: twelve scalars would go to the wrong places, and every length fits."""
    made = talk("POST", "/v1/sessions", {"parameters": TWELVE}).good(201)
    assert [tensor["name"] for tensor in made.json["layout"]] == sorted(TWELVE)
    (told,) = made.json["warnings"]
    assert told["code"] == "sorted_by_name" and told["eps"] is None
    assert "p1, p10, p11" in told["detail"] and "p1, p2, p3" in told["detail"] and "layout" in told["detail"]
    path = f"/v1/sessions/{made.json['id']}"
    octets = talk("GET", f"{path}/parameters", headers={"Accept": "application/octet-stream"}).good()
    assert list(octets.array("<f8")) == [TWELVE[name] for name in sorted(TWELVE)]
    assert talk("GET", path).good().json["warnings"] == []  # it is the creation's to say
    key = {"Idempotency-Key": name()}
    for _ in range(2):  # and the repeated creation's
        again = talk("POST", "/v1/sessions", {"parameters": TWELVE}, key).good(201)
        assert [one["code"] for one in again.json["warnings"]] == ["sorted_by_name"]


def test_a_layout_beside_the_parameters_keeps_an_order(talk):
    order = layout(**dict.fromkeys(TWELVE, ()))
    made = talk("POST", "/v1/sessions", {"parameters": dict(reversed(TWELVE.items())), "layout": order}).good(201)
    assert made.json["layout"] == order
    path = f"/v1/sessions/{made.json['id']}"
    octets = talk("GET", f"{path}/parameters", headers={"Accept": "application/octet-stream"}).good()
    assert list(octets.array("<f8")) == list(TWELVE.values())
    text = talk("GET", f"{path}/parameters").good().json["parameters"]
    assert list(text.items()) == list(TWELVE.items())
    assert made.json["warnings"] == []  # it has the order that the caller wanted
    for document in ({"parameters": TWELVE, "layout": order}, {"parameters": {"a": 1, "b": 2}}, {"parameters": [2, 1]}):
        quiet = talk("POST", "/v1/sessions", document).good(201)
        assert quiet.json["warnings"] == []
    gradient = {f"p{n}": float(n - 6) for n in range(1, 13)}
    stepped = talk("PUT", f"{path}/steps/1", {"gradient": gradient}).good().json["parameters"]
    twin = talk("POST", "/v1/sessions", {"parameters": TWELVE}).good(201).json["id"]
    assert talk("PUT", f"/v1/sessions/{twin}/steps/1", {"gradient": gradient}).good().json["parameters"] == stepped


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ({"parameters": [1, 2], "layout": layout(a=[2])}, "invalid_request", "one array has no order"),
        (
            {"parameters": {"a": 1}, "layout": layout(b=[])},
            "wrong_layout",
            "tensor 'a' is absent in layout and of shape [] in",
        ),
        (
            {"parameters": {"a": 1}, "layout": layout(a=[], b=[])},
            "wrong_layout",
            "'b' is of shape [] in layout and absent",
        ),
        (
            {"parameters": {"a": [1]}, "layout": layout(a=[2])},
            "wrong_layout",
            "is of shape [2] in layout and of shape [1]",
        ),
        ({"parameters": {"a": 1}, "layout": []}, "wrong_layout", "tensor 'a' is absent in layout"),
        ({"parameters": {"a": 1}, "layout": layout(a=[]) * 2}, "wrong_layout", "twice"),
        ({"parameters": {"a": 1}, "layout": layout(a=[]), "vector": True}, "invalid_request", "vector"),
    ],
)
def test_a_layout_that_is_not_the_parameters_is_refused(talk, wrong, code, said):
    assert said in talk("POST", "/v1/sessions", wrong).problem(422, code)["detail"]


def test_safetensors_in_another_order_are_told_too(talk):
    tensors = {name: ("F64", [], np.float64(value).tobytes()) for name, value in TWELVE.items()}
    told = talk("POST", "/v1/sessions", packed(tensors), SAFETENSORS).good(201)
    assert [one["code"] for one in told.json["warnings"]] == ["sorted_by_name"]
    assert [tensor["name"] for tensor in told.json["layout"]] == sorted(TWELVE)
    order = {"layout": layout(**dict.fromkeys(TWELVE, ()))}
    kept = talk("POST", "/v1/sessions", packed(tensors, order), SAFETENSORS).good(201).json
    assert kept["layout"] == order["layout"] and kept["warnings"] == []
    sorted_ = talk("POST", "/v1/sessions", packed(dict(sorted(tensors.items()))), SAFETENSORS).good(201)
    assert sorted_.json["warnings"] == []
    state = talk("GET", f"/v1/sessions/{kept['id']}/state").good().body
    restored = talk("POST", "/v1/sessions", state, SAFETENSORS).good(201).json
    assert restored["layout"] == order["layout"] and restored["warnings"] == []
