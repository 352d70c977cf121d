"""What drives the logic over a transport, blocking: send, sleep, and hand the outcome back."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from adamd.errors import AdamdError
from adamd.sansio import retry
from adamd.sansio.operations import Operation
from adamd.sansio.retry import Got, Send, Tell, Timeout
from adamd.sansio.tracking import Logic, Work
from adamd.transports.cancellation import Stop
from adamd.transports.select import Transport

T = TypeVar("T")
LOG = logging.getLogger("adamd")  # on stderr where nobody configured it


class Shell:
    """The blocking shell. Safe to use from many threads."""

    def __init__(self, way: Transport, timeout: Timeout) -> None:
        self._transport = way
        self._timeout = timeout
        self._known = False  # the server has answered once

    def run(self, logic: Logic[T], waiting: Callable[[AdamdError], None] | None = None) -> T:
        """Drive a logic to its end. ``waiting`` is told of each failure that another attempt follows."""
        outcome: Any = None
        try:
            while True:
                wanted = logic.throw(outcome) if isinstance(outcome, AdamdError) else logic.send(outcome)
                try:
                    outcome = wanted.run() if isinstance(wanted, Work) else self._call(wanted, waiting)
                except AdamdError as error:
                    outcome = error
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            logic.close()

    def _call(self, operation: Operation, waiting: Callable[[AdamdError], None] | None = None) -> Any:
        """Drive one operation to its result, sleeping and sending as the flow asks."""
        flow = retry.call(operation, self._timeout, time.monotonic, random.random, known=self._known)
        outcome: Got | AdamdError | None = None
        try:
            while True:
                event = flow.send(outcome)
                if isinstance(event, Send):
                    outcome = self._attempt(event)
                elif isinstance(event, Tell):
                    if waiting is None:  # who watches is told otherwise
                        LOG.warning("%s: %s", self._transport.url, event.words)
                    outcome = None
                else:
                    if waiting is not None and isinstance(outcome, AdamdError):
                        waiting(outcome)
                    time.sleep(event.seconds)
                    outcome = None
        except StopIteration as end:
            return end.value

    def _attempt(self, event: Send) -> Got | AdamdError:
        outcome: Got | AdamdError
        try:
            outcome = Got(self._transport.send(event.operation, event.deadline, Stop()))
        except AdamdError as error:
            outcome = error
        self._known = self._known or retry.replied(outcome)
        return outcome
