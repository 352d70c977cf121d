"""Route: a server's URL with its proxy, TLS and sockets."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from adamd.errors import InvalidRequest, TransportError
from adamd.sansio.operations import OTHER_PROTOCOL
from adamd.wire.channel import DEFAULT_PORT as GRPC_PORT

DEFAULT_URL = "http://127.0.0.1:8000"
_PLAIN = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
)  # to TLS's first words
PORTS = {"http": 80, "https": 443, "grpc": GRPC_PORT, "grpcs": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; ``headers`` carry its credentials."""

    host: str
    port: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Route:
    """One server. ``prefix`` is its URL's path, without the last slash."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    proxy: Proxy | None = None

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] and self.scheme in ("http", "https") else f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """The server is on this machine, which no proxy elsewhere can reach."""
        return _is_loopback(self.host)

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    def explain(self, error: TransportError) -> TransportError:
        """Return an attempt's error; if another protocol answered at this port, name the URL to use."""
        if error.extra.get("phase") != OTHER_PROTOCOL:
            return error
        if error.extra.get("tls"):
            words = f"{self.url}: TLS is spoken at port {self.port}; use {self.scheme}s://"
            return TransportError(words, phase=OTHER_PROTOCOL, permanent=True)
        protocol, other, usual = (
            ("HTTP", "gRPC", 8000) if self.scheme.startswith("http") else ("gRPC", "HTTP", GRPC_PORT)
        )
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = self.scheme.replace(protocol.lower(), other.lower())
        return TransportError(
            f"{self.url}: {other} is spoken at port {self.port}, not {protocol}; use {scheme}://{host}:{self.port}, or "
            f"the server's port for {protocol}: {usual}, unless its ready line says another",
            phase=OTHER_PROTOCOL,
            permanent=True,
        )

    @property
    def target(self) -> str:
        """The prefix of a path in a request line. A proxy for plain HTTP wants the whole URL."""
        return self.url if self.proxy is not None and self.scheme == "http" else self.prefix

    @property
    def extra_headers(self) -> Mapping[str, str]:
        """Headers for a proxy, on every request."""
        return self.proxy.headers if self.proxy is not None and self.scheme == "http" else {}

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """TLS with the system's certificates, or those that SSL_CERT_FILE names."""
        return ssl.create_default_context()

    def open(self, timeout: float) -> socket.socket:
        """Connect, through the proxy where there is one, with TLS where the URL says so.

        Raises:
            TransportError: with ``extra["phase"]`` "connect", and ``permanent`` where trying again cannot help.

        """
        host, port = (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)
        way = f"{self.url}" + (f" through the proxy {host}:{port}" if self.proxy else "")
        try:
            return self._connected(host, port, timeout)
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"{way}: untrusted certificate: {error.verify_message}; SSL_CERT_FILE may name your authority's",
                phase="connect",
                permanent=True,
            ) from error
        except ssl.SSLError as error:
            if error.reason not in _PLAIN:
                raise TransportError(f"{way}: no TLS connection: {error}", phase="connect") from error
            raise TransportError(
                f"{self.url}: TLS is not spoken at port {port}; use {self.scheme.removesuffix('s')}://, or "
                "the port that has it",
                phase=OTHER_PROTOCOL,
                permanent=True,
            ) from None
        except TimeoutError:
            raise TransportError(f"{way}: no connection within {timeout:g} s", phase="connect") from None
        except ConnectionRefusedError:
            raise TransportError(
                f"{way}: connection refused; is the server running? `adamd serve` starts one", phase="connect"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise TransportError(f"{way}: cannot connect: {error}", phase="connect") from error

    def _connected(self, host: str, port: int, timeout: float) -> socket.socket:
        connection: http.client.HTTPConnection
        if self.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self.tls)
            if self.proxy is not None:
                connection.set_tunnel(self.host, self.port, headers=dict(self.proxy.headers))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.connect()  # also sets TCP_NODELAY
        sock: socket.socket = connection.sock
        return sock


def route(url: str | None, proxies: Mapping[str, str] | None = None) -> Route:
    """Read a URL; None is ``$ADAMD_URL``, else this machine's port 8000.

    Args:
        url: ``http://`` or ``https://``, with a path where the server lies under one; ``grpc://`` or ``grpcs://``.
        proxies: by scheme; None reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY. gRPC reads its own.

    Raises:
        InvalidRequest: no such URL.

    """
    address = url or os.environ.get("ADAMD_URL") or DEFAULT_URL
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
    except ValueError as error:
        raise InvalidRequest(f"{address!r} is no server's URL: {error}") from None
    if parts.scheme not in PORTS or not parts.hostname or any(c.isspace() for c in address):
        raise InvalidRequest(
            f"{address!r} is no server's URL; wanted something as http://localhost:8000 or grpc://localhost:{GRPC_PORT}"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidRequest("a server's URL has no user, query or fragment; an API key goes into ADAMD_API_KEY")
    port = _port(parts, PORTS[parts.scheme])
    if parts.scheme in ("grpc", "grpcs"):
        if parts.path.strip("/"):
            raise InvalidRequest(f"{address!r}: over gRPC a server lies under no path")
        return Route(parts.scheme, parts.hostname, port)
    proxy = _proxy(parts.scheme, parts.hostname, port, getproxies() if proxies is None else proxies)
    return Route(parts.scheme, parts.hostname, port, parts.path.rstrip("/"), proxy)


def _port(parts: SplitResult, default: int) -> int:
    try:
        return parts.port or default
    except ValueError:
        raise InvalidRequest(f"{parts.netloc!r}: a port is a number up to 65535") from None


def _proxy(scheme: str, host: str, port: int, proxies: Mapping[str, str]) -> Proxy | None:
    url = proxies.get(scheme) or proxies.get("all")
    if not url or _is_loopback(host) or proxy_bypass(host) or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidRequest(f"the proxy {parts.scheme}://{parts.hostname} is not an http:// one; set NO_PROXY={host}")
    sent = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(parts.hostname, _port(parts, 80), sent)


def _is_loopback(host: str) -> bool:
    """A proxy elsewhere cannot reach this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
