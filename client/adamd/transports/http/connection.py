"""Connection: HTTP/1.1 on one socket, with a request from many buffers and an answer into given memory.

``http.client`` only opens the socket. It cannot keep a deadline over a whole exchange, nor notice an answer that comes
while the body is being sent. Here the rest of the body is then not sent, and the answer is not lost in the reset that
would follow.
"""

from __future__ import annotations

import selectors
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from adamd.errors import TransportError
from adamd.sansio.operations import OTHER_PROTOCOL
from adamd.transports.http.messages import Request, Response
from adamd.transports.silence import Attempt

PIECE_BYTES = 1 << 20  # bytes between two looks at the clock and at the other direction
SMALL_BYTES = 64 * 1024  # buffers below this are joined: one packet costs more than the copy
MAX_HEAD_BYTES = 64 * 1024
SETTINGS = b"\x04\0\0\0\0\0"  # what follows the length of HTTP/2's first frame (RFC 9113, sections 3.4 and 6.5)
TLS_ALERT = b"\x15\x03"  # how an alert begins (RFC 8446, section 5.1)
Advance = Callable[[int], None]
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Connection:
    """One connection.

    Args:
        sock: connected.
        inactivity: seconds without a byte.
        clock: monotonic seconds; deadlines are on it.

    """

    def __init__(self, sock: socket.socket, inactivity: float, clock: Callable[[], float]) -> None:
        self._sock = sock
        self._inactivity = inactivity
        self._clock = clock
        self._selector = _Selector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._buffer = bytearray()  # received, not yet read
        self._answer_began = False  # a byte of the current answer came
        self._attempt: Attempt | None = None  # the current one
        self.reusable = True
        self.idle_since = 0.0
        self.exchanges = 0

    def close(self) -> None:
        """Close the socket."""
        with suppress(OSError):
            self._sock.close()

    def interrupt(self) -> None:
        """End the connection while another thread uses it, which then fails at once."""
        self.reusable = False
        with suppress(OSError):  # of the socket itself: TLS would take its state away under the other thread
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def dead(self) -> bool:
        """Say whether an idle connection cannot be used again: the server closed it, or talks out of turn."""
        return bool(self._buffer or self._selector.select(0))

    def exchange(
        self, head: bytes, request: Request, deadline: float, sent: Advance, got: Advance, attempt: Attempt
    ) -> Response:
        """Send a request and read its answer.

        Raises:
            TransportError: ``extra["phase"]`` is "silent" where not one byte of an answer came before the
                connection ended, "timeout", or "answer" where it was cut or is no HTTP.

        """
        self._answer_began, self.exchanges, self._attempt = False, self.exchanges + 1, attempt
        try:
            failure = self._send(_joined(head, request.body), deadline, sent)
            if failure is not None:
                self.reusable = False  # the server does not wait for the rest, and neither do we
            request.on_sent()
            try:
                return self._answer(request, deadline, got)
            except TransportError:
                raise
            except OSError as error:
                raise (failure if isinstance(failure, OSError) else error) from None
        except TransportError:
            raise
        except TimeoutError as error:
            raise TransportError(
                f"nothing moved for {self._inactivity:g} s, or the whole call's time is over", phase="timeout"
            ) from error
        except OSError as error:
            phase = "answer" if self._answer_began else "silent"
            raise TransportError(f"the connection ended before the answer did: {error}", phase=phase) from error

    # -- out

    def _send(self, pieces: list[memoryview], deadline: float, sent: Advance) -> OSError | bool | None:
        """Send all of it: None. True: an answer came first. An OSError: it broke, maybe with an answer in it."""
        try:
            if sum(piece.nbytes for piece in pieces) <= PIECE_BYTES:
                for piece in pieces:
                    self._arm(deadline)
                    self._sock.sendall(piece)
                return None
            self._selector.modify(self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            try:
                return self._send_large(pieces, deadline, sent)
            finally:
                self._selector.modify(self._sock, selectors.EVENT_READ)
        except TimeoutError:
            raise
        except OSError as error:
            return error

    def _send_large(self, pieces: list[memoryview], deadline: float, sent: Advance) -> bool | None:
        encrypted = isinstance(self._sock, ssl.SSLSocket)  # readable says nothing there: it may be a session ticket
        for piece in pieces:
            offset = 0
            while offset < piece.nbytes:
                wait = self._arm(deadline)
                if encrypted:
                    self._sock.sendall(piece[offset : offset + PIECE_BYTES])
                    count = min(PIECE_BYTES, piece.nbytes - offset)
                else:
                    ready = self._selector.select(wait)
                    if not ready:
                        raise TimeoutError
                    if ready[0][1] & selectors.EVENT_READ:
                        return True
                    count = self._sock.send(piece[offset : offset + PIECE_BYTES])
                offset += count
                sent(count)
        return None

    def _arm(self, deadline: float) -> float:
        """Set the socket's time-out to what is left, and return it."""
        wait = min(self._inactivity, deadline - self._clock())
        if wait <= 0:
            raise TimeoutError
        self._sock.settimeout(None if wait == float("inf") else min(wait, 1e6))
        return min(wait, 1e6)

    # -- in

    def _answer(self, request: Request, deadline: float, got: Advance) -> Response:
        status, fields, version = self._head(deadline)
        while 100 <= status < 200:  # early hints and the like
            status, fields, version = self._head(deadline)
        if version == "HTTP/1.0" or "close" in fields.get("connection", "").lower():
            self.reusable = False
        bare = Response(status, fields)
        if status in (204, 304):
            return bare
        chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        length = None if chunked else _length(fields)
        meant = status == 200 and bare.media_type == request.accept and bare.plain
        into = request.into if meant else None
        head = request.check(bare) if meant else None  # before any of it is taken
        if isinstance(into, tuple) and length == sum(view.nbytes for view in into):
            for view in into:
                self._read_into(view, deadline, got)
            return Response(status, fields, filled=True, head=head)
        pieces = self._chunks(deadline) if chunked else self._pieces(length, deadline)
        if into is not None and not isinstance(into, tuple):
            _to_file(pieces, into, got)
            return Response(status, fields, filled=True)
        limit = request.limit if into is None else max(request.limit, sum(view.nbytes for view in into))
        body = self._gather(pieces, limit, got)
        if into is not None and len(body) == sum(view.nbytes for view in into):
            _scatter(body, into)
            return Response(status, fields, filled=True, head=head)
        return Response(status, fields, body)

    def _head(self, deadline: float) -> tuple[int, dict[str, str], str]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise _no_http(f"a head of more than {MAX_HEAD_BYTES} bytes")
            if self._buffer[3:9] == SETTINGS:
                raise TransportError("the other side speaks HTTP/2", phase=OTHER_PROTOCOL, permanent=True)
            if self._buffer[:2] == TLS_ALERT:
                raise TransportError("the other side speaks TLS", phase=OTHER_PROTOCOL, permanent=True, tls=True)
            self._receive(deadline)
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = lines[0].partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit() and len(code) == 3):
            raise _no_http(f"the line {lines[0][:80]!r}")
        fields: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _no_http(f"the header {line[:80]!r}")
            name, value = name.lower(), value.strip()
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        return int(code), fields, version

    def _receive(self, deadline: float) -> None:
        data = self._first(deadline) if not self._answer_began else None
        if data is None:
            self._arm(deadline)
            data = self._sock.recv(SMALL_BYTES)
        if not data:
            what = "it closed in the middle of its answer" if self._answer_began else "it closed without an answer"
            raise ConnectionResetError(what)
        self._answer_began = True
        self._buffer += data

    def _first(self, deadline: float) -> bytes | None:
        """Return an answer's first bytes; None after a warning, when patience is over."""
        wait, attempt = self._arm(deadline), self._attempt
        if attempt is None or attempt.warned or attempt.patience >= wait:
            return self._sock.recv(SMALL_BYTES)
        self._sock.settimeout(attempt.patience)
        try:
            return self._sock.recv(SMALL_BYTES)
        except TimeoutError:
            attempt.warn(wait - attempt.patience)
            return None

    def _read_into(self, view: memoryview, deadline: float, got: Advance) -> None:
        """Fill ``view``: first with what was received already, then straight from the socket."""
        offset = min(len(self._buffer), view.nbytes)
        view[:offset] = self._buffer[:offset]
        del self._buffer[:offset]
        got(offset)
        while offset < view.nbytes:
            if view.nbytes - offset < SMALL_BYTES:  # many small tensors: one call receives several
                self._receive(deadline)
                count = min(len(self._buffer), view.nbytes - offset)
                view[offset : offset + count] = self._buffer[:count]
                del self._buffer[:count]
            else:
                self._arm(deadline)
                count = self._sock.recv_into(view[offset : offset + PIECE_BYTES])
                if count == 0:
                    raise ConnectionResetError(f"the answer ended {view.nbytes - offset} bytes early")
            offset += count
            got(count)

    def _pieces(self, length: int | None, deadline: float) -> Iterator[bytes | bytearray]:
        """Yield a body of known length, or all that comes until the connection ends."""
        if length is None:
            self.reusable = False
        while length is None or length > 0:
            if not self._buffer:
                try:
                    self._receive(deadline)
                except ConnectionResetError:
                    if length is None:
                        return
                    raise
            piece = self._buffer if length is None else self._buffer[:length]
            self._buffer = bytearray() if length is None else self._buffer[length:]
            length = None if length is None else length - len(piece)
            yield piece

    def _chunks(self, deadline: float) -> Iterator[bytes | bytearray]:
        """Yield a chunked body (RFC 9112, section 7.1)."""
        while True:
            size = self._line(deadline).partition(b";")[0].strip()
            if not size or len(size) > 15 or any(c not in b"0123456789abcdefABCDEF" for c in size):
                raise _no_http(f"the chunk size {bytes(size[:40])!r}")
            if int(size, 16) == 0:
                break
            yield from self._pieces(int(size, 16), deadline)
            if self._line(deadline):
                raise _no_http("a chunk that is longer than its size")
        while self._line(deadline):  # trailers
            pass

    def _line(self, deadline: float) -> bytearray:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise _no_http("a line without an end")
            self._receive(deadline)
        line = self._buffer[:end]
        del self._buffer[: end + 2]
        return line

    def _gather(self, pieces: Iterator[bytes | bytearray], limit: int, got: Advance) -> bytearray:
        body = bytearray()
        for piece in pieces:
            body += piece
            got(len(piece))
            if len(body) > limit:
                self.reusable = False
                raise _no_http(f"a body of more than {limit} bytes")
        return body


def _joined(head: bytes, body: tuple[memoryview, ...]) -> list[memoryview]:
    """Join neighbours that are small; large buffers stay what they are."""
    pieces: list[memoryview] = []
    small: list[bytes | memoryview] = [head]
    nbytes = len(head)
    for view in body:
        if view.nbytes >= SMALL_BYTES or nbytes + view.nbytes > PIECE_BYTES:
            pieces += [memoryview(b"".join(small))] if small else []
            small, nbytes = [], 0
        if view.nbytes >= SMALL_BYTES:
            pieces.append(view)
        else:
            small.append(view)
            nbytes += view.nbytes
    return pieces + ([memoryview(b"".join(small))] if small else [])


def _to_file(pieces: Iterator[bytes | bytearray], file: BinaryIO, got: Advance) -> None:
    file.seek(0)  # an earlier attempt may have left something
    file.truncate()
    for piece in pieces:
        file.write(piece)
        got(len(piece))


def _scatter(body: bytearray, into: tuple[memoryview, ...]) -> None:
    offset = 0
    for view in into:
        view[:] = body[offset : offset + view.nbytes]
        offset += view.nbytes


def _length(fields: dict[str, str]) -> int | None:
    value = fields.get("content-length")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise _no_http(f"Content-Length {value[:40]!r}")
    return int(value)


def _no_http(what: str) -> TransportError:
    return TransportError(f"the other side does not speak HTTP/1.1: it sent {what}", phase="answer", permanent=True)
