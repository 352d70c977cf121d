"""Every document that the server answers agrees with the OpenAPI document, and gRPC with HTTP.

No answer has a member that is not documented, no member is documented that no answer has, and gRPC tells the same.
"""

import copy
import re
from contextlib import contextmanager

import grpc
import jsonschema_rs
import numpy as np
import pytest
import redis
from google.protobuf.json_format import MessageToDict
from talking import OCTETS, Talk

from adamd.transports.grpc.messages import whole
from adamd.wire.v1 import adamd_pb2 as pb

TEMPLATES = {
    r"/v1/sessions/[^/]+/rounds": "/v1/sessions/{session}/rounds",
    r"/v1/sessions/[^/]+/rounds/current": "/v1/sessions/{session}/rounds/current",
    r"/v1/sessions/[^/]+/rounds/[^/]+(/close|/cancel)?": r"/v1/sessions/{session}/rounds/{round}\1",
    r"/v1/sessions/[^/]+/rounds/[^/]+/(contributions|evaluations)/[^/]+": (
        r"/v1/sessions/{session}/rounds/{round}/\1/{client}"
    ),
    r"/v1/sessions/[^/]+/steps/[^/]+": "/v1/sessions/{session}/steps/{number}",
    r"/v1/sessions/[^/]+(/\w+)?": r"/v1/sessions/{session}\1",
}


PRIVATE = {".epsilon", ".rounds[].epsilon"}  # told where a session has privacy: tests/engine/rounds/test_settings.py


def strict(schema):
    """The same schema, in which a member that is not documented is an error."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(one) for name, one in schema.items()}
    if "properties" in made and isinstance(made["properties"], dict):
        made.setdefault("additionalProperties", False)
    return made


def members(schema, where=""):
    """Every documented member, as a path."""
    if isinstance(schema.get("items"), dict):
        yield from members(schema["items"], where + "[]")
    for name, inner in schema.get("properties", {}).items():
        yield f"{where}.{name}"
        yield from members(inner, f"{where}.{name}")


def told(document, where=""):
    """Every member that a document has and that says something, as a path."""
    if isinstance(document, list):
        for one in document:
            yield from told(one, where + "[]")
    elif isinstance(document, dict):
        for name, inner in document.items():
            if inner is not None or name == "parameters":
                yield f"{where}.{name}"
            yield from told(inner, f"{where}.{name}")


class Reader:
    """A connection whose every answer is held against the OpenAPI document."""

    def __init__(self, server):
        self.talk = Talk(server)
        self.paths = self.talk("GET", "/openapi.json").good().json["paths"]
        self.seen = {}  # (operation, status) -> the paths of members

    def schema(self, method, path, status):
        path = path.partition("?")[0]
        for pattern, template in TEMPLATES.items():
            if re.fullmatch(pattern, path):
                path = re.sub(f"^{pattern}$", template, path)
                break
        answers = self.paths[path][method.lower()]["responses"]
        kind = str(status) if str(status) in answers else f"{status // 100}XX"
        (schema,) = [one["schema"] for name, one in answers[kind]["content"].items() if name.endswith("json")]
        return (f"{method} {path}", kind), schema

    def __call__(self, method, path, body=None, headers=None):
        reply = self.talk(method, path, body, headers)
        place, schema = self.schema(method, path, reply.status)
        jsonschema_rs.validate(strict(schema), reply.json)
        self.seen.setdefault(place, (schema, set()))[1].update(told(reply.json))
        return reply


@pytest.fixture(scope="module")
def read(server):
    reader = Reader(server)
    yield reader
    reader.talk.close()


STOPPING = {"stop": {"target_loss": 0.5, "gradient_norm": 1e-3, "relative_loss": {"window": 5}}, "keep_best": True}


@pytest.fixture(scope="module")
def sessions(read):
    """Sessions that have between them everything that a session can tell; their ids."""
    settings = {"name": "adam", "lr": 0.1, **STOPPING, "groups": [{"tensors": ["p10"], "lr": 0.5}]}
    settings["schedule"] = {"name": "cosine", "total_steps": 10}
    document = {"name": "Said_twice.1", "parameters": {"p2": 1.0, "p10": [1.0, 2.0]}, "optimizer": settings}
    rich = read("POST", "/v1/sessions", {**document, "labels": {"team": "blue"}}).good(201).json
    assert [one["code"] for one in rich["warnings"]] == ["sorted_by_name"]
    here = f"/v1/sessions/{rich['id']}"
    for step, loss in ((1, 3.0), (2, 2.0), (3, 0.25), (4, 2.5)):
        gradient = {"p2": 1.0, "p10": [1.0, -1.0]}
        read("PUT", f"{here}/steps/{step}", {"gradient": gradient, "metrics": {"loss": loss, "none": None}}).good()
    read("PATCH", here, {"labels": {"team": "red"}}).good()
    stalled = read("POST", "/v1/sessions", {"parameters": [1.0, 1.0], "durability": "memory"}).good(201).json
    read("PUT", f"/v1/sessions/{stalled['id']}/steps/1", {"gradient": [1e-14, 0.0]}).good()
    later = {"layout": [{"name": "w", "shape": [2, 3]}], "dtype": "float32"}
    waiting = read("POST", "/v1/sessions", later).good(201).json
    settings = {"lr": 3e37, "eps": 0}
    document = {"parameters": [1.0, 3.3e38], "dtype": "float32", "optimizer": settings}
    diverged = read("POST", "/v1/sessions", document).good(201).json
    read("PUT", f"/v1/sessions/{diverged['id']}/steps/1", {"gradient": [1.0, -1.0]}).good()
    rounds = {"quorum": 3, "norm_filter": 2, "evaluate": 2, "config": {"epochs": 2}, "deadline_s": 600}
    document = {"name": "Said_twice.2", "parameters": [1.0], "rounds": rounds, "optimizer": {"gradient_scale": 1e100}}
    federated = read("POST", "/v1/sessions", document).good(201).json
    every = rich, stalled, waiting, diverged, federated
    yield [one["id"] for one in every]
    for one in every:
        read.talk("DELETE", f"/v1/sessions/{one['id']}").good(204)


@contextmanager
def damaged(read, server):
    """A session whose head has lost what it was made with; its id."""
    made = read.talk("POST", "/v1/sessions", {"parameters": [1.0]}).good(201).json["id"]
    socket = next((server.data_dir / "store").glob("*.sock"))
    with redis.Redis(unix_socket_path=str(socket)) as client:
        client.hset(f"adamd:{{{made}}}:head", "spec", "no JSON")
    yield made
    read.talk("DELETE", f"/v1/sessions/{made}").good(204)


def play(read, federated):
    """Three rounds: two clients make one, one is cancelled and then closed by hand, and of one no step can be made."""
    read("GET", f"{federated}/rounds/current?client=a").good()
    for client, outcome in (("a", 202), ("a", 200)):
        path = f"{federated}/rounds/1/contributions/{client}"
        read("PUT", path, {"delta": [0.5], "metrics": {"loss": 0.5}}).good(outcome)
    read("GET", f"{federated}/rounds/1").good()
    read("GET", f"{federated}/rounds/current?client=b").good()
    read("PUT", f"{federated}/rounds/1/contributions/b", {"delta": [0.25]}).good(202)
    read("PUT", f"{federated}/rounds/1/contributions/far", {"delta": [100.0]}).good(202)
    read("GET", f"{federated}/parameters?min_step=1&wait_s=60").good()
    read("PUT", f"{federated}/rounds/2/contributions/a", {"delta": [0.5]}).good(202)
    read("POST", f"{federated}/rounds/2/cancel").good()
    evaluated = {"num_examples": 3, "metrics": {"accuracy": 0.5}}
    for outcome in (202, 200):
        read("PUT", f"{federated}/rounds/2/evaluations/a", evaluated).good(outcome)
    read("PUT", f"{federated}/rounds/2/contributions/a", {"delta": [0.5]}).good(202)
    read("POST", f"{federated}/rounds/2/close").good()
    read("PUT", f"{federated}/rounds/3/contributions/a", {"delta": [1e60]}).good(202)
    read("POST", f"{federated}/rounds/3/close").problem(422, "bad_gradient")
    assert read("GET", f"{federated}/rounds/3").good().json["failure"]["code"] == "bad_gradient"
    assert read("GET", f"{federated}/rounds?page_size=1").good().json["next_page_token"]
    read("GET", f"{federated}/rounds").good()
    assert read("GET", f"{federated}/rounds/1").good().json["contributions"][2]["reason"] == "norm_filter"
    read("PUT", f"{federated}/rounds/1/contributions/late", {"delta": [0.5]}).problem(409, "round_closed")
    read("GET", federated).good()


def test_every_answer_is_as_documented_and_every_documented_member_comes(read, sessions, server):
    rich, stalled, waiting, diverged, federated = (f"/v1/sessions/{one}" for one in sessions)
    for path in (rich, stalled, waiting, diverged, federated):
        read("GET", path).good()
    assert read("GET", diverged).json["diverged"] and read("GET", waiting).json["parameters_missing"]
    assert read("GET", rich).json["stop"] == "target_loss" and read("GET", rich).json["metrics"]["loss"] == 2.5
    assert read("GET", stalled).json["warnings"][0]["eps"] > 0
    assert read("GET", f"{diverged}/parameters").good().json["parameters"] is None
    read("GET", f"{rich}/parameters").good()
    assert read("GET", "/v1/sessions?page_size=1").good().json["next_page_token"]
    read("GET", "/v1/sessions?page_size=1000").good()
    with damaged(read, server) as broken:
        (line,) = [
            one for one in read("GET", "/v1/sessions?page_size=1000").good().json["sessions"] if "damaged" in one
        ]
        assert line["id"] == broken
    for path in ("/v1/info", "/livez", "/readyz"):
        read("GET", path).good()
    play(read, federated)
    # problems, with each member of their own
    read("PUT", f"{rich}/steps/4", {"gradient": {"p2": 9.0}}).problem(409, "step_conflict")
    read("PUT", f"{rich}/steps/2", {"gradient": {"p2": 9.0}}).problem(409, "step_superseded")
    read("PUT", f"{stalled}/steps/2", np.float64([1, np.nan]).tobytes(), OCTETS).problem(422, "bad_gradient")
    read("POST", "/v1/sessions", {"name": "Said_twice.1", "parameters": 1}).problem(409, "session_exists")
    read("PATCH", rich, {"optimizer": {"betas": 3}}).problem(422, "invalid_settings")
    read("GET", "/v1/sessions?owner=me").problem(422, "invalid_request")
    read("PUT", f"{waiting}/parameters", {"w": [1]}).problem(422, "wrong_layout")
    read("POST", f"{waiting}/steps", {"gradient": {}}, {"Idempotency-Key": "k"}).problem(409, "parameters_missing")
    # what one operation tells another may leave out, so the members are counted by what they are members of
    documented, seen = {}, {}
    for schema, paths in read.seen.values():
        kind = ",".join(sorted(schema.get("properties", {})))
        documented.setdefault(kind, set()).update(members(schema))
        seen.setdefault(kind, set()).update(paths)
    for kind, paths in documented.items():
        assert paths <= seen[kind] | PRIVATE, (sorted(paths - seen[kind]), "documented, and never seen")
    assert len(documented) >= 5
    operations = {place for place, _ in read.seen}
    json_ones = {
        f"{method.upper()} {path}"
        for path, methods in read.paths.items()
        for method, call in methods.items()
        for status, answer in call["responses"].items()
        if status.startswith("2") and any(kind == "application/json" for kind in answer.get("content", {}))
    }
    untold = {"PUT /v1/sessions/{session}/parameters", "POST /v1/sessions/{session}/steps"}  # refused above
    assert json_ones <= operations | untold


def test_a_member_too_many_or_too_few_is_seen(read, sessions):
    """The comparison can fail."""
    document = read("GET", f"/v1/sessions/{sessions[0]}").json
    _, schema = read.schema("GET", f"/v1/sessions/{sessions[0]}", 200)
    for broken in ({**document, "new": 1}, {name: value for name, value in document.items() if name != "incarnation"}):
        with pytest.raises(jsonschema_rs.ValidationError):
            jsonschema_rs.validate(strict(schema), broken)
    more = copy.deepcopy(schema)
    more["properties"]["progress"]["properties"]["never"] = {"type": "number"}
    assert set(members(more)) - set(told(document)) >= {".progress.never"}


def test_grpc_tells_what_http_tells(read, sessions, server):
    _, schema = read.schema("GET", "/v1/sessions/x", 200)
    fields = {field.name for field in pb.Session.DESCRIPTOR.fields}
    # vector is the layout's there, metrics are told by WatchSession; the list has "parameters" for elements, and damaged
    assert fields - {"elements", "damaged"} == schema["properties"].keys() - {"vector", "metrics"}
    assert {field.name for field in pb.Stall.DESCRIPTOR.fields} == set(
        schema["properties"]["warnings"]["items"]["properties"]
    )
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        get = channel.unary_unary(
            "/adamd.v1.OptimizerService/GetSession",
            pb.GetSessionRequest.SerializeToString,
            pb.GetSessionResponse.FromString,
        )
        for one in sessions:
            here, there = read("GET", f"/v1/sessions/{one}").json, get(pb.GetSessionRequest(session=one), timeout=60)
            here |= {"created_at": round(here["created_at"] * 1e6) / 1e6}  # a Timestamp has microseconds
            assert as_json(there.session) == {name: value for name, value in here.items() if name != "metrics"}
        pages = channel.unary_unary(
            "/adamd.v1.OptimizerService/ListSessions",
            pb.ListSessionsRequest.SerializeToString,
            pb.ListSessionsResponse.FromString,
        )
        listed = {one.id: one for one in pages(pb.ListSessionsRequest(page_size=1000), timeout=60).sessions}
        for line in read("GET", "/v1/sessions?page_size=1000").json["sessions"]:
            if line["id"] in sessions:
                assert line | {"created_at": round(line["created_at"] * 1e6) / 1e6} == as_summary(listed[line["id"]])
        info = channel.unary_unary(
            "/adamd.v1.OptimizerService/GetServerInfo",
            pb.GetServerInfoRequest.SerializeToString,
            pb.GetServerInfoResponse.FromString,
        )(pb.GetServerInfoRequest(), timeout=60)
        here, there = read("GET", "/v1/info").json, MessageToDict(info, preserving_proto_field_name=True)
        for name in (
            "version",
            "replica",
            "numerics",
            "store",
            "device",
            "dtypes",
            "optimizers",
            "encodings",
            "settings",
        ):
            assert there[name] == here[name], name
        assert int(there["max_body_bytes"]) == here["limits"]["body_bytes"]
        assert int(there["max_message_bytes"]) == here["grpc"]["message_bytes"]
        assert int(there["max_in_flight_bytes"]) == here["limits"]["in_flight_bytes"]
        assert there["max_concurrent_calls"] == here["grpc"]["calls"]


def as_json(session):
    """A session of gRPC as HTTP would tell it."""
    made = MessageToDict(session, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    assert int(made.pop("elements")) == sum(
        int(np.prod([int(n) for n in t["shape"]])) for t in made["layout"]["tensors"]
    )
    assert made.pop("damaged") == ""
    layout = made.pop("layout")
    made["layout"] = [{"name": t["name"], "shape": [int(n) for n in t["shape"]]} for t in layout["tensors"]]
    made["vector"] = layout["vector"]
    made |= {name: int(made[name]) for name in ("step", "settings_revision")}
    made |= {"snapshot_step": int(made["snapshot_step"]) if "snapshot_step" in made else None}
    made |= {"dtype": made["dtype"].removeprefix("DTYPE_").lower()}
    made |= {"durability": made["durability"].removeprefix("DURABILITY_").lower()}
    made |= {"name": made["name"] or None, "stop": made["stop"] or None, "progress": made.get("progress", {})}
    made["created_at"] = session.created_at.ToMicroseconds() / 1e6
    made["warnings"] = [{"eps": None, **one} for one in made["warnings"]]
    made["rounds"] = whole(made["rounds"]) if "rounds" in made else None
    if "round" in made:
        made["round"] = {name: int(made["round"][name]) for name in ("round", "received", "wanted")}
    return made


def as_summary(session):
    made = MessageToDict(session, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {
        "id": session.id,
        "name": session.name or None,
        "step": session.step,
        "optimizer": made["optimizer"]["name"],
        "parameters": session.elements,
        "dtype": made["dtype"].removeprefix("DTYPE_").lower(),
        "durability": made["durability"].removeprefix("DURABILITY_").lower(),
        "labels": dict(session.labels),
        "created_at": session.created_at.ToMicroseconds() / 1e6,
    }
