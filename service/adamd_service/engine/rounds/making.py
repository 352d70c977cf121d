"""Makes a round's step: its body is hashed, checked and logged while the rest is aggregated."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from adamd.errors import AdamdError
from adamd.wire.dtypes import Floats
from adamd.wire.encodings import RAW
from adamd_service.engine.calls import RequestBody, StepCall
from adamd_service.engine.receiving import Reception
from adamd_service.engine.step import ReceivedStep
from adamd_service.engine.uploads import INLINE_BODY_BYTES
from adamd_service.optim import Raw
from adamd_service.records import RoundClosing, Spec
from adamd_service.rules import digest_start
from adamd_service.store import RedisStore


class Making:
    """A round's aggregate on its way into a step. Runs in worker threads, one at a time.

    Nothing names what it logs before the step is committed, so an aggregate that turns out to be wrong is given up.

    Args:
        store: where a large body is logged.
        spec: the session's.
        body: the gradient, which may still be filling, then the values of the assigned tensors.
        present: the tensors that the gradient has, by index; None: all of them.
        assigned: those whose values follow.

    """

    def __init__(
        self,
        store: RedisStore,
        spec: Spec,
        body: Floats,
        present: tuple[int, ...] | None = None,
        assigned: tuple[int, ...] = (),
    ) -> None:
        self.body = body
        self._store = store
        self._spec = spec
        self._present = present
        self._assigned = assigned
        self._attempt = secrets.token_hex(8)
        values = len(body) - sum(spec.layout.tensors[place].size for place in assigned)
        gradient, self._values = (Raw(part, spec.dtype, body.dtype) for part in np.split(body, [values]))
        digest = digest_start(RAW, spec.dtype, present, None, assigned)
        self._reception = Reception(RAW, spec.dtype, body.view(np.uint8), gradient, digest, None)
        if body.nbytes > INLINE_BODY_BYTES:
            self._reception.staging = store.stage(spec.id, self._attempt, body.nbytes)
        self._taken = 0
        self._error: AdamdError | None = None

    def written(self, stop: int) -> None:
        """Go on up to element ``stop``, as far as these are whole pieces. `step` raises what is wrong with them.

        What they were made of may not be what came: then it is no fault of theirs.
        """
        end = stop * self.body.itemsize
        end -= end % self._reception.piece
        if end <= self._taken or self._error is not None:
            return
        try:
            self._reception.take(end)
        except AdamdError as error:
            self._error = error
        self._taken = end

    def step(self, number: int, metrics: Mapping[str, Any], closing: RoundClosing) -> ReceivedStep:
        """Return the step, once all of its body is there, and as durable as that of a step that came.

        Raises:
            BadGradient: an element is not finite, or its square is not.
            StoreFull, StoreUnavailable: the body could not be logged.

        """
        reception = self._reception
        staging, nbytes = reception.staging, self.body.nbytes
        try:
            if self._error is not None:
                raise self._error
            self._values.check(self._values.size * self.body.itemsize)
            reception.take(nbytes)
            bulk = None if staging is None else staging.finish()
        except BaseException:
            self.give_up()
            raise
        call = StepCall(self._spec.id, number, RequestBody(nbytes, _nothing()), metrics=metrics, minimal=True)
        made = ReceivedStep(call, reception, self._present, self._attempt, bulk, staging)
        made.closing, made.assigned = closing, self._assigned
        return made

    def give_up(self) -> None:
        """Let go of what was logged."""
        staging = self._reception.staging
        if staging is None:
            return
        if not self._taken:
            staging.abort()
            return
        with suppress(AdamdError):  # a time to live does it later
            self._store.discard(self._spec.id, self._attempt, staging.finish())


async def _nothing() -> AsyncGenerator[bytes]:
    """Yield no bytes: the step's body is there already."""
    for part in list[bytes]():
        yield part
