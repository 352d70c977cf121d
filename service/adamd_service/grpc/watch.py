"""WatchSession: where a session stands, as it moves."""

from __future__ import annotations

from contextlib import aclosing

from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import checks
from adamd_service.engine import Engine, Seen
from adamd_service.grpc import messages
from adamd_service.grpc.calls import Context, Guard
from adamd_service.grpc.sending import write
from adamd_service.optim import lr_at, parse_settings


class Watch:
    """Serves it over one engine."""

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard

    async def watch_session(self, context: Context) -> None:
        """Tell where a session stands until it is deleted, which ends the stream with NOT_FOUND."""
        request: pb.WatchSessionRequest = await self._guard.first(context)
        async with aclosing(self._engine.watch(checks.session_ref(request.session))) as seen:
            async for one in seen:
                await write(context, _told(one), self._engine.limits.upload_gap)


def _told(seen: Seen) -> pb.WatchSessionResponse:
    head = seen.head
    return pb.WatchSessionResponse(
        standing=messages.standing_of(head.spec, head.step, head.chain, diverged=seen.diverged),
        optimizer=messages.struct(head.settings),
        metrics={name: value for name, value in seen.metrics.items() if value is not None},
        lr=lr_at(parse_settings(head.settings), head.step + 1),
    )
