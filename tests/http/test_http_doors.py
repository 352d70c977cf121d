"""Host and Origin checks: a web page may do nothing to a server that was not told to trust it."""

import os

import numpy as np
import pytest
from talking import Talk, watched

from adamd.wire import headers as names
from servers import Server

PAGE, FOREIGN = "http://localhost:3000", "http://evil.example"
HELD = "access-control-allow-origin"


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A server as it starts by default."""
    with watched(tmp_path_factory.mktemp("strict")) as one:
        yield one


@pytest.fixture(scope="module")
def open_to_a_page(tmp_path_factory):
    """A server that two pages may call: one named by an option, one by the environment."""
    where = tmp_path_factory.mktemp("open")
    env = {"ADAMD_ALLOWED_HOST": "adamd.internal, adamd.lan"}
    with watched(where, "--cors-origin", PAGE, "--cors-origin", "https://App.example:443", env=env) as one:
        yield one


@pytest.fixture
def knock(strict):
    """Ask the strict server; sees to it that nothing has changed behind a refusal."""
    talk = Talk(strict)
    yield talk
    talk.close()


def sessions(talk):
    return talk("GET", "/v1/sessions").good().json["sessions"]


def asking(host=None, *lines, path="/v1/sessions", version="1.1"):
    head = [f"GET {path} HTTP/{version}", *([] if host is None else [f"Host: {host}"]), *lines, "Connection: close"]
    return "\r\n".join([*head, "", ""]).encode()


# -- Host


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_loopback_answers_to_its_own_names_at_any_port(knock, host):
    knock.raw(asking(host), finish=False).good()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil:127.0.0.1"]
    + ["192.168.1.7", "0.0.0.0", "[::2]", "::1", "localhost:80:80", "localhost:http", "a@localhost", "", None],
)
def test_a_name_of_somebody_else_is_refused_whatever_it_asks(knock, host):
    knock.raw(asking(host), finish=False).problem(421, "host_not_allowed")
    before = sessions(knock)
    body = b'{"parameters": [1.0]}'
    head = asking(host, f"Content-Length: {len(body)}", "Content-Type: application/json").replace(b"GET", b"POST", 1)
    knock.raw(head + body, finish=False).problem(421, "host_not_allowed")
    assert sessions(knock) == before


def test_two_names_are_refused_and_none_is_right_for_the_protocol_that_has_none(knock):
    knock.raw(asking("localhost", "Host: evil.example"), finish=False).problem(421, "host_not_allowed")
    knock.raw(asking(path="/livez", version="1.0"), finish=False).good()


def test_further_names_are_allowed_by_name(open_to_a_page):
    talk = Talk(open_to_a_page)
    for host in ("adamd.internal", "Adamd.LAN:8000", "localhost"):
        talk.raw(asking(host), finish=False).good()
    talk.raw(asking("adamd.internet"), finish=False).problem(421, "host_not_allowed")
    talk.close()


@pytest.mark.parametrize(("options", "status"), [((), 200), (("--allowed-host", "adamd.lan"), 421)])
def test_elsewhere_only_a_server_that_was_told_its_names_checks_them(tmp_path, options, status):
    with watched(tmp_path, "--host", "0.0.0.0", *options) as one:
        one.url = one.url.replace("0.0.0.0", "127.0.0.1")
        assert Talk(one).raw(asking("its.name.in.the.net"), finish=False).status == status


# -- pages that nobody allowed


SIMPLE = [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]


@pytest.mark.parametrize("origin", [FOREIGN, "null", PAGE, "http://127.0.0.1:1", "https://localhost.evil.example"])
@pytest.mark.parametrize("kind", SIMPLE)
def test_a_foreign_page_makes_nothing_without_asking_first(knock, origin, kind):
    """These are the requests that a browser sends without a preflight."""
    before = sessions(knock)
    page = {"Origin": origin} | ({} if kind is None else {"Content-Type": kind})
    session = knock.create([1.0, 2.0])["id"] if kind is None else None
    for path in ("/v1/sessions", f"/v1/sessions/{session}/steps"):
        reply = knock("POST", path, b'{"parameters": [1.0], "gradient": [1.0, 1.0]}', page)
        assert reply.problem(403, "origin_not_allowed")["detail"].count("--cors-origin") == 1
        assert HELD not in reply.headers
    after = sessions(knock)
    assert [one["id"] for one in after] == [one["id"] for one in before] + [session] * (session is not None)
    assert all(one["step"] == 0 for one in after)


def test_nor_reads_anything_nor_gets_a_permission(knock):
    session = knock.create([1.0, 2.0])["id"]
    for method, path in [("GET", "/v1/info"), ("GET", f"/v1/sessions/{session}/state"), ("DELETE", "/v1/sessions/x")]:
        knock(method, path, headers={"Origin": FOREIGN}).problem(403, "origin_not_allowed")
    asked = {"Origin": FOREIGN, "Access-Control-Request-Method": "PUT"}
    assert HELD not in knock("OPTIONS", f"/v1/sessions/{session}/steps/1", headers=asked).headers
    two = asking("localhost", f"Origin: {PAGE}", f"Origin: {FOREIGN}")
    knock.raw(two, finish=False).problem(403, "origin_not_allowed")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_an_image_of_a_foreign_page_loads_no_state_but_a_person_may_follow_a_link(knock, site):
    session = knock.create([1.0, 2.0])["id"]
    path = f"/v1/sessions/{session}/state"
    page = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    knock("GET", path, headers=page).problem(403, "origin_not_allowed")
    knock("GET", path, headers={**page, "Sec-Fetch-Mode": "navigate"}).good()
    knock("GET", path, headers={"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}).good()


def test_the_servers_own_page_may_call_it(knock):
    host = f"{knock.address[0]}:{knock.address[1]}"
    page = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    knock("POST", "/v1/sessions", {"parameters": [1.0]}, page).good(201)


def test_a_refused_page_is_answered_before_its_body_comes(knock):
    head = asking("localhost", f"Origin: {FOREIGN}", "Content-Length: 40000000", "Expect: 100-continue")
    knock.raw(head.replace(b"GET", b"POST", 1), finish=False).problem(403, "origin_not_allowed")


# -- pages that somebody allowed


@pytest.mark.parametrize("origin", [PAGE, "https://app.example"])
def test_an_allowed_page_gets_its_permission_and_every_header(open_to_a_page, origin):
    talk = Talk(open_to_a_page)
    listed = ", ".join(("Content-Type", "If-Match", "Prefer", names.IDEMPOTENCY, *names.ASKED)).lower()
    asked = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": listed}
    permission = talk("OPTIONS", "/v1/sessions/x/steps/1", headers=asked).good().headers
    assert permission[HELD] == origin and "Origin" in permission["Vary"]
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= set(permission["access-control-allow-methods"].split(", "))

    made = talk("POST", "/v1/sessions", {"parameters": [1.0, 2.0]}, {"Origin": origin}).good(201)
    stepped = talk("PUT", made.headers["Location"] + "/steps/1", {"gradient": [1, 1]}, {"Origin": origin}).good()
    refused = talk("PUT", made.headers["Location"] + "/steps/7", {"gradient": [1, 1]}, {"Origin": origin})
    refused.problem(409, "step_gap")
    for reply in (made, stepped, refused):  # a page has to read refusals too
        assert reply.headers[HELD] == origin
        assert "access-control-allow-credentials" not in reply.headers
        exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
        assert {"etag", "location", "retry-after"} <= set(exposed)
        assert {name.lower() for name in reply.headers if name.lower().startswith("adamd-")} <= set(exposed)
    talk("GET", "/v1/info", headers={"Origin": FOREIGN}).problem(403, "origin_not_allowed")
    talk.close()


def test_the_lists_of_headers_are_those_of_the_document(open_to_a_page):
    talk = Talk(open_to_a_page)
    paths = talk("GET", "/openapi.json").good().json["paths"]
    talk.close()
    calls = [call for methods in paths.values() for call in methods.values()]
    told = {name for call in calls for answer in call["responses"].values() for name in answer.get("headers", {})}
    asked = {item["name"] for call in calls for item in call.get("parameters", []) if item["in"] == "header"}
    assert {name for name in told if name.startswith("Adamd-")} <= set(names.TOLD)
    assert {name for name in asked if name.startswith("Adamd-")} == set(names.ASKED)


SPY = """
import adamd_service.http.server.direct_bodies as direct
begin = direct.Rest._begin
def told(self):
    print("straight from the socket:", self._view.nbytes, flush=True)
    begin(self)
direct.Rest._begin = told
"""


@pytest.mark.parametrize("page", [{}, pytest.param({"Origin": PAGE}, marks=pytest.mark.slow)], ids=["program", "page"])
def test_a_body_still_comes_straight_from_the_socket(tmp_path, page):
    (tmp_path / "sitecustomize.py").write_text(SPY)
    env = {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    with watched(tmp_path / "data", "--cors-origin", PAGE, env=env) as one:
        talk = Talk(one)
        session = talk.vector(10_000_000, durability="memory")
        reply = talk.put(session, 1, np.ones(10_000_000, np.float32), page).good()
        assert len(reply.body) == 40_000_000
        talk.close()
        told = [int(line.rpartition(" ")[2]) for line in one.lines if line.startswith("straight from")]
    assert len(told) == 2 and min(told) > 39_000_000  # the parameters, then the gradient


# -- what may be said at the start


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cors-origin", "*"], "name the pages' origins"),
        (["--cors-origin", "null"], "name the pages' origins"),
        (["--cors-origin", "http://localhost:3000/"], "is no origin"),
        (["--cors-origin", "localhost:3000"], "is no origin"),
        (["--allowed-host", "http://adamd.lan"], "is no host name"),
        (["--allowed-host", "adamd.lan:8000"], "is no host name"),
        (["--allowed-host", "*"], "is no host name"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_would_open_everything_is_refused(tmp_path, options, said):
    with pytest.raises(RuntimeError, match=said):
        Server(tmp_path, *options).start()


def test_a_program_needs_no_media_type(knock):
    """So the refusals above are the page's, not the request's."""
    knock("POST", "/v1/sessions", b'{"parameters": [1.0]}', {}).good(201)
