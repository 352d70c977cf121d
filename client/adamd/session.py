"""Session: a blocking handle of one optimizer at the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, overload

from adamd.drivers.background import Turns
from adamd.sansio.session_view import SessionView
from adamd.sansio.tracking import Logic, OnBadGradient, Track

__all__ = ["OnBadGradient", "Session"]


class Session(SessionView):
    """One optimizer: it takes gradients and gives parameters. Made by `Client.create`, `Client.open` and the like.

    It knows the step and the chain that it has seen acknowledged, and sends both with the next step; so a repeated
    request cannot count twice, and a server that lost history is noticed. Safe to use from many threads, one step
    at a time.
    """

    def __init__(self, run: Callable[[Logic[Any]], Any], track: Track) -> None:
        self._run = run
        self._track = track
        self._turns = Turns()

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<adamd.Session {self.id}{name} at step {self.step_number}>"

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
                session; lists of Python numbers take the session's dtype. From a dict, tensors that are left out or
                None are not touched and do not count. `adamd.Sparse` names some elements or rows only.
            loss: recorded as the metric "loss"; a number.
            lr: counts from this step on, as from a scheduler.
            settings: others that do.
            metrics: more numbers to record.
            out: memory for the answer: what an earlier step returned. Fresh memory costs as much as the transfer. After
                an error, or Ctrl-C, it is what it was.

        Returns:
            One array, or a dict of arrays (views of one flat vector), in the session's dtype; ``out`` if given. The
            dict has the order of the one that `Client.create` or `Client.open` got; without one that of `layout`.
            If the gradient was bad and is skipped: the unchanged parameters.

        Raises:
            BadGradient: NaN, infinity, or a square that overflows; nothing was counted. Not with "skip".
            WrongDtype, WrongLayout: the gradient does not fit; nothing was sent.
            StepConflict, StepSuperseded: another client made this step, or a call of this one that was interrupted
                (``extra["left_open"]``); this gradient was not applied. Go on from `parameters`.
            HistoryLost: the store went back, or has another history; `refresh` accepts it.
            Diverged: a parameter is no longer finite.
            RetriesExhausted: no answer in time. The step may count: the same call again is safe, and tells.

        """
        with self._turns.turn():
            return self._run(self._track.step(gradient, loss, lr, settings, metrics, out))

    def step_async(
        self,
        gradient: Any,
        loss: Any = None,
        *,
        lr: float | None = None,
        settings: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        out: Any = None,
    ) -> Future[Any]:
        """Take one step in a thread, so that the script can do something else meanwhile.

        Steps that are queued come in their order, and every other call of the session comes after them. Where one
        fails, those behind it are cancelled, until its future was asked for its result or another call was made. Each
        is sent as `encoding` and `answer_dtype` are when it is queued. Wait for them before you close the client.

        Args:
            gradient: as in `step`; it is not copied, so do not change it before the future is done.
            loss: and the others: as in `step`.
            lr: as in `step`.
            settings: as in `step`.
            metrics: as in `step`.
            out: as in `step`; a future's own memory, until it is done.

        Returns:
            A future of what `step` returns, or of the error that it raises.

        """
        settings_copy, metrics_copy = (None if value is None else dict(value) for value in (settings, metrics))
        logic = self._track.step(gradient, loss, lr, settings_copy, metrics_copy, out, self._track.encoder.chosen)
        return self._turns.queue(lambda: self._run(logic))

    def push(
        self,
        gradient: Any,
        loss: Any = None,
        *,
        lr: float | None = None,
        settings: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        out: Any = None,
        key: str | None = None,
        max_staleness: int | None = None,
    ) -> Any:
        """Have a gradient applied at whatever step is next, and return the parameters after it.

        For many clients of one session that do not wait for each other (asynchronous SGD): where `step` raises
        `StepConflict` because another client made it, this takes the next. `staleness` tells afterwards how many steps
        of others came since the parameters that it was taken at: those of the last call that returned some.

        Args:
            gradient: and the others: as in `step`. It may be at parameters that others have moved since.
            loss: as in `step`.
            lr: as in `step`.
            settings: as in `step`; they stay, for all clients.
            metrics: as in `step`.
            out: as in `step`.
            key: names this gradient, as "worker-3/batch-17": pushed again with its key, within a day, it does not count
                twice, whatever became of this process meanwhile. None: one that is random, for this call's own repeats.
            max_staleness: refuse it where more steps of others came since. None: however many.

        Returns:
            As `step`: the parameters as they are after it; those after another client's step where that was faster.

        Raises:
            BadGradient, WrongDtype, WrongLayout, Diverged: as in `step`.
            StepSuperseded: more than ``max_staleness`` steps of others came since; ``extra["staleness"]`` says how
                many. It does not count; go on from `parameters`.
            HistoryLost: the store has lost steps that this client saw acknowledged. The gradient does not count.
            IdempotencyMismatch: a gradient that has counted had this key, and was another one.
            RetriesExhausted: no answer in time. It may count: the same push with ``error.extra["key"]`` is safe, and
                tells.

        """
        with self._turns.turn():
            return self._run(self._track.push(gradient, loss, lr, settings, metrics, out, key, max_staleness))

    def parameters(self, out: Any = None, *, at: str | None = None) -> Any:
        """Return the current parameters, in the shapes they were given in, and go on from their step.

        Args:
            out: memory for them, as in `step`.
            at: others beside them, which are to be evaluated and change nothing here: "ema", the moving average of a
                session that was made with ``ema_decay``; "average", what schedule_free_adamw arrives at.

        Raises:
            HistoryLost: the server is behind what this client saw acknowledged, or on another history; `refresh`
                accepts that.
            ParametersMissing: the session has none yet.
            InvalidRequest: it has none ``at`` that.

        """
        with self._turns.turn():
            return self._run(self._track.parameters(out, at))

    def best(self, out: Any = None) -> Any:
        """Return the parameters of the lowest loss so far, of a session with ``keep_best=True``.

        The loss of a step is measured at the parameters before it, so those after the last step are never among them:
        one more step tells their loss. ``session.info()["progress"]`` has the loss and the step.

        Args:
            out: memory for them, as in `step`.

        Raises:
            InvalidRequest: the session does not keep them.
            ParametersMissing: no step has told a loss yet.

        """
        with self._turns.turn():
            return self._run(self._track.parameters(out, "best"))

    def set_parameters(self, parameters: Any) -> None:
        """Set the parameters, before step 1: all of them.

        Raises:
            ParametersFixed: the session has made a step.
            WrongDtype, WrongLayout: they do not fit.

        """
        with self._turns.turn():
            self._run(self._track.set_parameters(parameters))

    def update(self, *, labels: Mapping[str, str] | None = None, **settings: Any) -> dict[str, Any]:
        """Change settings (they count from the next step) or labels (all of them), and return the session's document.

        Args:
            labels: the new ones.
            settings: lr, betas, eps, weight_decay, maximize, groups, schedule, clip_norm, ….

        Raises:
            InvalidSettings: a setting is out of range, unknown, or fixed.

        """
        with self._turns.turn():
            document: dict[str, Any] = self._run(self._track.update(labels, settings))
            return document

    def info(self) -> dict[str, Any]:
        """Return the session's document as the server has it now; this client's own step stays what it is."""
        document: dict[str, Any] = self._run(self._track.info())
        return document

    def refresh(self) -> dict[str, Any]:
        """Accept the server's step, history and settings, whatever they are, and return the session's document.

        After it, `parameters` returns where to go on.
        """
        with self._turns.turn():
            document: dict[str, Any] = self._run(self._track.refresh())
            return document

    def delete(self, *, anyway: bool = False) -> None:
        """End the session: the server answers 410 for a day, and its name is free.

        Args:
            anyway: also where others took steps that this client has not seen.

        Raises:
            Moved: they did, and the session is still there: `parameters` reads what came.

        """
        with self._turns.turn():
            self._run(self._track.delete(anyway=anyway))

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
        exported: bytes | Path = self._run(self._track.export(path))
        return exported
