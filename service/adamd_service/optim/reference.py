"""The reference kernel: the recurrence itself, run on NumPy arrays. Slow, plain, and the truth that the other kernels
are compared with.
"""

from dataclasses import dataclass

import numpy as np

from adamd_service.optim.kernel import Block, choices
from adamd_service.optim.recurrence import Text, adam
from adamd_service.optim.scalars import Scalars, typed


@dataclass(frozen=True, slots=True)
class ReferenceKernel:
    """Runs `text` as it stands; see `kernel.Kernel` for the contract."""

    text: Text = adam

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update the block in place; True where a p or a v is now NaN or infinite."""
        info = np.finfo(block.p.dtype)
        constants = info.smallest_normal, block.p.dtype.type(0)
        with np.errstate(all="ignore"):
            p, m, v, v_max = self.text(
                block.p,
                block.g,
                block.m,
                block.v,
                block.v_max,
                *typed(scalars, block.p.dtype),
                *constants,
                **choices(block, scalars),
            )
        block.p[:], block.m[:], block.v[:] = p, m, v
        if block.v_max is not None:
            block.v_max[:] = v_max
        if block.out is not None:
            block.out[:] = p
        return not (np.isfinite(p).all() and np.isfinite(v).all())
