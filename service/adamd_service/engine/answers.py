"""Copies of parameters for answers, in the session's dtype or rounded to a narrower one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd.errors import InvalidRequest, ParametersMissing
from adamd.wire.buffers import BufferPool
from adamd.wire.dtypes import storage
from adamd_service.advice import advice_of, progress_of
from adamd_service.engine.cache import LoadedSession
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
    """Makes answers in pooled buffers; a buffer is reused when its last view is gone."""

    def __init__(self, pool: BufferPool, device: Device) -> None:
        self._pool = pool
        self._device = device

    def lease(self, size: int, dtype: str) -> NDArray[Any]:
        """Return uninitialised memory for ``size`` parameters; bfloat16 is held as uint16."""
        kind = storage(dtype)
        return self._pool.lease(size * kind.itemsize).view(kind)

    def answer(
        self,
        loaded: LoadedSession,
        *,
        minimal: bool = False,
        replayed: bool = False,
        answer_dtype: str | None = None,
        at: str | None = None,
    ) -> Answer:
        """Copy the current parameters, under the lock: the next step must not change what is being sent.

        Raises:
            InvalidRequest: there are none ``at`` that.

        """
        head, state = loaded.head, loaded.state
        assert state is not None
        out, overflowed = None, 0
        if not minimal:
            self._device.fetch(state)
            source = self._source(loaded, state, at)
            out = self.lease(head.spec.layout.size, answer_dtype or head.spec.dtype)
            overflowed = rounded(source, answer_dtype or head.spec.dtype, out)
        return Answer(
            head.spec,
            head.step,
            head.chain,
            out,
            loaded.diverged,
            replayed=replayed,
            answer_dtype=answer_dtype,
            overflowed=overflowed,
            advice=advice_of(head, loaded.settings),
        )

    def _source(self, loaded: LoadedSession, state: State, at: str | None) -> Floats:
        """Return the parameters that are asked for."""
        if at is None:
            return state.params
        if at == "average":
            return self._average(loaded, state)
        if at != BEST:
            if at not in state.slots:
                raise InvalidRequest(f"at is {at}; this session keeps none: create it with {at}_decay", path="at")
            return state.slots[at]
        if state.best is None:
            raise InvalidRequest(
                "this session does not keep its best parameters; make one with keep_best: true",
                step=loaded.head.step,
                path="at",
            )
        if progress_of(loaded.head).lowest_step is None:
            raise ParametersMissing(
                'no parameters are the best yet: no step has told a loss (the metric "loss")', step=loaded.head.step
            )
        return state.best

    def _average(self, loaded: LoadedSession, state: State) -> Floats:
        """Make the parameters to evaluate, as an array of their own."""
        spec, settings = loaded.head.spec, loaded.settings
        try:
            check_average(settings)
        except SettingsError as error:
            raise InvalidRequest(error.message, path=error.path) from None
        out: Floats = self.lease(spec.layout.size, spec.dtype)
        write_average(state, settings, spec.layout.names, spec.layout.bounds, out)
        return out


def rounded(parameters: Floats, dtype: str, out: NDArray[Any]) -> int:
    """Write the parameters into ``out`` in ``dtype``; returns how many finite ones became infinite.

    A step cannot be refused for an overflow, which is known only after the commit. So the answer carries the infinities
    and their number.
    """
    if out.dtype == parameters.dtype:
        np.copyto(out, parameters)
        return 0
    return narrow(parameters, dtype, out)
