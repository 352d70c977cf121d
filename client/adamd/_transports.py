"""Which transport a URL asks for. gRPC is an extra, and is imported when it is asked for."""

from __future__ import annotations

import logging
import os
import time

from adamd._flow import Timeout
from adamd._http import HttpTransport
from adamd._progress import meter
from adamd._route import route
from adamd._shell import Transport
from adamd.errors import InvalidRequest
from adamd.wire.poller import chosen


def transport(url: str | None, timeout: Timeout, api_key: str | None, progress: bool | None) -> Transport:
    """Return the way to a server that its URL asks for.

    Raises:
        InvalidRequest: no such URL or key.
        ModuleNotFoundError: gRPC's packages are not there.

    """
    way, bars = route(url), meter(progress)
    key = api_key or os.environ.get("ADAMD_API_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidRequest("the API key would have characters that are not printable ASCII")
    if way.scheme in ("http", "https"):
        _tell(key)
        return HttpTransport(way, timeout, time.monotonic, bars, key)
    try:
        with chosen():
            from adamd._grpc import GrpcTransport
    except ModuleNotFoundError as error:
        said = f"{way.url} needs {error.name}: pip install 'adamd[grpc]', or use the server's http:// address"
        raise ModuleNotFoundError(said, name=error.name) from error
    _tell(key)
    return GrpcTransport(way, timeout, time.monotonic, bars, key)


def _tell(key: str | None) -> None:
    """Say what a key is worth so far: a server of adamd's has none to compare it with."""
    if key:
        logging.getLogger("adamd").warning(
            "an API key is sent as a bearer token, and no adamd server checks it so far: it protects nothing, unless a "
            "proxy before the server does"
        )
