"""Bodies on their way in, piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from adamd.errors import InvalidRequest
from adamd.wire.channel import most_pieces
from adamd.wire.pieces import Data, Piece
from adamd_service.grpc.calls import Context, read


async def pieces(message: Piece[Any], total: int | None, context: Context) -> AsyncGenerator[Data]:
    """Give a body's pieces as they come: in order, without holes or overlaps, none empty, not too many.

    Begins with the data of ``message``, the body's first; ``total`` is the body's length, None where it ends with the
    stream. Ends early where the stream does: whoever reads it knows how much there should be.

    Raises:
        InvalidRequest: they are not.

    """
    here, count = 0, 1
    while True:
        if message.offset != here:
            what = "a hole, or a piece is missing" if message.offset > here else "an overlap, or a piece comes twice"
            raise InvalidRequest(f"offset {message.offset}: the body goes on at {here}: {what}", path="offset")
        here += len(message.data)
        if total is not None and here > total:
            raise InvalidRequest(f"more than the {total} bytes came that nbytes tells", path="nbytes")
        if count > most_pieces(here):
            raise InvalidRequest(
                f"{here} bytes in {count} pieces; send larger ones, best 256 KiB to 1 MiB", path="data"
            )
        if message.data:
            yield message.data
        if here == total:
            return
        following = await read(context)
        if following is None:
            return
        message, count = following, count + 1
        if message.head is not None:
            raise InvalidRequest(f"another head after {here} bytes; the first message alone has one", path="header")
        if not message.data:
            raise InvalidRequest("data: an empty piece", path="data")
