"""Participant: one client of a federation, with the logic of its calls, shared by all shells.

A task says what the server wants of this client now, so that nothing has to be remembered here: a client that is killed
and started again is given what it still owes. Only what lossy encodings dropped (error feedback) is lost then.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from adamd.errors import (
    AdamdError,
    BadGradient,
    ContributionConflict,
    HistoryLost,
    InvalidRequest,
    NoRounds,
    NotSelected,
    RoundClosed,
    StepGap,
    UnknownRound,
    UnknownSession,
    WrongLayout,
)
from adamd.fed.records import Answer, Outcome, Round
from adamd.sansio import array_checks, arrays, operations
from adamd.sansio.arrays import Flat, raw_bytes
from adamd.sansio.gradient_encoding import EncodedGradient, Encoder, Encoding, EncodingOptions, locate
from adamd.sansio.operations import Assignment, Received, Standing, Stepped, body_of
from adamd.sansio.rounds import models, residuals
from adamd.sansio.tracking import Logic, Work
from adamd.wire.dtypes import Array, storage, widen
from adamd.wire.layout import Layout, some

WITH_PRIVATE: Final = ("raw", "float16", "bfloat16")  # encodings that tensors can be left out of
OUTCOMES: Final[Mapping[type[AdamdError], Outcome]] = {
    RoundClosed: "too_late",
    ContributionConflict: "conflict",
    NotSelected: "not_selected",
    HistoryLost: "history_lost",
    StepGap: "history_lost",  # the round was open; it is so no more only where the store went back
}


@dataclass(frozen=True, slots=True)
class Assigned:
    """A task with what it is done from. ``pulled`` is a copy of the parameters, where a reply will need them."""

    assignment: Assignment
    parameters: Any
    pulled: Array | None


def join(
    ref: str, client: str, options: EncodingOptions, wait: float, residuals_path: str | os.PathLike[str] | None = None
) -> Logic[Participant]:
    """Find a federation, and what this client's encoding dropped before it was restarted.

    Raises:
        UnknownSession, SessionDeleted: there is none.
        NoRounds: it is a session of plain steps.
        InvalidRequest: the file of residuals is another's.

    """
    name = operations.client_name(client)
    try:
        standing: Standing = yield operations.View(operations.reference(ref))
    except UnknownSession as error:
        raise UnknownSession(f"{error.detail}; its coordinator makes it, by client.open_federation") from None
    path = None if residuals_path is None else Path(residuals_path)
    participant = Participant(standing, rounds_of(standing), name, options, wait, path)
    if path is not None:
        yield from participant.recall(path)
    return participant


def rounds_of(standing: Standing) -> Mapping[str, Any]:
    """Return the settings of a session's rounds.

    Raises:
        NoRounds: it has none.

    """
    settings = standing.document.get("rounds")
    if not isinstance(settings, Mapping):
        raise NoRounds(
            f"session {standing.name or standing.id!r} takes plain steps, and no contributions: use client.session, or "
            "make a federation by client.open_federation under another name",
            step=standing.step,
        )
    return settings


class Participant:
    """One client of a federation. One call at a time.

    Attributes:
        now: the session, as it was when the client joined.
        client: its name.
        encoder: how its contributions are sent.
        roles: which tensors stay here, and which are counters.

    """

    def __init__(
        self,
        standing: Standing,
        settings: Mapping[str, Any],
        client: str,
        options: EncodingOptions,
        wait: float,
        residuals_path: Path | None = None,
    ) -> None:
        self.now = standing
        self.client = client
        self.encoder = Encoder()
        self.encoder.choose(options, standing.dtype)
        self._wait = wait
        self.roles = models.Roles.of(settings)
        self._shared = self.roles.shared_layout(standing.layout)
        _check_encoding(self.encoder.encoding, standing.layout, self._shared)
        self._path = residuals_path
        self._owner = residuals.Owner(standing.id, client, standing.dtype, self._shared.size)
        self._is_buffered = settings.get("mode") == "buffered"
        self._doubtful_round: int | None = None  # of a contribution whose answer never came
        self._feedback: str | None = None  # the kind of what the residual was dropped from

    def recall(self, path: Path) -> Logic[None]:
        """Go on with the residual of a file: the server's record says whether its last contribution came.

        Where nobody knows any more, it is dropped: nothing may count twice.
        """
        kept: residuals.Residuals | None = yield Work(partial(residuals.read, path, self._owner))
        if kept is None:
            return
        try:
            found: Round = yield operations.ReadRound(self.now.id, kept.round)
            if found.state != "closed" and not self._is_in(found):
                # It may have been closed while its contributions were looked up; if it is still open now, it was not.
                found = yield operations.ReadRound(self.now.id, kept.round)
        except UnknownRound:
            return
        came = self._is_in(found)
        if not came and self._is_buffered and found.state == "closed":
            return  # it may have counted in a later round
        self.encoder.recall(kept.after if came else kept.before)
        self._feedback = kept.kind

    def _is_in(self, found: Round) -> bool:
        return any(one.client == self.client for one in found.contributions)

    def task(self) -> Logic[Assigned | None]:
        """Wait for the next task, with the parameters that it is done from; None: the last round is over."""
        while True:
            assignment: Assignment | None = yield operations.AskTask(self.now.id, self.client, self._wait)
            if assignment is None:
                continue
            if assignment.kind == "stop":
                return None
            self._settle(assignment)
            dtype, rounded = self.encoder.answer_dtype or self.now.dtype, self.encoder.answer_dtype is not None
            landing = arrays.landing(self.now.layout, dtype)
            answer: Stepped = yield operations.ReadParameters(self.now.id, dtype, landing.buffers, rounded)
            if (answer.step, answer.chain) == (assignment.base_step, assignment.chain):
                parameters = landing.finish()
                return Assigned(assignment, self.roles.shared(parameters), self._copy(parameters))
            # The round was closed meanwhile: the next task is of the one that follows.

    def reply(
        self, task: Assigned, values: Mapping[str, Any], num_examples: Any, metrics: Mapping[str, Any]
    ) -> Logic[Answer]:
        """Send what came of a task: parameters, delta or gradient in ``values``; none for an evaluation."""
        assignment = task.assignment
        given = {kind: value for kind, value in values.items() if value is not None}
        measured = {name: array_checks.number(name, value) for name, value in metrics.items()}
        count = _examples(num_examples)
        if assignment.kind == "evaluate":
            if given:
                raise InvalidRequest(f"this task is to evaluate: reply with metrics, without {', '.join(given)}")
            operation = operations.Evaluate(self.now.id, assignment.round, self.client, count, measured)
            return (yield from self._answer(operation, None))
        if len(given) != 1:
            came = " and ".join(given) or "none of them"
            raise InvalidRequest(f"wanted one of parameters, delta and gradient, from round {assignment.round}; {came}")
        ((kind, value),) = given.items()
        parts: tuple[arrays.TensorPart, ...] = ()
        try:
            sent, encoded = self._encoded(task, kind, self.roles.shared(value))
            parts = encoded.parts
            contribution = operations.Contribute(
                ref=self.now.id,
                round=assignment.round,
                client=self.client,
                chain=assignment.chain,
                body=encoded.body,
                kind=sent,
                num_examples=count,
                metrics=measured,
            )
            return (yield from self._contribute(contribution, encoded))
        except BadGradient as error:
            locate(error, kind, self._shared, parts)
            raise

    def _contribute(self, contribution: operations.Contribute, encoded: EncodedGradient) -> Logic[Answer]:
        """Send a contribution, and keep what its encoding dropped where a crash does not take it."""
        before = self.encoder.residual
        if self._path is not None and not (before is None and encoded.residual is None):
            kept = residuals.Residuals(contribution.round, contribution.kind, before, encoded.residual)
            yield Work(partial(residuals.write, self._path, self._owner, kept))
        answer = yield from self._answer(contribution, encoded)
        if self._path is not None and (answer.counted is None or answer.outcome == "conflict"):
            yield Work(partial(residuals.remove, self._path))
        return answer

    def _encoded(self, task: Assigned, kind: str, value: Any) -> tuple[str, EncodedGradient]:
        """Write a contribution. A lossy encoding writes what training changed: parameters would lose far more."""
        dtype, value = self.now.dtype, models.in_floats(value, self.now.dtype)
        if kind == "parameters":
            parts = arrays.matching(value, self._shared, dtype, "parameters")
            if task.pulled is None:
                return kind, EncodedGradient(body_of(parts, self._shared), parts, None)
            kind, value = "delta", self._difference(parts, task.pulled)
        if self._feedback not in (None, kind):
            self.encoder.forget()  # a delta's rest has the other sign
        self._feedback = kind
        return kind, self.encoder.write(value, self._shared, dtype, what=kind)

    def _difference(self, parts: tuple[arrays.TensorPart, ...], pulled: Array) -> Any:
        """Return trained - pulled, in the session's dtype."""
        layout, dtype = self._shared, self.now.dtype
        if len(parts) != len(layout.tensors):
            missing = set(layout.names) - {part.name for part in parts}
            raise WrongLayout(f"parameters lack {some(tuple(sorted(missing)))}; only encoding 'raw' can leave some out")
        trained = [widen(part.array.reshape(-1), part.dtype, dtype) for part in parts]
        total = np.concatenate(trained) - pulled
        return Flat(layout, dtype, (raw_bytes(total),))

    def _answer(
        self, operation: operations.Contribute | operations.Evaluate, encoded: EncodedGradient | None
    ) -> Logic[Answer]:
        """Send a reply; a refusal that says what became of it is its answer."""
        doubt_before = self._doubtful_round, self.encoder.in_doubt
        if encoded is not None:
            self._doubtful_round, self.encoder.in_doubt = operation.round, True
        try:
            received: Received = yield operation
        except tuple(OUTCOMES) as error:
            answer = _refused(error, operation.round)
            if encoded is not None:
                self._doubtful_round = None
                self._note(None if answer.outcome == "conflict" else answer.counted, encoded)
            return answer
        except AdamdError as error:
            if not isinstance(error, ConnectionError):  # it was refused, so it is not there
                self._doubtful_round, self.encoder.in_doubt = doubt_before
            raise
        if encoded is not None:
            self._doubtful_round = None
            self._note(True, encoded)
        return Answer(
            outcome="duplicate" if received.duplicate else "accepted",
            counted=True,
            round=operation.round,
            current=None if received.step is None else received.step + 1,
            received=received.received,
            wanted=received.wanted,
        )

    def _note(self, counted: bool | None, encoded: EncodedGradient) -> None:
        """Move error feedback on: what was dropped goes along next time, unless nobody knows what was applied."""
        if counted:
            self.encoder.sent(encoded)
        elif counted is None:
            self.encoder.forget()
        self.encoder.in_doubt = False

    def _settle(self, assignment: Assignment) -> None:
        """Find out what became of a contribution whose answer never came."""
        if self._doubtful_round is None:
            return
        if assignment.round != self._doubtful_round or assignment.contributed:
            self.encoder.forget()  # it may be part of a step, with all that it carried
        self._doubtful_round, self.encoder.in_doubt = None, False

    def _copy(self, parameters: Any) -> Array | None:
        """Return a flat copy, where a reply with parameters will be sent as a difference.

        So it is where parameters were rounded on their way here: what rounding did is no part of the training.
        """
        if self.encoder.encoding == "raw" and self.encoder.answer_dtype is None:
            return None
        layout = self._shared
        flat = np.empty(layout.size, storage(self.now.dtype))
        for tensor, start, end in zip(layout.tensors, layout.bounds, layout.bounds[1:], strict=False):
            flat[start:end] = (parameters if layout.vector else parameters[tensor.name]).reshape(-1)
        return flat


def _check_encoding(encoding: Encoding, layout: Layout, shared: Layout) -> None:
    """Refuse an encoding of the whole vector where a part of it stays here."""
    if shared is not layout and encoding not in WITH_PRIVATE:
        raise InvalidRequest(
            f"encoding {encoding!r} covers the whole vector, and this federation has private tensors, which are never "
            f"sent; wanted {', '.join(map(repr, WITH_PRIVATE))}"
        )


def _refused(error: AdamdError, number: int) -> Answer:
    outcome = next(outcome for kind, outcome in OUTCOMES.items() if isinstance(error, kind))
    current, counted = error.extra.get("round"), error.extra.get("counted")
    known = counted if isinstance(counted, bool) else None
    return Answer(
        outcome=outcome,
        counted=known if outcome == "too_late" else False,
        round=number,
        current=current if type(current) is int else None,
        detail=error.detail,
    )


def _examples(value: Any) -> float:
    count = array_checks.number("num_examples", value)
    if count is None or not (math.isfinite(count) and count > 0):
        raise InvalidRequest(f"num_examples is {value!r:.60}; wanted a number above 0")
    return count
