"""What a client knows of one session, and what each call makes of it. Written once, for every shell.

The calls are generators: they yield the operations that they need, and get their results; an error comes in where the
result would have. They hold no lock and do no I/O: `_shell` drives them.
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
from adamd.sansio.gradient_encoding import Encoder, Sending, Written
from adamd.sansio.operations import Operation, Stall, Standing, Stepped, body_of
from adamd.wire import safetensors

NONE = {"lower": -math.inf, "upper": math.inf}  # bounds that bound nothing
WHY = {
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
        self._before = arrays.Before()
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
        sending: Sending | None = None,
        key: str | None = None,
        most: int | None = None,
    ) -> Logic[Any]:
        """Take the next step: its number and the chain that it builds on make it safe to repeat.

        ``sending`` is what was chosen when the step was asked for; None: what holds when it begins. With a ``key`` it
        is whichever step comes next at the server, and the key makes it safe; ``most`` bounds its staleness.
        """
        how = sending or self.encoder.chosen
        carried = settings_document(settings or {}) | settings_document({"lr": lr})
        if metrics is not None and not isinstance(metrics, Mapping):
            raise InvalidRequest(f"metrics is {metrics!r:.60}; wanted a dict of numbers, as {{'accuracy': 0.9}}")
        measured = dict(metrics or {}) | ({} if loss is None else {"loss": loss})
        now, answered = self.now, how.answer_dtype
        doubtful, open_before = self.encoder.in_doubt, self.left_open
        try:
            written = self.encoder.write(gradient, now.layout, now.dtype, how)
            land = arrays.landing(now.layout, answered or now.dtype, out, written.parts, self.order)
            asked = operations.Step(
                ref=now.id,
                number=now.step + 1 if key is None else None,
                chain=now.chain if key is None else None,
                body=written.body,
                dtype=answered or now.dtype,
                rounded=answered is not None,
                into=land.buffers,
                settings=carried,
                metrics={name: array_checks.number(name, value) for name, value in measured.items()},
                key=key,
                base=None if key is None else operations.Base(now.step, now.chain, most),
                left=self._before.keep,
            )
            self.encoder.in_doubt, self.left_open = True, asked.number or open_before
            return self._take((yield from self._landed(asked, land)), carried, land, written)
        except (StepConflict, StepSuperseded) as error:
            self.left_open = open_before
            if not error.extra.get("applied"):  # not this gradient; one before it, whose answer was lost, perhaps
                self.encoder.in_doubt = doubtful
                if open_before is not None:
                    raise _left_open(error, open_before) from None
            raise
        except (BadGradient, IdempotencyMismatch) as error:
            self.encoder.in_doubt, self.left_open = doubtful, open_before
            if self._on_bad_gradient == "raise" or isinstance(error, IdempotencyMismatch):
                raise
            self.skipped += 1
            return (yield from self.parameters(out))
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
        most: int | None,
    ) -> Logic[Any]:
        """Have a gradient applied at whatever step is next: its key makes it safe to repeat."""
        if most is not None and not (type(most) is int and 0 <= most < 1_000_000_000):
            raise InvalidRequest(f"max_staleness is {most!r}; wanted a number of steps, 0 or more")
        named = secrets.token_hex(16) if key is None else operations.idempotency_key(key)
        try:
            return (yield from self.step(gradient, loss, lr, settings, metrics, out, key=named, most=most))
        except RetriesExhausted as error:
            told = f"{error.detail}; it may have counted: the same push with key={named!r} is safe, and tells"
            raise RetriesExhausted(
                told, step=error.step, retry_after=error.retry_after, key=named, last=error.extra.get("last")
            ) from None

    def parameters(self, out: Any, at: str | None = None) -> Logic[Any]:
        """Read the parameters, and go on from their step; or others beside them (``at``), which change nothing here."""
        now = self.now
        answered = self.encoder.answer_dtype
        land = arrays.landing(now.layout, answered or now.dtype, out, order=self.order)
        asked = operations.ReadParameters(
            now.id, answered or now.dtype, land.buffers, rounded=answered is not None, at=at, left=self._before.keep
        )
        told = yield from self._landed(asked, land)
        return land.finish() if at is not None else self._take(told, {}, land)

    def _landed(self, asked: operations.Step | operations.ReadParameters, land: arrays.Landing) -> Logic[Stepped]:
        """Have an answer come into its memory. Where it does not come as it should, ``out`` is what it was."""
        self._before.of(land.own)
        try:
            told: Stepped = yield asked
            self._check_kept(told)
        except BaseException:
            self._before.restore()
            raise
        finally:
            self._before.of(())
        return told

    def _take(
        self, told: Stepped, carried: Mapping[str, Any], land: arrays.Landing, sent: Written | None = None
    ) -> Any:
        """Take an answer over, and return the caller's arrays.

        In this order: whoever is interrupted on the way (by Ctrl-C, or a warning that is an error) has a session that
        stands before the answer still. Its next step is refused, and says why; none is taken at other parameters than
        its caller's.
        """
        result, moved = land.finish(), told.step != self.now.step
        self._tell(told)
        if sent is not None:
            self.encoder.sent(sent)
            self.staleness = None if told.replayed else told.step - self.now.step - 1
        elif moved:
            self.encoder.moved()
        self._advance(told, carried)
        if moved:
            self.left_open = None
        return result

    def _check_kept(self, told: Stepped) -> None:
        """Refuse to go on where what was seen acknowledged is no longer there."""
        now = self.now
        if told.step < now.step or (told.step == now.step and told.chain != now.chain):
            what = "another history" if told.step == now.step else "it went back"
            raise HistoryLost(
                f"you have seen step {now.step} acknowledged; the server is at {told.step}: {what}. "
                f"session.refresh() accepts it; then go on from session.parameters()",
                step=told.step,
            )

    def _tell(self, told: Stepped) -> None:
        """Warn of what an answer says of its parameters."""
        if told.overflowed:
            warnings.warn(
                f"{told.overflowed} parameters of session {self.now.id} at step {told.step} are too large for "
                f"{self.encoder.answer_dtype} and came as infinity; session.answer_dtype = None reads them exactly",
                RuntimeWarning,
                stacklevel=2,
            )
        for stall in told.stalls:
            self._warn(stall, told.step)

    def _advance(self, told: Stepped, carried: Mapping[str, Any]) -> None:
        now = self.now
        settings = now.settings if not carried else {**now.settings, **carried}
        diverged = now.diverged or told.diverged
        self.now = replace(now, step=told.step, chain=told.chain, settings=settings, diverged=diverged, stop=told.stop)

    def _warn(self, stall: Stall, step: int) -> None:
        """Warn once of each."""
        if stall.code in self._warned:
            return
        self._warned.add(stall.code)
        why = WHY.get(stall.code, stall.code)
        remedy = "a gradient_scale" if stall.eps is None else f"eps={stall.eps:g}, or a gradient_scale,"
        warnings.warn(
            f"session {self.now.name or self.now.id} at step {step}: {why} ({stall.code}); {remedy} would help: "
            "session.info()['warnings'] has the figures",
            StallWarning,
            stacklevel=2,
        )

    def _check_same(self, told: Standing) -> None:
        now = self.now
        if (told.id, told.layout, told.dtype) != (now.id, now.layout, now.dtype):
            raise operations.bad_answer(f"another session than {now.id}, or one of another layout")

    def set_parameters(self, parameters: Any) -> Logic[None]:
        """Set the parameters: all of them."""
        now = self.now
        parts = arrays.matching(parameters, now.layout, now.dtype, "parameters")
        missing = set(now.layout.names) - {item.name for item in parts}
        if missing:
            raise InvalidRequest(f"the parameters lack {', '.join(sorted(missing)[:8])}; set all of them at once")
        told: Standing = yield operations.SetParameters(now.id, body_of(parts, now.layout))
        self._check_same(told)
        self.now = told

    def update(self, labels: Mapping[str, str] | None, settings: Mapping[str, Any]) -> Logic[dict[str, Any]]:
        """Change settings or labels; this client's own step stays what it is."""
        optimizer = settings_document(settings)
        if not optimizer and labels is None:
            raise InvalidRequest("nothing to update; give settings, as lr=1e-4, or labels")
        told: Standing = yield operations.Update(
            self.now.id, optimizer or None, None if labels is None else labels_document(labels)
        )
        self._check_same(told)
        self.now = replace(self.now, settings=told.settings, document=told.document, stop=told.stop)
        return told.document

    def info(self) -> Logic[dict[str, Any]]:
        """Read the session's document; this client's own step stays what it is."""
        told: Standing = yield operations.View(self.now.id)
        return told.document

    def refresh(self) -> Logic[dict[str, Any]]:
        """Accept what the server has now."""
        told: Standing = yield operations.View(self.now.id)
        self._check_same(told)
        self.encoder.forget()
        self.now, self.left_open = told, None
        return told.document

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
        wanted = Path(path)
        beside = wanted.with_name(f".{wanted.name}.{secrets.token_hex(4)}.part")
        try:
            with beside.open("xb+") as file:
                yield operations.export(self.now, file)
                yield Work(lambda: _settled(file, beside))
            beside.replace(wanted)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
        return wanted


def _left_open(error: StepConflict | StepSuperseded, number: int) -> AdamdError:
    """Return the refusal of a step whose number was sent from here before, with another gradient."""
    return type(error)(
        f"step {number} was sent from here before, and its answer was not waited for (Ctrl-C, a cancelled task or a "
        f"time-out). It counts, or another client's does: the session is at step {error.step}. So this gradient, which "
        "is another one, was not applied. session.parameters() returns where to go on: take the next gradient there",
        step=error.step,
        left_open=number,
        **error.extra,
    )


def settings_document(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON values; those that are None are the server's default, and an infinite bound is null.

    Raises:
        InvalidSettings: one is NaN or infinity, or something that JSON cannot say; ``extra["path"]`` names it.

    """
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"settings is {given!r:.60}; wanted a dict, as {{'lr': 1e-4}}")
    return {name: _setting(name, _bound(name, value)) for name, value in given.items() if value is not None}


def _setting(name: str, value: Any) -> Any:
    """Return one setting as JSON has it; the one that is wrong is the one that is blamed."""
    if type(value) is float and math.isfinite(value):
        return value
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_plain))
    except (AdamdError, TypeError, ValueError, OverflowError, RecursionError, RuntimeError) as error:
        said = "wanted finite numbers" if isinstance(error, ValueError) else "wanted numbers and plain values"
        why = f": {error.detail}" if isinstance(error, AdamdError) else ""
        shown = " ".join(repr(value).split())
        raise InvalidSettings(f"{name} is {shown:.80}; {said}{why}", path=name) from None


def _bound(name: str, value: Any) -> Any:
    """JSON has no infinity: a bound that bounds nothing is null there."""
    return None if isinstance(value, float | np.floating) and value == NONE.get(name) else value


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


def labels_document(given: Mapping[str, str]) -> dict[str, str]:
    """Return labels, which are texts by name; JSON and protobuf would each say something else of others.

    Raises:
        InvalidRequest: one is none.

    """
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"labels is {given!r:.60}; wanted a dict of texts, as {{'team': 'blue'}}")
    for name, value in given.items():
        if not isinstance(name, str):
            raise InvalidRequest(f"labels has the name {name!r:.60}; wanted a text")
        if not isinstance(value, str):
            raise InvalidRequest(f"labels.{name[:64]} is {value!r:.60}; wanted a text")
    return dict(given)
