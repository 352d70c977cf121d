"""Rounds over HTTP: tasks, contributions, evaluations, documents, CSV; every outcome and every bad input."""

import csv
import io
import json
from datetime import datetime

import numpy as np
import pytest
from talking import OCTETS, SAFETENSORS, Talk, packed, watched

ZERO = np.zeros(3, "<f4")
ONE = np.ones(3, "<f4")
TWO = 2 * ONE


def opened(talk, parameters=(0.0, 0.0, 0.0), optimizer=None, dtype="float32", **rounds):
    """A session with rounds: FedAvg (sgd with lr 1), so that its step is the mean itself."""
    made = talk.create(
        list(parameters) if isinstance(parameters, tuple) else parameters,
        optimizer=optimizer or {"name": "sgd", "lr": 1},
        dtype=dtype,
        rounds=rounds or {"quorum": 2},
    )
    return Federation(talk, made["id"])


class Federation:
    """One session with rounds, and its calls."""

    def __init__(self, talk, session):
        self.talk, self.id, self.path = talk, session, f"/v1/sessions/{session}"

    def give(self, client, values, number=1, **headers):
        body = values if isinstance(values, bytes | dict) else np.ascontiguousarray(values).tobytes()
        sent = {} if isinstance(body, dict) else OCTETS
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.talk("PUT", f"{self.path}/rounds/{number}/contributions/{client}", body, {**sent, **told})

    def evaluate(self, client, number, **metrics):
        body = {"num_examples": 10, "metrics": metrics or {"accuracy": 0.5}}
        return self.talk("PUT", f"{self.path}/rounds/{number}/evaluations/{client}", body)

    def task(self, client="ward-7", **query):
        words = "&".join(f"{name}={value}" for name, value in {"client": client, **query}.items())
        return self.talk("GET", f"{self.path}/rounds/current?{words}")

    def round(self, number):
        return self.talk("GET", f"{self.path}/rounds/{number}").good().json

    def parameters(self, least=0):
        """The parameters once the session has made step ``least``."""
        waits = f"?min_step={least}&wait_s=30" if least else ""
        accept = {"Accept": "application/octet-stream"}
        return self.talk("GET", f"{self.path}/parameters{waits}", headers=accept).good()

    def unchanged(self):
        """Everything that a refused request must not change."""
        current = self.talk("GET", f"{self.path}/rounds/current").good().json
        return current, self.round(current["round"])["contributions"], self.parameters().body


def test_a_round_from_the_task_to_the_step(talk):
    federation = opened(talk, quorum=2, config={"epochs": 3}, deadline_s=600)
    reply = federation.task().good()
    assert reply.json == {
        "kind": "train",
        "round": 1,
        "base_step": 0,
        "selected": True,
        "contributed": False,
        "config": {"epochs": 3},
        "deadline": None,
        "received": 0,
        "wanted": 2,
        "private": [],
    }
    pulled = federation.parameters()
    assert reply.chain == pulled.chain and reply.step == pulled.step == 0
    first = federation.give("ward-7", ONE, Adamd_Num_Examples="30", Adamd_Metrics='{"loss": 0.5}').good(202)
    assert first.json == {"outcome": "accepted", "round": 1, "received": 1, "wanted": 2, "step": 0}
    assert first.step == 0
    assert federation.task().status == 204  # it has done its part
    other = federation.task("ward-8").good().json
    assert datetime.fromisoformat(other["deadline"]).tzinfo is not None and other["received"] == 1
    document = federation.round(1)
    assert (document["state"], document["closed_by"], document["step"]) == ("open", None, None)
    assert document["contributions"][0]["client"] == "ward-7" and document["contributions"][0]["counted"] is None
    federation.give("ward-8", TWO, Adamd_Num_Examples="10", Adamd_Metrics='{"loss": 0.1}').good(202)
    assert np.array_equal(federation.parameters(1).array(), ONE * np.float32(1.25))
    document = federation.round(1)
    assert (document["state"], document["closed_by"], document["step"], document["base_step"]) == (
        *("closed", "quorum"),
        *(1, 0),
    )
    assert [(one["client"], one["counted"], one["num_examples"]) for one in document["contributions"]] == [
        ("ward-7", True, 30),
        ("ward-8", True, 10),
    ]
    assert document["metrics"]["loss"] == pytest.approx(0.4) and document["epsilon"] is None
    assert datetime.fromisoformat(document["opened_at"]) <= datetime.fromisoformat(document["closed_at"])
    following = federation.task(wait_s=20).good()
    assert following.json["round"] == 2 and following.json["base_step"] == following.step == 1
    assert following.chain == federation.parameters().chain


def test_every_kind_means_what_it_says(talk):
    start = (1.0, 1.0, 1.0)
    for kind, values, after in (("delta", TWO, 3), ("parameters", TWO, 2), ("gradient", TWO, -1)):
        federation = opened(talk, start, quorum=1)
        federation.give("a", values, Adamd_Kind=kind).good(202)
        assert np.array_equal(federation.parameters(1).array(), ONE * after), kind
        named = opened(talk, start, quorum=1)
        named.give("a", {kind: [2.0, 2.0, 2.0], "metrics": {"loss": 1.0}}, Adamd_Kind=kind).good(202)
        assert named.parameters(1).body == federation.parameters(1).body
        assert named.round(1)["metrics"] == {"loss": 1.0}


def test_every_media_type_and_encoding_of_steps(talk):
    shapes = {"w": [[0.0, 0.0]], "b": 0.0}
    bodies = {
        "octets": (np.float32([3, 1, 2]).tobytes(), OCTETS),  # b, then w: sorted by name
        "float16": (np.float16([3, 1, 2]).tobytes(), {**OCTETS, "Adamd-Dtype": "float16"}),
        "safetensors": (
            packed({"w": ("F32", [1, 2], np.float32([1, 2]).tobytes()), "b": ("F32", [], np.float32([3]).tobytes())}),
            SAFETENSORS,
        ),
        "sparse": (
            np.uint32([0, 1, 2]).tobytes() + np.float32([3, 1, 2]).tobytes(),
            {**OCTETS, "Adamd-Encoding": "sparse"},
        ),
        "json": (json.dumps({"delta": {"w": [[1, 2]], "b": 3}}).encode(), {"Content-Type": "application/json"}),
    }
    for name, (body, headers) in bodies.items():
        federation = opened(talk, shapes, quorum=1)
        talk("PUT", f"{federation.path}/rounds/1/contributions/a", body, headers).good(202)
        assert federation.parameters(1).array().tolist() == [3, 1, 2], name
    federation = opened(talk, shapes, quorum=1)
    federation.give("a", {"delta": {"b": 3}}).good(202)
    assert federation.parameters(1).array().tolist() == [3, 0, 0]


def test_what_comes_again_and_what_comes_late(talk):
    federation = opened(talk)
    federation.give("a", ONE).good(202)
    before = federation.unchanged()
    again = federation.give("a", ONE).good(200).json
    assert again == {"outcome": "duplicate", "round": 1, "received": 1, "wanted": 2, "step": 0}
    assert "first" in federation.give("a", TWO).problem(409, "contribution_conflict")["detail"]
    federation.give("a", ONE, Adamd_Kind="gradient").problem(409, "contribution_conflict")
    federation.give("a", ONE, Adamd_Num_Examples="2").problem(409, "contribution_conflict")
    ahead = federation.give("b", ONE, number=2).problem(409, "step_gap")
    assert ahead["step"] == 0
    assert federation.unchanged() == before
    federation.give("b", ONE).good(202)
    federation.parameters(1)
    for client, values, counted in (("a", ONE, True), ("a", TWO, True), ("c", ONE, False)):
        late = federation.give(client, values).problem(409, "round_closed")
        assert (late["round"], late["counted"], late["step"]) == (2, counted, 1), client


def test_a_cohort_is_drawn_and_others_are_refused(talk):
    federation = opened(talk, quorum=2, cohort=2, seed=7)
    names = [f"c{n}" for n in range(6)]
    for name in names:
        federation.task(name)
    asked = [name for name in names if federation.task(name).status == 200]
    assert len(asked) == 2
    other = next(name for name in names if name not in asked)
    before = federation.unchanged()
    assert federation.give(other, ONE).problem(403, "not_selected")["step"] == 0
    assert federation.unchanged() == before
    for name in asked:
        federation.give(name, ONE).good(202)
    federation.parameters(1)


def test_steps_and_rounds_do_not_mix(talk):
    federation, plain = opened(talk), talk.create([1.0])["id"]
    talk.put(federation.id, 1, ONE).problem(409, "rounds_only")
    posted = {**OCTETS, "Idempotency-Key": "k"}
    talk("POST", f"{federation.path}/steps", ONE.tobytes(), posted).problem(409, "rounds_only")
    without = Federation(talk, plain)
    without.give("a", np.float64([1.0])).problem(409, "no_rounds")
    without.evaluate("a", 1).problem(409, "no_rounds")
    for method, path in (("GET", "current"), ("GET", "1"), ("GET", ""), ("POST", "1/close"), ("POST", "1/cancel")):
        talk(method, f"{without.path}/rounds/{path}".rstrip("/")).problem(409, "no_rounds")
    missing = Federation(talk, "s_none")
    missing.give("a", ONE).problem(404, "unknown_session")
    missing.task().problem(404, "unknown_session")


def test_if_match_names_the_history(talk):
    federation = opened(talk)
    chain = federation.parameters().chain
    federation.give("a", ONE, If_Match='"' + "0" * 64 + '"').problem(412, "history_lost")
    federation.give("a", ONE, If_Match=chain).good(202)
    federation.give("b", ONE, If_Match="nonsense").problem(422, "invalid_request")


BAD = [
    (ONE.tobytes()[:-1], {}, 422, "wrong_length"),
    (b"", {}, 422, "wrong_length"),
    (np.float32([1, np.nan, 1]).tobytes(), {}, 422, "bad_gradient"),
    (np.float32([1, np.inf, 1]).tobytes(), {}, 422, "bad_gradient"),
    (np.ones(3).tobytes(), {"Adamd-Dtype": "float64"}, 422, "wrong_dtype"),
    (ONE.tobytes(), {"Adamd-Dtype": "int8"}, 422, "wrong_dtype"),
    (ONE.tobytes(), {"Adamd-Encoding": "gzip"}, 415, "unsupported_media_type"),
    (ONE.tobytes(), {"Adamd-Encoding": "sparse-lazy"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Kind": "weights"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Num-Examples": "0"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Num-Examples": "-1"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Num-Examples": "nan"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Num-Examples": "1e999"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Num-Examples": "many"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Metrics": "{"}, 422, "invalid_request"),
    (ONE.tobytes(), {"Adamd-Metrics": '{"loss": "low"}'}, 422, "invalid_request"),
    (ONE.tobytes(), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    (b'{"gradient": [1, 1, 1]}', {"Content-Type": "application/json"}, 422, "invalid_request"),
    (b'{"delta": [1, 1]}', {"Content-Type": "application/json"}, 422, "wrong_layout"),
    (b'{"delta": [1, 1, 1], "settings": {"lr": 2}}', {"Content-Type": "application/json"}, 422, "invalid_request"),
    (b'{"delta": [1, 1, ', {"Content-Type": "application/json"}, 400, "malformed_body"),
    (b"\0", SAFETENSORS, 400, "malformed_body"),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), BAD)
def test_a_bad_contribution_is_refused_and_changes_nothing(talk, body, headers, status, code):
    federation = opened(talk)
    before = federation.unchanged()
    talk("PUT", f"{federation.path}/rounds/1/contributions/a", body, {**OCTETS, **headers}).problem(status, code)
    assert federation.unchanged() == before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"parameters": [1.0, 2.0]}, "the body has 'parameters', and Adamd-Kind says delta"),
        ({"delta": [1.0, 2.0], "num_examples": 3}, "by the header Adamd-Num-Examples"),
        ({"delta": [1.0, 2.0], "loss": 3}, "'loss' is unknown here"),
    ],
)
def test_a_member_that_a_contribution_does_not_have_is_named(talk, body, said):
    federation = opened(talk)
    refused = talk("PUT", f"{federation.path}/rounds/1/contributions/a", body).problem(422, "invalid_request")
    assert said in refused["detail"]


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "x", "9007199254740993", "１"])
@pytest.mark.parametrize("call", ["GET {}", "PUT {}/contributions/a", "PUT {}/evaluations/a", "POST {}/close"])
def test_a_number_that_no_round_has(talk, call, number):
    federation = opened(talk)
    method, path = call.format(f"{federation.path}/rounds/{number}").split()
    quoted = path.encode("ascii", "backslashreplace").decode() if path.isascii() else path.replace("１", "%EF%BC%91")
    body = {"num_examples": 1, "metrics": {"a": 1}} if method == "PUT" else None
    assert talk(method, quoted, body).problem(422, "invalid_request")["path"] == "round"


@pytest.mark.parametrize("client", ["a b", "a" * 65, "%C3%A9", "a%2Fb", "a:b", "a%00"])
def test_a_name_that_no_client_has(talk, client):
    federation = opened(talk)
    before = federation.unchanged()
    told = client.replace(" ", "%20")
    if "%2F" in client:  # a path of its own
        federation.give(told, ONE).problem(404, "no_route")
    else:
        federation.give(told, ONE).problem(422, "invalid_request")
        federation.evaluate(told, 1).problem(422, "invalid_request")
    federation.task(told).problem(422, "invalid_request")
    assert federation.unchanged() == before


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("client=a&wait_s=61", "wait_s"),
        ("client=a&wait_s=-1", "wait_s"),
        ("client=a&wait_s=nan", "wait_s"),
        ("client=a&wait_s=soon", "wait_s"),
        ("wait_s=1", "wait_s"),
        ("client=", "client"),
        ("klient=a", "klient"),
        ("client=a&client=b", "client"),
    ],
)
def test_a_task_that_is_asked_for_wrongly(talk, query, path):
    federation = opened(talk)
    told = talk("GET", f"{federation.path}/rounds/current?{query}").problem(422, "invalid_request")
    assert told["path"] == path


BAD_ROUNDS = [
    ({}, "rounds.quorum"),
    ({"quorum": 0}, "rounds.quorum"),
    ({"quorum": 2, "min_contributions": 3}, "rounds.min_contributions"),
    ({"quorum": 3, "max_contributions": 2}, "rounds.max_contributions"),
    ({"quorum": 3, "cohort": 2}, "rounds.cohort"),
    ({"quorum": 2, "mode": "often"}, "rounds.mode"),
    ({"quorum": 2, "deadline_s": 0}, "rounds.deadline_s"),
    ({"quorum": 2, "kworum": 2}, "rounds.kworum"),
    ({"quorum": 2, "private": ["nobody"]}, "rounds.private[0]"),
    ({"quorum": 10_000, "aggregate": {"name": "krum", "byzantine": 1}}, "rounds.quorum"),
]


@pytest.mark.parametrize(("rounds", "path"), BAD_ROUNDS)
def test_settings_of_rounds_that_are_refused(talk, rounds, path):
    told = talk("POST", "/v1/sessions", {"parameters": [1.0], "rounds": rounds}).problem(422, "invalid_settings")
    assert told["path"] == path
    talk("POST", "/v1/sessions", {"parameters": [1.0], "rounds": 3}).problem(422, "invalid_request")


def test_the_session_document_shows_its_rounds(talk):
    federation = opened(talk, quorum=2, config={"epochs": 1}, seed=5)
    document = talk("GET", federation.path).good().json
    assert document["rounds"]["quorum"] == 2 and document["rounds"]["seed"] == 5
    assert document["round"] == {"round": 1, "received": 0, "wanted": 2}
    federation.give("a", ONE).good(202)
    assert talk("GET", federation.path).good().json["round"]["received"] == 1
    changed = talk("PATCH", federation.path, {"rounds": {"config": {"epochs": 2}}}).good().json
    assert changed["rounds"]["config"] == {"epochs": 2}
    assert federation.task("b").good().json["config"] == {"epochs": 1}  # of the round that is open
    federation.give("b", ONE).good(202)
    assert federation.task("b", wait_s=20).good().json["config"] == {"epochs": 2}
    talk("PATCH", federation.path, {"rounds": {"quorum": 3}}).problem(422, "invalid_settings")
    plain = talk.create([1.0])
    assert plain["rounds"] is None and "round" not in talk("GET", f"/v1/sessions/{plain['id']}").good().json
    talk("PATCH", f"/v1/sessions/{plain['id']}", {"rounds": {"config": {}}}).problem(409, "no_rounds")


def test_the_owner_closes_and_cancels(talk):
    federation = opened(talk, quorum=3)
    close, cancel = (f"{federation.path}/rounds/1/{word}" for word in ("close", "cancel"))
    talk("POST", close).problem(409, "too_few_contributions")
    federation.give("a", ONE).good(202)
    again = talk("POST", cancel).good().json
    assert (again["round"], again["state"], again["received"], again["contributions"]) == (1, "open", 0, [])
    assert np.array_equal(federation.parameters().array(), ZERO)
    federation.give("a", TWO).good(202)  # it is asked anew
    told = talk("POST", close).good().json
    assert (told["round"], told["state"], told["closed_by"], told["step"]) == (1, "closed", "hand", 1)
    assert np.array_equal(federation.parameters().array(), TWO)
    assert talk("POST", close).good().json == told  # once more
    talk("POST", cancel).problem(409, "round_closed")
    for word in ("close", "cancel"):
        talk("POST", f"{federation.path}/rounds/3/{word}").problem(409, "step_gap")


def test_a_deadline_closes_a_round_or_makes_it_overdue(talk):
    federation = opened(talk, quorum=3, min_contributions=1, deadline_s=0.2)
    federation.give("a", ONE).good(202)
    federation.parameters(1)
    assert federation.round(1)["closed_by"] == "deadline"
    few = opened(talk, quorum=3, min_contributions=2, deadline_s=0.05)
    few.give("a", ONE).good(202)
    while few.round(1)["state"] != "overdue":
        pass
    few.give("b", ONE).good(202)  # nobody's work is thrown away
    few.parameters(1)
    assert few.round(1)["closed_by"] == "deadline"


def test_rounds_are_listed_by_pages_and_as_csv(talk):
    federation = opened(talk, quorum=1)
    for number in (1, 2, 3):
        metrics = json.dumps({"loss": 1 / number} if number < 3 else {"accuracy": 0.5, "odd, name": 2})
        federation.give(f"c{number}", ONE, number, Adamd_Metrics=metrics, Adamd_Num_Examples=str(number)).good(202)
        federation.parameters(number)
    listed = talk("GET", f"{federation.path}/rounds").good().json
    assert [one["round"] for one in listed["rounds"]] == [1, 2, 3, 4] and listed["next_page_token"] is None
    assert listed["rounds"][1] == federation.round(2)
    first = talk("GET", f"{federation.path}/rounds?page_size=2").good().json
    assert [one["round"] for one in first["rounds"]] == [1, 2]
    rest = talk("GET", f"{federation.path}/rounds?page_size=2&page_token={first['next_page_token']}").good().json
    assert [one["round"] for one in rest["rounds"]] == [3, 4] and rest["next_page_token"] is None
    assert talk("GET", f"{federation.path}/rounds?from=3&page_size=2").good().json == rest
    asked = {"Accept": "text/csv"}
    answer = talk("GET", f"{federation.path}/rounds", headers=asked).good()
    assert answer.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [(row["round"], row["client"], row["num_examples"], row["counted"]) for row in rows] == [
        ("1", "c1", "1.0", "true"),
        ("2", "c2", "2.0", "true"),
        ("3", "c3", "3.0", "true"),
    ]
    assert [(row["metrics.loss"], row["metrics.odd, name"]) for row in rows] == [("1.0", ""), ("0.5", ""), ("", "2")]
    one = talk("GET", f"{federation.path}/rounds?page_size=1", headers=asked).good()
    assert one.headers["Link"] == '<?from=2&page_size=1>; rel="next"'
    assert len(talk("GET", f"{federation.path}/rounds/2", headers=asked).good().body.splitlines()) == 2
    talk("GET", f"{federation.path}/rounds", headers={"Accept": "text/plain"}).problem(406, "not_acceptable")


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("from=0", "from"),
        ("from=x", "from"),
        ("page_size=0", "page_size"),
        ("page_size=1001", "page_size"),
        ("page_token=abc", "page_token"),
        ("from=1&page_token=2", "page_token"),
        ("to=3", "to"),
    ],
)
def test_a_page_of_rounds_that_there_cannot_be(talk, query, path):
    federation = opened(talk)
    told = talk("GET", f"{federation.path}/rounds?{query}").problem(422, "invalid_request")
    assert told["path"] == path


def test_a_round_that_is_not_there(talk):
    federation = opened(talk)
    talk("GET", f"{federation.path}/rounds/2").problem(404, "unknown_round")


def test_evaluations_are_asked_for_and_averaged(talk):
    federation = opened(talk, quorum=1, evaluate=1)
    federation.task("a")
    federation.give("a", ONE).good(202)
    federation.parameters(1)
    task = federation.task("a", wait_s=20).good().json
    assert (task["kind"], task["round"], task["base_step"]) == ("evaluate", 2, 1)
    first = federation.evaluate("a", 2, accuracy=0.75).good(202).json
    assert first["outcome"] == "accepted" and first["step"] == 1
    assert federation.evaluate("a", 2, accuracy=0.75).good(200).json["outcome"] == "duplicate"
    assert federation.task("a").good().json["kind"] == "train"
    told = federation.round(2)["evaluation"]
    assert told == {"num_examples": 10, "clients": 1, "metrics": {"accuracy": 0.75}}
    path = f"{federation.path}/rounds/2/evaluations/b"
    for bad in ({}, {"num_examples": 1}, {"num_examples": 0, "metrics": {"a": 1}}, {"num_examples": 1, "metrics": {}}):
        talk("PUT", path, bad).problem(422, "invalid_request")
    talk("PUT", path, {"num_examples": True, "metrics": {"a": 1}}).problem(422, "invalid_request")
    talk("PUT", path, {"num_examples": 1, "metrics": {"a": "b"}}).problem(422, "invalid_request")
    talk("PUT", path, b"{", {"Content-Type": "application/json"}).problem(400, "malformed_body")
    talk("PUT", path, b"x", OCTETS).problem(415, "unsupported_media_type")


def test_the_last_round_says_stop(talk):
    federation = opened(talk, quorum=1, total=1)
    federation.give("a", ONE).good(202)
    federation.parameters(1)
    assert federation.task("a", wait_s=20).good().json["kind"] == "stop"
    assert federation.give("a", ONE, 2).problem(409, "round_closed")["counted"] is False


def test_a_buffered_session_takes_contributions_of_earlier_rounds(talk):
    federation = opened(talk, quorum=1, mode="buffered", max_staleness=1)
    federation.give("a", ONE).good(202)
    federation.parameters(1)
    federation.give("b", ONE).good(202)
    federation.parameters(2)
    assert federation.round(2)["contributions"][0]["staleness"] == 1
    federation.give("c", ONE).problem(409, "round_closed")


def test_private_tensors_stay_with_their_client(talk):
    federation = opened(talk, {"head": 0.0, "w": [0.0, 0.0]}, quorum=1, private=["head"])
    assert federation.task("a").good().json["private"] == ["head"]
    federation.give("a", {"delta": {"head": 1.0, "w": [1, 1]}}).problem(422, "wrong_layout")
    federation.give("a", {"delta": {"w": [1, 1]}}).good(202)
    told = talk("GET", f"{federation.path}/parameters?min_step=1&wait_s=30").good().json
    assert told["parameters"] == {"head": 0, "w": [1, 1]}, "the owner's first value: no client's ever comes here"


def test_large_contributions_go_past_the_store(talk):
    size = 300_000
    session = talk.vector(size, optimizer={"name": "sgd", "lr": 1}, rounds={"quorum": 2})
    federation = Federation(talk, session)
    start = federation.parameters().array()
    for client, value in (("a", 1), ("b", 3)):
        federation.give(client, np.full(size, value, "<f4")).good(202)
        other = federation.give(client, np.full(size, 9, "<f4")).status
        assert other == 409
    assert np.array_equal(federation.parameters(1).array(), start + np.float32(2))


def test_a_session_with_rounds_is_exported_and_restored(talk):
    federation = opened(talk, quorum=1)
    federation.give("a", ONE).good(202)
    federation.parameters(1)
    state = talk("GET", f"{federation.path}/state").good().body
    restored = Federation(talk, talk("POST", "/v1/sessions", state, SAFETENSORS).good(201).json["id"])
    assert restored.task("a").good().json["round"] == 2
    restored.give("a", ONE, 2).good(202)
    assert np.array_equal(restored.parameters(2).array(), TWO)


def test_a_method_that_a_path_does_not_have(talk):
    federation = opened(talk)
    for method, path, allowed in (
        ("POST", "rounds/current", "GET, HEAD"),
        ("GET", "rounds/1/close", "POST"),
        ("GET", "rounds/1/contributions/a", "PUT"),
        ("PUT", "events", "GET, HEAD"),
    ):
        reply = talk(method, f"{federation.path}/{path}")
        reply.problem(405, "method_not_allowed")
        assert set(allowed.split(", ")) <= set(reply.headers["Allow"].split(", "))


def test_a_contribution_is_read_by_whoever_reads_the_session(server, talk):
    other = Talk(server)
    federation = opened(talk)
    Federation(other, federation.id).give("a", ONE).good(202)
    assert federation.task("b").good().json["received"] == 1
    other.close()


def test_rounds_are_counted(tmp_path):
    with watched(tmp_path / "one") as own:
        talk = Talk(own)
        federation = opened(talk, quorum=2)
        federation.give("a", ONE).good(202)
        federation.give("a", ONE).good(200)
        federation.give("a", TWO).problem(409, "contribution_conflict")
        federation.give("b", ONE).good(202)
        federation.parameters(1)
        while "adamd_rounds_closed_total{" not in (text := talk("GET", "/metrics").good().body.decode()):
            pass
        lines = text.splitlines()
        for outcome, count in (("accepted", 2), ("duplicate", 1), ("contribution_conflict", 1)):
            assert f'adamd_contributions_total{{outcome="{outcome}"}} {count}.0' in lines
        assert 'adamd_rounds_closed_total{by="quorum"} 1.0' in lines
        assert "adamd_aggregation_seconds_count 1.0" in lines
        assert any(line.startswith("adamd_aggregation_seconds_sum ") for line in lines)
        failing = opened(talk, quorum=2, optimizer={"name": "sgd", "gradient_scale": 1e30})
        failing.give("a", 1e3 * ONE).good(202)
        talk("POST", f"{failing.path}/rounds/1/close").problem(422, "bad_gradient")
        assert 'adamd_rounds_failed_total{code="bad_gradient"} 1.0' in talk("GET", "/metrics").good().body.decode()
        talk.close()
