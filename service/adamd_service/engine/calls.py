"""Typed calls and answers between the transports and the engine, free of any protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adamd.errors import AdamdError
from adamd.wire.buffers import Bytes
from adamd.wire.encodings import RAW
from adamd.wire.layout import Layout
from adamd_service.advice import NOTHING, Advice
from adamd_service.optim import Settings
from adamd_service.records import Base, Carried, Durability, Head, Spec

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A body that arrives: as ``chunks``, by ``fill``, or ``whole``. One of the three is used, once.

    Attributes:
        declared: its length in bytes; None where the sender does not know it.
        chunks: its bytes.
        limit: bytes that a body of its kind may have, besides the server's own bound.
        weight: bytes of memory that each of its bytes may become.
        fill: reads a body of declared length directly into memory; yields how many bytes are filled.
        whole: all of it, of the declared length.

    """

    declared: int | None
    chunks: AsyncGenerator[bytes | memoryview]
    limit: int | None = None
    weight: int = 1
    fill: Callable[[memoryview], AsyncGenerator[int]] | None = None
    whole: bytes | memoryview | None = None


@dataclass(frozen=True, slots=True)
class Gradient:
    """A decoded gradient in its canonical form.

    ``data`` is the flat concatenation, in layout order and as little-endian bytes of ``dtype``, of the tensors
    in ``present`` (their indices; None for all).
    """

    dtype: str
    data: Bytes
    present: tuple[int, ...] | None = None
    settings: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None


Decode = Callable[[memoryview, Spec], Gradient]


@dataclass(frozen=True, slots=True)
class StepCall:
    """One step as it was asked for. ``number`` is None for POST; then ``key`` is the client's Idempotency-Key.

    ``decode`` turns a whole body into a gradient; None says that the body is the flat vector itself, in ``encoding``
    and ``dtype`` (the session's, if None), which can be checked and logged while it arrives. ``tensors`` names those
    that a raw vector has, in the layout's order, where some are left out; empty: it has all. ``answer_dtype`` asks for
    the parameters rounded to it.
    """

    ref: str
    number: int | None
    body: RequestBody
    dtype: str | None = None
    decode: Decode | None = None
    encoding: str = RAW
    answer_dtype: str | None = None
    if_match: str | None = None
    base: Base | None = None  # with ``number`` None only
    key: str | None = None
    settings: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    minimal: bool = False
    tensors: tuple[str, ...] = ()
    answer_limit: int | None = None  # bytes of parameters that the transport can answer with


@dataclass(frozen=True, slots=True)
class SavedState:
    """State of a restored session besides its parameters.

    Attributes:
        step: how many steps it has made.
        counts: updates of each tensor, in layout order.
        slots: flat state arrays by name, the best parameters among them.
        carried: numbers that the optimizer carries along, by name and tensor.
        progress: losses and norms so far, as JSON.

    """

    step: int
    counts: tuple[int, ...]
    slots: Mapping[str, Floats]
    carried: Carried
    progress: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CreateCall:
    """A creation. ``parameters`` is flat, in ``dtype``; None: they are PUT later.

    ``sent_order`` has the tensors' names in the order in which they were sent, where the layout is sorted by name.
    """

    layout: Layout
    dtype: Literal["float32", "float64"]
    optimizer: Mapping[str, Any]
    parameters: Floats | None
    name: str | None = None
    durability: Durability = "committed"
    labels: Mapping[str, str] = field(default_factory=dict)
    saved: SavedState | None = None
    bounds: Mapping[str, Floats] = field(default_factory=dict)  # lower and upper, where each element has its own
    key: str | None = None
    digest: str = ""  # of the whole request, for the Idempotency-Key
    sent_order: tuple[str, ...] = ()
    rounds: Mapping[str, Any] | None = None  # the session takes contributions to rounds, and no plain steps


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as it stands. ``settings`` are the head's, parsed."""

    head: Head
    settings: Settings
    diverged: bool
    repeated: bool = False  # a repeated creation
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of the last step, where the session is only looked at


@dataclass(frozen=True, slots=True)
class Answer:
    """Parameters at one step: a copy of its own, None where none were asked for.

    ``dtype`` is theirs (bfloat16 is held as uint16). ``overflowed`` counts the finite ones that it made infinite.
    """

    spec: Spec
    step: int
    chain: str
    parameters: NDArray[Any] | None
    diverged: bool
    replayed: bool = False
    applied_step: int | None = None  # a repeated POST: the step that its gradient was applied as
    answer_dtype: str | None = None
    overflowed: int = 0
    advice: Advice = NOTHING

    @property
    def dtype(self) -> str:
        """Of the parameters: what was asked for, else the session's."""
        return self.answer_dtype or self.spec.dtype


@dataclass(frozen=True, slots=True)
class Exported:
    """A whole state at one step: copies. ``settings`` are the head's, parsed."""

    head: Head
    settings: Settings
    counts: tuple[int, ...]
    carried: Carried
    arrays: Mapping[str, Floats]


@contextmanager
def step_in_errors(head: Head) -> Iterator[None]:
    """Put the session's step into errors that lack one."""
    try:
        yield
    except AdamdError as error:
        if error.step is None:
            error.step = head.step
        raise
