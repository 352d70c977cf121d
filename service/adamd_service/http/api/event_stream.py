"""Server-sent events: an answer that goes on until the client leaves or the server goes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adamd.errors import AdamdError
from adamd.wire import headers
from adamd_service.codecs.rounds import event_text, problem_text
from adamd_service.engine.admission import Seat
from adamd_service.http.responses import disconnected
from adamd_service.rounds import RoundEvent

KEEP_ALIVE: Final = 15.0  # seconds of silence after which a comment is sent, so that proxies keep the connection
COMMENT: Final = ": keep-alive\n\n"
HEAD: Final = "adamd.head"  # in the scope of a request that is answered by its head alone
FIELDS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would collect them
}


class EventStream(Response):
    """Sends events as they come (HTML Living Standard, section 9.2).

    A reader that stops reading is dropped by its connection (`http.server.connection`), which ends the stream.

    Args:
        events: begun already, so that what is refused is refused with a status of its own.
        first: their first one.
        seat: among the requests that wait; left when the stream ends.
        silence: seconds without an event until a comment is sent.

    """

    def __init__(
        self, first: RoundEvent, events: AsyncGenerator[RoundEvent], seat: Seat, silence: float = KEEP_ALIVE
    ) -> None:
        super().__init__(None, 200, FIELDS, headers.EVENTS)
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._seat = seat
        self._silence = silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events (ASGI). HEAD has none."""
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if not scope.get(HEAD, False):
                async with aclosing(self._texts(gone)) as texts:
                    async for text in texts:
                        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self._seat.leave()
            await self._events.aclose()

    async def _texts(self, gone: asyncio.Future[None]) -> AsyncGenerator[str]:
        """Yield what is to be sent, until there is no reader or the events end."""
        yield event_text(self._first)
        following: asyncio.Future[Any] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(self._events))
                await asyncio.wait((following, gone), timeout=self._silence, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not following.done():
                    yield COMMENT
                    continue
                told, following = following, None
                try:
                    event = told.result()
                except AdamdError as error:  # the session was deleted, or the server goes down
                    yield problem_text(error)
                    return
                yield event_text(event)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait((following,))
