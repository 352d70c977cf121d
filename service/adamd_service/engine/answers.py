"""The parameters that an answer carries: copies, in the session's dtype or rounded to a narrower one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd.errors import InvalidRequest, ParametersMissing
from adamd.wire.buffers import BufferPool
from adamd.wire.dtypes import storage
from adamd_service.advice import advice_of, progress_of
from adamd_service.engine.cache import Hot
from adamd_service.engine.calls import Answer, Floats
from adamd_service.optim import (
    BEST,
    Device,
    SettingsError,
    State,
    check_average,
    narrow,
    write_average,
)


class Copies:
    """Makes answers out of a pool of buffers; each is used again when its last view is gone."""

    def __init__(self, pool: BufferPool, device: Device) -> None:
        self._pool = pool
        self._device = device

    def lease(self, size: int, dtype: str) -> NDArray[Any]:
        """Return uninitialised memory for ``size`` parameters; bfloat16 is held as uint16."""
        kind = storage(dtype)
        return self._pool.lease(size * kind.itemsize).view(kind)

    def answer(
        self,
        hot: Hot,
        *,
        minimal: bool = False,
        replayed: bool = False,
        answer_dtype: str | None = None,
        at: str | None = None,
    ) -> Answer:
        """Copy the current parameters, under the lock: what is sent is never what the next step changes.

        Raises:
            InvalidRequest: there are none ``at`` that.

        """
        head, state = hot.head, hot.state
        assert head is not None and state is not None
        out, overflowed = None, 0
        if not minimal:
            self._device.fetch(state)
            source = self._asked(hot, at)
            out = self.lease(head.spec.layout.size, answer_dtype or head.spec.dtype)
            overflowed = rounded(source, answer_dtype or head.spec.dtype, out)
        return Answer(
            head.spec,
            head.step,
            head.chain,
            out,
            hot.diverged,
            replayed=replayed,
            answer_dtype=answer_dtype,
            overflowed=overflowed,
            advice=advice_of(head, hot.settings),
        )

    def _asked(self, hot: Hot, at: str | None) -> Floats:
        """Return the parameters that are asked for."""
        head, state = hot.head, hot.state
        assert head is not None and state is not None
        if at is None:
            return state.params
        if at != BEST:
            return self._beside(hot, state, at)
        if state.best is None:
            raise InvalidRequest(
                "this session does not keep its best parameters; make one with keep_best: true",
                step=head.step,
                path="at",
            )
        if progress_of(head).lowest_step is None:
            raise ParametersMissing(
                'no parameters are the best yet: no step has told a loss (the metric "loss")', step=head.step
            )
        return state.best

    def _beside(self, hot: Hot, state: State, at: str) -> Floats:
        if at == "average":
            return self._average(hot)
        if at not in state.slots:
            raise InvalidRequest(f"at is {at}; this session keeps none: create it with {at}_decay", path="at")
        return state.slots[at]

    def _average(self, hot: Hot) -> Floats:
        """Make the parameters to evaluate, as an array of their own."""
        head, state, settings = hot.head, hot.state, hot.settings
        assert head is not None and state is not None and settings is not None
        layout = head.spec.layout
        try:
            check_average(settings)
        except SettingsError as error:
            raise InvalidRequest(error.message, path=error.path) from None
        out: Floats = self.lease(layout.size, head.spec.dtype)
        write_average(state, settings, layout.names, layout.bounds, out)
        return out


def rounded(parameters: Floats, dtype: str, out: NDArray[Any]) -> int:
    """Write the parameters into ``out`` in ``dtype``; returns how many finite ones became infinite.

    A step cannot be refused for that: it is committed, and whether its parameters fit is known only after it. So the
    answer carries what IEEE 754 makes of them, and their number.
    """
    if out.dtype == parameters.dtype:
        np.copyto(out, parameters)
        return 0
    return narrow(parameters, dtype, out)
