"""Coordinator: the owner of a federation, with the logic of its calls, shared by all shells.

The server closes the rounds, so a coordinator only looks on: it may end at any time, and is started again by the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from adamd.errors import InvalidRequest, InvalidSettings, RoundClosed, UnknownSession
from adamd.fed import plan
from adamd.fed.options import FederationOptions
from adamd.fed.records import Answer, Round
from adamd.sansio import arrays, opening, operations, settings_match
from adamd.sansio.gradient_encoding import EncodingOptions
from adamd.sansio.operations import Assignment, ReadParameters, ReadRound, RoundsPage, Standing, Stepped
from adamd.sansio.rounds import models
from adamd.sansio.rounds.participation import Assigned, Participant, rounds_of
from adamd.sansio.settings_match import Differing
from adamd.sansio.tracking import Logic, Track, plain_document

PAGE: Final = 100  # rounds that are asked for at once
DRAWN: Final = "seed"  # the server draws it where it is not given


def open_(name: str, parameters: Any, options: FederationOptions) -> Logic[Coordinator]:
    """Resume a federation, or make it where there is none; see `Client.open_federation`."""
    planned = parameters is not None or plan.plans(options)
    if not planned:
        track: Track = yield from opening.attach(name, None, "raise")
        return Coordinator(track, rounds_of(track.now))
    rounds = plan.rounds_document(
        options, counters=models.counters(parameters), statistics=models.statistics(parameters)
    )
    rounds["config"] = plain_document("config", rounds["config"])
    optimizer = dict(plan.optimizer_document(options))
    creation: dict[str, Any] = {key: options[key] for key in plan.CREATION if options.get(key) is not None}  # type: ignore[literal-required]  # names of the TypedDict
    initial = None if parameters is None else models.in_floats(parameters, creation.get("dtype"))
    settings = {"optimizer": optimizer.pop("name"), **optimizer, **creation}

    def check(standing: Standing) -> Logic[None]:
        current = rounds_of(standing)  # first: a plain session has other settings too, and that is not what is wrong
        of_optimizer = yield from settings_match.differences_of(standing, None, settings)
        of_rounds = _differing_rounds(current, rounds, has_parameters=parameters is not None)
        if of_optimizer or of_rounds:
            raise _other_settings(standing, of_optimizer, of_rounds)

    try:
        track = yield from opening.open_or_create(name, initial, {**settings, "rounds": rounds}, "raise", check)
    except UnknownSession as error:
        raise UnknownSession(f"{error.detail}; give its first parameters, and it is made") from None
    except InvalidSettings as error:
        error.reword(plan.in_options(error.detail))
        raise
    return Coordinator(track, rounds_of(track.now))


def _differing_rounds(
    current: Mapping[str, Any], rounds: Mapping[str, Any], *, has_parameters: bool
) -> list[Differing]:
    """Return where the settings of rounds differ from those of a federation that is there.

    ``config`` is not compared: it may have been changed on the way. Nor is a seed that is left to the server, nor what
    is found out from parameters where there are none, nor what is the quorum's because nothing else was said.
    """
    skipped = {"config"} | ({DRAWN} if rounds[DRAWN] is None else set())
    skipped |= set() if has_parameters else {"averaged", "carry"}
    for key in ("min_contributions", "max_contributions"):
        skipped |= {key} if (rounds[key], current.get(key)) == (rounds["quorum"], current.get("quorum")) else set()
    given = {key: value for key, value in rounds.items() if key not in skipped}
    return settings_match.differing(given, _complete(current))


def _other_settings(standing: Standing, of_optimizer: list[Differing], of_rounds: list[Differing]) -> InvalidSettings:
    named = [(plan.OPTION_NAMES.get(key, key), stored, value) for key, stored, value in of_rounds]
    path = f"optimizer.{of_optimizer[0][0]}" if of_optimizer else f"rounds.{of_rounds[0][0]}"
    return InvalidSettings(
        f"federation {standing.name or standing.id!r} at step {standing.step} has other settings than these: "
        f"{'; '.join(settings_match.describe([*of_optimizer, *named]))}. They are fixed when it is made: give its own, "
        "or none at all (neither parameters nor options) to go on with it, or choose another name",
        step=standing.step,
        path=path,
        id=standing.id,
    )


def _complete(current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's settings with what it leaves out at its default."""
    return {"staleness": {"name": "constant"}, "max_staleness": None, **current}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the rounds of a federation found.

    Attributes:
        closed: those that are closed, in order.
        warnings: of those that began again, each beginning once, in words.

    """

    closed: tuple[Round, ...]
    warnings: tuple[str, ...]


class Coordinator:
    """The owner's view of a federation.

    Attributes:
        now: the session, as it was seen last.
        settings: of its rounds.
        roles: which tensors are counters.
        total: its last round; 0: there is none.

    """

    def __init__(self, track: Track, settings: Mapping[str, Any]) -> None:
        self._track = track
        self.settings = settings
        self.roles = models.Roles.of(settings)
        self.total = int(settings.get("total") or 0)
        self._read: Stepped | None = None  # where the parameters were that were read last
        self._told: tuple[int, datetime | None] = (0, None)  # the round of the last warning, and when it began again

    @property
    def now(self) -> Standing:
        """The session, as it was seen last."""
        return self._track.now

    def seen_from(self, number: int) -> Logic[Seen]:
        """Look at the rounds from this one on, as far as one page has them."""
        page: RoundsPage = yield operations.ListRounds(self.now.id, number, PAGE)
        rounds = [item for item in page.rounds if item.round >= number]
        warnings = tuple(text for item in rounds if (text := self._warning_of(item)) is not None)
        return Seen(tuple(item for item in rounds if item.state == "closed"), warnings)

    def _warning_of(self, item: Round) -> str | None:
        """Say why a round began again, unless that was said already, or it is a round before one that was told of."""
        when = (item.round, item.opened_at)
        if item.failure is None or item.round < self._told[0] or when == self._told:
            return None
        self._told = when
        name = self.now.name or self.now.id
        return f"round {item.round} of federation {name} began again: {item.failure.detail}"

    def page(self, number: int, token: str | None) -> Logic[RoundsPage]:
        """Return a page of the rounds from this one on."""
        page: RoundsPage = yield operations.ListRounds(self.now.id, number, PAGE, token)
        return page

    def current(self) -> Logic[Round]:
        """Return the open round; once the last round is closed, that one."""
        document = yield from self._track.info()
        number = int(document["step"]) + 1
        if (0 < self.total < number) or (yield from self.is_spent()):
            number -= 1
        return (yield from self.round(number))

    def is_spent(self) -> Logic[bool]:
        """Say whether another round would pass ``max_epsilon``: then the last one is made, whatever ``total`` says."""
        privacy = self.settings.get("privacy")
        if not isinstance(privacy, Mapping) or privacy.get("max_epsilon") is None:
            return False
        task: Assignment | None = yield operations.AskTask(self.now.id, "", 0.0)
        return task is not None and task.kind == "stop"

    def round(self, number: int) -> Logic[Round]:
        """Return one round."""
        if type(number) is not int or number < 1:
            raise InvalidRequest(f"round is {number!r}; wanted a number of a round, from 1")
        found: Round = yield ReadRound(self.now.id, number)
        return found

    def close(self, number: int | None) -> Logic[Round]:
        """Close a round; None: the open one. One that is closed already stays what it is."""
        if number is None:
            number = (yield from self.current()).round
        try:
            closed: Round = yield operations.CloseRound(self.now.id, number)
        except RoundClosed:
            found = yield from self.round(number)
            if found.state != "closed":  # the one after the last, which nothing closes
                raise
            return found
        return closed

    def cancel(self, number: int | None) -> Logic[Round]:
        """Drop what a round has; None: the open one."""
        if number is None:
            number = (yield from self.current()).round
        cancelled: Round = yield operations.CancelRound(self.now.id, number)
        return cancelled

    def contribute(
        self, client: str, number: int, values: Mapping[str, Any], num_examples: Any, metrics: Mapping[str, Any]
    ) -> Logic[Answer]:
        """Contribute what a client told this coordinator, in its name."""
        chain = None if self._read is None or self._read.step != number - 1 else self._read.chain
        name = operations.client_name(client)
        participant = Participant(self.now, self.settings, name, EncodingOptions.of(), 0.0)
        task = Assignment("train", number, number - 1, chain, True, False, (), {})
        return (yield from participant.reply(Assigned(task, None, None), values, num_examples, metrics))

    def configure(self, config: Mapping[str, Any]) -> Logic[None]:
        """Set what the clients of later rounds are told."""
        if not isinstance(config, Mapping):
            raise InvalidRequest(f"config is {config!r:.60}; wanted a dict, as {{'epochs': 3}}")
        yield operations.Update(self.now.id, None, None, {"config": dict(config)})

    def parameters(self) -> Logic[Any]:
        """Read the parameters of the last step."""
        now = self.now
        landing = arrays.landing(now.layout, now.dtype, order=self._track.order)
        self._read = yield ReadParameters(now.id, now.dtype, landing.buffers)
        return landing.finish()

    def info(self) -> Logic[dict[str, Any]]:
        """Read the session's document."""
        return (yield from self._track.info())

    def delete(self) -> Logic[None]:
        """End the session."""
        yield operations.Delete(self.now.id)
