"""MirroredRounds: the rounds of a Flower run, as a session at the server has them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from adamd.errors import BadGradient, InvalidRequest, WrongDtype, WrongLayout
from adamd.fed import Round
from adamd.federation import FederatedRun
from adamd.flower import records
from adamd.flower.records import ModelForm

log = logging.getLogger("flwr")  # Flower's own, where its users look


@dataclass(frozen=True, slots=True)
class Reply:
    """What one node's training came to.

    Attributes:
        node: its id.
        arrays: its arrays after training.
        num_examples: what it weighs.
        metrics: single numbers that it measured.

    """

    node: int
    arrays: ArrayRecord
    num_examples: float
    metrics: Mapping[str, float]


class MirroredRounds:
    """A session at the server that makes the rounds of a Flower run.

    Flower counts its rounds by itself, and counts also those to which nobody replied. The session makes a step for each
    round with replies. The two agree at every start: Flower's number of the rounds made is the session's step then.
    """

    def __init__(self, run: FederatedRun, form: ModelForm) -> None:
        self._run = run
        self._form = form
        self._record = records.to_record(run.parameters(), form)
        self._made: dict[int, MetricRecord] = {}
        newest = run.current()
        self.done = newest.round if newest.state == "closed" else newest.round - 1
        self._next = self.done + 1
        if newest.state != "closed" and newest.received:
            log.info(
                "adamd: round %d was interrupted with %d replies; its clients are asked anew",
                newest.round,
                newest.received,
            )
            run.cancel_round(newest.round)
        if self.done:
            self._made = {item.round: MetricRecord(dict(item.metrics)) for item in run.history() if item.metrics}

        self._begun = False  # clients have been handed parameters since this start

    @property
    def record(self) -> ArrayRecord:
        """The parameters after the last round that was made, for Flower."""
        return self._record

    def metrics_of(self, number: int) -> MetricRecord | None:
        """Return what the server recorded of a round that was made before this start; None: nothing."""
        return self._made.get(number)

    def handed(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the parameters that clients are handed, where Flower has ``arrays``.

        At first they are the session's, whatever a ServerApp begins with. Then they have to be the same.

        Raises:
            InvalidRequest: somebody changed them between two rounds.

        """
        if self._begun and not records.same(arrays, self._record):
            raise InvalidRequest(
                "these are not the arrays that the last round ended with: adamd's server has the parameters, so they "
                "cannot be changed between two rounds; start a new session (another name) from other arrays"
            )
        self._begun = True
        return self._record

    def make(self, replies: Iterable[Reply]) -> ArrayRecord | None:
        """Contribute the replies, close the round, and return the parameters that it makes; None: no reply was fit.

        A reply that does not fit the model, or has NaN or infinity, is left out, and the log tells.

        Raises:
            InvalidRequest: another ServerApp has closed the round meanwhile.

        """
        number = self._next
        handed = records.to_session(self._record, self._form)
        taken = 0
        for reply in replies:
            try:
                self._contribute(number, reply, handed)
                taken += 1
            except (BadGradient, WrongDtype, WrongLayout) as error:
                log.warning("adamd: the reply of node %d is left out: %s", reply.node, error)
        if not taken:
            return None
        closed = self._closed(number)
        self._next = closed.round + 1
        self._record = records.to_record(self._run.parameters(), self._form)
        return self._record

    def _contribute(self, number: int, reply: Reply, handed: Mapping[str, Any]) -> None:
        answer = self._run.contribute(
            str(reply.node),
            round=number,
            delta=records.change(reply.arrays, handed, self._form),
            num_examples=reply.num_examples,
            metrics=reply.metrics,
        )
        if not answer.counted:
            raise InvalidRequest(
                f"round {number} did not take node {reply.node}'s reply ({answer.outcome}): does another ServerApp run "
                "with this session?"
            )

    def _closed(self, number: int) -> Round:
        closed = self._run.close_round(number)
        left_out = [f"{item.client} ({item.reason})" for item in closed.contributions if item.counted is False]
        if left_out:
            log.info("adamd: round %d was made without %s", number, ", ".join(left_out))
        return closed
