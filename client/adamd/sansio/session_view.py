"""SessionView: read-only properties shared by Session and AsyncSession."""

from __future__ import annotations

from typing import Any, Protocol

from adamd.sansio.gradient_encoding import Encoding, checked, checked_answer
from adamd.sansio.tracking import Track
from adamd.wire.layout import Layout


class SessionView(Protocol):
    """The properties of `Session` and `AsyncSession`, as this client has seen the session."""

    _track: Track

    @property
    def id(self) -> str:
        """The server's name for it."""
        return self._track.now.id

    @property
    def name(self) -> str | None:
        """Yours."""
        return self._track.now.name

    @property
    def step_number(self) -> int:
        """How many updates this client has seen acknowledged."""
        return self._track.now.step

    @property
    def chain(self) -> str:
        """The history that this client has seen: 64 hexadecimal digits."""
        return self._track.now.chain

    @property
    def layout(self) -> Layout:
        """Names and shapes, in order."""
        return self._track.now.layout

    @property
    def dtype(self) -> str:
        """Of its state and parameters: "float32" or "float64"."""
        return self._track.now.dtype

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters, as this client last knew them: name, lr, betas, eps, weight_decay, …."""
        return dict(self._track.now.settings)

    @property
    def skipped(self) -> int:
        """How many bad gradients were skipped."""
        return self._track.skipped

    @property
    def left_open(self) -> int | None:
        """The number of a step that was sent, and whose answer was not waited for; None: there is none.

        Ctrl-C, a cancelled task and a time-out leave one. The same step again is safe, and tells whether it counts; so
        does another one, which is refused (`StepConflict`) where it does. ``parameters`` settles it as well: it goes on
        from where the server is.
        """
        return self._track.left_open

    @property
    def staleness(self) -> int | None:
        """How many steps of others came between the parameters that the last `push` was taken at, and it.

        0 after a `step`; None before the first, and where an answer was repeated, which does not tell.
        """
        return self._track.staleness

    @property
    def diverged(self) -> bool:
        """A parameter is no longer finite; further steps are refused."""
        return self._track.now.diverged

    @property
    def stop(self) -> str | None:
        """The rule of its ``stop`` settings that says to stop, as of the last step seen; None: none does.

        "target_loss", "gradient_norm", "relative_loss" or "max_steps". It only advises: further steps are taken.
        """
        return self._track.now.stop

    @property
    def encoding(self) -> Encoding:
        """How gradients are sent, from the next step on: "raw", "float16", "bfloat16", "int8" or `adamd.TopK`."""
        return self._track.encoder.encoding

    @encoding.setter
    def encoding(self, encoding: Encoding) -> None:
        self._track.encoder.encoding = checked(encoding)

    @property
    def error_feedback(self) -> bool:
        """What a lossy encoding drops goes along with the next gradient."""
        return self._track.encoder.error_feedback

    @error_feedback.setter
    def error_feedback(self, on: bool) -> None:
        self._track.encoder.error_feedback = bool(on)

    @property
    def answer_dtype(self) -> str | None:
        """What parameters are rounded to on their way here; None: not at all."""
        return self._track.encoder.answer_dtype

    @answer_dtype.setter
    def answer_dtype(self, dtype: str | None) -> None:
        self._track.encoder.answer_dtype = checked_answer(dtype, self.dtype)
