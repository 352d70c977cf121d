"""Federation and FederatedRun: the blocking handles of a federation's clients, and of its coordinator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adamd.fed.records import Answer, Round
from adamd.log import LOG
from adamd.sansio.rounds import models
from adamd.sansio.rounds.coordination import Coordinator, Seen
from adamd.sansio.rounds.federation_view import FederationView, RunView, TaskView
from adamd.sansio.rounds.participation import Assigned, Participant
from adamd.sansio.tracking import Logic

__all__ = ["FederatedRun", "Federation", "Task"]
Run = Callable[[Logic[Any]], Any]


class Task(TaskView):
    """What the server wants of a client now: to train from `parameters`, or to evaluate them. Made by `Federation`."""

    def __init__(self, run: Run, participant: Participant, assigned: Assigned) -> None:
        self._run = run
        self._participant = participant
        self._assigned = assigned

    def __repr__(self) -> str:
        return f"<adamd.Task {self.kind} round {self.round} for {self._participant.client}>"

    def reply(
        self,
        *,
        parameters: Any = None,
        delta: Any = None,
        gradient: Any = None,
        num_examples: float = 1.0,
        metrics: Mapping[str, Any] | None = None,
        **measured: Any,
    ) -> Answer:
        """Send what came of it, and return what becomes of that. Sent again, it counts once.

        Args:
            parameters: as they are after training: a dict of arrays in the shapes of `parameters`, or a torch model's
                ``state_dict()``, whole numbers included. Private tensors are left out here, before anything is sent.
            delta: trained - pulled, in the place of ``parameters``.
            gradient: a gradient at `parameters`, in their place.
            num_examples: how many examples it was made from: what it weighs; more than 0.
            metrics: numbers to record, where their names are no Python names.
            measured: numbers to record: ``loss=0.3, accuracy=0.9``. An evaluation is these and ``num_examples`` alone.

        Returns:
            The answer. ``counted`` is False or None where it came too late; then go on with the next task.

        Raises:
            BadGradient: NaN or infinity; nothing was taken.
            WrongDtype, WrongLayout: it does not fit the session; nothing was sent.
            InvalidRequest: none or several of parameters, delta and gradient; or a metric that is no number.
            Diverged: a parameter of the session is no longer finite.
            RetriesExhausted: no answer in time. The same reply again is safe, and so is a restart of this client.

        """
        values = {"parameters": parameters, "delta": delta, "gradient": gradient}
        logic = self._participant.reply(self._assigned, values, num_examples, {**(metrics or {}), **measured})
        answer: Answer = self._run(logic)
        return answer


class Federation(FederationView):
    """One client of a federation. Made by `Client.federation`; a client that dies is started again in the same way.

    The server's task says what this client owes, so nothing is kept on its disk.
    """

    def __init__(self, run: Run, participant: Participant) -> None:
        self._run = run
        self._participant = participant
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"<adamd.Federation {self.name or self.id} as {self.client}>"

    def task(self) -> Task | None:
        """Wait for the next task, and return it; None: the last round is over.

        A task that was not replied to comes again, as long as its round is open.

        Raises:
            SessionDeleted, UnknownSession: there is no such federation any more.
            Diverged: a parameter of it is no longer finite.
            RetriesExhausted: the server is away for longer than the client's time-out.

        """
        with self._turn:
            assigned: Assigned | None = self._run(self._participant.task())
        return None if assigned is None else Task(self._run, self._participant, assigned)

    def rounds(self) -> Iterator[Task]:
        """Yield one task after the other until the last round is over; waits in between. Reply to each.

        Raises:
            SessionDeleted, UnknownSession, Diverged, RetriesExhausted: as `task`.

        """
        while (task := self.task()) is not None:
            yield task


class FederatedRun(RunView):
    """A federation, as its coordinator sees it. Made by `Client.open_federation`.

    The server closes the rounds: a coordinator may end at any time, and open it again by its name.
    """

    def __init__(self, run: Run, coordinator: Coordinator) -> None:
        self._run = run
        self._coordinator = coordinator

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<adamd.FederatedRun {self.id}{name}, opened at step {self._coordinator.now.step}>"

    def follow(self, after: int | None = None, *, every: float = 0.5) -> Iterator[Round]:
        """Yield each round when it is closed, until the last one, by ``num_rounds`` or ``max_epsilon``; else for ever.

        A round that cannot be made of the replies that came begins again: that is a warning in the log ``adamd``.

        Args:
            after: begin behind this round; 0 begins with the first. By default where it stood when this was opened.
            every: seconds between two looks.

        Raises:
            SessionDeleted, UnknownSession: there is no such federation any more.
            RetriesExhausted: the server is away for longer than the client's time-out.

        """
        last, total = self._coordinator.now.step if after is None else after, self.num_rounds
        while not total or last < total:
            is_spent = self._run(self._coordinator.is_spent())
            seen: Seen = self._run(self._coordinator.seen_from(last + 1))
            for warning in seen.warnings:
                LOG.warning(warning)
            for done in seen.closed:
                yield done
                last = done.round
            if not seen.closed and is_spent:
                return
            if not seen.closed:
                time.sleep(every)

    def history(self, start: int = 1) -> list[Round]:
        """Return the rounds from ``start`` on that the server keeps (the last 1,000), and the open one.

        After the last round that is one more, which takes nothing but the evaluation of the final parameters.
        """
        rounds: list[Round] = []
        token: str | None = None
        while True:
            page = self._run(self._coordinator.page(start, token))
            rounds += page.rounds
            if (token := page.token) is None:
                return rounds

    def current(self) -> Round:
        """Return the open round as it is now; once the last round is closed, that one."""
        found: Round = self._run(self._coordinator.current())
        return found

    def round(self, number: int) -> Round:
        """Return one round.

        Raises:
            UnknownRound: it has not been opened yet, or is no longer kept.

        """
        found: Round = self._run(self._coordinator.round(number))
        return found

    def parameters(self) -> Any:
        """Return the parameters after the last closed round, as NumPy arrays in the shapes they were given in."""
        return self._run(self._coordinator.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Return `parameters` as torch tensors, for ``model.load_state_dict``: counters as int64.

        Raises:
            InvalidRequest: the session is one plain array.
            ModuleNotFoundError: torch is not installed.

        """
        return models.state_dict(self.parameters(), self._coordinator.roles)

    def close_round(self, number: int | None = None) -> Round:
        """Close a round with the replies that it has, and return it.

        Args:
            number: which; by default the open one. Named, it is safe to repeat.

        Raises:
            TooFewContributions: it has none, or fewer than its aggregate needs.
            PrivacySpent: it would spend more than ``max_epsilon``.
            RoundClosed: it is the one after the last.
            StepGap: it is not open yet.

        """
        closed: Round = self._run(self._coordinator.close(number))
        return closed

    def cancel_round(self, number: int | None = None) -> Round:
        """Drop the replies that a round has, and return it: it begins again, and asks its clients anew.

        Args:
            number: which; by default the open one.

        Raises:
            RoundClosed: it was closed before.
            StepGap: it is not open yet.

        """
        cancelled: Round = self._run(self._coordinator.cancel(number))
        return cancelled

    def contribute(
        self,
        client: str,
        *,
        round: int,
        parameters: Any = None,
        delta: Any = None,
        gradient: Any = None,
        num_examples: float = 1.0,
        metrics: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Contribute a reply in a client's name, for a coordinator that gathers replies by other ways.

        Args:
            client: its name.
            round: the round that it was made for. It must have been made from the parameters that were read last.
            parameters: as `Task.reply` takes them; and all that follows.
            delta: trained - pulled, in their place.
            gradient: a gradient, in their place.
            num_examples: what it weighs; more than 0.
            metrics: numbers to record.

        Returns:
            The answer, as `Task.reply` returns it.

        Raises:
            BadGradient, WrongDtype, WrongLayout, InvalidRequest, Diverged, RetriesExhausted: as `Task.reply`.

        """
        values = {"parameters": parameters, "delta": delta, "gradient": gradient}
        logic = self._coordinator.contribute(client, round, values, num_examples, metrics or {})
        answer: Answer = self._run(logic)
        return answer

    def configure(self, config: Mapping[str, Any]) -> None:
        """Set what the clients of later rounds find in `Task.config`; the open round keeps its own."""
        self._run(self._coordinator.configure(config))

    def info(self) -> dict[str, Any]:
        """Return the session's document as the server has it now."""
        document: dict[str, Any] = self._run(self._coordinator.info())
        return document

    def delete(self) -> None:
        """End the federation, with all that it has; its clients meet `SessionDeleted`. Its name is free."""
        self._run(self._coordinator.delete())
