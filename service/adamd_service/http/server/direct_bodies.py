"""Bodies without detours: a gradient from the socket straight into its reader's memory, an answer in one write.

uvicorn hands a body on in pieces of 64 KiB, and copies each five times on the way (out of the loop's buffer, out of
the parser, into the cycle, out of it again, to where it is wanted). For a gradient of 40 MB that costs as much as the
network. So a reader that knows the body's length may ask for the rest here: until it is in, the transport reads into
the reader's own memory, and neither the parser nor the cycle sees it (measured at 10 M parameters: 48 ms a step, then
36). And uvicorn writes an answer's head and its body one after the other: two system calls, and the client is woken
twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import httptools
from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "adamd.rest"  # in the ASGI scope's extensions
STRIDE_BYTES = 256 * 1024  # between two reports to the reader
REPORT_SECONDS = 1.0  # after which fewer bytes are reported too, so that a slow sender is seen to send
SCRATCH_BYTES = 64 * 1024  # for bytes whose reader has given up
JOINED_BYTES = 64 * 1024  # at most: copying such a body behind its head costs less than a second buffer in the write


class DirectConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which offers the `Rest` of a body whose length the request says."""

    def on_headers_complete(self) -> None:
        """Begin the request."""
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # there no body follows that would take the head along
            self.cycle.transport = Together(self.transport)
        names = [name for name, _ in self.headers]
        if b"content-length" in names and b"transfer-encoding" not in names:
            extensions: dict[str, Any] = {EXTENSION: Rest(self, self.cycle)}
            self.scope["extensions"] = extensions

    def expect_head(self) -> None:
        """Go on with the next request's head: the body before it did not come through the parser."""
        self.parser = parser_of(self)
        self.on_message_complete()


def parser_of(connection: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """Return a parser for a connection's next head, as uvicorn makes it."""
    parser = httptools.HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class Together(asyncio.Transport):
    """One answer's way out: its head waits for the first of its body, and both leave in one write."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: Any) -> None:
        """Write, or keep the head for a moment."""
        if self._head is not None:
            head, self._head, self._begun = self._head, None, True
            if len(data) <= JOINED_BYTES:
                self._transport.write(b"".join((head, data)))
            else:
                self._transport.writelines((head, data))
        elif self._begun or data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        else:
            self._head = data

    def close(self) -> None:
        """Close, after a head that no body followed."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        """Do as the transport does."""
        return self._transport.is_closing()


def filler(request: Request, declared: int | None) -> Callable[[memoryview], AsyncGenerator[int]] | None:
    """Return what fills memory with this request's body, where the server offers that and it is worth it."""
    rest = request.scope.get("extensions", {}).get(EXTENSION)
    return None if rest is None or declared is None or declared <= STRIDE_BYTES else partial(_filled, request, rest)


async def _filled(request: Request, rest: Rest, view: memoryview) -> AsyncGenerator[int]:
    """Fill ``view``, which is as long as the body: its first piece as ever, the rest straight from the socket."""
    position = 0
    async for chunk in request.stream():
        view[position : position + len(chunk)] = chunk
        start = position = position + len(chunk)
        if start < view.nbytes:
            async with aclosing(rest.fill(view[start:])) as filled:
                async for more in filled:
                    position = start + more
                    yield position
        elif chunk:
            yield position


class Rest(asyncio.BufferedProtocol):
    """One request's body from where its reader asks for it to its end.

    Takes the connection's place at the transport meanwhile. Where the reader gives up, the rest goes the usual way,
    so that whoever reads on (or drops it) sees every byte once.
    """

    def __init__(self, connection: DirectConnection, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle
        self._view = memoryview(b"")
        self._position = 0  # bytes of the view that are filled
        self._remaining = 0  # bytes of the body that are still to come
        self._scratch: bytearray | None = None  # where bytes land that the reader no longer wants
        self._reported = 0
        self._waiter: asyncio.Future[None] | None = None

    async def fill(self, view: memoryview) -> AsyncGenerator[int]:
        """Fill ``view``, which is as long as what is missing of the body; yields how much of it is filled, often.

        Ends early where the client goes away. Close the generator to give up.
        """
        self._view, self._position = view, 0
        self._take()
        if self._position < view.nbytes and not self._cycle.disconnected:
            self._begin()
        try:
            while True:
                self._reported = self._position
                yield self._position
                if self._position == view.nbytes or self._cycle.disconnected:
                    return
                await self._more()
        finally:
            self._view = memoryview(b"")
            if self._remaining:
                self._scratch = bytearray(SCRATCH_BYTES)

    def _take(self) -> None:
        """Take what came the usual way meanwhile."""
        body = self._cycle.body
        self._cycle.body = bytearray()
        self._view[: len(body)] = body
        self._position = len(body)

    def _begin(self) -> None:
        self._remaining = self._view.nbytes - self._position
        self._connection.flow.resume_reading()
        self._connection.transport.set_protocol(self)

    async def _more(self) -> None:
        """Wait for the next stride, or a while for less."""
        loop = self._connection.loop
        while self._position == self._reported and not self._cycle.disconnected:
            self._waiter = loop.create_future()
            late = loop.call_later(REPORT_SECONDS, self._wake)
            try:
                await self._waiter
            finally:
                late.cancel()
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the transport's side

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: never more room than this body needs, so that no other request's come."""
        if self._scratch is not None:
            return memoryview(self._scratch)[: self._remaining]
        return self._view[self._position :]

    def buffer_updated(self, nbytes: int) -> None:
        """Note what came."""
        self._remaining -= nbytes
        if self._scratch is None:
            self._position += nbytes
        else:
            self._connection.on_body(bytes(self._scratch[:nbytes]))
        if not self._remaining:
            self._connection.transport.set_protocol(self._connection)
            self._connection.expect_head()
        if not self._remaining or self._position - self._reported >= STRIDE_BYTES:
            self._wake()

    def eof_received(self) -> None:
        """Do as the connection does."""
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the connection and the reader know."""
        self._remaining = 0
        self._connection.connection_lost(exc)
        self._wake()

    def pause_writing(self) -> None:
        """Do as the connection does."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Do as the connection does."""
        self._connection.resume_writing()
