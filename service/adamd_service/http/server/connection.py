"""Guards an HTTP connection: bounds on heads and slow readers, and problem documents for malformed requests.

uvicorn reads a head of any length for any time, answers nonsense in plain text (even in the middle of another
answer), and keeps an answer and its buffer for ever if the reader has stopped reading.

Its parser takes an Upgrade for the end of HTTP: the body is skipped, and then read as the next request. Here an Upgrade
is ignored (RFC 9110, section 7.8), and after an error nothing more is read as a request.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
import termios
from contextlib import suppress
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from adamd.errors import AdamdError, Busy, UploadTimeout
from adamd.wire import headers
from adamd_service.http import responses
from adamd_service.http.server.direct_bodies import DirectConnection, parser_of

MAX_HEAD_BYTES = 64 * 1024  # of a request line and its headers
log = structlog.get_logger()


class MalformedRequest(AdamdError):
    """The request is not HTTP/1.1, or two readers could take its length differently."""

    code, status = "malformed_request", 400


class HeadTooLarge(AdamdError):
    """A request line and headers beyond the bound."""

    code, status = "head_too_large", 431


def guarded(gap: float, most: int) -> type[asyncio.Protocol]:
    """Return the protocol class for uvicorn.

    Args:
        gap: seconds that it waits for a peer without progress.
        most: connections at once; the store and the log need file descriptors too.

    """
    return type("Connection", (GuardedConnection,), {"gap": gap, "most": most})


class GuardedConnection(DirectConnection):
    """uvicorn's HTTP/1.1 with a bound on heads, on waiting for them, and on waiting for a reader."""

    gap: float
    most: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._begun = False  # something of a head has come
        self._head_bytes = 0
        self._quiet_bytes = 0  # since the last byte of a body: heads, trailers, chunk extensions
        self._fault: AdamdError | None = None
        self._deaf = False  # after an error: what comes is dropped
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """Begin to wait for the first head."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(
                Busy(f"{self.most} connections are open, as many as this server takes; close some, or keep one")
            )
            return
        self._head_timer = self.loop.call_later(self.gap, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._cancel_head_timer()
        self._cancel_reader_timer()

    # -- heads

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count what is no body."""
        if self._deaf:
            return
        self._quiet_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._quiet_bytes > MAX_HEAD_BYTES and not self._deaf:
            self._refuse(_too_large())
        elif self._in_head and self._head_timer is None and self.parser is not None:
            self._head_timer = self.loop.call_later(self.gap, self._head_is_late)

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Where it stops for an Upgrade, its head is parsed again without that header."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as stop:
                rest = rest[stop.args[0] :]
                line = b"%s %s HTTP/%s\r\n" % (
                    self.parser.get_method(),
                    self.url,
                    self.parser.get_http_version().encode(),
                )
                fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
                self.parser = parser_of(self)
                self.parser.feed_data(b"".join((line, *fields, b"\r\n")))

    def on_message_begin(self) -> None:
        """Count a new head."""
        super().on_message_begin()
        self._in_head, self._begun, self._head_bytes = True, True, 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers come too late to mean anything here and are dropped."""
        if self._in_head:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

    def _count(self, nbytes: int) -> None:
        self._head_bytes += nbytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._fault = _too_large()
            raise ValueError("head too large")  # the parser stops, and uvicorn asks for the 400

    def on_headers_complete(self) -> None:
        """Begin the request, unless its length could be misread. A head with an Upgrade is parsed a second time."""
        self._cancel_head_timer()
        self._fault = self._misleading()
        if self._fault is not None:
            raise ValueError(self._fault.detail)  # the parser stops, and `data_received` asks for the 400
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._in_head, self._begun, self._quiet_bytes = False, False, 0

    def _misleading(self) -> AdamdError | None:
        """Return why two readers could understand this head differently, or None."""
        if self.parser.get_method() == b"CONNECT":  # what follows it would be no HTTP
            return MalformedRequest("CONNECT: this is no proxy")
        for name, value in self.headers:
            if name != b"transfer-encoding":
                continue
            if self.parser.get_http_version() == "1.0":
                return MalformedRequest("Transfer-Encoding in HTTP/1.0; send a Content-Length, or speak HTTP/1.1")
            if value.strip().lower() != b"chunked":
                coding = value[:80].decode("latin-1")
                return MalformedRequest(f"Transfer-Encoding {coding!r}; only chunked is understood")
        return None

    def on_message_complete(self) -> None:
        """Note that a request is complete, unless its head is parsed a second time."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._quiet_bytes = 0
        super().on_body(body)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or not self._in_head:
            return
        if self._answering():
            self._head_timer = self.loop.call_later(self.gap, self._head_is_late)
        elif not self._begun:
            self.transport.close()  # nothing came at all: a connection opened in advance
        else:
            self._refuse(UploadTimeout(f"the request's head was not complete after {self.gap:g} s"))

    # -- what is no request

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed."""
        self._refuse(self._fault or MalformedRequest(f"{msg} Wanted HTTP/1.1 with one clear length."))

    def _refuse(self, error: AdamdError) -> None:
        """Answer by hand and close. Complete requests that came before are answered first; nothing more is read."""
        self._deaf = True
        if self.pipeline and self.cycle.more_body:  # the broken one has begun, and waits for its turn
            response: Any = responses.problem(error, closing=True)
            self.pipeline[0] = self.cycle, response
            self.cycle.more_body = False
        elif not self._answering():
            content = json.dumps(error.problem()).encode()
            self.transport.write(
                b"%scontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (STATUS_LINE[error.status], headers.PROBLEM.encode(), len(content), content)
            )
            self._close()
        elif self.cycle.more_body:  # it was answered early, and its rest is broken
            self._close()

    def _answering(self) -> bool:
        """Say whether a complete request has no complete answer yet."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(self.pipeline) or cycle.response_started or not cycle.more_body

    # -- readers

    def on_response_complete(self) -> None:
        """End a connection whose request was answered before it was complete: its rest could be read for ever."""
        super().on_response_complete()
        if not self.pipeline and self.cycle.response_complete and (self.cycle.more_body or self._deaf):
            self._close()
        elif self.transport.is_closing():
            self._leave_in_time()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._leave_in_time()

    def _close(self) -> None:
        self.transport.close()
        self._leave_in_time()

    def _leave_in_time(self) -> None:
        """Abort a closing connection if the client does not read the rest of the response within `gap` seconds."""
        if self._reader_timer is None and self.transport.get_write_buffer_size():
            self._watch_reader()

    def pause_writing(self) -> None:
        """Note that more waits to be sent than the transport wants."""
        super().pause_writing()
        if self._reader_timer is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        """Note that the reader has caught up."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel_reader_timer()

    def _watch_reader(self) -> None:
        self._unsent = self._unread()
        self._reader_timer = self.loop.call_later(self.gap, self._drop_stalled_reader)

    def _drop_stalled_reader(self) -> None:
        """Drop the connection if nothing was read since the last look; its buffers are freed."""
        self._reader_timer = None
        waiting, unsent = self.transport.get_write_buffer_size(), self._unread()
        if waiting and unsent >= self._unsent:
            log.info("a reader has stopped reading; the connection is dropped", unsent=unsent, client=self.client)
            self.transport.abort()
        elif waiting:
            self._watch_reader()

    def _unread(self) -> int:
        """Count the bytes that the reader has not taken, here and in the kernel.

        The kernel asks for more only when a third of its buffer is free. A slow reader may need longer than a gap.
        """
        sent = bytearray(4)
        with suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, sent)
        return self.transport.get_write_buffer_size() + int.from_bytes(sent, sys.byteorder)

    def _cancel_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the request line and its headers have more than {MAX_HEAD_BYTES} bytes")
