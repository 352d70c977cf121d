"""Transport: the protocol of all transports, and the choice of one by URL. gRPC is imported on demand."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from adamd.errors import InvalidRequest
from adamd.log import LOG
from adamd.sansio.operations import Operation
from adamd.sansio.retry import Timeout
from adamd.transports.cancellation import Cancellation
from adamd.transports.endpoint import route
from adamd.transports.http.pool import HttpTransport
from adamd.transports.progress import meter
from adamd.wire.poller import chosen


class Transport(Protocol):
    """A way to one server. Blocking, and safe to use from many threads."""

    url: str

    def send(self, operation: Operation, deadline: float, stop: Cancellation) -> Any:
        """Try one operation once, until ``deadline`` (monotonic seconds), and return its result.

        Raises:
            TransportError: there is no answer; ``extra["phase"]`` says how far it came, and ``permanent`` that no
                other attempt can help.
            AdamdError: the server's refusal.

        """

    def close(self) -> None:
        """Close every connection; a later operation is refused."""


def transport(url: str | None, timeout: Timeout, api_key: str | None, progress: bool | None) -> Transport:
    """Return the transport that a URL asks for.

    Raises:
        InvalidRequest: no such URL or key.
        ModuleNotFoundError: gRPC's packages are not there.

    """
    server, bars = route(url), meter(progress)
    key = api_key or os.environ.get("ADAMD_API_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidRequest("the API key would have characters that are not printable ASCII")
    if server.scheme in ("http", "https"):
        _tell(key)
        return HttpTransport(server, timeout, time.monotonic, bars, key)
    try:
        with chosen():
            from adamd.transports.grpc.transport import GrpcTransport
    except ModuleNotFoundError as error:
        message = f"{server.url} needs {error.name}: pip install 'adamd[grpc]', or use the server's http:// address"
        raise ModuleNotFoundError(message, name=error.name) from error
    _tell(key)
    return GrpcTransport(server, timeout, time.monotonic, bars, key)


def _tell(key: str | None) -> None:
    """Warn that no adamd server checks an API key so far."""
    if key:
        LOG.warning(
            "an API key is sent as a bearer token, and no adamd server checks it so far: it protects nothing, unless a "
            "proxy before the server does"
        )
