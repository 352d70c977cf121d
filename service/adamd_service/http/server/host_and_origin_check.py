"""Checks Host and Origin: which host names the server answers to, and which web pages may call it.

A keyless server on loopback trusts whoever reaches it, and a browser on the same machine lets every web page try:

- A page whose own name is made to lead to 127.0.0.1 (DNS rebinding) is same-origin to the browser, reads every answer
  and needs no preflight. What gives it away is ``Host``: the page's name, not one of ours.
- A page of any origin may send "simple" requests without asking first: GET, and POST whose body has no media type
  or a harmless one. It cannot read the answers, but a session would be made. What gives it away is ``Origin``, which
  no browser lets a page leave out of a POST or forge (Fetch, 3.1); and, on a GET that is no navigation,
  ``Sec-Fetch-Site``.

Programs that are no browser send neither. So a foreign page's request is refused before its body is read;
`--cors-origin` names the pages that may call.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from adamd.errors import AdamdError, HostNotAllowed, OriginNotAllowed
from adamd.wire import headers
from adamd.wire.layout import shown
from adamd_service.http import responses

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REQUEST_HEADERS = ("Content-Type", "If-Match", "Prefer", headers.IDEMPOTENCY, *headers.ASKED)  # what a page may send
RESPONSE_HEADERS = ("ETag", "Location", "Retry-After", "Content-Disposition", "Preference-Applied", *headers.TOLD)
PREFLIGHT_SECONDS = 7200  # that a browser may remember a permission; none remembers it longer


@dataclass(frozen=True)
class Doors:
    """The host names and web origins that are let in.

    Attributes:
        hosts: names in ``Host``, lower case, without a port; None: any.
        origins: as a browser writes them in ``Origin``.

    """

    hosts: frozenset[str] | None
    origins: tuple[str, ...]


def doors(bound: str, hosts: tuple[str, ...], origins: tuple[str, ...]) -> Doors:
    """Return the doors of a server that listens on ``bound``.

    On loopback, ``Host`` is always checked. Elsewhere a server cannot know its own names, and checks only if some
    are configured.
    """
    shown_bound = f"[{bound}]" if ":" in bound else bound.lower()
    if not hosts and not _loopback(bound):
        return Doors(None, origins)
    return Doors(frozenset((*LOOPBACK, shown_bound, *(host.lower() for host in hosts))), origins)


def _loopback(bound: str) -> bool:
    try:
        return ipaddress.ip_address(bound).is_loopback
    except ValueError:
        return bound.lower() == "localhost"


def add_checks(app: Starlette, which: Doors) -> None:
    """Add the checks to an application: Host and Origin outside, CORS inside."""
    if which.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=which.origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
            max_age=PREFLIGHT_SECONDS,
        )
    app.add_middleware(HostAndOriginCheck, doors=which)


class HostAndOriginCheck:
    """Refuses requests to another name, and those of foreign web pages."""

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self._app = app
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        refusal = _refusal(scope, self._doors) if scope["type"] == "http" else None
        await (self._app if refusal is None else responses.problem(refusal))(scope, receive, send)


def _refusal(scope: Scope, which: Doors) -> AdamdError | None:
    fields: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"sec-fetch-site": [], b"sec-fetch-mode": []}
    for name, value in scope["headers"]:
        if name in fields:
            fields[name].append(value.decode("latin-1"))
    hosts, origins = fields[b"host"], fields[b"origin"]
    if which.hosts is not None and not _host_matches(hosts, which.hosts, scope["http_version"]):
        return HostNotAllowed(
            f"Host {shown(', '.join(hosts))}: this server answers to {', '.join(sorted(which.hosts))}, so that no web "
            "page reaches it under a name of its own; start it with --allowed-host NAME if it has another"
        )
    if origins:
        if len(origins) == 1 and (origins[0] in which.origins or _own(origins[0], hosts)):
            return None
        page = f"a web page of {shown(', '.join(origins))}"
    elif any(site in ("cross-site", "same-site") for site in fields[b"sec-fetch-site"]):
        if fields[b"sec-fetch-mode"] == ["navigate"]:  # a link that a person follows; only GET comes without an Origin
            return None
        page = "a web page of another origin"
    else:
        return None
    return OriginNotAllowed(f"{page} may not call this server; start it with --cors-origin ORIGIN if it should")


def _host_matches(hosts: list[str], allowed: frozenset[str], version: str) -> bool:
    if not hosts:
        return version in ("0.9", "1.0")  # they need none, and no browser speaks them
    name, _, port = hosts[0].lower().rpartition(":")
    if not name or not (port.isdigit() or not port):  # no port: an address of version 6 ends in a bracket
        name = hosts[0].lower()
    return len(hosts) == 1 and name in allowed


def _own(origin: str, hosts: list[str]) -> bool:
    """Say whether a page came from this very server, as /docs does."""
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and hosts == [rest]
