"""docs/protocol.md says what the program does: its vectors are played, and its tables compared."""

import copy
import json
import math
import re
import struct
import urllib.request
from pathlib import Path

import playing
import pytest

from adamd import errors
from adamd.wire import channel, headers, layout
from adamd.wire.encodings import ENCODINGS
from adamd_service.aggregation.settings import FIELDS
from adamd_service.codecs import checks, documents
from adamd_service.grpc.status import status_of
from adamd_service.optim.family import FAMILY
from adamd_service.optim.settings import BESIDE, KINDS, SESSION
from adamd_service.rounds.settings import RoundsModel
from servers import ended

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text()
NAMES = sorted(path.stem for path in playing.VECTORS.glob("*.json"))


def section(title):
    found = re.search(rf"^## \d+\. {re.escape(title)}.*?$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text):
    """The cells of every table's row, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


# -- the vectors


@pytest.mark.parametrize("name", [name for name in NAMES if name != "grpc"])
def test_every_request_gets_these_very_bytes(server, name):
    exchanges = playing.read(name)["exchanges"]
    assert len(exchanges) > 4
    playing.play(server.url, exchanges)


def test_every_grpc_message_gets_these_very_bytes(server):
    for one in playing.read("grpc")["calls"]:
        assert playing.call(server.grpc_url, one) == one["answer"], one["says"]


def test_the_snippet_of_rounds_runs(server, tmp_path):
    (snippet,) = re.findall(r"^```bash\n(.*?)^```", section("Rounds"), re.MULTILINE | re.DOTALL)
    snippet = snippet.replace("http://127.0.0.1:8000", server.url)
    run = ended(["bash", "-euo", "pipefail", "-c", snippet], cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    task, end = json.JSONDecoder().raw_decode(run.stdout)
    first, _ = json.JSONDecoder().raw_decode(run.stdout[end:].lstrip())
    assert (task["kind"], task["round"], first["outcome"]) == ("train", 1, "accepted")
    assert '{"step": 1, "parameters": [2.0, 2.0]}' in run.stdout
    assert "\n1,closed,quorum," in run.stdout


def test_the_settings_of_rounds_stand_there():
    text = section("Rounds").partition("**Settings**")[2].partition("**A round**")[0]
    assert {name for cells in rows(text)[1:] for name in named(cells[0])} == {*RoundsModel.model_fields, *FIELDS}


@pytest.mark.parametrize("what", ["a bit of a body", "a status", "a header", "a member"])
def test_an_answer_that_is_another_one_is_seen(server, what):
    exchanges = copy.deepcopy(playing.read("steps")["exchanges"])
    ended, answer = exchanges[-3], exchanges[1]["answer"]
    if what == "a bit of a body":
        answer["hex"] = f"{int(answer['hex'], 16) ^ 1:024x}"
    elif what == "a status":
        answer["status"] = 201
    elif what == "a header":
        del answer["headers"]["Adamd-Dtype"]
    else:
        exchanges[4]["answer"]["json"]["code"] = "step_gap"
    with pytest.raises(AssertionError):
        playing.play(server.url, exchanges)
    playing.play(server.url, [ended])


def test_the_equation_predicts_the_vector_bit_for_bit():
    """Section 8 in Python's floats, which are float64; nothing of adamd's own arithmetic."""
    b1, b2, eps, lr = 0.9, 0.999, 1e-8, 0.05
    state = [[p, 0.0, 0.0] for p in (-1.2, 1.0)]
    steps = [one for one in playing.read("rosenbrock")["exchanges"] if one["says"].startswith("step")]
    assert len(steps) == 5
    for t, one in enumerate(steps, 1):
        x, y = (row[0] for row in state)
        slope = y - x * x
        gradient = ((-2 * (1 - x)) - ((400 * x) * slope), 200 * slope)
        assert struct.pack("<2d", *gradient).hex() == one["request"]["hex"]
        for row, g in zip(state, gradient, strict=True):
            p, m, v = row
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (g * g)
            d = math.sqrt(v) / math.sqrt(1 - b2**t) + eps
            row[:] = p - (lr / (1 - b1**t)) * (m / d), m, v
        assert struct.pack("<2d", *(row[0] for row in state)).hex() == one["answer"]["hex"]


# -- the tables


def test_every_code_stands_there_with_its_statuses():
    there = {}
    for cells in rows(section("Errors"))[1:]:
        http, grpc = re.findall(r"\d+", cells[1]), cells[2]
        for code, status in zip(named(cells[0]), http * len(named(cells[0])) if len(http) == 1 else http, strict=True):
            there[code] = int(status), grpc, cells[3]
    own = {"no_route", "method_not_allowed", "malformed_request", "head_too_large"}  # what only HTTP's server has
    codes = {code: kind for code, kind in errors.CODES.items() if kind.status and code not in own}
    assert set(there) == set(codes) | own
    repeated = (errors.Unavailable, errors.UploadTimeout, errors.SettingsConflict)
    for code, kind in codes.items():
        status, grpc, again = there[code]
        assert status == kind.status, code
        assert grpc in (status_of(kind("x")).name, ""), code
        assert again == ("yes" if issubclass(kind, repeated) else "no"), code


def test_every_call_and_header_stands_there(server):
    with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
        document = json.load(answer)
    calls = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    text = section("HTTP: the calls")
    told = {re.sub(r"\?.*", "", call) for cells in rows(text) for call in named(cells[0])}
    wanted = {re.sub(r"\{number\}", "{n}", call) for call in calls}
    assert {call for call in wanted if "/v1/sessions" in call} == {call for call in told if "/v1/sessions" in call}
    names = {name.partition(":")[0] for cells in rows(text) for name in named(cells[0])}
    assert {*headers.ASKED, *headers.TOLD, "ETag", "If-Match", "Prefer", headers.IDEMPOTENCY} <= names
    every = {item["name"] for methods in document["paths"].values() for call in methods.values()
             for item in call.get("parameters", []) if item["in"] == "header"}  # fmt: skip
    assert every <= names


def test_every_encoding_and_setting_stands_there():
    told = re.findall(r"^\*\*`([a-z0-9-]+)`\*\*:", section("Encodings of a gradient"), re.MULTILINE)
    assert tuple(told) == ENCODINGS
    settings = {name for cells in rows(section("Settings")) for name in named(cells[0])}
    assert settings == {"name", "groups", *KINDS, *BESIDE}
    groups = next(cells[2] for cells in rows(section("Settings")) if cells[0] == "`groups`")
    assert all(f"`{name}`" in groups for name in SESSION - {"groups"})
    names = next(cells[2] for cells in rows(section("Settings")) if cells[0] == "`name`")
    assert named(names) == [f'"{name}"' for name in FAMILY]


def test_the_limits_are_the_programs(server):
    with urllib.request.urlopen(f"{server.url}/v1/info") as answer:
        told = json.load(answer)
    text = section("Limits") + section("gRPC")
    for group, name in re.findall(r"`(limits|grpc)\.(\w+)`", text):
        assert name in told[group], name
    assert {name for _, name in re.findall(r"`(limits|grpc)\.(\w+)`", text)} == {*told["limits"], *told["grpc"]}
    for number in (
        layout.MAX_TENSORS,
        documents.MAX_JSON // 2**20,
        checks.MAX_PARTS,
        checks.MAX_METRICS,
        layout.MAX_RANK,
    ):
        assert f"{number:,}" in text, number
    assert (channel.UNARY, channel.MAX_MESSAGE - channel.UNARY) == (4 * 2**20, 256 * 2**10)
    assert (channel.LEAST_PIECE, channel.FREE_PIECES, channel.LEAST_PING) == (4096, 64, 20)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    anchors = {
        re.sub(r"[^\w\- ]", "", line[3:].lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("## ")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) == anchors
