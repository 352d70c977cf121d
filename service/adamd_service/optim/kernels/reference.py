"""The reference kernel: it runs the recurrences themselves on NumPy arrays.

It is slow and plain. The other kernels are compared with it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adamd_service.optim.kernels.protocol import Block
from adamd_service.optim.recurrence.language import signature
from adamd_service.optim.recurrence.rule import CONSTANTS
from adamd_service.optim.scalars import Scalars


@dataclass(frozen=True, slots=True)
class ReferenceKernel:
    """Runs the texts of a rule as they stand, one after the other; see `kernel.Kernel` for the contract."""

    def __call__(self, block: Block, scalars: Scalars, /) -> bool:
        """Update the block in place; True where something watched is now NaN or infinite."""
        rule = scalars.rule
        names: dict[str, Any] = {"p": block.p, "g": block.g}
        names |= zip(rule.arrays, block.arrays, strict=True)
        names |= zip((*rule.scalars, *CONSTANTS), scalars.typed, strict=True)
        with np.errstate(all="ignore"):
            for part in rule.parts:
                declared = signature(part.text)
                operands = (names.get(name) for name in (*declared.arrays, *declared.scalars))
                names |= zip(declared.returned, part.text(*operands, **part.choices), strict=True)
        block.p[:] = names["p"]
        for name, array in zip(rule.arrays, block.arrays, strict=True):
            array[:] = names[name]
        if block.out is not None:
            block.out[:] = block.p
        return not all(np.isfinite(names[name]).all() for name in rule.watched)
