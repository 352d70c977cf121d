"""Bad input gets a problem document with a stable code and a 4xx, and nothing has changed.

Every case is sent to one session, whose step, chain, settings and parameters are compared afterwards, to the last bit.
"""

import json
import struct

import numpy as np
import pytest
from talking import JSON, OCTETS, SAFETENSORS, Talk, layout, packed, safetensors, unpacked, watched

SIZE = 8
MEMORY = 300 << 20  # what the server may grow by, over all of this file (150 MiB seen)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A server for hostile bodies alone; at the end it has never answered 5xx, and its memory is bounded."""
    with watched(tmp_path_factory.mktemp("attacked")) as one:
        talk = Talk(one)
        talk.create([1.0])
        talk.close()
        before = one.resident()
        yield one
        assert one.resident() - before < MEMORY, (before, one.resident())


@pytest.fixture(scope="module")
def talk(attacked):
    one = Talk(attacked)
    yield one
    one.close()


@pytest.fixture(scope="module")
def session(talk):
    """A float32 session at step 1 with two tensors: a of [2, 3], b of [2]."""
    made = talk.create({"a": [[1, 2, 3], [4, 5, 6]], "b": [7, 8]}, dtype="float32")["id"]
    talk.put(made, 1, np.ones(SIZE, np.float32)).good()
    return made


@pytest.fixture(scope="module")
def wide(talk):
    """A float64 session of one plain array, at step 1."""
    made = talk.vector(SIZE, "float64")
    talk.put(made, 1, np.ones(SIZE)).good()
    return made


@pytest.fixture(scope="module")
def empty(talk):
    """A session that waits for its parameters."""
    return talk("POST", "/v1/sessions", {"layout": layout(a=[2, 3], b=[2]), "dtype": "float32"}).good(201).json["id"]


@pytest.fixture
def unchanged(talk, session):
    before = talk.standing(session)
    yield session
    assert talk.standing(session) == before


def with_one(value, index, dtype="<f4", size=SIZE):
    array = np.ones(size, dtype)
    array[index] = value
    return array


def bfloat(array):
    return (np.asarray(array, "<f4").view("<u4") >> 16).astype("<u2")


# -- lengths


@pytest.mark.parametrize("length", [0, 1, 3, 28, 31, 33, 36, 64, 100_000])
def test_octets_of_a_wrong_length(talk, unchanged, length):
    told = talk.put(unchanged, 2, b"\x00" * length).problem(422, "wrong_length")
    assert told["step"] == 1 and f"{length} bytes" in told["detail"]


@pytest.mark.parametrize("length", [0, 1, 28, 36])
def test_chunked_octets_of_a_wrong_length(talk, unchanged, length):
    body = b"" if not length else b"%x\r\n%s\r\n" % (length, b"\x00" * length)
    head = f"PUT /v1/sessions/{unchanged}/steps/2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert talk.raw(head.encode() + body + b"0\r\n\r\n", finish=False).problem(422, "wrong_length")["step"] == 1


@pytest.mark.parametrize("length", [0, 31, 33])
def test_parameters_of_a_wrong_length(talk, empty, length):
    talk("PUT", f"/v1/sessions/{empty}/parameters", b"\x00" * length, OCTETS).problem(422, "wrong_length")
    assert talk("GET", f"/v1/sessions/{empty}").json["parameters_missing"] is True


# -- numbers that are none, in every encoding

BAD = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "square": 1e20,  # its square overflows float32
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("index", [0, 5, 7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bad_numbers_in_octets(talk, unchanged, dtype, index, value):
    if dtype == "float16" and value == 1e20:
        value = np.inf  # float16 has no such number
    array = with_one(value, index) if dtype != "float16" else with_one(value, index, "<f2")
    body = bfloat(array) if dtype == "bfloat16" else array
    told = talk.put(unchanged, 2, body, {"Adamd-Dtype": dtype}).problem(422, "bad_gradient")
    assert told["index"] == index and told["step"] == 1


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_bad_numbers_in_safetensors(talk, unchanged, dtype, value):
    if dtype == "F16" and value == 1e20:
        value = np.inf
    array = with_one(value, 1, size=2)
    raw = (bfloat(array) if dtype == "BF16" else array.astype({"F32": "<f4", "F16": "<f2"}[dtype])).tobytes()
    good = np.ones(6, {"F16": "<f2", "F32": "<f4"}.get(dtype, "<u2")).tobytes()
    told = talk(
        "PUT",
        f"/v1/sessions/{unchanged}/steps/2",
        packed({"a": (dtype, [2, 3], good), "b": (dtype, [2], raw)}),
        SAFETENSORS,
    ).problem(422, "bad_gradient")
    assert told["index"] == 7 and told["step"] == 1


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e39", "1e20", "-1e20", "9" * 400, "-" + "9" * 400])
def test_bad_numbers_in_json(talk, unchanged, number):
    body = f'{{"gradient": {{"a": [[1, 2, 3], [4, 5, 6]], "b": [1, {number}]}}}}'.encode()
    told = talk("PUT", f"/v1/sessions/{unchanged}/steps/2", body, JSON).problem(422, "bad_gradient")
    assert told["index"] == 7 and told["step"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200, -1e155], ids=str)
def test_bad_numbers_in_float64(talk, wide, value):
    before = talk.standing(wide)
    assert talk.put(wide, 2, with_one(value, 3, "<f8")).problem(422, "bad_gradient")["index"] == 3
    if np.isfinite(value):
        body = {"gradient": with_one(value, 3, "<f8").tolist()}
        assert talk("PUT", f"/v1/sessions/{wide}/steps/2", body).problem(422, "bad_gradient")["index"] == 3
    raw = with_one(value, 3, "<f8").tobytes()
    reply = talk("PUT", f"/v1/sessions/{wide}/steps/2", packed({"parameters": ("F64", [SIZE], raw)}), SAFETENSORS)
    assert reply.problem(422, "bad_gradient")["index"] == 3
    assert talk.standing(wide) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_parameters_that_are_not_finite(talk, empty, value):
    path = f"/v1/sessions/{empty}/parameters"
    talk("PUT", path, with_one(value, 2).tobytes(), OCTETS).problem(422, "invalid_state")
    b = with_one(value, 1, size=2).tobytes()
    body = packed({"a": ("F32", [2, 3], bytes(24)), "b": ("F32", [2], b)})
    talk("PUT", path, body, SAFETENSORS).problem(422, "invalid_state")
    talk("POST", "/v1/sessions", body, SAFETENSORS).problem(422, "invalid_state")
    if not np.isnan(value):
        number = "1e39" if value > 0 else "-1e39"
        told = talk("PUT", path, f'{{"a": [[1, 2, 3], [4, 5, 6]], "b": [1, {number}]}}'.encode(), JSON)
        assert told.problem(422, "invalid_request")["index"] == 1
    assert talk("GET", f"/v1/sessions/{empty}").json["parameters_missing"] is True


# -- JSON that is none, or not what is wanted

NO_JSON = {
    "nothing": b"",
    "truncated": b'{"gradient": [1, 2',
    "a thousand deep": b'{"gradient": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "a million deep": b"[" * 900_000,
    "NaN": b'{"gradient": [NaN]}',
    "Infinity": b'{"gradient": [-Infinity]}',
    "a BOM": b'\xef\xbb\xbf{"gradient": [1]}',
    "utf-16": '{"gradient": [1]}'.encode("utf-16"),
    "invalid utf-8": b'{"gradient": {"\xff": [1]}}',
    "an overlong utf-8": b'{"gradient": {"\xc0\xaf": [1]}}',
    "half a surrogate": b'{"gradient": {"\\ud800": [1]}}',
    "a comment": b'{"gradient": [1] /* one */}',
    "single quotes": b"{'gradient': [1]}",
    "a trailing comma": b'{"gradient": [1,]}',
    "two documents": b'{"gradient": [1]} {"gradient": [1]}',
    "a leading zero": b'{"gradient": [01]}',
    "hexadecimal": b'{"gradient": [0x1]}',
    "arabic digits": '{"gradient": [٣]}'.encode(),
    "a control character": b'{"gradient": {"a\x01": [1]}}',
    "a member twice": b'{"gradient": {"a": [[1, 2, 3], [4, 5, 6]], "a": [[1, 2, 3], [4, 5, 6]]}}',
    "gradient twice": b'{"gradient": {"b": [1, 2]}, "gradient": {"b": [2, 1]}}',
    "a member twice, spelt in two ways": b'{"gradient": {"b": [1, 2], "\\u0062": [2, 1]}}',
    "a number of 5000 digits": b'{"gradient": [' + b"9" * 5000 + b"]}",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json(talk, unchanged, empty, body):
    talk("PUT", f"/v1/sessions/{unchanged}/steps/2", body, JSON).problem(400, "malformed_body")
    talk("PUT", f"/v1/sessions/{empty}/parameters", body, JSON).problem(400, "malformed_body")
    talk("PATCH", f"/v1/sessions/{unchanged}", body, JSON).problem(400, "malformed_body")
    talk("POST", "/v1/sessions", body, JSON).problem(400, "malformed_body")


WRONG_GRADIENTS = {
    "an array": ("[1]", "invalid_request"),
    "a number": ("1", "invalid_request"),
    "no gradient": ("{}", "invalid_request"),
    "another member": ('{"gradient": {"b": [1, 2]}, "lr": 1}', "invalid_request"),
    "null": ('{"gradient": null}', "wrong_layout"),
    "not by names": ('{"gradient": [1, 2]}', "wrong_layout"),
    "an unknown tensor": ('{"gradient": {"c": [1, 2]}}', "wrong_layout"),
    "another shape": ('{"gradient": {"b": [1, 2, 3]}}', "wrong_layout"),
    "transposed": ('{"gradient": {"a": [[1, 2], [3, 4], [5, 6]]}}', "wrong_layout"),
    "flat": ('{"gradient": {"a": [1, 2, 3, 4, 5, 6]}}', "wrong_layout"),
    "a scalar": ('{"gradient": {"b": 1}}', "wrong_layout"),
    "ragged": ('{"gradient": {"a": [[1, 2, 3], [4, 5]]}}', "wrong_layout"),
    "ragged in depth": ('{"gradient": {"a": [[1, 2, 3], [4, 5, [6]]]}}', "invalid_request"),
    "a hole": ('{"gradient": {"a": [[1, 2, 3], null]}}', "wrong_layout"),
    "33 deep": ('{"gradient": {"b": ' + "[" * 33 + "]" * 33 + "}}", "wrong_layout"),
    "a string": ('{"gradient": {"b": ["1", 2]}}', "invalid_request"),
    "a truth": ('{"gradient": {"b": [true, 2]}}', "invalid_request"),
    "a null": ('{"gradient": {"b": [null, 2]}}', "invalid_request"),
    "an object": ('{"gradient": {"b": [{}, 2]}}', "invalid_request"),
    "a name of a million": ('{"gradient": {"' + "x" * 1_000_000 + '": [1]}}', "wrong_layout"),
    "a bad value under a name of a million": ('{"gradient": {"' + "x" * 1_000_000 + '": ["1"]}}', "invalid_request"),
    "settings of another type": ('{"gradient": {"b": [1, 2]}, "settings": [1]}', "invalid_request"),
    "metrics of another type": ('{"gradient": {"b": [1, 2]}, "metrics": 1}', "invalid_request"),
}


@pytest.mark.parametrize(("body", "code"), WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_json_that_is_no_gradient_of_this_session(talk, unchanged, body, code):
    assert talk("PUT", f"/v1/sessions/{unchanged}/steps/2", body.encode(), JSON).problem(422, code)["step"] == 1


PLACES = {
    "a string": ('{"gradient": {"b": [1, "2"]}}', "gradient.b[1]", "wanted a number, got a string"),
    "in depth": ('{"gradient": {"a": [[1, 2, 3], [4, 5, []]]}}', "gradient.a[1][2]", "wanted a number, got a list"),
    "a misspelt member": ('{"gradient": {"b": [1, 2]}, "setings": {}}', "setings", "did you mean settings?"),
    "a foreign member": ('{"gradient": {"b": [1, 2]}, "step": 2}', "step", "known are gradient, metrics, settings"),
    "a member of a million": ('{"gradient": {"b": [1, 2]}, "' + "x" * 1_000_000 + '": 2}', "x" * 64, "unknown"),
    "no gradient": ('{"metrics": {"loss": 1}}', "gradient", "missing"),
}


@pytest.mark.parametrize(("body", "path", "said"), PLACES.values(), ids=PLACES)
def test_a_refused_gradient_names_the_place(talk, unchanged, body, path, said):
    told = talk("PUT", f"/v1/sessions/{unchanged}/steps/2", body.encode(), JSON).problem(422, "invalid_request")
    assert told["path"] == path
    assert told["detail"].startswith(f"{path}: ")
    assert said in told["detail"]


WRONG_CREATIONS = {
    "an array": ([], "invalid_request"),
    "nothing": ({}, "invalid_request"),
    "null parameters": ({"parameters": None}, "invalid_request"),
    "a string": ({"parameters": "x"}, "invalid_request"),
    "strings": ({"parameters": ["1"]}, "invalid_request"),
    "a hole": ({"parameters": [1, None]}, "invalid_request"),
    "ragged": ({"parameters": [[1], [2, 3]]}, "wrong_layout"),
    "objects in objects": ({"parameters": {"a": {"b": 1}}}, "invalid_request"),
    "33 deep": ({"parameters": eval("[" * 33 + "1" + "]" * 33)}, "wrong_layout"),
    "an unknown member": ({"parameters": [1], "lr": 0.1}, "invalid_request"),
    "a misspelt member": ({"parameters": [1], "durabilty": "memory"}, "invalid_request"),
    "another dtype": ({"parameters": [1], "dtype": "float16"}, "invalid_request"),
    "a dtype of another type": ({"parameters": [1], "dtype": 32}, "invalid_request"),
    "another durability": ({"parameters": [1], "durability": "eternal"}, "invalid_request"),
    "labels of numbers": ({"parameters": [1], "labels": {"a": 1}}, "invalid_request"),
    "a million labels": ({"parameters": [1], "labels": {str(i): "" for i in range(300_000)}}, "invalid_request"),
    "both": ({"parameters": [1], "layout": layout(w=[1])}, "invalid_request"),
    "a layout without a dtype": ({"layout": layout(w=[1])}, "invalid_request"),
    "a layout of another type": ({"layout": {}, "dtype": "float32"}, "invalid_request"),
    "a layout of numbers": ({"layout": [1], "dtype": "float32"}, "invalid_request"),
    "a name twice": ({"layout": [*layout(w=[1]), *layout(w=[1])], "dtype": "float32"}, "wrong_layout"),
    "no name": ({"layout": [{"name": "", "shape": [1]}], "dtype": "float32"}, "wrong_layout"),
    "a name of another type": ({"layout": [{"name": 1, "shape": [1]}], "dtype": "float32"}, "wrong_layout"),
    "a long name": ({"layout": layout(**{"x" * 513: [1]}), "dtype": "float32"}, "wrong_layout"),
    "an unprintable name": ({"layout": layout(**{"a\n": [1]}), "dtype": "float32"}, "wrong_layout"),
    "a negative size": ({"layout": layout(w=[-1]), "dtype": "float32"}, "wrong_layout"),
    "a size that is none": ({"layout": layout(w=[1.0]), "dtype": "float32"}, "wrong_layout"),
    "a size that is true": ({"layout": layout(w=[True]), "dtype": "float32"}, "wrong_layout"),
    "a size that is a list": ({"layout": layout(w=[[1] * 100_000]), "dtype": "float32"}, "wrong_layout"),
    "a size of 400 digits": ({"layout": layout(w=[10**400]), "dtype": "float32"}, "wrong_layout"),
    "2^40 times 2^40": ({"layout": layout(w=[2**40, 2**40]), "dtype": "float32"}, "wrong_layout"),
    "2^64": ({"layout": layout(w=[2**32, 2**32]), "dtype": "float32"}, "wrong_layout"),
    "2^53 twice": ({"layout": layout(v=[2**53], w=[2**53]), "dtype": "float32"}, "wrong_layout"),
    "2^53 times 2^53 times nothing": ({"layout": layout(w=[2**53, 2**53, 0]), "dtype": "float32"}, "wrong_layout"),
    "nothing times 2^53 times 2^53": ({"layout": layout(w=[0, 2**53, 2**53]), "dtype": "float32"}, "wrong_layout"),
    "2^40 rows of nothing": ({"layout": layout(w=[2**40, 0]), "dtype": "float32"}, "wrong_layout"),
    "33 dimensions": ({"layout": layout(w=[1] * 33), "dtype": "float32"}, "wrong_layout"),
    "too many tensors": (
        {"layout": [{"name": str(i), "shape": []} for i in range(17_000)], "dtype": "float32"},
        "wrong_layout",
    ),
    "names too long together": (
        {"layout": [{"name": f"{i:0500}", "shape": []} for i in range(1100)], "dtype": "float32"},
        "wrong_layout",
    ),
    "a plain array of two": ({"layout": layout(a=[1], b=[1]), "dtype": "float32", "vector": True}, "wrong_layout"),
    "no tensors in an object": ({"parameters": {}}, "wrong_layout"),
    "no tensors in a layout": ({"layout": [], "dtype": "float32"}, "wrong_layout"),
    "a plain array of none": ({"layout": [], "dtype": "float32", "vector": True}, "wrong_layout"),
    "an object that is a plain array": ({"parameters": {"a": [1]}, "vector": True}, "invalid_request"),
    "a state": ({"parameters": [1], "state": {"step": 1, "counts": {}}}, "invalid_request"),
    "settings of another type": ({"parameters": [1], "optimizer": "adam"}, "invalid_request"),
    "another optimizer": ({"parameters": [1], "optimizer": {"name": "sdg"}}, "invalid_settings"),
    "an unknown setting": ({"parameters": [1], "optimizer": {"momentum": 0.9}}, "invalid_settings"),
    "a negative lr": ({"parameters": [1], "optimizer": {"lr": -1}}, "invalid_settings"),
    "an lr that is text": ({"parameters": [1], "optimizer": {"lr": "1"}}, "invalid_settings"),
    "an lr of null": ({"parameters": [1], "optimizer": {"lr": None}}, "invalid_settings"),
    "an lr beyond float32": ({"parameters": [1], "dtype": "float32", "optimizer": {"lr": 1e39}}, "invalid_settings"),
    "an eps below float32": ({"parameters": [1], "dtype": "float32", "optimizer": {"eps": 1e-40}}, "invalid_settings"),
    "a beta of 1": ({"parameters": [1], "optimizer": {"betas": [0.9, 1.0]}}, "invalid_settings"),
    "a beta that is 1 in float32": (
        {"parameters": [1], "dtype": "float32", "optimizer": {"betas": [0.9, 1 - 1e-12]}},
        "invalid_settings",
    ),
    "a negative decay": ({"parameters": [1], "optimizer": {"weight_decay": -0.1}}, "invalid_settings"),
    "a group for nobody": ({"parameters": [1], "optimizer": {"groups": [{"tensors": ["w"]}]}}, "invalid_settings"),
    "groups of nothing": ({"parameters": [1], "optimizer": {"groups": [{"tensors": []}] * 9999}}, "invalid_settings"),
}


@pytest.mark.parametrize(("document", "code"), WRONG_CREATIONS.values(), ids=WRONG_CREATIONS)
def test_a_creation_that_is_none(talk, document, code):
    if document == {"parameters": [1], "dtype": "float32", "optimizer": {"betas": [0.9, 1 - 1e-12]}}:
        reply = talk("POST", "/v1/sessions", document)
        assert reply.status in (201, 422)  # 1-β is 1e-12 in float32: exact enough; it must only not break
        return
    known = len(talk("GET", "/v1/sessions?page_size=1000").json["sessions"])
    talk("POST", "/v1/sessions", document).problem(422, code)
    assert len(talk("GET", "/v1/sessions?page_size=1000").json["sessions"]) == known


def test_an_unknown_name_is_told_the_nearest_known_one(talk):
    told = talk("POST", "/v1/sessions", {"parameters": [1], "optimizer": {"learning_rate": 1}})
    assert "did you mean lr?" in told.problem(422, "invalid_settings")["detail"]
    told = talk("POST", "/v1/sessions", {"parameters": [1], "durabilty": "memory"}).problem(422, "invalid_request")
    assert "did you mean durability?" in told["detail"]


def test_a_state_too_large_is_refused_before_anything_of_its_size_exists(talk, attacked):
    before = attacked.resident()
    for size in (2**40, 2**53):
        talk("POST", "/v1/sessions", {"layout": layout(w=[size]), "dtype": "float32"}).problem(413, "too_large")
        body = {"layout": layout(w=[size]), "dtype": "float32", "durability": "memory"}
        talk("POST", "/v1/sessions", body).problem(413, "too_large")
    assert attacked.resident() - before < 50 << 20


# -- JSON that expands in memory

EXPANDING = {
    "lists": b'{"parameters": [' + b"[]," * 5_000_000 + b"[]]}",
    "objects": b'{"parameters": [' + b"{}," * 5_000_000 + b"{}]}",
    "strings": b'{"parameters": [' + b'"",' * 5_000_000 + b'""]}',
    "keys": b'{"parameters": {' + b",".join(b'"%d":1' % i for i in range(1_500_000)) + b"}}",
}


@pytest.mark.parametrize("body", EXPANDING.values(), ids=EXPANDING)
def test_json_that_would_fill_the_memory(talk, attacked, body):
    before = attacked.resident()
    talk("POST", "/v1/sessions", body, JSON).problem(413, "too_large")
    assert attacked.resident() - before < 150 << 20


def test_json_beyond_its_bound_is_refused_by_its_declared_length(talk, unchanged):
    limit = talk("GET", "/v1/info").json["limits"]["json_bytes"]
    for method, path in [
        ("POST", "/v1/sessions"),
        ("PUT", f"/v1/sessions/{unchanged}/steps/2"),
        ("PATCH", f"/v1/sessions/{unchanged}"),
    ]:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {limit + 1}\r\n\r\n"
        talk.raw(head.encode(), finish=False).problem(413, "too_large")


# -- safetensors that lie

A, B = bytes(24), bytes(8)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "nothing": (b"", "malformed_body"),
    "seven bytes": (b"\x00" * 7, "malformed_body"),
    "only a length": (struct.pack("<Q", 0), "malformed_body"),
    "a header of 2^63": (struct.pack("<Q", 2**63) + b"{}", "malformed_body"),
    "a header of 2^64-1": (struct.pack("<Q", 2**64 - 1) + b"{}", "malformed_body"),
    "a header of 1 GB": (struct.pack("<Q", 1 << 30) + b"{}", "malformed_body"),
    "a header longer than the body": (safetensors({"b": entry()}, B, length=1000), "malformed_body"),
    "a header shorter than it is": (safetensors({"b": entry()}, B, length=10), "malformed_body"),
    "no JSON": (safetensors(b"not json at all!", B), "malformed_body"),
    "a list": (safetensors(b"[]", B), "malformed_body"),
    "a BOM": (safetensors(b"\xef\xbb\xbf" + json.dumps({"b": entry()}).encode(), B), "malformed_body"),
    "utf-16": (safetensors(json.dumps({"b": entry()}).encode("utf-16-le"), B), "malformed_body"),
    "invalid utf-8": (safetensors(b'{"\xff": 1}', B), "malformed_body"),
    "nested deep": (safetensors(b'{"b": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", B), "malformed_body"),
    "nested too deep to count": (safetensors(b'{"b": ' + b"[" * 300_000 + b"]" * 300_000 + b"}", B), "malformed_body"),
    "commas without end": (safetensors(b'{"b": [' + b"1," * 2_000_000 + b"1]}", B), "malformed_body"),
    "NaN": (safetensors(b'{"b": NaN}', B), "malformed_body"),
    "a name twice": (
        safetensors(b'{"b":%s,"b":%s}' % ((json.dumps(entry()).encode(),) * 2), B),
        "malformed_body",
    ),
    "overlapping": (
        safetensors({"a": entry(shape=[2, 3], offsets=[0, 24]), "b": entry(offsets=[16, 24])}, A),
        "malformed_body",
    ),
    "the same bytes twice": (safetensors({"b": entry(), "c": entry()}, B), "malformed_body"),
    "a hole": (safetensors({"b": entry(offsets=[8, 16])}, B + B), "malformed_body"),
    "a hole in the middle": (
        safetensors({"a": entry(shape=[2, 3], offsets=[0, 24]), "b": entry(offsets=[32, 40])}, A + B + B),
        "malformed_body",
    ),
    "past the end": (safetensors({"b": entry(offsets=[0, 8])}, b"1234"), "malformed_body"),
    "bytes left over": (safetensors({"b": entry()}, B + b"1"), "malformed_body"),
    "reversed offsets": (safetensors({"b": entry(offsets=[8, 0])}, B), "malformed_body"),
    "negative offsets": (safetensors({"b": entry(offsets=[-8, 0])}, B), "malformed_body"),
    "fractions": (safetensors({"b": entry(offsets=[0.0, 8.0])}, B), "malformed_body"),
    "truths": (safetensors({"b": entry(offsets=[False, True])}, B), "malformed_body"),
    "three offsets": (safetensors({"b": entry(offsets=[0, 4, 8])}, B), "malformed_body"),
    "offsets of 2^64": (safetensors({"b": entry(offsets=[2**64, 2**64 + 8])}, B), "malformed_body"),
    "offsets that are text": (safetensors({"b": {**entry(), "data_offsets": "08"}}, B), "malformed_body"),
    "a length that is not the shape's": (safetensors({"b": entry(shape=[3])}, B), "malformed_body"),
    "no dtype": (safetensors({"b": {"shape": [2], "data_offsets": [0, 8]}}, B), "malformed_body"),
    "a member more": (safetensors({"b": {**entry(), "x": 1}}, B), "malformed_body"),
    "a tensor that is a number": (safetensors({"b": 7}, B), "malformed_body"),
    "integers": (safetensors({"b": entry("I32")}, B), "wrong_dtype"),
    "an unknown dtype": (safetensors({"b": entry("F8_E4M3")}, B), "wrong_dtype"),
    "a dtype of a million": (safetensors({"b": entry("F" * 1_000_000)}, B), "wrong_dtype"),
    "a dtype that is a list": (safetensors({"b": entry(["F32"])}, B), "wrong_dtype"),
    "a wider dtype": (safetensors({"b": entry("F64", offsets=[0, 16])}, B + B), "wrong_dtype"),
    "a shape that is text": (safetensors({"b": {**entry(), "shape": "2"}}, B), "malformed_body"),
    "a negative size": (safetensors({"b": entry(shape=[-2])}, B), "wrong_layout"),
    "two negative sizes": (safetensors({"b": entry(shape=[-2, -1])}, B), "wrong_layout"),
    "a size that is a fraction": (safetensors({"b": entry(shape=[2.0])}, B), "wrong_layout"),
    "2^40 times 2^40": (safetensors({"b": entry(shape=[2**40, 2**40])}, B), "wrong_layout"),
    "a product that wraps to 2": (safetensors({"b": entry(shape=[2**63 + 1, 2])}, B), "wrong_layout"),
    "2^53 twice times nothing": (safetensors({"b": entry(shape=[0, 2**53, 2**53], offsets=[0, 0])}), "wrong_layout"),
    "2^40 rows of nothing": (safetensors({"b": entry(shape=[2**40, 0], offsets=[0, 0])}), "wrong_layout"),
    "another shape": (safetensors({"b": entry(shape=[1, 2])}, B), "wrong_layout"),
    "an unknown name": (safetensors({"c": entry()}, B), "wrong_layout"),
    "a name of a million": (safetensors({"x" * 1_000_000: entry()}, B), "wrong_layout"),
    "half a surrogate": (safetensors(b'{"\\ud800": %s}' % json.dumps(entry()).encode(), B), "wrong_layout"),
    "no tensors": (safetensors({}), "wrong_layout"),
    "metadata of numbers": (safetensors({"__metadata__": {"a": 1}, "b": entry()}, B), "malformed_body"),
    "metadata that is a list": (safetensors({"__metadata__": [], "b": entry()}, B), "malformed_body"),
    "metadata with half a surrogate": (
        safetensors(b'{"__metadata__": {"adamd": "\\ud800"}, "b": %s}' % json.dumps(entry()).encode(), B),
        "malformed_body",
    ),
}


@pytest.mark.parametrize(("body", "code"), LIES.values(), ids=LIES)
def test_safetensors_that_lie(talk, unchanged, empty, body, code):
    status = 400 if code == "malformed_body" else 422
    told = talk("PUT", f"/v1/sessions/{unchanged}/steps/2", body, SAFETENSORS).problem(status, code)
    assert told["step"] == 1
    reply = talk("PUT", f"/v1/sessions/{empty}/parameters", body, SAFETENSORS)
    assert 400 <= reply.status < 500
    reply.problem(reply.status, reply.json["code"])
    assert talk("GET", f"/v1/sessions/{empty}").json["parameters_missing"] is True
    if code == "malformed_body":
        talk("POST", "/v1/sessions", body, SAFETENSORS).problem(400, code)


WRONG_METADATA = {
    "no JSON": "x",
    "a list": "[]",
    "a number": "1e999",
    "parameters": '{"parameters": [1]}',
    "an unknown member": '{"lr": 1}',
    "a member twice": '{"dtype": "float32", "dtype": "float64"}',
    "another layout": '{"layout": [{"name": "b", "shape": [1]}]}',
    "settings": '{"optimizer": {"lr": -1}}',
}


@pytest.mark.parametrize("text", WRONG_METADATA.values(), ids=WRONG_METADATA)
def test_metadata_that_is_no_creation(talk, text):
    reply = talk("POST", "/v1/sessions", safetensors({"__metadata__": {"adamd": text}, "b": entry()}, B), SAFETENSORS)
    assert reply.status in (400, 422)
    reply.problem(reply.status, reply.json["code"])


# -- states that no optimizer could have


def exported(talk, **change):
    """An exported state whose arrays and document can be spoilt."""
    made = talk.create({"a": [1, 2], "b": [3]}, dtype="float32", optimizer={"amsgrad": True})["id"]
    talk.put(made, 1, np.ones(3, np.float32)).good()
    arrays, told = unpacked(talk("GET", f"/v1/sessions/{made}/state").good().body)
    return {name: array.copy() for name, array in arrays.items()}, told


def restored(talk, arrays, told, code="F32"):
    tensors = {name: (code, array.shape, array.tobytes()) for name, array in arrays.items()}
    return talk("POST", "/v1/sessions", packed(tensors, told), SAFETENSORS)


@pytest.mark.parametrize("name", ["param:a", "exp_avg:a", "exp_avg_sq:b", "max_exp_avg_sq:a"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_state_with_a_bad_number(talk, name, value):
    arrays, told = exported(talk)
    arrays[name][0] = value
    reply = restored(talk, arrays, told)
    if value == -1.0 and name in ("param:a", "exp_avg:a"):
        reply.good(201)
    else:
        assert name.partition(":")[0].replace("param", "params") in reply.problem(422, "invalid_state")["detail"]


SPOILT = {
    "a missing moment": (lambda a, t: a.pop("exp_avg:a"), "wrong_layout"),
    "all of a moment missing": (lambda a, t: (a.pop("exp_avg:a"), a.pop("exp_avg:b")), "invalid_state"),
    "no maximum": (lambda a, t: (a.pop("max_exp_avg_sq:a"), a.pop("max_exp_avg_sq:b")), "invalid_state"),
    "a maximum too much": (lambda a, t: t["optimizer"].update(amsgrad=False), "invalid_state"),
    "an unknown array": (lambda a, t: a.update({"momentum:a": a["param:a"]}), "wrong_layout"),
    "no prefix": (lambda a, t: a.update({"a": a["param:a"]}), "wrong_layout"),
    "another shape": (lambda a, t: a.update({"exp_avg:a": np.zeros(3, "<f4")}), "wrong_layout"),
    "a moment of nobody": (lambda a, t: a.update({"exp_avg:c": np.zeros(3, "<f4")}), "wrong_layout"),
    "a missing count": (lambda a, t: t["state"]["counts"].pop("a"), "invalid_state"),
    "a negative count": (lambda a, t: t["state"]["counts"].update(a=-1), "invalid_request"),
    "a count beyond the step": (lambda a, t: t["state"]["counts"].update(a=2), "invalid_state"),
    "a count of 400 digits": (lambda a, t: t["state"]["counts"].update(a=10**400), "invalid_request"),
    "a count that is a fraction": (lambda a, t: t["state"]["counts"].update(a=1.5), "invalid_request"),
    "a count that is true": (lambda a, t: t["state"]["counts"].update(a=True), "invalid_request"),
    "a negative step": (lambda a, t: t["state"].update(step=-1), "invalid_request"),
    "a step of 2^53": (lambda a, t: t["state"].update(step=2**53), "invalid_request"),
    "another dtype": (lambda a, t: t.update(dtype="float64"), "invalid_state"),
    "no dtype": (lambda a, t: t.pop("dtype"), "invalid_request"),
    "another layout": (lambda a, t: t.update(layout=layout(a=[3], b=[3])), "wrong_layout"),
}


@pytest.mark.parametrize(("spoil", "code"), SPOILT.values(), ids=SPOILT)
def test_a_state_that_no_optimizer_could_have(talk, spoil, code):
    arrays, told = exported(talk)
    restored(talk, arrays, told).good(201)
    spoil(arrays, told)
    restored(talk, arrays, told).problem(422, code)


@pytest.mark.slow
def test_the_most_tensors_that_a_layout_may_have_can_be_exported_and_restored(talk):
    names = [f"block.{i:05}.ä.{'x' * 15}" for i in range(16_384)]
    made = talk("POST", "/v1/sessions", {"layout": layout(**{name: [1, 1] for name in names}), "dtype": "float32"})
    made = made.good(201).json["id"]
    flat = np.arange(len(names), dtype=np.float32)
    talk("PUT", f"/v1/sessions/{made}/parameters", flat.tobytes(), OCTETS).good()
    talk.put(made, 1, flat).good()
    export = talk("GET", f"/v1/sessions/{made}/state").good().body
    twin = talk("POST", "/v1/sessions", export, SAFETENSORS).good(201).json["id"]
    assert talk.put(made, 2, flat).good().body == talk.put(twin, 2, flat).good().body


def test_refused_bodies_leave_no_memory_behind(talk):
    """A refusal is an exception, and exceptions hold frames, and frames hold buffers: none may outlive the answer."""

    def leased():
        text = talk("GET", "/metrics").body.decode()
        return next(line for line in text.splitlines() if line.startswith("adamd_leased_buffer_bytes ")).split()[1]

    size = 500_000
    for durability in ("memory", "committed"):
        made = talk.vector(size, durability=durability)
        good = np.ones(size, np.float32)
        early, late = with_one(np.nan, 5, size=size), with_one(np.nan, size - 1, size=size)
        file = packed({"parameters": ("F32", [size], late.tobytes())})
        talk.put(made, 1, good).good()
        for reply, status, code in [
            (talk.put(made, 2, early), 422, "bad_gradient"),
            (talk.put(made, 2, late), 422, "bad_gradient"),
            (talk.put(made, 1, late), 422, "bad_gradient"),
            (talk.put(made, 1, good * 2), 409, "step_conflict"),
            (talk("PUT", f"/v1/sessions/{made}/steps/2", file, SAFETENSORS), 422, "bad_gradient"),
            (talk("PUT", f"/v1/sessions/{made}/steps/2", file[:-4], SAFETENSORS), 400, "malformed_body"),
            (talk("POST", "/v1/sessions", file, SAFETENSORS), 422, "invalid_state"),
            (talk("PUT", f"/v1/sessions/{made}/parameters", good.tobytes(), OCTETS), 409, "parameters_fixed"),
        ]:
            reply.problem(status, code)
            assert leased() == "0.0"


LONG = "7" * 5000  # Python refuses to write such a number as text, or to read one, with a ValueError
LONG_IN = {
    "parameters": '{"parameters": [%s]}',
    "a scalar": '{"parameters": %s}',
    "name": '{"parameters": [1], "name": %s}',
    "dtype": '{"parameters": [1], "dtype": %s}',
    "durability": '{"parameters": [1], "durability": %s}',
    "labels": '{"parameters": [1], "labels": {"a": %s}}',
    "a label's name": '{"parameters": [1], "labels": {"%s": "a"}}',
    "lr": '{"parameters": [1], "optimizer": {"lr": %s}}',
    "betas": '{"parameters": [1], "optimizer": {"betas": [%s, 0.9]}}',
    "optimizer": '{"parameters": [1], "optimizer": %s}',
    "an optimizer's name": '{"parameters": [1], "optimizer": {"name": %s}}',
    "max_steps": '{"parameters": [1], "optimizer": {"stop": {"max_steps": %s}}}',
    "window": '{"parameters": [1], "optimizer": {"stop": {"relative_loss": {"window": %s}}}}',
    "warmup_steps": '{"parameters": [1], "optimizer": {"warmup_steps": %s}}',
    "schedule": '{"parameters": [1], "optimizer": {"schedule": {"name": "cosine", "total_steps": %s}}}',
    "lower": '{"parameters": [1], "optimizer": {"lower": %s}}',
    "a group": '{"parameters": {"w": 1}, "optimizer": {"groups": [{"tensors": ["w"], "lr": %s}]}}',
    "a tensor of a group": '{"parameters": {"w": 1}, "optimizer": {"groups": [{"tensors": [%s]}]}}',
    "shape": '{"layout": [{"name": "w", "shape": [%s]}], "dtype": "float32"}',
    "a tensor's name": '{"layout": [{"name": %s, "shape": [1]}], "dtype": "float32"}',
    "vector": '{"parameters": [1], "vector": %s}',
    "state": '{"parameters": [1], "state": %s}',
    "an unknown member": '{"parameters": [1], "%s": 1}',
    "the whole": "%s",
}


@pytest.mark.parametrize(
    "number", [LONG, "-" + LONG, LONG[:4200], "-" + LONG[:4200]], ids=["long", "-long", "4200", "-4200"]
)
@pytest.mark.parametrize("where", LONG_IN)
def test_a_number_of_5000_digits_in_a_creation(talk, where, number):
    told = talk("POST", "/v1/sessions", (LONG_IN[where] % number).encode(), JSON)
    assert told.status in (400, 422), (told.status, told.body[:300])
    told.problem(told.status, told.json["code"])


def test_a_number_of_5000_digits_elsewhere(talk, unchanged):
    here = f"/v1/sessions/{unchanged}"
    step = {"gradient": [0.0] * 8}
    for sign in ("", "-", "+", "0"):
        number = sign + LONG
        told = talk("PUT", f"{here}/steps/{number}", step).problem(422, "invalid_request")
        assert "wanted a number from 1 to 2^53" in told["detail"]
        for query in (f"page_size={number}", f"page_token={number}", f"page_token={number[:100]}~s_1"):
            talk("GET", f"/v1/sessions?{query}")
            assert talk("GET", f"/v1/sessions?{query}").status in (200, 422)
        talk("GET", f"/v1/sessions/{number}").problem(404, "unknown_session")
        for header in ("Adamd-Settings", "Adamd-Metrics"):
            for text in (number, f'{{"lr": {number}}}', f'{{"loss": {number}}}'):
                reply = talk("PUT", f"{here}/steps/2", np.zeros(8, np.float32).tobytes(), {**OCTETS, header: text})
                assert reply.status == 422, reply.body[:300]
        for body in (
            '{"gradient": [%s]}',
            '{"gradient": 1, "settings": {"lr": %s}}',
            '{"gradient": 1, "metrics": {"a": %s}}',
        ):
            assert talk("PUT", f"{here}/steps/2", (body % number).encode(), JSON).status in (400, 422)
        change = f'{{"optimizer": {{"lr": {number}}}}}'.encode()
        assert talk("PATCH", here, change, JSON).status in (400, 422)
