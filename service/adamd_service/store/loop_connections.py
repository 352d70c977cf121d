"""Commits that the event loop sends itself: a hop to a thread and back costs as much as a small commit.

Only to a single server and without TLS, and only over a connection that is at hand; whoever finds none commits in a
thread. What is sent here is waited for to its end, or its connection is thrown away and the outcome is unknown.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import hiredis
import redis
from redis.connection import ConnectionPool

from adamd_service.store.connection.connect import Client
from adamd_service.store.connection.failures import leaves_by, not_begun
from adamd_service.store.connection.sockets import Plain, Unix
from adamd_service.store.outcomes import Connection, UnknownOutcome
from adamd_service.store.scripts import Script

MAX_CONNECTIONS: Final = 32  # for the event loop; with more commits at once the rest go through threads
READ_BYTES: Final = 64 * 1024  # read from the socket at once; answers are far shorter


class Lines:
    """Connections for the event loop. Used there only.

    timeout: seconds that an answer may take.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        pool = client.connection_pool if isinstance(client, redis.Redis) else None
        plain = pool is not None and type(pool) is ConnectionPool and issubclass(pool.connection_class, (Plain, Unix))
        self._pool = pool if plain else None
        self._timeout = timeout
        self._idle: list[Line] = []
        self._open = 0
        self._growing = False

    @property
    def at_hand(self) -> bool:
        """Say whether a connection is idle."""
        return bool(self._idle)

    @property
    def should_grow(self) -> bool:
        """Say whether one more connection would be of use: all are busy, and there may be more."""
        return self._pool is not None and not self._idle and not self._growing and self._open < MAX_CONNECTIONS

    async def grow(self, in_thread: Callable[[Callable[[], Line]], Awaitable[Line]]) -> None:
        """Make one more connection, if the store answers: whoever commits in a thread will tell where it does not."""
        if not self.should_grow:  # any more
            return
        self._growing = True
        try:
            line = await in_thread(self._connected)
        except (redis.RedisError, OSError):
            return
        finally:
            self._growing = False
        self._open += 1
        self._idle.append(line)

    def _connected(self) -> Line:
        assert self._pool is not None
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()
        return Line(connection)

    async def run(self, script: Script, keys: list[str], args: list[Any]) -> list[bytes] | None:
        """Run a script, once; returns what it says after the nonce. None: it did not run, and a thread finds out why.

        Raises:
            UnknownOutcome: no answer came, or another call's.
            redis.ResponseError: it failed, and may have begun.

        """
        nonce = secrets.token_hex(8)
        command = hiredis.pack_command(("EVALSHA", script.sha, len(keys), *keys, nonce, *args))
        line = self._healthy()
        if line is None:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await line.ask(command)
            if isinstance(answer, hiredis.ReplyError):
                if leaves_by(str(answer)):
                    line.leave()
                if not not_begun(str(answer)):
                    raise redis.ResponseError(str(answer))
                result = None
            elif isinstance(answer, list) and answer and answer[0] == nonce.encode():
                result = answer[1:]
            else:
                raise UnknownOutcome("the store answered another call's answer")
        except BaseException as error:
            self._drop(line)
            if isinstance(error, TimeoutError):
                line.report_time_out()
            if isinstance(error, (OSError, TimeoutError, hiredis.HiredisError)):
                raise UnknownOutcome(str(error)) from error
            raise
        if line.stale:
            self._drop(line)
        else:
            self._idle.append(line)
        return result

    def close(self) -> None:
        """Close the idle ones: once nothing is under way, all of them."""
        while self._idle:
            self._drop(self._idle.pop())

    def _healthy(self) -> Line | None:
        while self._idle:
            line = self._idle.pop()
            if line.is_quiet():
                return line
            self._drop(line)
        return None

    def _drop(self, line: Line) -> None:
        self._open -= 1
        line.close()


class Line:
    """One connection, which redis-py has made and logged in."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock  # redis-py has no public name for it
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()

    @property
    def stale(self) -> bool:
        """Say whether it leads to a process that has been left."""
        stale: bool = self._connection.stale
        return stale

    def leave(self) -> None:
        """Have all connections to this process thrown away before they are used again."""
        self._connection.leave()

    def report_time_out(self) -> None:
        """Tell that an answer did not come in time."""
        self._connection.report_time_out()

    def is_quiet(self) -> bool:
        """Say whether the store answers, as far as is known, was not left, and nothing lies there to be read: neither
        its end, nor an answer that nobody waits for.
        """
        if self.stale or self._reader.has_data() or self._connection.silent:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:  # reset
            return False
        return False

    async def ask(self, command: bytes) -> Any:
        """Send one command and return its answer. Raises OSError where the connection ends."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, command)
        while (answer := self._reader.gets()) is False:
            data = await loop.sock_recv(self._socket, READ_BYTES)
            if not data:
                raise ConnectionResetError("the store closed the connection")
            self._reader.feed(data)
        return answer

    def close(self) -> None:
        """Close it."""
        self._connection.disconnect()
