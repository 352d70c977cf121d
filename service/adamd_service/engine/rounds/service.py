"""Serves rounds: tasks, contributions, evaluations, documents, and waiting for what comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from adamd_service.engine.rounds.calls import ContributeCall, Contributed, EvaluateCall, Task
from adamd_service.rounds import RoundDocument, RoundEvent


class RoundsService:
    """The rounds of this process's sessions: ``engine.rounds``.

    Every method raises UnknownSession, SessionDeleted, and NoRounds where the session takes plain steps.
    """

    async def task(self, ref: str, client: str | None = None, wait_s: float = 0.0) -> Task | None:
        """Return what a client is to do now; None if nothing came within ``wait_s`` seconds.

        A client is known from its first question on. Without a client the open round is told at once.
        """
        raise NotImplementedError

    async def contribute(self, call: ContributeCall) -> Contributed:
        """Take one contribution, and answer when it is durable. Closing goes on in the background.

        Raises:
            ContributionConflict, RoundClosed, StepGap, NotSelected, HistoryLost, Busy: by the round.
            RequestError: by the body, as a step.

        """
        raise NotImplementedError

    async def evaluate(self, call: EvaluateCall) -> Contributed:
        """Take what a client measured at the parameters of the round's base step. Raises as `contribute`."""
        raise NotImplementedError

    async def read(self, ref: str, number: int) -> RoundDocument:
        """Return a round's document.

        Raises:
            UnknownRound: it has not opened, or is no longer kept.

        """
        raise NotImplementedError

    async def list(self, ref: str, first: int = 1, page_size: int = 100) -> tuple[list[RoundDocument], int | None]:
        """Return documents from round ``first`` on, the open one last, and the number that the next page begins with.

        Rounds that are no longer kept are left out.
        """
        raise NotImplementedError

    async def close(self, ref: str, number: int) -> RoundDocument:
        """Close the open round with the contributions that there are; one that is closed is answered as it is.

        Raises:
            TooFewContributions: there are none, or fewer than the aggregate needs.
            StepGap, UnknownRound: it is not the open one.

        """
        raise NotImplementedError

    async def cancel(self, ref: str, number: int) -> RoundDocument:
        """Drop the open round's contributions; it begins again.

        Raises:
            RoundClosed, StepGap: it is not the open one.

        """
        raise NotImplementedError

    async def wait_for_step(self, ref: str, least: int, wait_s: float) -> bool:
        """Wait until the session has made step ``least``, with or without rounds; False if ``wait_s`` ran out."""
        raise NotImplementedError

    def events(self, ref: str) -> AsyncGenerator[RoundEvent]:
        """Yield what happens to a session from now on, where it stands first; with or without rounds.

        Raises:
            ShuttingDown: the server goes down.

        """
        raise NotImplementedError
