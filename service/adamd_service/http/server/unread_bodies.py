"""The rest of a body whose request was answered early.

A refusal is sent before the body is read (law 6), while the client may still be sending. Closing at once would reset
the connection, and the client might never see why. So the answer goes out whole, then what still comes is read and
dropped, within bounds, and only then does the answer end (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_GAPS = 10  # that reading the rest of a body may take altogether


class Leftovers:
    """Reads on where the application answered before the body was in.

    Args:
        app: the application.
        gap: seconds without a byte after which no more is waited for.
        most: bytes read only to be dropped: what a body that is accepted may have.

    """

    def __init__(self, app: ASGIApp, gap: float, most: int) -> None:
        self._app = app
        self._gap = gap
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body_requested = body_complete = False

        async def received() -> Message:
            nonlocal body_requested, body_complete
            body_requested = True
            message = await receive()
            body_complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal body_complete
            if message["type"] == "http.response.start" and not body_requested and _expects(scope):
                # The client waits for our word and has sent nothing: it shall not send at all.
                body_complete = True
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            if message["type"] != "http.response.body" or message.get("more_body", False) or body_complete:
                await send(message)
                return
            await send({**message, "more_body": True})
            await self._drop(receive)
            await send({"type": "http.response.body", "body": b""})

        await self._app(scope, received, sent)

    async def _drop(self, receive: Receive) -> None:
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_GAPS * self._gap):
                while dropped <= self._most:
                    async with asyncio.timeout(self._gap):
                        message = await receive()
                    dropped += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))
        for name, value in scope["headers"]
    )


def _expects(scope: Scope) -> bool:
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"])
