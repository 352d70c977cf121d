"""Several GPUs as one `Device`: a state lives on the one that had the most room when it came."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamd.wire.dtypes import Floats
from adamd_service.device.gpu import Gpu
from adamd_service.optim import Encoded, Settings, State, Update


class Spread:
    """See `optim.device.Device`. gpus: at least one."""

    inline = False

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.gpus = tuple(gpus)
        self.described = ", ".join(gpu.described for gpu in self.gpus)
        self.parallel = sum(gpu.parallel for gpu in self.gpus)
        self._places: weakref.WeakKeyDictionary[State, Gpu] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def close(self) -> None:
        """End them all."""
        for gpu in self.gpus:
            gpu.close()

    def prepare(self, settings: Settings, dtype: np.dtype[Any]) -> None:
        """See `Device`."""
        for gpu in self.gpus:
            gpu.prepare(settings, dtype)

    def ready(self, state: State) -> AbstractContextManager[None]:
        """See `Device`."""
        return self.gpu_of(state).ready(state)

    def apply(
        self,
        state: State,
        gradient: NDArray[Any] | Encoded,
        updates: Sequence[Update],
        bounds: Sequence[int],
        out: Floats | None,
    ) -> bool:
        """See `Device`."""
        return self.gpu_of(state).apply(state, gradient, updates, bounds, out)

    def fetch(self, state: State) -> None:
        """See `Device`."""
        with self._lock:
            gpu = self._places.get(state)
        if gpu is not None:
            gpu.fetch(state)

    def gpu_of(self, state: State) -> Gpu:
        """Return where a state lives, or from now on will."""
        with self._lock:
            gpu = self._places.get(state)
            if gpu is None:
                promised = dict.fromkeys(self.gpus, 0)  # to states that may not have come yet, too
                for one, place in list(self._places.items()):
                    promised[place] += one.nbytes
                gpu = max(self.gpus, key=lambda gpu: gpu.residences.limit - promised[gpu])
                self._places[state] = gpu
            return gpu
