"""Track: one session as a client knows it, with the logic of each call, shared by all shells.

The calls are generators: they yield the operations that they need, and get their results; an error comes in where the
result would have. They hold no lock and do no I/O: a shell of `adamd.drivers` drives them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar

import numpy as np

from adamd.errors import (
    AdamdError,
    BadGradient,
    HistoryLost,
    IdempotencyMismatch,
    InvalidRequest,
    InvalidSettings,
    Moved,
    RequestError,
    RetriesExhausted,
    SessionError,
    StepConflict,
    StepSuperseded,
)
from adamd.sansio import array_checks, arrays, operations
from adamd.sansio.gradient_encoding import EncodedGradient, Encoder, EncodingOptions, locate
from adamd.sansio.operations import Operation, Stall, Standing, Stepped, body_of
from adamd.wire import safetensors, setting_aliases

UNBOUNDED = {"lower": -math.inf, "upper": math.inf}  # bounds that bound nothing
STALL_REASONS = {
    "gradient_below_eps": "the gradient is far below eps, and steps are that small a part of lr",
    "second_moment_underflow": "the gradient's square is nothing in this dtype, and the second moment stays 0",
}


class StallWarning(RuntimeWarning):
    """A session takes its steps, and hardly moves: its gradients are too small for eps, or for their squares."""


OnBadGradient: TypeAlias = Literal["raise", "skip"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """Something that blocks: an asyncio shell runs it in a thread."""

    run: Callable[[], Any]


Logic: TypeAlias = Generator[Operation | Work, Any, T]


class Track:
    """One session as one client follows it. One call at a time.

    Attributes:
        now: what was seen acknowledged last.
        order: the names as the caller's dict has them; None: as the layout has them.
        skipped: how many bad gradients were skipped.
        left_open: the number of a step that was sent, and whose answer was not waited for; None: there is none.
        staleness: how many steps of others came between the parameters that the last push was taken at, and it.
        encoder: how its gradients are sent.

    """

    def __init__(
        self, standing: Standing, on_bad_gradient: OnBadGradient, order: tuple[str, ...] | None = None
    ) -> None:
        self.now = standing
        self.order = order
        self.skipped = 0
        self.left_open: int | None = None
        self.staleness: int | None = None
        self.encoder = Encoder()
        self._backup = arrays.Backup()
        self._warned = set[str]()
        self._on_bad_gradient = on_bad_gradient

    def step(
        self,
        gradient: Any,
        loss: Any,
        lr: float | None,
        settings: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None,
        out: Any,
        encoding_options: EncodingOptions | None = None,
        key: str | None = None,
        max_staleness: int | None = None,
    ) -> Logic[Any]:
        """Take the next step: its number and the chain that it builds on make it safe to repeat.

        ``encoding_options``: those of the moment when it was asked for; None: those of its beginning. With a ``key`` it
        has no number: it becomes whichever is next. ``max_staleness`` bounds the steps of others before it.
        """
        options = encoding_options or self.encoder.chosen
        changes = settings_document(settings or {}) | settings_document({"lr": lr})
        measured = _measured(loss, metrics)
        now, answer_dtype, kept = self.now, options.answer_dtype, own_names(changes, self.now.settings)
        doubt_before, open_before, encoded = self.encoder.in_doubt, self.left_open, None
        try:
            encoded = self.encoder.write(gradient, now.layout, now.dtype, options)
            landing = arrays.landing(now.layout, answer_dtype or now.dtype, out, encoded.parts, self.order)
            operation = operations.Step(
                ref=now.id,
                number=now.step + 1 if key is None else None,
                chain=now.chain if key is None else None,
                body=encoded.body,
                dtype=answer_dtype or now.dtype,
                rounded=answer_dtype is not None,
                into=landing.buffers,
                settings=changes,
                metrics=measured,
                key=key,
                base=None if key is None else operations.PushBase(now.step, now.chain, max_staleness),
                on_sent=self._backup.keep,
            )
            self.encoder.in_doubt, self.left_open = True, operation.number or open_before
            return self._take((yield from self._receive(operation, landing)), kept, landing, encoded)
        except (StepConflict, StepSuperseded) as error:
            self.left_open = open_before
            if not error.extra.get("applied"):  # not this gradient; one before it, whose answer was lost, perhaps
                self.encoder.in_doubt = doubt_before
                if open_before is not None:
                    raise _left_open(error, open_before) from None
            raise
        except (BadGradient, IdempotencyMismatch) as error:
            self.encoder.in_doubt, self.left_open = doubt_before, open_before
            if self._on_bad_gradient == "skip" and isinstance(error, BadGradient):
                self.skipped += 1
                return (yield from self.parameters(out))
            locate(error, "gradient", now.layout, encoded.parts if encoded else ())
            raise
        except (RequestError, SessionError) as error:
            if not isinstance(error, HistoryLost):  # of which nobody knows what it does to a step that was sent
                self.left_open = open_before
            raise

    def push(
        self,
        gradient: Any,
        loss: Any,
        lr: float | None,
        settings: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None,
        out: Any,
        key: str | None,
        max_staleness: int | None,
    ) -> Logic[Any]:
        """Have a gradient applied at whatever step is next: its key makes it safe to repeat."""
        if max_staleness is not None and not (type(max_staleness) is int and 0 <= max_staleness < 1_000_000_000):
            raise InvalidRequest(f"max_staleness is {max_staleness!r}; wanted a number of steps, 0 or more")
        push_key = secrets.token_hex(16) if key is None else operations.idempotency_key(key)
        try:
            return (yield from self.step(gradient, loss, lr, settings, metrics, out, None, push_key, max_staleness))
        except RetriesExhausted as error:
            message = f"{error.detail}; it may have counted: the same push with key={push_key!r} is safe, and tells"
            raise RetriesExhausted(
                message, step=error.step, retry_after=error.retry_after, key=push_key, last=error.extra.get("last")
            ) from None

    def parameters(self, out: Any, at: str | None = None) -> Logic[Any]:
        """Read the parameters, and go on from their step; or others beside them (``at``), which change nothing here."""
        now = self.now
        dtype = self.encoder.answer_dtype
        landing = arrays.landing(now.layout, dtype or now.dtype, out, order=self.order)
        operation = operations.ReadParameters(
            now.id, dtype or now.dtype, landing.buffers, rounded=dtype is not None, at=at, on_sent=self._backup.keep
        )
        answer = yield from self._receive(operation, landing)
        return landing.finish() if at is not None else self._take(answer, {}, landing)

    def _receive(self, operation: Operation, landing: arrays.Landing) -> Logic[Stepped]:
        """Receive an answer into its memory. If it fails, ``out`` is restored."""
        self._backup.of(landing.own)
        try:
            answer: Stepped = yield operation
            self._check_history(answer)
        except BaseException:
            self._backup.restore()
            raise
        finally:
            self._backup.of(())
        return answer

    def _take(
        self, answer: Stepped, changes: Mapping[str, Any], landing: arrays.Landing, sent: EncodedGradient | None = None
    ) -> Any:
        """Take an answer over, and return the caller's arrays.

        The session moves on last. If Ctrl-C, or a warning turned into an error, interrupts this method, the session
        still stands before the answer, and its next step is refused with the reason. So no step is ever taken at
        parameters that the caller does not have.
        """
        result, moved = landing.finish(), answer.step != self.now.step
        self._warn_of(answer)
        if sent is not None:
            self.encoder.sent(sent)
            self.staleness = None if answer.replayed else answer.step - self.now.step - 1
        elif moved:
            self.encoder.moved()
        self._advance(answer, changes)
        if moved:
            self.left_open = None
        return result

    def _check_history(self, answer: Stepped) -> None:
        """Refuse to go on where what was seen acknowledged is no longer there."""
        now = self.now
        if answer.step < now.step or (answer.step == now.step and answer.chain != now.chain):
            what = "another history" if answer.step == now.step else "it went back"
            raise HistoryLost(
                f"you have seen step {now.step} acknowledged; the server is at {answer.step}: {what}. "
                f"session.refresh() accepts it; then go on from session.parameters()",
                step=answer.step,
            )

    def _warn_of(self, answer: Stepped) -> None:
        """Warn of overflowed parameters and of stalls that an answer reports."""
        if answer.overflowed:
            warnings.warn(
                f"{answer.overflowed} parameters of session {self.now.id} at step {answer.step} are too large for "
                f"{self.encoder.answer_dtype} and came as infinity; session.answer_dtype = None reads them exactly",
                RuntimeWarning,
                stacklevel=2,
            )
        for stall in answer.stalls:
            self._warn(stall, answer.step)

    def _advance(self, answer: Stepped, changes: Mapping[str, Any]) -> None:
        now = self.now
        settings = now.settings if not changes else {**now.settings, **changes}
        self.now = replace(
            now,
            step=answer.step,
            chain=answer.chain,
            settings=settings,
            diverged=now.diverged or answer.diverged,
            stop=answer.stop,
        )

    def _warn(self, stall: Stall, step: int) -> None:
        """Warn once of each."""
        if stall.code in self._warned:
            return
        self._warned.add(stall.code)
        why = STALL_REASONS.get(stall.code, stall.code)
        remedy = "a gradient_scale" if stall.eps is None else f"eps={stall.eps:g}, or a gradient_scale,"
        warnings.warn(
            f"session {self.now.name or self.now.id} at step {step}: {why} ({stall.code}); {remedy} would help: "
            "session.info()['warnings'] has the figures",
            StallWarning,
            stacklevel=2,
        )

    def _check_same(self, standing: Standing) -> None:
        now = self.now
        if (standing.id, standing.layout, standing.dtype) != (now.id, now.layout, now.dtype):
            raise operations.bad_answer(f"another session than {now.id}, or one of another layout")

    def set_parameters(self, parameters: Any) -> Logic[None]:
        """Set the parameters: all of them."""
        now = self.now
        parts = arrays.matching(parameters, now.layout, now.dtype, "parameters")
        missing = set(now.layout.names) - {item.name for item in parts}
        if missing:
            raise InvalidRequest(f"the parameters lack {', '.join(sorted(missing)[:8])}; set all of them at once")
        standing: Standing = yield operations.SetParameters(now.id, body_of(parts, now.layout))
        self._check_same(standing)
        self.now = standing

    def update(self, labels: Mapping[str, str] | None, settings: Mapping[str, Any]) -> Logic[dict[str, Any]]:
        """Change settings or labels; this client's own step stays what it is."""
        document = settings_document(settings)
        if not document and labels is None:
            raise InvalidRequest("nothing to update; give settings, as lr=1e-4, or labels")
        standing: Standing = yield operations.Update(
            self.now.id, document or None, None if labels is None else labels_document(labels)
        )
        self._check_same(standing)
        self.now = replace(self.now, settings=standing.settings, document=standing.document, stop=standing.stop)
        return standing.document

    def info(self) -> Logic[dict[str, Any]]:
        """Read the session's document; this client's own step stays what it is."""
        standing: Standing = yield operations.View(self.now.id)
        return standing.document

    def refresh(self) -> Logic[dict[str, Any]]:
        """Accept what the server has now."""
        standing: Standing = yield operations.View(self.now.id)
        self._check_same(standing)
        self.encoder.forget()
        self.now, self.left_open = standing, None
        return standing.document

    def delete(self, *, anyway: bool) -> Logic[None]:
        """End the session, as it was seen last; ``anyway``: whatever others did meanwhile."""
        try:
            yield operations.Delete(self.now.id, None if anyway else self.now.chain)
        except Moved as error:
            raise Moved(
                f"session {self.now.name or self.now.id} is at step {error.step}, and this client saw it at "
                f"{self.now.step}: it was not deleted, for what came since would be lost. session.parameters() reads "
                "it; session.delete(anyway=True) deletes it all the same",
                step=error.step,
            ) from None

    def export(self, path: str | os.PathLike[str] | None) -> Logic[bytes | Path]:
        """Export the whole state, into memory or as a file that is written as a whole or not at all."""
        if path is None:
            body = yield operations.export(self.now, None)
            _check_state(memoryview(body))
            return bytes(body)
        target = Path(path)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with partial.open("xb+") as file:
                yield operations.export(self.now, file)
                yield Work(lambda: _settled(file, partial))
            partial.replace(target)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
        return target


def _left_open(error: StepConflict | StepSuperseded, number: int) -> AdamdError:
    """Return the refusal of a step whose number was sent from here before, with another gradient."""
    error.reword(
        f"step {number} was sent from here before, and its answer was not waited for (Ctrl-C, a cancelled task or a "
        f"time-out). It counts, or another client's does: the session is at step {error.step}. So this gradient, which "
        "is another one, was not applied. session.parameters() returns where to go on: take the next gradient there"
    )
    error.extra["left_open"] = number
    return error


def _measured(loss: Any, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a step's metrics as numbers, its loss among them."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise InvalidRequest(f"metrics is {metrics!r:.60}; wanted a dict of numbers, as {{'accuracy': 0.9}}")
    measured = dict(metrics or {}) | ({} if loss is None else {"loss": loss})
    return {name: array_checks.number(name, value) for name, value in measured.items()}


def settings_document(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON values; those that are None are the server's default, and an infinite bound is null.

    Raises:
        InvalidSettings: one is NaN or infinity, or something that JSON cannot say; ``extra["path"]`` names it.

    """
    if not isinstance(settings, Mapping):
        raise InvalidRequest(f"settings is {settings!r:.60}; wanted a dict, as {{'lr': 1e-4}}")
    return {name: _setting(name, _bound(name, value)) for name, value in settings.items() if value is not None}


def plain_document(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as JSON values, with what is None as null.

    Raises:
        InvalidSettings: something in it is NaN or infinity, or what JSON cannot say; ``extra["path"]`` names it.

    """
    if not isinstance(document, Mapping):
        raise InvalidRequest(f"{name} is {document!r:.60}; wanted a dict")
    made: dict[str, Any] = _setting(name, dict(document))
    return made


def own_names(settings: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under their own names, as the server keeps them; ``current`` are those that they change.

    Raises:
        InvalidSettings: an alias is refused; ``extra["path"]`` names it.

    """
    try:
        return setting_aliases.canonical(str(current.get("name", "adam")), settings, current)
    except setting_aliases.AliasError as error:
        raise InvalidSettings(error.message, path=error.path) from None


def _setting(name: str, value: Any) -> Any:
    """Return one setting as a JSON value; an error names this setting."""
    if type(value) is float and math.isfinite(value):
        return value
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_plain))
    except (AdamdError, TypeError, ValueError, OverflowError, RecursionError, RuntimeError) as error:
        expectation = "wanted finite numbers" if isinstance(error, ValueError) else "wanted numbers and plain values"
        why = f": {error.detail}" if isinstance(error, AdamdError) else ""
        shown = " ".join(repr(value).split())
        raise InvalidSettings(f"{name} is {shown:.80}; {expectation}{why}", path=name) from None


def _bound(name: str, value: Any) -> Any:
    """Turn an infinite bound into None, because JSON has no infinity."""
    return None if isinstance(value, float | np.floating) and value == UNBOUNDED.get(name) else value


def _plain(value: Any) -> Any:
    """Turn NumPy's and torch's scalars and arrays into what JSON knows."""
    if hasattr(value, "tolist"):
        array_checks.check(value, "it")
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _settled(file: BinaryIO, path: Path) -> None:
    """Check a state that was written, and bring it to the disk."""
    file.flush()
    os.fsync(file.fileno())
    _check_state(memoryview(np.memmap(path, np.uint8, "r")) if path.stat().st_size > 0 else memoryview(b""))


def _check_state(body: memoryview) -> None:
    try:
        safetensors.read_header(body)
    except AdamdError as error:
        raise operations.bad_answer(f"no exported state: {error.detail}") from error


def labels_document(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels, which are texts by name; JSON and protobuf would each say something else of others.

    Raises:
        InvalidRequest: one is none.

    """
    if not isinstance(labels, Mapping):
        raise InvalidRequest(f"labels is {labels!r:.60}; wanted a dict of texts, as {{'team': 'blue'}}")
    for name, value in labels.items():
        if not isinstance(name, str):
            raise InvalidRequest(f"labels has the name {name!r:.60}; wanted a text")
        if not isinstance(value, str):
            raise InvalidRequest(f"labels.{name[:64]} is {value!r:.60}; wanted a text")
    return dict(labels)
