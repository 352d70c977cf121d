"""URLs and proxies, read without a network."""

import pytest

from adamd.errors import InvalidRequest
from adamd.transports.endpoint import Proxy, route


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://localhost:8000", "localhost:8000", ""),
        ("localhost:8000", "localhost:8000", ""),
        ("HTTP://Example.com", "example.com", ""),
        ("https://example.com:443/adamd/", "example.com", "/adamd"),
        ("http://[::1]:8000", "[::1]:8000", ""),
    ],
)
def test_a_url_is_read(url, authority, prefix):
    way = route(url, {})
    assert (way.authority, way.prefix, way.target) == (authority, prefix, prefix)


def test_the_url_comes_from_the_environment_else_is_this_machine(monkeypatch):
    monkeypatch.setenv("ADAMD_URL", "http://there:1")
    assert route(None, {}).url == "http://there:1"
    monkeypatch.delenv("ADAMD_URL")
    assert route(None, {}).url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("grpc://localhost", "grpc://localhost:50051"),
        ("grpc://[::1]:81/", "grpc://[::1]:81"),
        ("GRPCS://Example.com", "grpcs://example.com:443"),
        ("grpc://x:80", "grpc://x:80"),
    ],
)
def test_a_grpc_url_tells_its_port(url, wanted):
    assert route(url, {"all": "http://proxy:3128"}).url == wanted


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("grpc://x:1/under", "under no path"),
        ("grpc://user:secret@x", "ADAMD_API_KEY"),
        ("ftp://x", "no server's URL"),
        ("http://", "no server's URL"),
        ("http://x:99999", "port"),
        ("http://user:secret@x", "ADAMD_API_KEY"),
        ("http://x?a=b", "no user, query"),
        ("http://[::1", "no server's URL"),
        ("http://a b/", "no server's URL"),
    ],
)
def test_what_is_no_servers_url(url, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        route(url, {})
    assert "secret" not in str(caught.value)


def test_proxies_by_scheme_all_and_exceptions(monkeypatch):
    monkeypatch.setenv("no_proxy", "inner.test,other.test:81")
    proxies = {"http": "http://p:3128", "all": "http://q"}
    assert route("http://x", proxies).proxy == Proxy("p", 3128, {})
    assert route("http://x:81/y", proxies).target == "http://x:81/y"
    assert route("https://x", proxies).proxy == Proxy("q", 80, {})
    assert route("https://x/y", proxies).target == "/y"
    for near in ("localhost", "127.0.0.9", "[::1]", "a.localhost", "inner.test", "other.test:81"):
        assert route(f"http://{near}", proxies).proxy is None
    assert route("http://other.test:82", proxies).proxy is not None
    with pytest.raises(InvalidRequest, match="NO_PROXY=x"):
        route("http://x", {"http": "socks5://p:1"})
