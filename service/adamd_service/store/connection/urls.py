"""A store's URL, taken apart by hand: lists of hosts are no URL to `urllib`, and a wrong one must not be repeated.

A password with a ``/`` or a ``#`` in it is cut by every parser of URLs, and what stands behind the cut is taken for a
port, a path or an option. So no refusal here repeats anything of the URL but its scheme: it names the part.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast
from urllib.parse import parse_qsl, unquote

from redis.connection import URL_QUERY_ARGUMENT_PARSERS

SCHEMES = {
    "redis": 6379,
    "rediss": 6379,
    "unix": 0,
    "redis+cluster": 6379,
    "rediss+cluster": 6379,
    "redis+sentinel": 26379,
    "rediss+sentinel": 26379,
}  # and each one's usual port
KNOWN = "redis://, rediss://, unix://, redis+sentinel://, redis+cluster://"
TLS = (
    *("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "ssl_validate_ocsp"),
    *("ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert"),
    *("ssl_include_verify_flags", "ssl_exclude_verify_flags"),
)
SOCKET = ("socket_timeout", "socket_connect_timeout", "socket_keepalive")
LOGIN = ("username", "password", "client_name")
OPTIONS = (*LOGIN, *SOCKET, *TLS, "db", "max_connections", "health_check_interval", "socket_read_size")
SENTINEL = "sentinel_"  # begins the name of an option that is for the Sentinels alone
OF_SENTINELS = (*LOGIN, *SOCKET, *TLS, "ssl")
ESCAPES = "in a user's name or a password / is written %2F, ? %3F, # %23, : %3A and @ %40"
_HOST = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<name>[^\[\]:\s]*))(?::(?P<port>[^:]*))?")


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """What a URL says.

    Attributes:
        scheme: one of `SCHEMES`.
        hosts: addresses and ports; none for a unix socket.
        path: the database, the socket or the service, as it is written.
        options: for connections to the store: user, password and what the query says.
        of_sentinels: for connections to the Sentinels.

    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    options: Mapping[str, Any] = field(repr=False)
    of_sentinels: Mapping[str, Any] = field(repr=False)

    @property
    def tls(self) -> bool:
        """Say whether it is spoken encrypted."""
        return self.scheme.startswith("rediss")


def parsed(url: str) -> StoreUrl:
    """Take a URL apart.

    Raises:
        ValueError: which part is wrong, and what is wanted; nothing of what it holds.

    """
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower()
    if not mark or re.fullmatch(r"[a-z][a-z+.-]{0,30}", scheme) is None:
        raise ValueError(f"this is no URL; known are {KNOWN}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r}; known are {KNOWN}")
    if "#" in rest:
        raise ValueError(f"it has a #, which no URL of a store has; {ESCAPES}")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if "@" in path and (scheme != "unix" or (authority and not authority.endswith("@"))):
        raise ValueError(f"it has an @ behind a /; {ESCAPES}")
    login, _, hosts = authority.rpartition("@")
    options, of_sentinels = _options(scheme, query)
    user, _, password = login.partition(":")
    options |= {name: unquote(part) for name, part in (("username", user), ("password", password)) if part}
    return StoreUrl(scheme, _hosts(scheme, hosts), slash + path, options, of_sentinels)


def _hosts(scheme: str, text: str) -> tuple[tuple[str, int], ...]:
    if scheme == "unix":
        if text:
            raise ValueError("a unix socket has no host; wanted three slashes, as in unix:///run/valkey.sock")
        return ()
    several = "+" in scheme
    if not several and re.fullmatch(r"(:[^:]*)?", text):
        text = f"localhost{text}"
    items = text.split(",")
    if len(items) > 1 and not several:
        raise ValueError(f"{scheme}:// names one host; several are for redis+cluster:// and redis+sentinel://")
    return tuple(_host(item, SCHEMES[scheme]) for item in items)


def _host(item: str, default: int) -> tuple[str, int]:
    match = _HOST.fullmatch(item)
    if match is None:
        raise ValueError(f"a host is not host, host:port or [IPv6]:port, as in [::1]:6379; {ESCAPES}")
    host = unquote(match["name"] if match["six"] is None else match["six"])
    if match["six"] is not None:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("what stands in brackets is no IPv6 address; wanted one as in [::1]:6379") from None
    if not host:
        raise ValueError("a host is missing; wanted host:port")
    if match["port"] is None:
        return host, default
    if re.fullmatch(r"[0-9]{1,5}", match["port"]) is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"a port is no number from 1 to 65535; {ESCAPES}")
    return host, int(match["port"])


def _options(scheme: str, query: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options for the store, and those for the Sentinels.

    What says how to connect counts for both, unless the Sentinels have an option of their own; who connects does not.
    """
    tls, watched = scheme.startswith("rediss"), scheme.endswith("sentinel")
    options: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, text in _pairs(query):
        if name == "decode_responses":
            raise ValueError("decode_responses must stay off: bodies are bytes")
        if watched and name.startswith(SENTINEL) and name.removeprefix(SENTINEL) in OF_SENTINELS:
            own[name.removeprefix(SENTINEL)] = _read(name.removeprefix(SENTINEL), text)
        elif name not in OPTIONS:
            raise ValueError(_unknown(name))
        elif name in TLS and not tls and not watched:
            raise ValueError(f"{name} is for TLS, which rediss:// speaks")
        else:
            options[name] = _read(name, text)
    both = {name: value for name, value in options.items() if name in (*SOCKET, *TLS)}
    of_sentinels = {"ssl": tls, **both, **own}
    if not of_sentinels["ssl"]:
        of_sentinels = {name: value for name, value in of_sentinels.items() if name not in TLS}
    return {name: value for name, value in options.items() if tls or name not in TLS}, of_sentinels


def _pairs(query: str) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ValueError(f"what follows the ? is not name=value&name=value; {ESCAPES}") from None


def _unknown(name: str) -> str:
    near = get_close_matches(name[:50], OPTIONS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(OPTIONS)}"
    return f"an option behind the ? is not known; {hint}"


def _read(name: str, text: str) -> Any:
    parsers = cast("dict[str, Callable[[str], Any]]", URL_QUERY_ARGUMENT_PARSERS)
    switch = name == "ssl" or name.startswith("ssl_validate_ocsp")
    parse = parsers["socket_keepalive"] if switch else parsers.get(name, str)
    try:
        return parse(text)
    except (TypeError, ValueError):
        raise ValueError(f"the value of {name} cannot be read") from None
