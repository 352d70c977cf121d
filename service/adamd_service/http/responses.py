"""Encodes the engine's results as HTTP responses: headers, media types, problem documents."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from adamd.errors import AdamdError
from adamd.wire import headers, numbers, safetensors
from adamd_service.codecs import rounds
from adamd_service.codecs.documents import document, order_notice, problem_document
from adamd_service.codecs.states import raw, state_pieces
from adamd_service.engine import Advice, Answer, Exported, SessionView, advice_of
from adamd_service.engine.rounds import Contributed, Task
from adamd_service.rounds import RoundDocument

SLICE_BYTES = 1 << 20  # of a safetensors answer, sent at once
MAX_DETAIL_CHARACTERS = 2000  # of an error's detail


def created(view: SessionView, sent_order: Sequence[str], prefix: str) -> Response:
    """Answer with a new session: its address below ``prefix``, and a warning where its tensors were sorted."""
    address = {"Location": f"{prefix}/v1/sessions/{view.head.spec.id}"}
    return session(view, 201, address, order_notice(sent_order, view.head.spec.layout))


def session(
    view: SessionView,
    status: int = 200,
    more: Mapping[str, str] | None = None,
    notices: Sequence[dict[str, Any]] = (),
    standing: Task | None = None,
) -> Response:
    """Answer with a session's document, with ``more`` headers, and ``notices`` among its warnings.

    ``standing`` says how far its open round is.
    """
    head = view.head
    extra = {**_standing(head.step, head.chain, head.spec.durability), **(more or {})}
    if view.repeated:
        extra[headers.REPLAYED] = "true"
    advice = advice_of(head, view.settings)
    extra |= _advised(advice)
    body = document(head, view.settings, advice, diverged=view.diverged)
    if view.metrics:
        body["metrics"] = view.metrics
    if standing is not None:
        body["round"] = rounds.standing_document(standing)
    body["warnings"] += notices
    return JSONResponse(body, status, extra)


def parameters(answer: Answer, kind: str) -> Response:
    """Answer with parameters in ``kind``, or with nothing where none were asked for.

    JSON has no NaN and no infinity: there a diverged session's parameters are null. Octet-stream carries them.
    """
    extra = _standing(answer.step, answer.chain, answer.spec.durability)
    if answer.replayed:
        extra[headers.REPLAYED] = "true"
    if answer.diverged:
        extra[headers.DIVERGED] = "true"
    extra |= _advised(answer.advice)
    if answer.applied_step is not None:
        extra[headers.APPLIED_STEP] = str(answer.applied_step)
    flat = answer.parameters
    if flat is None:
        return Response(status_code=204, headers=extra | {"Preference-Applied": "return=minimal"})
    extra[headers.DTYPE] = answer.dtype
    if answer.overflowed:
        extra[headers.OVERFLOWED] = str(answer.overflowed)
    if kind == headers.OCTETS:
        return Response(raw(flat), 200, extra, kind)
    if kind == headers.SAFETENSORS:
        tensors = ((t.name, answer.dtype, t.shape) for t in answer.spec.layout.tensors)
        head = safetensors.write_header(tensors, {"adamd": json.dumps({"step": answer.step})})
        return _pieces([memoryview(head), raw(flat)], extra)
    return _as_json(answer, flat, extra)


def _as_json(answer: Answer, flat: Any, extra: dict[str, str]) -> Response:
    opening = f'{{"step": {answer.step}, "parameters": '
    if answer.diverged and not np.isfinite(flat).all():
        return _text(opening + 'null, "diverged": true}', extra)

    def pieces() -> Iterator[str]:
        return chain((opening,), numbers.pieces_of_json(flat, answer.spec.layout), ("}",))

    if flat.size <= numbers.PIECE:
        return _text("".join(pieces()), extra)
    # Each piece is made in a thread, when the one before it is on its way: text takes many times its floats.
    return Pieces(pieces, extra, headers.JSON, slow=True)


def _text(content: str, extra: dict[str, str]) -> Response:
    return Response(content, 200, extra, headers.JSON)


def task(found: Task | None) -> Response:
    """Answer with a task; with nothing where none came in time: the client may ask again at once."""
    if found is None:
        return not_yet()
    extra = {headers.STEP: str(found.base_step), "ETag": f'"{found.chain}"'}
    return JSONResponse(rounds.task_document(found), 200, extra)


def contributed(answer: Contributed) -> Response:
    """Answer that a contribution or an evaluation is durable: just now (202), or earlier (200)."""
    status = 202 if answer.outcome == "accepted" else 200
    return JSONResponse(rounds.contributed_document(answer), status, {headers.STEP: str(answer.step)})


def round_told(told: RoundDocument, kind: str) -> Response:
    """Answer with a round in ``kind``."""
    if kind == headers.CSV:
        return Response(rounds.csv_of([told]), 200, media_type=headers.CSV)
    return JSONResponse(rounds.round_document(told))


def rounds_told(told: Sequence[RoundDocument], following: int | None, page_size: int, kind: str) -> Response:
    """Answer with a page of rounds in ``kind``. CSV has no place for the next page's token: it is in Link."""
    if kind == headers.CSV:
        link = {} if following is None else {"Link": f'<?from={following}&page_size={page_size}>; rel="next"'}
        return Response(rounds.csv_of(told), 200, link, headers.CSV)
    token = None if following is None else str(following)
    return JSONResponse({"rounds": [rounds.round_document(one) for one in told], "next_page_token": token})


def not_yet() -> Response:
    """Answer that what was waited for has not come; the client may ask again at once."""
    return Response(status_code=204, headers={"Retry-After": "0"})


def state(exported: Exported) -> Response:
    """Answer with a whole state as safetensors, streamed from the copies."""
    head = exported.head
    extra = _standing(head.step, head.chain, head.spec.durability)
    extra["Content-Disposition"] = f'attachment; filename="{head.spec.name or head.spec.id}-{head.step}.safetensors"'
    return _pieces(state_pieces(exported), extra)


def _pieces(pieces: list[memoryview], extra: dict[str, str]) -> Response:
    def stream() -> Iterator[memoryview]:
        for piece in pieces:
            for start in range(0, piece.nbytes, SLICE_BYTES):
                yield piece[start : start + SLICE_BYTES]

    length = sum(piece.nbytes for piece in pieces)
    return Pieces(stream, extra | {"Content-Length": str(length)}, headers.SAFETENSORS)


class Pieces(Response):
    """A response in pieces, which frees them at once when the client goes away.

    Starlette's StreamingResponse leaves them to the garbage collector, and with them an array that nobody reads.

    Args:
        pieces: begins an iterator, which makes each piece when the one before it has been sent.
        slow: a piece is made in a thread.

    """

    def __init__(
        self, pieces: Callable[[], Iterator[str | memoryview]], extra: dict[str, str], kind: str, *, slow: bool = False
    ) -> None:
        super().__init__(None, 200, extra, kind)
        if "Content-Length" not in extra:
            del self.headers["content-length"]
        self._make, self._pieces = pieces, pieces()
        self._slow = slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces (ASGI)."""
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            if scope["http_version"] == "1.0" and "content-length" not in self.headers:  # it knows no chunks
                self.headers["content-length"] = str(await run_in_threadpool(sum, map(len, self._make())))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while not gone.done():
                piece = await self._next()
                if piece is None:
                    await send({"type": "http.response.body", "body": b""})
                    return
                body = piece.encode() if isinstance(piece, str) else piece
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            gone.cancel()
            self._make, self._pieces = _nothing, _nothing()

    async def _next(self) -> str | memoryview | None:
        return await run_in_threadpool(next, self._pieces, None) if self._slow else next(self._pieces, None)


def _nothing() -> Iterator[str | memoryview]:
    return iter(())


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def problem(error: AdamdError, *, closing: bool = False) -> Response:
    """Answer with an RFC 9457 problem document. ``closing``: it is the last answer on its connection."""
    extra: dict[str, str] = {}
    if error.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.step is not None:
        extra[headers.STEP] = str(error.step)
    if closing or error.status == 413:
        extra["Connection"] = "close"  # so that nobody sends the rest
    content = json.dumps(problem_document(error, MAX_DETAIL_CHARACTERS), allow_nan=False)
    return Response(content, error.status, extra, headers.PROBLEM)


def _advised(advice: Advice) -> dict[str, str]:
    """Return the headers of the advice: the stop rule that holds, and each warning with the eps that would help."""
    fields = {} if advice.stop is None else {headers.STOP: advice.stop}
    if advice.warnings:
        warnings = (w.code if w.eps is None else f"{w.code};eps={w.eps:g}" for w in advice.warnings)
        fields[headers.WARNING] = ", ".join(warnings)
    return fields


def _standing(step: int, chain: str, durability: str) -> dict[str, str]:
    return {headers.STEP: str(step), "ETag": f'"{chain}"', headers.DURABILITY: durability}
