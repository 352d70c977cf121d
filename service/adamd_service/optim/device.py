"""Where states live and are updated: the CPU, which is the simplest, or a GPU (`adamd_service.device`)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adamd.wire.dtypes import Floats
from adamd_service.optim.gradients.encoded import Encoded
from adamd_service.optim.kernels.numba_kernel import FusedKernel, prepare
from adamd_service.optim.kernels.protocol import Kernel
from adamd_service.optim.scalars import Update
from adamd_service.optim.settings import Settings
from adamd_service.optim.state import State, apply


class Device(Protocol):
    """Updates states, in memory of its own where it has some. Every implementation gives the same bits (law 4).

    described: for people. inline: whether a small update takes no time to speak of. parallel: updates that it takes at
    once; None: as many as there are processors.

    A state's own arrays are the truth until its first `apply`; from then on they may be behind, until `fetch`. Calls
    that name one state do not overlap (the session's lock); a state that is let go takes its memory with it.
    """

    @property
    def described(self) -> str:
        """See above."""

    @property
    def inline(self) -> bool:
        """See above."""

    @property
    def parallel(self) -> int | None:
        """See above."""

    def prepare(self, settings: Settings, dtype: np.dtype[Any]) -> None:
        """Compile what a session with these settings will run."""

    def ready(self, state: State) -> AbstractContextManager[None]:
        """Room for an update: inside, `apply` does not fail for lack of memory. Raises DeviceFull, TooLarge."""

    def apply(
        self,
        state: State,
        gradient: NDArray[Any] | Encoded,
        updates: Sequence[Update],
        bounds: Sequence[int],
        out: Floats | None,
    ) -> bool:
        """See `state.apply`."""

    def fetch(self, state: State) -> None:
        """Bring the state's own arrays up to date."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """The state's arrays are all that there is; see `Device`."""

    kernel: Kernel = field(default_factory=FusedKernel)
    described: str = "cpu"
    inline: bool = True
    parallel: int | None = None

    def prepare(self, settings: Settings, dtype: np.dtype[Any]) -> None:
        """See `Device`."""
        prepare(settings, dtype)

    @contextmanager
    def ready(self, state: State) -> Iterator[None]:
        """See `Device`."""
        yield

    def apply(
        self,
        state: State,
        gradient: NDArray[Any] | Encoded,
        updates: Sequence[Update],
        bounds: Sequence[int],
        out: Floats | None,
    ) -> bool:
        """See `Device`."""
        return apply(state, gradient, updates, bounds, out, self.kernel)

    def fetch(self, state: State) -> None:
        """See `Device`."""
