"""Operations over HTTP, on a pool of kept connections. Blocking, and safe to use from many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from adamd.errors import InvalidRequest, TransportError
from adamd.sansio.operations import Operation
from adamd.sansio.retry import Timeout
from adamd.transports.cancellation import Cancellation
from adamd.transports.endpoint import Route
from adamd.transports.http.connection import Connection
from adamd.transports.http.messages import Request, Response, decode, encode
from adamd.transports.progress import Meter
from adamd.transports.silence import Attempt, Silence

MAX_IDLE_CONNECTIONS = 16  # idle connections kept at most
MAX_IDLE_SECONDS = 50.0  # servers and proxies close theirs after 60 to 75


class HttpTransport:
    """Brings operations to one server.

    Args:
        route: the server.
        timeout: ``connect`` and ``inactivity`` count here; ``total`` comes with each operation as its deadline.
        clock: monotonic seconds.
        meter: draws long transfers.
        key: sent as a bearer token.

    """

    def __init__(
        self, route: Route, timeout: Timeout, clock: Callable[[], float], meter: Meter, key: str | None
    ) -> None:
        self.url = route.url
        self._route = route
        self._timeout = timeout
        self._clock = clock
        self._meter = meter
        self._silence = Silence(route.url, clock)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._owner = os.getpid()
        self._closed = False
        fixed = {"Host": route.authority, **route.extra_headers, "User-Agent": "adamd-python"}
        fixed["Accept-Encoding"] = "identity"  # without it, any is welcome (RFC 9110, section 12.5.3)
        if key:
            fixed["Authorization"] = f"Bearer {key}"
        self._fixed = "".join(_field(name, value) for name, value in fixed.items())

    def send(self, operation: Operation, deadline: float, stop: Cancellation) -> Any:
        """Try one operation once, and return its result.

        A kept connection that turns out to be dead is replaced at once: that says nothing about the server.

        Raises:
            TransportError: there is no answer; ``extra["phase"]`` says how far it came.
            AdamdError: the server's refusal.

        """
        request = encode(operation)
        head = self._head(request)
        connection = self._idle_connection()
        with self._silence.attempt(operation) as attempt:
            if connection is not None:
                try:
                    return decode(operation, self._exchange(connection, head, request, deadline, stop, attempt))
                except TransportError as error:
                    if error.extra.get("phase") != "silent" or stop.cancelled:
                        raise
            return decode(operation, self._exchange(self._open(deadline), head, request, deadline, stop, attempt))

    def close(self) -> None:
        """Close every connection; a later operation is refused."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(
        self,
        connection: Connection,
        head: bytes,
        request: Request,
        deadline: float,
        stop: Cancellation,
        attempt: Attempt,
    ) -> Response:
        into, done = request.into, False
        down = sum(view.nbytes for view in into) if isinstance(into, tuple) else request.expected
        try:
            with stop.ends(connection.interrupt), self._meter(request.nbytes, down) as (sent, got):
                response = connection.exchange(head, request, deadline, sent, got, attempt)
            done = True
        except TransportError as error:
            raise self._route.explain(error) from error.__cause__
        finally:
            self._give_back(connection, keep=done)
        return response

    def _head(self, request: Request) -> bytes:
        lines = [f"{request.method} {self._route.target}{request.path} HTTP/1.1\r\n", self._fixed]
        lines += [_field(name, value) for name, value in request.headers.items()]
        lines.append(_field("Accept", request.accept))
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            lines.append(_field("Content-Length", str(request.nbytes)))
        return "".join([*lines, "\r\n"]).encode("ascii")

    def _idle_connection(self) -> Connection | None:
        """Return the youngest idle connection that is alive; None if there is none."""
        while True:
            with self._lock:
                if self._closed:
                    raise TransportError("this client is closed; connect again", phase="connect", permanent=True)
                if self._owner != os.getpid():  # after a fork these sockets are the parent's
                    self._owner, self._idle = os.getpid(), []
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if self._clock() - connection.idle_since <= MAX_IDLE_SECONDS and not connection.dead():
                return connection
            connection.close()

    def _open(self, deadline: float) -> Connection:
        remaining = deadline - self._clock()
        if remaining <= 0:
            raise TransportError("the whole call's time is over", phase="timeout")
        sock = self._route.open(min(remaining, self._timeout.connect))
        return Connection(sock, self._timeout.inactivity, self._clock)

    def _give_back(self, connection: Connection, *, keep: bool) -> None:
        connection.idle_since = self._clock()
        if keep and connection.reusable:
            with self._lock:
                if not self._closed and len(self._idle) < MAX_IDLE_CONNECTIONS and self._owner == os.getpid():
                    self._idle.append(connection)
                    return
        connection.close()


def _field(name: str, value: str) -> str:
    """Return a header line; what could end it early is refused."""
    if not value.isascii() or not value.isprintable():
        raise InvalidRequest(f"the header {name} would have characters that are not printable ASCII")
    return f"{name}: {value}\r\n"
