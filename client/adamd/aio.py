"""adamd for asyncio: the same calls, awaited.

import adamd.aio

async with adamd.aio.connect("http://localhost:8000") as client:
    session = await client.create({"w": w, "b": b}, lr=1e-3)
    for batch in data:
        params = await session.step(gradient(params, batch), loss=loss)

A call may be cancelled, by a time-out too: its connection is closed, its memory is yours again, and the session knows
what it knew before. Whether a cancelled step counts is told by the same step again, which is safe.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self, Unpack, overload

from adamd.drivers.threaded import AsyncShell
from adamd.errors import AdamdError
from adamd.fed.options import FederationOptions
from adamd.fed.records import Answer, Round
from adamd.log import LOG
from adamd.sansio import opening
from adamd.sansio.gradient_encoding import Encoding, EncodingOptions
from adamd.sansio.opening import Durability, Source
from adamd.sansio.retry import Timeout
from adamd.sansio.rounds import coordination, models, participation
from adamd.sansio.rounds.coordination import Coordinator
from adamd.sansio.rounds.federation_view import FederationView, RunView, TaskView
from adamd.sansio.rounds.participation import Assigned, Participant
from adamd.sansio.session_view import SessionView
from adamd.sansio.tracking import Logic, OnBadGradient, Track
from adamd.transports.select import transport

__all__ = ["AsyncClient", "AsyncFederatedRun", "AsyncFederation", "AsyncSession", "AsyncTask", "connect"]


def connect(
    url: str | None = None,
    *,
    timeout: Timeout | float | None = None,
    api_key: str | None = None,
    on_bad_gradient: OnBadGradient = "raise",
    progress: bool | None = None,
) -> AsyncClient:
    """Return a client of the server at ``url``, with the arguments of `adamd.connect`. Nothing is sent yet.

    Raises:
        InvalidRequest: no such URL or option.

    """
    return AsyncClient(url, timeout, api_key, on_bad_gradient, progress)


class AsyncClient:
    """A server's sessions, for one event loop. Close it, or use it in an ``async with`` statement."""

    def __init__(
        self,
        url: str | None,
        timeout: Timeout | float | None,
        api_key: str | None,
        on_bad_gradient: OnBadGradient,
        progress: bool | None,
    ) -> None:
        self._bad = opening.choice(on_bad_gradient)
        limits = Timeout.of(timeout)
        self._transport = transport(url, limits, api_key, progress)
        self._shell = AsyncShell(self._transport, limits)
        self._longest_wait = limits.longest_wait
        self.url = self._transport.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<adamd.aio.AsyncClient {self.url}>"

    async def close(self) -> None:
        """Close the connections. Sessions live on, at the server."""
        self._transport.close()
        self._shell.close()

    async def create(
        self, parameters: Any, lr: float | None = None, *, on_bad_gradient: OnBadGradient | None = None, **options: Any
    ) -> AsyncSession:
        """Make a session that starts from ``parameters``, with the arguments and errors of `adamd.Client.create`."""
        bad = self._choice(on_bad_gradient)
        encoding_options = EncodingOptions.from_options(options)
        return await self._session(opening.create(parameters, lr, **options, on_bad_gradient=bad), encoding_options)

    async def open(self, name: str, parameters: Any = None, lr: float | None = None, **options: Any) -> AsyncSession:
        """Resume the session ``name``, or create it, with the arguments and errors of `adamd.Client.open`."""
        bad = self._choice(options.pop("on_bad_gradient", None))
        encoding_options = EncodingOptions.from_options(options)
        return await self._session(opening.open_(name, parameters, lr, options, bad), encoding_options)

    async def session(
        self,
        ref: str,
        *,
        on_bad_gradient: OnBadGradient | None = None,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
    ) -> AsyncSession:
        """Return the session with this id or name, as it stands now; the options are those of `adamd.Client.create`.

        Raises:
            UnknownSession, SessionDeleted: there is none.

        """
        encoding_options = EncodingOptions.of(encoding, error_feedback, answer_dtype)
        return await self._session(opening.attach(ref, None, self._choice(on_bad_gradient)), encoding_options)

    async def restore(
        self,
        source: Source,
        name: str | None = None,
        *,
        durability: Durability | None = None,
        labels: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        on_bad_gradient: OnBadGradient | None = None,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
    ) -> AsyncSession:
        """Make a new session from an exported state, with the arguments and errors of `adamd.Client.restore`."""
        bad = self._choice(on_bad_gradient)
        encoding_options = EncodingOptions.of(encoding, error_feedback, answer_dtype)
        return await self._session(opening.restore(source, name, durability, labels, settings, bad), encoding_options)

    async def sessions(self, page_size: int = 100) -> AsyncIterator[dict[str, Any]]:
        """Yield every session of the server in short: id, name, step, optimizer, parameters, dtype, labels, …."""
        token: str | None = None
        while True:
            page = await self._shell.run(opening.page(page_size, token))
            for item in page.sessions:
                yield item
            if (token := page.token) is None:
                return

    async def watch(
        self, ref: str, every: float = 0.5, *, away: Callable[[AdamdError], None] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield where a session stands, now and whenever it has moved: as `adamd.Client.watch`."""
        since, absence = None, opening.Absence(self.url, away)
        while True:
            document = await self._shell.run(opening.watch(ref, since), absence.note_failure)
            if absence.note_answer() and document is None:
                since = None
                continue
            if document is not None:
                since = document["chain"]
                yield document
            await asyncio.sleep(every)

    async def federation(
        self,
        ref: str,
        *,
        client: str,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
        residuals: str | os.PathLike[str] | None = None,
    ) -> AsyncFederation:
        """Take part in a federation, with the arguments and errors of `adamd.Client.federation`."""
        encoding_options = EncodingOptions.of(encoding, error_feedback, answer_dtype)
        logic = participation.join(ref, client, encoding_options, self._longest_wait, residuals)
        return AsyncFederation(self._shell, await self._shell.run(logic))

    async def open_federation(
        self, name: str, parameters: Any = None, **options: Unpack[FederationOptions]
    ) -> AsyncFederatedRun:
        """Resume a federation, or make it, with the arguments and errors of `adamd.Client.open_federation`."""
        return AsyncFederatedRun(self._shell, await self._shell.run(coordination.open_(name, parameters, options)))

    async def delete(self, ref: str) -> None:
        """End the session or federation with this id or name, whatever its step: as `adamd.Client.delete`."""
        await self._shell.run(opening.delete(ref))

    async def info(self) -> dict[str, Any]:
        """Return the server's version, bounds, and what its store promises."""
        return await self._shell.run(opening.info())

    def _choice(self, on_bad_gradient: OnBadGradient | None) -> OnBadGradient:
        return opening.choice(on_bad_gradient or self._bad)

    async def _session(self, logic: Logic[Track], encoding_options: EncodingOptions) -> AsyncSession:
        track = await self._shell.run(logic)
        track.encoder.choose(encoding_options, track.now.dtype)
        return AsyncSession(self._shell, track)


class AsyncSession(SessionView):
    """One optimizer: it takes gradients and gives parameters. Made by `AsyncClient.create`, `AsyncClient.open`, ….

    As `adamd.Session`, and awaited: calls of one session take their turns, those of several run side by side.
    """

    def __init__(self, shell: AsyncShell, track: Track) -> None:
        self._shell = shell
        self._track = track
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<adamd.aio.AsyncSession {self.id}{name} at step {self.step_number}>"

    async def step(
        self,
        gradient: Any,
        loss: Any = None,
        *,
        lr: float | None = None,
        settings: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        out: Any = None,
    ) -> Any:
        """Take one step and return the parameters after it: as `adamd.Session.step`, with its arguments and errors.

        The gradient must not change before it returns. Cancelled, it may count or not; the same call again is safe,
        and tells.
        """
        async with self._turn:
            return await self._shell.run(self._track.step(gradient, loss, lr, settings, metrics, out))

    async def push(
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
        """Have a gradient applied at whatever step is next: as `adamd.Session.push`, with its arguments and errors."""
        async with self._turn:
            logic = self._track.push(gradient, loss, lr, settings, metrics, out, key, max_staleness)
            return await self._shell.run(logic)

    async def parameters(self, out: Any = None, *, at: str | None = None) -> Any:
        """Return the current parameters and go on from their step: as `adamd.Session.parameters`."""
        async with self._turn:
            return await self._shell.run(self._track.parameters(out, at))

    async def best(self, out: Any = None) -> Any:
        """Return the parameters of the lowest loss so far: as `adamd.Session.best`."""
        async with self._turn:
            return await self._shell.run(self._track.parameters(out, "best"))

    async def set_parameters(self, parameters: Any) -> None:
        """Set the parameters, before step 1, all of them: as `adamd.Session.set_parameters`."""
        async with self._turn:
            await self._shell.run(self._track.set_parameters(parameters))

    async def update(self, *, labels: Mapping[str, str] | None = None, **settings: Any) -> dict[str, Any]:
        """Change settings (from the next step on) or labels: as `adamd.Session.update`."""
        async with self._turn:
            return await self._shell.run(self._track.update(labels, settings))

    async def info(self) -> dict[str, Any]:
        """Return the session's document as the server has it now; this client's own step stays what it is."""
        return await self._shell.run(self._track.info())

    async def refresh(self) -> dict[str, Any]:
        """Accept the server's step, history and settings, whatever they are, and return the session's document."""
        async with self._turn:
            return await self._shell.run(self._track.refresh())

    async def delete(self, *, anyway: bool = False) -> None:
        """End the session, where others took no step that this client has not seen: as `adamd.Session.delete`."""
        async with self._turn:
            await self._shell.run(self._track.delete(anyway=anyway))

    @overload
    async def export(self, path: None = None) -> bytes: ...

    @overload
    async def export(self, path: str | os.PathLike[str]) -> Path: ...

    async def export(self, path: str | os.PathLike[str] | None = None) -> bytes | Path:
        """Export the whole state as safetensors, into a file or as bytes: as `adamd.Session.export`."""
        return await self._shell.run(self._track.export(path))


class AsyncTask(TaskView):
    """What the server wants of a client now: as `adamd.Task`, and its reply is awaited."""

    def __init__(self, shell: AsyncShell, participant: Participant, assigned: Assigned) -> None:
        self._shell = shell
        self._participant = participant
        self._assigned = assigned

    def __repr__(self) -> str:
        return f"<adamd.aio.AsyncTask {self.kind} round {self.round} for {self._participant.client}>"

    async def reply(
        self,
        *,
        parameters: Any = None,
        delta: Any = None,
        gradient: Any = None,
        num_examples: float = 1.0,
        metrics: Mapping[str, Any] | None = None,
        **measured: Any,
    ) -> Answer:
        """Send what came of it, and return what becomes of that: as `adamd.Task.reply`, with its arguments and errors.

        Cancelled, it may be there or not; the same reply again is safe.
        """
        values = {"parameters": parameters, "delta": delta, "gradient": gradient}
        logic = self._participant.reply(self._assigned, values, num_examples, {**(metrics or {}), **measured})
        return await self._shell.run(logic)


class AsyncFederation(FederationView):
    """One client of a federation: as `adamd.Federation`, and awaited."""

    def __init__(self, shell: AsyncShell, participant: Participant) -> None:
        self._shell = shell
        self._participant = participant
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<adamd.aio.AsyncFederation {self.name or self.id} as {self.client}>"

    async def task(self) -> AsyncTask | None:
        """Wait for the next task, and return it; None: the last round is over. As `adamd.Federation.task`."""
        async with self._turn:
            assigned = await self._shell.run(self._participant.task())
        return None if assigned is None else AsyncTask(self._shell, self._participant, assigned)

    async def rounds(self) -> AsyncIterator[AsyncTask]:
        """Yield one task after the other until the last round is over: as `adamd.Federation.rounds`."""
        while (task := await self.task()) is not None:
            yield task


class AsyncFederatedRun(RunView):
    """A federation, as its coordinator sees it: as `adamd.FederatedRun`, and awaited."""

    def __init__(self, shell: AsyncShell, coordinator: Coordinator) -> None:
        self._shell = shell
        self._coordinator = coordinator

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<adamd.aio.AsyncFederatedRun {self.id}{name}, opened at step {self._coordinator.now.step}>"

    async def follow(self, after: int | None = None, *, every: float = 0.5) -> AsyncIterator[Round]:
        """Yield each round when it is closed, until the last one: as `adamd.FederatedRun.follow`."""
        last, total = self._coordinator.now.step if after is None else after, self.num_rounds
        while not total or last < total:
            is_spent = await self._shell.run(self._coordinator.is_spent())
            seen = await self._shell.run(self._coordinator.seen_from(last + 1))
            for warning in seen.warnings:
                LOG.warning(warning)
            for done in seen.closed:
                yield done
                last = done.round
            if not seen.closed and is_spent:
                return
            if not seen.closed:
                await asyncio.sleep(every)

    async def history(self, start: int = 1) -> list[Round]:
        """Return the rounds from ``start`` on that the server keeps: as `adamd.FederatedRun.history`."""
        rounds: list[Round] = []
        token: str | None = None
        while True:
            page = await self._shell.run(self._coordinator.page(start, token))
            rounds += page.rounds
            if (token := page.token) is None:
                return rounds

    async def current(self) -> Round:
        """Return the open round as it is now; once the last round is closed, that one."""
        return await self._shell.run(self._coordinator.current())

    async def round(self, number: int) -> Round:
        """Return one round: as `adamd.FederatedRun.round`."""
        return await self._shell.run(self._coordinator.round(number))

    async def parameters(self) -> Any:
        """Return the parameters after the last closed round: as `adamd.FederatedRun.parameters`."""
        return await self._shell.run(self._coordinator.parameters())

    async def state_dict(self) -> dict[str, Any]:
        """Return `parameters` as torch tensors: as `adamd.FederatedRun.state_dict`."""
        return models.state_dict(await self.parameters(), self._coordinator.roles)

    async def close_round(self, number: int | None = None) -> Round:
        """Close a round with the replies that it has, and return it: as `adamd.FederatedRun.close_round`."""
        return await self._shell.run(self._coordinator.close(number))

    async def cancel_round(self, number: int | None = None) -> Round:
        """Drop the replies that a round has, and return it: as `adamd.FederatedRun.cancel_round`."""
        return await self._shell.run(self._coordinator.cancel(number))

    async def contribute(
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
        """Contribute a reply in a client's name: as `adamd.FederatedRun.contribute`."""
        values = {"parameters": parameters, "delta": delta, "gradient": gradient}
        logic = self._coordinator.contribute(client, round, values, num_examples, metrics or {})
        answer: Answer = await self._shell.run(logic)
        return answer

    async def configure(self, config: Mapping[str, Any]) -> None:
        """Set what the clients of later rounds are told: as `adamd.FederatedRun.configure`."""
        await self._shell.run(self._coordinator.configure(config))

    async def info(self) -> dict[str, Any]:
        """Return the session's document as the server has it now."""
        return await self._shell.run(self._coordinator.info())

    async def delete(self) -> None:
        """End the federation, with all that it has."""
        await self._shell.run(self._coordinator.delete())
