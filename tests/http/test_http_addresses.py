"""Addresses: below a proxy's path, by HEAD, at the root, and what a query may say."""

import re
from urllib.parse import urljoin

import pytest
from talking import Talk, watched

PREFIX = "/team/adamd"


@pytest.fixture(scope="module")
def below(tmp_path_factory):
    """A connection to a server that a proxy has below a path of its own."""
    with watched(tmp_path_factory.mktemp("below"), "--root-path", PREFIX + "/") as one:
        talk = Talk(one)
        yield talk
        talk.close()


@pytest.mark.parametrize("cut", [True, False], ids=["the proxy cuts its path off", "the proxy leaves its path"])
def test_below_a_path_every_address_has_it(below, cut):
    """Both kinds of proxies are served: nginx with a path in proxy_pass, and without."""
    at = "" if cut else PREFIX
    made = below("POST", f"{at}/v1/sessions", {"parameters": [1.0]}).good(201)
    assert made.headers["Location"] == f"{PREFIX}/v1/sessions/{made.json['id']}"
    here = made.headers["Location"].removeprefix(PREFIX if cut else "")
    below("GET", here).good()
    below("PUT", f"{here}/steps/1", {"gradient": [1.0]}).good()
    assert below("GET", f"{at}/openapi.json").good().json["servers"] == [{"url": PREFIX}]
    for path in ("/livez", "/readyz", "/metrics", "/docs", "/docs/swagger-ui.css", "/v1/info", "/v1/sessions"):
        below("GET", at + path).good()
    assert below("PATCH", f"{at}/livez").headers["Allow"] == "GET, HEAD"
    below("GET", f"{at}/nowhere").problem(404, "no_route")
    below("GET", f"{PREFIX}x/livez").problem(404, "no_route")


def test_without_a_path_no_address_has_one(talk):
    made = talk("POST", "/v1/sessions", {"parameters": [1.0]}, {"X-Forwarded-Prefix": "//evil.example"}).good(201)
    assert made.headers["Location"] == f"/v1/sessions/{made.json['id']}"
    assert "servers" not in talk("GET", "/openapi.json").good().json


def test_the_address_of_the_ready_line_leads_to_the_page_of_calls(talk, below):
    for one, root in ((talk, "/"), (below, "/"), (below, PREFIX + "/")):
        for method in ("GET", "HEAD"):
            reply = one(method, root).good(307)
            # Relative: it leads below the proxy's path whether the server knows that or not.
            assert urljoin(f"http://h{PREFIX}/", reply.headers["Location"]) == f"http://h{PREFIX}/docs"
            assert urljoin("http://h/", reply.headers["Location"]) == "http://h/docs"


def test_head_is_get_without_the_body(talk):
    session = talk.create([1.0, 2.0], name="looked-at")["id"]
    paths = ["/livez", "/readyz", "/metrics", "/docs", "/docs/start.js", "/docs/swagger-ui.css", "/openapi.json"]
    paths += ["/", "/v1/info", "/v1/sessions", "/v1/sessions?page_size=1", f"/v1/sessions/{session}"]
    paths += [f"/v1/sessions/{session}/{what}" for what in ("parameters", "state", "parameters?at=nothing")]
    for path in [*paths, "/nowhere", "/v1/sessions/nobody"]:
        got, looked = talk("GET", path), talk("HEAD", path)
        assert looked.body == b"" and looked.status == got.status
        counted = {"/metrics", "/v1/sessions"}  # what other tests do meanwhile changes their length
        for name in got.headers:
            if not (path in counted and name == "content-length"):
                assert looked.headers[name] == got.headers[name], (path, name)
        assert talk("GET", "/livez").good().json == {"status": "alive"}  # the next answer is in its place


@pytest.mark.parametrize(
    "root", ["adamd", "/a b", "/a/../b", "//evil.example", "/a//b", "http://x/", "/a?b", "/%2e", "/."]
)
def test_a_path_that_is_none_is_refused(tmp_path, root):
    from pydantic import ValidationError

    from adamd_service.settings import ServerSettings, refused

    with pytest.raises(ValidationError) as error:
        ServerSettings(data_dir=tmp_path, root_path=root)
    assert re.match(r"--root-path: .* is no path", refused(error.value, ["root_path"]))


QUERIES = {
    "owner=anna": "known are page_size, page_token",
    "page-size=3": "known are page_size, page_token",
    "page_size=3&Page_token=": "known are page_size, page_token",
    "page_size=3&page_size=4": "2 times",
    "page_token=&page_token=": "2 times",
    "=": "known are",
    "owner": "known are",
}


@pytest.mark.parametrize("query", QUERIES)
def test_what_a_query_says_beside_what_is_known_is_refused_by_name(talk, query):
    told = talk("GET", f"/v1/sessions?{query}").problem(422, "invalid_request")
    assert QUERIES[query] in told["detail"]
    assert told["path"] in query


def test_every_call_refuses_a_query_that_it_does_not_know(talk):
    made = talk.create([1.0])["id"]
    before = talk.standing(made)
    here = f"/v1/sessions/{made}"
    calls = [("POST", "/v1/sessions"), ("GET", here), ("PATCH", here), ("DELETE", here), ("GET", f"{here}/parameters")]
    calls += [
        ("PUT", f"{here}/parameters"),
        ("PUT", f"{here}/steps/1"),
        ("POST", f"{here}/steps"),
        ("GET", f"{here}/state"),
    ]
    for method, path in [*calls, ("GET", "/v1/info")]:
        body = {"gradient": [1.0]} if method in ("PUT", "POST") else {"labels": {}} if method == "PATCH" else None
        told = talk(method, f"{path}?dry_run=1", body).problem(422, "invalid_request")
        assert "'dry_run' in the query: unknown" in told["detail"] and told["path"] == "dry_run"
        reads = path.endswith("parameters") and method == "GET"
        wanted = "known are min_step, wait_s, at" if reads else "this call has no query"
        assert wanted in told["detail"]
    assert talk.standing(made) == before
    told = talk("GET", f"{here}/parameters?at=ema&at=best").problem(422, "invalid_request")
    assert "2 times" in told["detail"]
