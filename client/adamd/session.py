"""A session: one optimizer at the server, seen from here."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np

from adamd import _arrays, _calls
from adamd._calls import Standing, Stepped
from adamd._flow import Request, Response
from adamd.errors import AdamdError, BadGradient, HistoryLost, InvalidRequest
from adamd.wire import headers, safetensors
from adamd.wire.layout import Layout

OnBadGradient: TypeAlias = Literal["raise", "skip"]
Run = Callable[[Request], Response]


class Session:
    """One optimizer: it takes gradients and gives parameters. Made by `Client.create`, `Client.open` and the like.

    It knows the step and the chain that it has seen acknowledged, and sends both with the next step; so a repeated
    request cannot count twice, and a server that lost history is noticed. Safe to use from many threads, one step
    at a time.
    """

    def __init__(self, run: Run, standing: Standing, on_bad_gradient: OnBadGradient) -> None:
        self._run = run
        self._standing = standing
        self._on_bad_gradient = on_bad_gradient
        self._skipped = 0
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<adamd.Session {self.id}{name} at step {self.step_number}>"

    @property
    def id(self) -> str:
        """The server's name for it."""
        return self._standing.id

    @property
    def name(self) -> str | None:
        """Yours."""
        return self._standing.name

    @property
    def step_number(self) -> int:
        """How many updates this client has seen acknowledged."""
        return self._standing.step

    @property
    def chain(self) -> str:
        """The history that this client has seen: 64 hexadecimal digits."""
        return self._standing.chain

    @property
    def layout(self) -> Layout:
        """Names and shapes, in order."""
        return self._standing.layout

    @property
    def dtype(self) -> str:
        """Of its state and parameters: "float32" or "float64"."""
        return self._standing.dtype

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters, as this client last knew them: name, lr, betas, eps, weight_decay, …."""
        return dict(self._standing.settings)

    @property
    def skipped(self) -> int:
        """How many bad gradients were skipped."""
        return self._skipped

    @property
    def diverged(self) -> bool:
        """A parameter is no longer finite; further steps are refused."""
        return self._standing.diverged

    def step(
        self,
        gradient: Any,
        loss: Any = None,
        *,
        lr: float | None = None,
        settings: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        out: Any = None,
    ) -> Any:
        """Take one step and return the parameters after it.

        Args:
            gradient: at the current parameters, in their shapes; float16, bfloat16 or float32, and float64 in a float64
                session. From a dict, tensors that are left out or None are not touched and do not count.
            loss: recorded as the metric "loss"; a number.
            lr: counts from this step on, as from a scheduler.
            settings: others that do.
            metrics: more numbers to record.
            out: memory for the answer: what an earlier step returned. Fresh memory costs as much as the transfer. After
                an error its content is undefined.

        Returns:
            One array, or a dict of arrays (views of one flat vector), in the session's dtype; ``out`` if given.
            If the gradient was bad and is skipped: the unchanged parameters.

        Raises:
            BadGradient: NaN, infinity, or a square that overflows; nothing was counted. Not with "skip".
            WrongDtype, WrongLayout: the gradient does not fit; nothing was sent.
            StepConflict, StepSuperseded: another client made this step; `refresh`, read the `parameters`, go on.
            HistoryLost: the store went back, or has another history; `refresh` accepts it.
            Diverged: a parameter is no longer finite.
            RetriesExhausted: no answer in time. The step may count: the same call again is safe, and tells.

        """
        carried = _calls.settings_document({**(settings or {}), "lr": lr} if lr is not None else settings or {})
        measured = dict(metrics or {}) | ({} if loss is None else {"loss": loss})
        with self._lock:
            now = self._standing
            parts = _arrays.matching(gradient, now.layout, now.dtype, "gradient")
            land = _arrays.landing(now.layout, now.dtype, out, parts)
            try:
                response = self._run(_calls.step(now, parts, land, carried, measured))
            except BadGradient:
                if self._on_bad_gradient == "raise":
                    raise
                self._skipped += 1
                return self._read(out)
            self._advance(_calls.stepped(response, now.layout, now.dtype, now.step + 1), carried)
            return land.finish()

    def parameters(self, out: Any = None) -> Any:
        """Return the current parameters, in the shapes they were given in, and go on from their step.

        Args:
            out: memory for them, as in `step`.

        Raises:
            HistoryLost: the server is behind what this client saw acknowledged, or on another history; `refresh`
                accepts that.
            ParametersMissing: the session has none yet.

        """
        with self._lock:
            return self._read(out)

    def set_parameters(self, parameters: Any) -> None:
        """Set the parameters, before step 1: all of them.

        Raises:
            ParametersFixed: the session has made a step.
            WrongDtype, WrongLayout: they do not fit.

        """
        with self._lock:
            now = self._standing
            parts = _arrays.matching(parameters, now.layout, now.dtype, "parameters")
            self._standing = _calls.standing(self._run(_calls.set_parameters(now.id, parts, now.layout)))

    def update(self, *, labels: Mapping[str, str] | None = None, **settings: Any) -> dict[str, Any]:
        """Change settings (they count from the next step) or labels (all of them), and return the session's document.

        Args:
            labels: the new ones.
            settings: lr, betas, eps, weight_decay, maximize, groups.

        Raises:
            InvalidSettings: a setting is out of range, unknown, or fixed.

        """
        optimizer = _calls.settings_document(settings)
        if not optimizer and labels is None:
            raise InvalidRequest("nothing to update; give settings, as lr=1e-4, or labels")
        with self._lock:
            request = _calls.update(self.id, optimizer or None, None if labels is None else dict(labels))
            told = _calls.standing(self._run(request))
            self._standing = replace(self._standing, settings=told.settings, document=told.document)
            return told.document

    def info(self) -> dict[str, Any]:
        """Return the session's document as the server has it now; this client's own step stays what it is."""
        return _calls.standing(self._run(_calls.view(self.id))).document

    def refresh(self) -> dict[str, Any]:
        """Accept the server's step, history and settings, whatever they are, and return the session's document.

        After it, `parameters` returns where to go on.
        """
        with self._lock:
            self._standing = _calls.standing(self._run(_calls.view(self.id)))
            return self._standing.document

    def delete(self) -> None:
        """End the session: the server answers 410 for a day, and its name is free."""
        with self._lock:
            self._run(_calls.delete(self.id))

    @overload
    def export(self, path: None = None) -> bytes: ...

    @overload
    def export(self, path: str | os.PathLike[str]) -> Path: ...

    def export(self, path: str | os.PathLike[str] | None = None) -> bytes | Path:
        """Export the whole state (parameters, exp_avg, exp_avg_sq, step counts, settings) as safetensors.

        Args:
            path: written as a whole or not at all. None returns the bytes.

        Raises:
            TransportError: what came is no state; a file that was there is left alone.

        """
        if path is not None:
            return self._export_to(Path(path))
        response = self._run(_calls.export(self._standing, None))
        _check_state(response, memoryview(response.body))
        return bytes(response.body)

    def _export_to(self, path: Path) -> Path:
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with beside.open("xb+") as file:
                response = self._run(_calls.export(self._standing, file))
                file.flush()
                os.fsync(file.fileno())
            there = response.filled and beside.stat().st_size > 0
            _check_state(response, memoryview(np.memmap(beside, np.uint8, "r")) if there else memoryview(b""))
            beside.replace(path)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
        return path

    def _read(self, out: Any) -> Any:
        now = self._standing
        land = _arrays.landing(now.layout, now.dtype, out)
        response = self._run(_calls.read_parameters(now.id, land))
        told = _calls.stepped(response, now.layout, now.dtype)
        if told.step < now.step or (told.step == now.step and told.chain != now.chain):
            what = "another history" if told.step == now.step else "it went back"
            raise HistoryLost(
                f"you have seen step {now.step} acknowledged; the server is at {told.step}: {what}. "
                f"session.refresh() accepts it; then go on from session.parameters()",
                step=told.step,
            )
        self._advance(told, {})
        return land.finish()

    def _advance(self, told: Stepped, carried: Mapping[str, Any]) -> None:
        now = self._standing
        settings = now.settings if not carried else {**now.settings, **carried}
        self._standing = replace(
            now, step=told.step, chain=told.chain, settings=settings, diverged=now.diverged or told.diverged
        )


def _check_state(response: Response, body: memoryview) -> None:
    if response.media_type != headers.SAFETENSORS:
        raise _calls.bad_answer(f"{response.media_type or 'no media type'} where a state was asked for")
    try:
        safetensors.read_header(body)
    except AdamdError as error:
        raise _calls.bad_answer(f"no exported state: {error.detail}") from error
