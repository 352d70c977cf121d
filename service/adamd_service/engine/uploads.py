"""Receives the bodies of steps: checks lengths, reads or decodes, and stages large ones."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from adamd.errors import AdamdError, InvalidRequest, TooLarge, WrongLayout, WrongLength
from adamd.wire import encodings
from adamd.wire.buffers import BufferPool, Bytes
from adamd.wire.dtypes import ITEMSIZE, Array, check_widens, storage, vector, vector_bytes
from adamd.wire.encodings import LAZY, RAW, SPARSE
from adamd.wire.layout import Layout, shown
from adamd_service.engine.admission import Limits
from adamd_service.engine.cache import Hot
from adamd_service.engine.calls import Gradient, RequestBody, StepCall
from adamd_service.engine.receiving import DECODE_INLINE_BYTES, Reception, receive_all, receive_exactly
from adamd_service.engine.step import ReceivedStep
from adamd_service.engine.workers import Workers
from adamd_service.optim import FAMILY, Lazy, encoded
from adamd_service.records import Head, Spec
from adamd_service.rules import digest_start
from adamd_service.store import RedisStore, Staging

INLINE_BODY_BYTES = 512 * 1024  # a body up to this travels inside the commit, which spares a round trip and an fsync
ELEMENT_BYTES = 32  # bytes of the longest JSON number with its comma; safetensors need 8
HEADER_BYTES = 16 * 1024 * 1024  # names, shapes, metrics, settings


class Uploads:
    """Receives the bodies of steps."""

    def __init__(
        self, store: RedisStore, pool: BufferPool, workers: Workers, limits: Limits, draining: Callable[[], bool]
    ) -> None:
        self._store = store
        self._pool = pool
        self._workers = workers
        self._limits = limits
        self._draining = draining

    def expected(self, head: Head, call: StepCall) -> int:
        """Return the body's length in bytes, where it must be known; else the most that it may have.

        Raises:
            TooLarge, WrongLength, WrongDtype, InvalidRequest: by what was declared, before anything is read.

        """
        spec, declared = head.spec, call.body.declared
        if call.decode is not None:
            if call.encoding != RAW:
                raise InvalidRequest(f"{call.encoding} is how a flat vector is written; send it as octet-stream")
            limit = self.most(spec, call.body)
            return limit if declared is None else declared
        if call.encoding != RAW and call.tensors:
            raise InvalidRequest(f"{call.encoding} covers the whole vector; tensors can be left out of a raw one only")
        if call.encoding == LAZY:
            _require_lazy(head)
        dtype = encodings.body_dtype(call.encoding, call.dtype, spec.dtype)
        size = sizes_of(spec.layout, present_of(spec.layout, call.tensors))
        expected = encodings.most(call.encoding, size, dtype)
        if call.encoding in (SPARSE, LAZY):  # as long as it is said to be, or turns out to be
            expected = min(expected, self._limits.body) if declared is None else declared
        if expected > self._limits.body:
            raise TooLarge(f"a gradient of {expected} bytes; at most {self._limits.body} are accepted", step=head.step)
        if declared is not None and call.encoding != RAW:
            encodings.check_length(call.encoding, declared, size, dtype)
        elif declared is not None and declared != expected:
            raise WrongLength(_explain(declared, dtype, spec, size), step=head.step)
        return expected

    def most(self, spec: Spec, body: RequestBody) -> int:
        """Return the most bytes that a body with all of a session's tensors can have, in any encoding.

        Raises:
            TooLarge: more are declared.

        """
        limit = min(self._limits.body, body.limit or self._limits.body, spec.layout.size * ELEMENT_BYTES + HEADER_BYTES)
        if body.declared is not None and body.declared > limit:
            raise TooLarge(f"a body of {body.declared} bytes; at most {limit} are accepted here")
        return limit

    def most_parameters(self, spec: Spec, body: RequestBody, dtype: str | None, *, flat: bool) -> int:
        """Return the most bytes that a body of parameters can have; a flat vector has exactly so many.

        Raises:
            TooLarge, WrongLength, WrongDtype: by what was declared, before anything is read.

        """
        if not flat:
            return self.most(spec, body)
        expected = vector_bytes(spec.layout.size, dtype, spec.dtype)
        if expected > self._limits.body:
            raise TooLarge(f"{expected} bytes of parameters; at most {self._limits.body} are accepted")
        if body.declared is not None and body.declared != expected:
            raise WrongLength(f"{body.declared} bytes; {spec.layout.size} {dtype or spec.dtype} are {expected}")
        return expected

    async def receive(
        self, hot: Hot, head: Head, call: StepCall, expected: int, *, logged: bool | None = None, wiped: bool = False
    ) -> ReceivedStep:
        """Receive, hash, check and (for a large durable one) log the body of a step.

        ``logged``: whether it is logged while it arrives; None: where it is the next step's. ``wiped``: it is a
        contribution's.
        """
        attempt = secrets.token_hex(8)
        logged = call.number in (None, head.step + 1) if logged is None else logged
        counted = call.encoding in (SPARSE, LAZY) and call.body.declared is None
        if call.decode is None and not counted:
            return await self._octets(hot, head, call, expected, attempt, logged=logged, wiped=wiped)
        raw = await receive_all(call.body, expected, self._pool, self._limits.upload_gap, self._draining)
        if call.decode is not None:
            return await self._decoded_step(head, call, await self._decoded(call.decode, raw, head.spec), attempt)
        dtype = call.dtype or head.spec.dtype
        encodings.check_length(call.encoding, raw.nbytes, head.spec.layout.size, dtype)
        return await self._decoded_step(head, call, Gradient(dtype, raw), attempt)

    async def _octets(
        self, hot: Hot, head: Head, call: StepCall, expected: int, attempt: str, *, logged: bool, wiped: bool
    ) -> ReceivedStep:
        dtype = encodings.body_dtype(call.encoding, call.dtype, head.spec.dtype)
        buffer = self._pool.lease(expected)
        staging = None
        if hot.durable and expected > INLINE_BODY_BYTES and logged:
            staging = self._store.stage(hot.id, attempt, expected, wiped=wiped)
        present = present_of(head.spec.layout, call.tensors)
        reception = _reception(head.spec, call, dtype, buffer, present, staging)
        bulk = None
        try:
            gap = self._limits.upload_gap
            threads = self._workers.threads if staging is None else self._workers.waiting
            await receive_exactly(call.body, reception, threads, gap, self._draining)
            if staging is not None:
                bulk = await self._workers.ask(staging.finish)
        except BaseException:
            if staging is not None:
                self._workers.spawn(self._workers.ask(self._give_up, hot.id, attempt, staging))
            raise
        present = present if present is not None else _tensors_of(reception, head.spec)
        return ReceivedStep(call, reception, present, attempt, bulk, staging)

    def _give_up(self, session_id: str, attempt: str, staging: Staging) -> None:
        """Unlink the staged chunks of an upload that will not commit. Their TTL would do it later."""
        with suppress(AdamdError):
            self._store.discard(session_id, attempt, staging.finish())

    async def _decoded(self, decode: Callable[[memoryview, Spec], Gradient], raw: Bytes, spec: Spec) -> Gradient:
        if raw.nbytes <= DECODE_INLINE_BYTES:
            return decode(memoryview(raw), spec)
        return await self._workers.run(decode, memoryview(raw), spec)

    async def _decoded_step(self, head: Head, call: StepCall, gradient: Gradient, attempt: str) -> ReceivedStep:
        """Hash and check a gradient that had to be decoded first; it is logged when it is committed."""
        check_widens(gradient.dtype, head.spec.dtype)
        settings = _either("settings", call.settings, gradient.settings)
        metrics = _either("metrics", call.metrics or None, gradient.metrics) or {}
        call = replace(call, settings=settings, metrics=metrics)
        reception = _reception(head.spec, call, gradient.dtype, gradient.data, gradient.present, None)
        if gradient.data.nbytes <= DECODE_INLINE_BYTES:
            reception.take(gradient.data.nbytes)
        else:
            await self._workers.run(reception.take, gradient.data.nbytes)
        present = gradient.present if gradient.present is not None else _tensors_of(reception, head.spec)
        return ReceivedStep(call, reception, present, attempt)


def _require_lazy(head: Head) -> None:
    """Raise InvalidRequest where a session's optimizer does not step named elements alone."""
    why = FAMILY[head.settings["name"]].why_not_lazy
    if why is not None:
        raise InvalidRequest(f"{LAZY}: {why}; send the gradient as {SPARSE} or {RAW}", step=head.step)


def _reception(
    spec: Spec,
    call: StepCall,
    dtype: str,
    buffer: Bytes,
    present: tuple[int, ...] | None,
    staging: Staging | None,
) -> Reception:
    gradient = encoded(call.encoding, dtype, buffer, spec.layout.size, storage(spec.dtype))
    digest = digest_start(call.encoding, dtype, present, call.settings)
    return Reception(call.encoding, dtype, buffer, gradient, digest, staging)


def _tensors_of(reception: Reception, spec: Spec) -> tuple[int, ...] | None:
    """Return the tensors that a body brings: all of them (None), or those in which a lazy one names an element."""
    gradient = reception.gradient
    return gradient.touched(spec.layout.bounds) if isinstance(gradient, Lazy) else None


def _either(
    what: str, from_headers: Mapping[str, Any] | None, from_body: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    if from_headers is not None and from_body is not None:
        raise InvalidRequest(f"{what} come both in a header and in the body; send them once", path=what)
    return from_headers if from_body is None else from_body


def flat_parameters(body: memoryview, spec: Spec, *, dtype: str | None) -> Array:
    """Read a flat vector of parameters, in the session's dtype."""
    return vector(body, spec.layout.size, dtype, spec.dtype)


def present_of(layout: Layout, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the places of the tensors that a vector has; None for all of them.

    Raises:
        WrongLayout: a name that the layout does not have, or names in another order than its own.

    """
    if not names:
        return None
    places: list[int] = []
    for name in names:
        place = layout.index.get(name)
        if place is None:
            raise WrongLayout(f"this session has no tensor {shown(name)}")
        if places and place <= places[-1]:
            raise WrongLayout(f"tensor {shown(name)} comes twice, or out of the layout's order, which the body follows")
        places.append(place)
    return None if len(places) == len(layout.tensors) else tuple(places)


def sizes_of(layout: Layout, present: tuple[int, ...] | None) -> int:
    """Return how many elements these tensors have together."""
    return layout.size if present is None else sum(layout.tensors[place].size for place in present)


def _explain(declared: int, dtype: str, spec: Spec, size: int) -> str:
    """Say what came and what was wanted: `8000000 bytes = 1000000 float64; this session is float32 (4000000 bytes)`."""
    expected = size * ITEMSIZE[dtype]
    actual = f"{declared} bytes"
    for other in ("float64", "float32", "float16"):
        if declared == size * ITEMSIZE[other]:
            actual = f"{declared} bytes = {size} {other}"
            break
    if dtype == spec.dtype:
        return f"{actual}; this session is {spec.dtype} ({expected} bytes)"
    return f"{actual}; {size} {dtype} are {expected} bytes"
