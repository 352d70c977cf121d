"""Where a contribution's numbers come from: an array, or something that is read slice by slice.

A round of many clients is never in memory as a whole: its reductions ask each contribution for one slice at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from adamd.wire.dtypes import Floats
from adamd_service.optim.gradients.encoded import Encoded

Kind: TypeAlias = Literal["delta", "parameters", "gradient"]


class Span(NamedTuple):
    """Elements start…stop-1 of the flat vector."""

    start: int
    stop: int


class Values(Protocol):
    """A flat pseudo-gradient in the session's dtype, of as many elements as the session has; all of them finite.

    What a partial contribution leaves out reads as 0. Threads read at once.
    """

    def read(self, start: int, stop: int, into: Floats) -> Floats:
        """Elements start…stop-1: a view that stays as it is, or the beginning of `into`, which has room for them."""


@dataclass(frozen=True, slots=True)
class ArrayValues:
    """A one-dimensional array, which may be read-only or a file's mapping."""

    array: Floats

    def read(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Values`."""
        part = self.array[start:stop]
        return part if part.flags.c_contiguous and part.flags.aligned else np.require(part, requirements=["C", "A"])


@dataclass(frozen=True, slots=True)
class SentValues:
    """A contribution as it was sent, in any encoding, as a pseudo-gradient.

    delta: -(trained - pulled), sent as the difference. parameters: pulled - trained, rounded once in the session's
    dtype. gradient: as it is. Nothing is ever decoded as a whole.

    sent: complete and checked. pulled: the parameters that the client began from, in the session's dtype, where `kind`
    is parameters.
    """

    sent: Encoded
    kind: Kind
    pulled: Floats | None = None

    def read(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Values`."""
        part = self.sent.part(start, stop, into)
        if self.kind == "gradient":
            return part
        here = into[: stop - start]
        if self.kind == "delta":
            return np.negative(part, out=here)
        assert self.pulled is not None
        return np.subtract(self.pulled[start:stop], part, out=here)


@dataclass(frozen=True, slots=True)
class PartialValues:
    """A contribution with tensors left out: what was sent lies joined, in order; the rest is 0.

    sent: as long as the spans together. spans: ascending, without overlaps.
    """

    sent: Values
    spans: Sequence[Span]

    def read(self, start: int, stop: int, into: Floats) -> Floats:
        """See `Values`."""
        here = into[: stop - start]
        here[:] = 0
        begin = 0  # of the span, in what was sent
        for span in self.spans:
            first, last = max(start, span.start), min(stop, span.stop)
            if first < last:
                into_span = here[first - start : last - start]
                into_span[:] = self.sent.read(begin + first - span.start, begin + last - span.start, into_span)
            begin += span.stop - span.start
        return here
