"""Runs the logic over a transport and blocks: sends, sleeps, and hands each outcome back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from adamd.errors import AdamdError
from adamd.log import LOG
from adamd.sansio import retry
from adamd.sansio.operations import Operation
from adamd.sansio.retry import Got, Send, Tell, Timeout
from adamd.sansio.tracking import Logic, Work
from adamd.transports.cancellation import Cancellation
from adamd.transports.select import Transport

T = TypeVar("T")


class Shell:
    """The blocking shell. Safe to use from many threads."""

    def __init__(self, transport: Transport, timeout: Timeout) -> None:
        self._transport = transport
        self._timeout = timeout
        self._answered = False  # the server has answered once

    def run(self, logic: Logic[T], on_retry: Callable[[AdamdError], None] | None = None) -> T:
        """Drive a logic to its end. ``on_retry`` gets each failure that another attempt follows."""
        outcome: Any = None
        try:
            while True:
                effect = logic.throw(outcome) if isinstance(outcome, AdamdError) else logic.send(outcome)
                try:
                    outcome = effect.run() if isinstance(effect, Work) else self._call(effect, on_retry)
                except AdamdError as error:
                    outcome = error
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            logic.close()

    def _call(self, operation: Operation, on_retry: Callable[[AdamdError], None] | None = None) -> Any:
        """Drive one operation to its result, sleeping and sending as the flow asks."""
        flow = retry.call(operation, self._timeout, time.monotonic, random.random, answered=self._answered)
        outcome: Got | AdamdError | None = None
        try:
            while True:
                event = flow.send(outcome)
                if isinstance(event, Send):
                    outcome = self._attempt(event)
                elif isinstance(event, Tell):
                    if on_retry is None:  # a watch warns by itself
                        LOG.warning("%s: %s", self._transport.url, event.words)
                    outcome = None
                else:
                    if on_retry is not None and isinstance(outcome, AdamdError):
                        on_retry(outcome)
                    time.sleep(event.seconds)
                    outcome = None
        except StopIteration as end:
            return end.value

    def _attempt(self, event: Send) -> Got | AdamdError:
        outcome: Got | AdamdError
        try:
            outcome = Got(self._transport.send(event.operation, event.deadline, Cancellation()))
        except AdamdError as error:
            outcome = error
        self._answered = self._answered or retry.replied(outcome)
        return outcome
