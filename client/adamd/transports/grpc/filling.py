"""An answer's pieces, into the caller's memory."""

from __future__ import annotations

from adamd.sansio.operations import bad_answer
from adamd.wire.pieces import Data


class Filling:
    """Memory that is being filled, piece by piece, in order."""

    def __init__(self, into: tuple[memoryview, ...]) -> None:
        self._views = [view.cast("B") for view in into if view.nbytes]
        self._at = 0  # in the first of them
        self._offset = 0
        self._left = sum(view.nbytes for view in self._views)

    @property
    def full(self) -> bool:
        """Nothing is missing."""
        return self._left == 0

    def put(self, offset: int, data: Data) -> None:
        """Take the next piece.

        Raises:
            TransportError: it is not the next one, or too long.

        """
        if offset != self._offset or len(data) > self._left:
            raise bad_answer(f"a piece of {len(data)} bytes at {offset}; {self._left} are missing at {self._offset}")
        self._offset, self._left = offset + len(data), self._left - len(data)
        here = 0
        while here < len(data):
            view = self._views[0]
            count = min(view.nbytes - self._at, len(data) - here)
            view[self._at : self._at + count] = data[here : here + count]
            here, self._at = here + count, self._at + count
            if self._at == view.nbytes:
                del self._views[0]
                self._at = 0
