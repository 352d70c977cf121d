"""The OpenAPI document tells the truth: schemathesis writes requests from it, right and wrong, and reads the answers.

Checked: no 5xx; every status, media type, header and body that comes is in the document; what the document forbids is
refused; a deleted session is gone; chains of calls (create, step, read, delete) too. Not checked: that all that the
document allows is accepted, for a schema cannot say that a gradient has the shape of its parameters.
"""

import re
import sys
from pathlib import Path

import jsonschema_rs
import pytest
from talking import Talk, watched

from adamd.wire.setting_aliases import ALIASES, TAKEN_BY
from adamd_service.aggregation.settings import FIELDS
from adamd_service.rounds.settings import RoundsModel
from servers import ended

REFUSALS = ["400", "403", "404", "405", "406", "409", "410", "412", "413", "415", "422"]
OPERATIONS = {
    *("GET /livez", "GET /readyz", "GET /v1/info", "POST /v1/sessions", "GET /v1/sessions"),
    *("GET /v1/sessions/{session}", "PATCH /v1/sessions/{session}", "DELETE /v1/sessions/{session}"),
    *("GET /v1/sessions/{session}/parameters", "PUT /v1/sessions/{session}/parameters"),
    *("GET /v1/sessions/{session}/state", "PUT /v1/sessions/{session}/steps/{number}"),
    "POST /v1/sessions/{session}/steps",
    *("GET /v1/sessions/{session}/events", "GET /v1/sessions/{session}/rounds"),
    *("GET /v1/sessions/{session}/rounds/current", "GET /v1/sessions/{session}/rounds/{round}"),
    "PUT /v1/sessions/{session}/rounds/{round}/contributions/{client}",
    "PUT /v1/sessions/{session}/rounds/{round}/evaluations/{client}",
    *(f"POST /v1/sessions/{{session}}/rounds/{{round}}/{word}" for word in ("close", "cancel")),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A server of its own: thousands of strange sessions are not for others."""
    with watched(tmp_path_factory.mktemp("told")) as one:
        yield one


def schemathesis(told, where, examples):
    talk = Talk(told)
    talk.create([1.0, 2.0])
    talk.close()
    quick = '[parameters]\n"query.wait_s" = 0\n'  # it would wait for steps that never come, a minute each
    (where / "schemathesis.toml").write_text(
        f"{quick}[checks.negative_data_rejection]\nexpected-statuses = {REFUSALS}\n"
    )
    command = [
        Path(sys.executable).parent / "st",
        "--config-file",
        "schemathesis.toml",
        "run",
        f"{told.url}/openapi.json",
    ]
    command += ["--exclude-path", "/v1/sessions/{session}/events"]  # an answer without an end
    command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--seed", "1", "-n", str(examples)]
    run = ended(command, cwd=where, within=400)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    return int(re.search(r"(\d+) generated", run.stdout)[1])


@pytest.mark.slow
@pytest.mark.timeout(450)  # a creation alone has 1400 cases, which a busy machine takes minutes for
def test_every_operation_answers_as_the_document_says(told, tmp_path):
    assert schemathesis(told, tmp_path, 40) > 4000


def test_the_page_of_calls_needs_no_other_machine(told):
    talk = Talk(told)
    page = talk("GET", "/docs").good()
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
    text = page.body.decode()
    assert "//" not in text and "<script>" not in text  # no foreign address, and nothing inline
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(named) == 4
    for name in named:
        if not name.startswith("data:"):
            file = talk("GET", f"/{name}").good()
            assert file.headers["Content-Type"].startswith("text/css" if name.endswith("css") else "text/javascript")
    start = talk("GET", "/docs/start.js").good().body.decode()
    assert talk("GET", f"/{re.search('url: .([a-z.]+)', start)[1]}").good().json["paths"]
    assert "validatorUrl: null" in start and b"SwaggerUIBundle" in talk("GET", "/docs/swagger-ui-bundle.js").body
    talk.close()


def test_every_setting_of_every_optimizer_is_in_the_document_with_its_kind_and_its_default(told):
    talk = Talk(told)
    paths = talk("GET", "/openapi.json").good().json["paths"]
    had = talk("GET", "/v1/info").good().json["settings"]
    bodies = [
        paths["/v1/sessions"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"][
            "optimizer"
        ],
        paths["/v1/sessions/{session}"]["patch"]["requestBody"]["content"]["application/json"]["schema"]["properties"][
            "optimizer"
        ],
    ]
    for schema in bodies:
        known = schema["properties"]
        assert known["name"]["enum"] == list(had) and not schema["additionalProperties"]
        assert known.keys() == {"name", "groups", *ALIASES} | {name for settings in had.values() for name in settings}
        for name, told_ in known.items():
            assert {"type", "anyOf"} & told_.keys() and told_["description"]
            if name in ALIASES:
                assert f"another name of {ALIASES[name].setting}" in told_["description"]
            elif name != "groups":
                assert "default " in told_["description"]
        assert (
            "0.001 (adam, adamw" in known["lr"]["description"]
            and "0.01 (adamw)" in known["weight_decay"]["description"]
        )
        inner = known["groups"]["items"]["properties"]
        assert {"weight_decay", *ALIASES} <= inner.keys() and not {"amsgrad", "schedule", "name", "form"} & inner.keys()
    # each default is of its own kind, and what the schema knows is what the server takes
    for optimizer, settings in had.items():
        given = {name: value for name, value in settings.items() if value is not None}
        jsonschema_rs.validate(bodies[0], {"name": optimizer, **given})
        talk("POST", "/v1/sessions", {"parameters": [1.0], "optimizer": {"name": optimizer, **given}}).good(201)
    for optimizer in had:
        for alias in ALIASES:
            for value, within in ((0, True), (-0.5, False)):
                settings = {"name": optimizer, alias: value}
                taken = talk("POST", "/v1/sessions", {"parameters": [1.0], "optimizer": settings}).status == 201
                assert taken == (within and optimizer in TAKEN_BY)
                assert jsonschema_rs.is_valid(bodies[0], settings) == within
    talk.close()


def test_the_document_is_complete(told):
    talk = Talk(told)
    paths = talk("GET", "/openapi.json").good().json["paths"]
    talk.close()
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == OPERATIONS
    for path, methods in paths.items():
        for method, call in methods.items():
            assert call["summary"] and call["description"], (method, path)
            if path.startswith("/v1/sessions"):
                assert list(call["responses"]["4XX"]["content"]) == ["application/problem+json"]
                assert "503" in call["responses"]
                good = next(item for status, item in call["responses"].items() if status.startswith("2"))
                assert (
                    "ETag" in good.get("headers", {})
                    or "/rounds/{round}" in path
                    or (method, path)
                    in [
                        ("delete", "/v1/sessions/{session}"),
                        ("get", "/v1/sessions"),
                        ("get", "/v1/sessions/{session}/rounds"),
                        ("get", "/v1/sessions/{session}/events"),
                    ]
                )
    step = paths["/v1/sessions/{session}/steps/{number}"]["put"]
    assert set(step["requestBody"]["content"]) == {
        "application/json",
        "application/octet-stream",
        "application/vnd.safetensors",
    }
    assert {p["name"] for p in step["parameters"]} >= {
        "If-Match",
        "Adamd-Dtype",
        "Adamd-Settings",
        "Adamd-Metrics",
        "Prefer",
    }
    assert next(p for p in step["parameters"] if p["name"] == "number")["schema"]["type"] == "integer"


def test_a_creation_has_parameters_or_a_layout_and_the_document_says_so(told):
    talk = Talk(told)
    paths = talk("GET", "/openapi.json").good().json["paths"]
    schema = paths["/v1/sessions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    order = [{"name": "a", "shape": [1]}]
    documents = [
        {"parameters": [1.0]},
        {"layout": order, "dtype": "float32"},
        {"parameters": {"a": [1]}, "layout": order},
    ]
    documents += [{}, {"dtype": "float32"}, {"layout": order}, {"layout": None, "dtype": "float32"}, {"name": "a"}]
    for document in documents:
        taken = talk("POST", "/v1/sessions", document).status == 201
        assert taken == jsonschema_rs.is_valid(schema, document), document
    talk.close()


def test_every_setting_of_rounds_is_in_the_document(told):
    talk = Talk(told)
    paths = talk("GET", "/openapi.json").good().json["paths"]
    schema = paths["/v1/sessions"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    rounds = schema["rounds"]
    assert rounds["properties"].keys() == {*RoundsModel.model_fields, *FIELDS}
    bad = ({"mode": "often"}, {"cohort": -1}, {"deadline_s": 0}, {"norm_filter": 1}, {"averaged": "w"}, {"kworum": 2})
    for more, good in [
        ({}, True),
        ({"deadline_s": 3, "cohort": 2, "seed": None}, True),
        *((one, False) for one in bad),
    ]:
        document = {"quorum": 2, **more}
        taken = talk("POST", "/v1/sessions", {"parameters": [1.0], "rounds": document}).status == 201
        assert taken == jsonschema_rs.is_valid(rounds, document) == good, document
    talk.close()


def test_the_form_of_if_match_is_in_the_document(told):
    talk = Talk(told)
    paths = talk("GET", "/openapi.json").good().json["paths"]
    made = talk.create([1.0])["id"]
    for method, path in (
        ("put", "/v1/sessions/{session}/steps/{number}"),
        ("post", "/v1/sessions/{session}/steps"),
        ("patch", "/v1/sessions/{session}"),
        ("delete", "/v1/sessions/{session}"),
    ):
        (header,) = [one for one in paths[path][method]["parameters"] if one["name"] == "If-Match"]
        for tag in ('"nonsense"', 'W/"a"', '"a", W/"b"', "nonsense", '"', "", '"a" "b"'):
            body = {"patch": {"labels": {}}, "delete": None}.get(method, {"gradient": [1]})
            given = {"If-Match": tag, "Idempotency-Key": "k"}
            status = talk(method.upper(), path.format(session=made, number=1), body, given).status
            assert status == (412 if jsonschema_rs.is_valid(header["schema"], tag) else 422), (method, tag)
    talk.close()
