"""Read-only properties that the blocking and the asyncio side of federations share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

from adamd.sansio.rounds import documents, models
from adamd.sansio.rounds.coordination import Coordinator
from adamd.sansio.rounds.participation import Assigned, Participant


class TaskView(Protocol):
    """The properties of `Task` and `AsyncTask`."""

    _assigned: Assigned
    _participant: Participant

    @property
    def kind(self) -> Literal["train", "evaluate"]:
        """What to do: train from `parameters`, or measure how good they are."""
        return "evaluate" if self._assigned.assignment.kind == "evaluate" else "train"

    @property
    def round(self) -> int:
        """The round that it is part of, from 1."""
        return self._assigned.assignment.round

    @property
    def base_step(self) -> int:
        """The step that `parameters` are of: ``round`` - 1."""
        return self._assigned.assignment.base_step

    @property
    def parameters(self) -> Any:
        """The parameters: one array, or a dict of arrays without those that are private. Yours to write to."""
        return self._assigned.parameters

    @property
    def config(self) -> Mapping[str, Any]:
        """The coordinator's object for this round, as ``{"epochs": 3}``."""
        config = self._assigned.assignment.document.get("config")
        return config if isinstance(config, Mapping) else {}

    @property
    def deadline(self) -> datetime | None:
        """When the round may be closed with fewer replies; None: never, or no reply has come yet."""
        return documents.moment(self._assigned.assignment.document.get("deadline"))

    @property
    def private(self) -> tuple[str, ...]:
        """Names of the tensors that never leave this client; they are not in `parameters`."""
        return self._assigned.assignment.private

    def state_dict(self) -> dict[str, Any]:
        """Return `parameters` as torch tensors, for ``model.load_state_dict``: counters as int64.

        They share the memory of `parameters`. Private tensors are not among them: load with ``strict=False``.

        Raises:
            InvalidRequest: the session is one plain array.
            ModuleNotFoundError: torch is not installed.

        """
        return models.state_dict(self.parameters, self._participant.roles)


class FederationView(Protocol):
    """The properties of `Federation` and `AsyncFederation`."""

    _participant: Participant

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self._participant.now.id

    @property
    def name(self) -> str | None:
        """The coordinator's."""
        return self._participant.now.name

    @property
    def client(self) -> str:
        """The client's name."""
        return self._participant.client


class RunView(Protocol):
    """The properties of `FederatedRun` and `AsyncFederatedRun`."""

    _coordinator: Coordinator

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self._coordinator.now.id

    @property
    def name(self) -> str | None:
        """Yours."""
        return self._coordinator.now.name

    @property
    def num_rounds(self) -> int:
        """After so many rounds clients are told to stop; 0: never."""
        return self._coordinator.total

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its rounds, as the server has them (docs/protocol.md)."""
        return dict(self._coordinator.settings)

    @property
    def optimizer(self) -> dict[str, Any]:
        """The settings of the server's optimizer, as they were when this was opened."""
        return dict(self._coordinator.now.settings)
