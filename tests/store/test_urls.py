"""URLs of stores: what they say, and that a wrong one is never repeated."""

import pytest

from adamd_service.store import StoreRefused
from adamd_service.store.connection.connect import connect
from adamd_service.store.connection.urls import parsed


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("redis://", [("localhost", 6379)]),
        ("redis://:7000/2", [("localhost", 7000)]),
        ("rediss://store.example/0", [("store.example", 6379)]),
        ("redis://[::1]:7000", [("::1", 7000)]),
        ("redis://me:p@ss@[::1]", [("::1", 6379)]),
        ("redis://[fe80::1%25eth0]:7000/1", [("fe80::1%eth0", 7000)]),
        ("REDIS://host:7000", [("host", 7000)]),
        ("redis+cluster://127.0.0.1:7000,[::1]:7001", [("127.0.0.1", 7000), ("::1", 7001)]),
        ("rediss+cluster://u:p@[::1]:7001,[2001:db8::2],c", [("::1", 7001), ("2001:db8::2", 6379), ("c", 6379)]),
        ("redis+sentinel://[::1]:1,b/service/3", [("::1", 1), ("b", 26379)]),
        ("unix:///run/v@lkey.sock?db=1", []),
    ],
)
def test_hosts(url, hosts):
    assert list(parsed(url).hosts) == hosts


def test_login_and_options():
    found = parsed("redis://ad%3Aam:p%40ss%2Fw%3Frd%23@host/0?socket_timeout=7&client_name=a+b&username=no")
    assert found.options == {"username": "ad:am", "password": "p@ss/w?rd#", "socket_timeout": 7.0, "client_name": "a b"}
    assert "p@ss" not in repr(found)


def test_how_to_connect_counts_for_the_sentinels_too_and_who_does_not():
    url = "rediss+sentinel://u:p@host/s?ssl_ca_certs=/ca&socket_timeout=3&client_name=c&sentinel_password=q"
    found = parsed(f"{url}&sentinel_socket_timeout=1&sentinel_ssl_check_hostname=false")
    assert found.options == {
        "username": "u",
        "password": "p",
        "ssl_ca_certs": "/ca",
        "socket_timeout": 3.0,
        "client_name": "c",
    }
    assert found.of_sentinels == {
        "ssl": True,
        "ssl_ca_certs": "/ca",
        "socket_timeout": 1.0,
        "password": "q",
        "ssl_check_hostname": False,
    }
    mixed = parsed("redis+sentinel://host/s?sentinel_ssl=true&ssl_ca_certs=/ca")
    assert (mixed.options, mixed.of_sentinels) == ({}, {"ssl": True, "ssl_ca_certs": "/ca"})
    mixed = parsed("rediss+sentinel://host/s?sentinel_ssl=false&ssl_ca_certs=/ca")
    assert (mixed.options, mixed.of_sentinels) == ({"ssl_ca_certs": "/ca"}, {"ssl": False})


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hunter2", "is no URL"),
        ("hunter2.example:6379", "is no URL"),
        ("http://:hunter2@host", "scheme 'http'; known are redis://"),
        ("redis://:hunter2/x@host:6379/0", "%2F"),
        ("redis://:x/hunter2@host:6379/0", "%2F"),
        ("redis://:x#hunter2@host:6379/0", "%23"),
        ("redis://:hunter2#x@host:6379/0", "%23"),
        ("redis://:hunter2?x@host:6379/0", "%3F"),
        ("redis://:x?hunter2@host:6379/0", "%3F"),
        ("redis://:x?hunter2=1@host:6379/0", "option behind the . is not known"),
        ("redis://user:hunter2:host:6379", "a host is not host"),
        ("redis://hunter2:x:6379", "a host is not host"),
        ("redis://host:hunter2", "port is no number"),
        ("redis://:p@host:hunter2/0", "port is no number"),
        ("redis://:hunter2", "port is no number"),
        ("redis://:p@[hunter2]:1", "no IPv6 address"),
        ("redis://:p@host/hunter2", "no number of a database"),
        ("redis://host?pasword=hunter2", "did you mean password"),
        ("redis://host?hunter2=1", "is not known"),
        ("redis://host?socket_timeout=hunter2", "value of socket_timeout cannot be read"),
        ("redis://host?password=x&hunter2", "name=value"),
        ("redis+sentinel://host/s?sentinel_password=a&hunter2", "name=value"),
        ("redis+sentinel://:hunter2@host", "names the service"),
        ("redis+sentinel://:p@host/s/hunter2", "no number of a database"),
        ("redis+cluster://:hunter2/x@a,b", "%2F"),
        ("redis+cluster://:p@a,hunter2:x:y", "a host is not host"),
        ("unix://:hunter2/x@/run/v.sock", "%2F"),
        ("unix://hunter2/run/v.sock", "has no host"),
    ],
)
def test_a_refusal_says_which_part_and_repeats_nothing(url, said):
    with pytest.raises(StoreRefused, match=said) as told:
        connect(url, 1.0, 4)
    seen, error = [], told.value
    while error is not None:
        seen.append(f"{error!r} {error.args}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in " ".join(seen)


@pytest.mark.parametrize(
    "url",
    [
        "redis://a,b",
        "redis://a:0",
        "redis://a:65536",
        "redis://a:",
        "redis://::1:6379",
        "redis://[::1",
        "redis://[::1]x:1",
        "redis://a b",
        "redis+cluster://",
        "redis+cluster://a,,b",
        "redis+cluster://a/1",
        "redis+cluster://a?db=1",
        "redis+sentinel://a//",
        "redis://a?ssl_ca_certs=/ca",
        "redis://a?decode_responses=true",
        "redis://a?protocol=3",
        "redis://a/0/1",
        "unix://",
        "REDIS+X://a",
    ],
)
def test_what_no_store_can_have(url):
    with pytest.raises(StoreRefused, match="--redis-url"):
        connect(url, 1.0, 4)
