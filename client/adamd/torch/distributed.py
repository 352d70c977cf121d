"""Runs one optimizer on all ranks of a `torch.distributed` group: rank 0 speaks with the server, the others follow.

Each collective also carries the rank's error, so what fails on one rank is raised on all, and no rank waits for an
answer that will not come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import distributed

from adamd.client import Client
from adamd.errors import AdamdError, InvalidRequest, WrongLayout, from_problem
from adamd.session import Session
from adamd.torch import binding, group_settings, parameters
from adamd.torch.binding import Binding, Groups, Metrics
from adamd.torch.host_mirror import Mirror
from adamd.torch.kinds import kind_of
from adamd.torch.state_dicts import State


class Ranks:
    """The processes of a group. Every method is a collective: all ranks call it, in one order."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._source = distributed.get_global_rank(group, 0)
        self.leads: bool = distributed.get_rank(group) == 0

    @classmethod
    def of(cls, group: Any) -> Ranks | None:
        """Return a group's ranks (None: the default group's); None where this process trains by itself.

        Raises:
            InvalidRequest: this process is not of the group.

        """
        if group is False or not (distributed.is_available() and distributed.is_initialized()):
            return None
        group = distributed.group.WORLD if group is None else group
        if distributed.get_rank(group) < 0:
            raise InvalidRequest("this process is no member of the process group; make the optimizer on its members")
        return cls(group) if distributed.get_world_size(group) > 1 else None

    def agree(self, act: Callable[[], Any]) -> list[Any]:
        """Run ``act`` on every rank and return all results, by rank. What it raises on one rank is raised on all."""
        result, error = _tried(act)
        outcomes: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(outcomes, (result, _problem(error)), self._group)
        if error is not None:
            raise error
        for rank, (_, problem) in enumerate(outcomes):
            if problem is not None:
                raise _error(problem, f"on rank {rank}")
        return [result for result, _ in outcomes]

    def lead(self, act: Callable[[], Any]) -> Any:
        """Run ``act`` on rank 0 and return its result on all ranks. What it raises is raised on all."""
        result, error = _tried(act) if self.leads else (None, None)
        message = [(result, _problem(error))]
        distributed.broadcast_object_list(message, self._source, self._group)
        if error is not None:
            raise error
        result, problem = message[0]
        if problem is not None:
            raise _error(problem, "on rank 0")
        return result

    def share(self, flat: torch.Tensor) -> None:
        """Copy rank 0's buffer into the others', bit for bit, by way of the GPU where NCCL needs that."""
        data = flat.view(torch.uint8)
        moved = data.cuda() if distributed.get_backend(self._group) == "nccl" else data
        distributed.broadcast(moved, self._source, self._group)
        if moved is not data:
            data.copy_(moved)


class Ensemble:
    """The binding of every rank's model to one session: rank 0 has the session and broadcasts the answers.

    Args:
        ranks: of the group.
        make: returns the session; called on rank 0.
        groups: this rank's ``param_groups``, alike on all ranks.
        adopt: copy the session's settings into the groups; its parameters are copied in any case.
        metrics_of: as in `Binding`.
        client: reads the state on the other ranks.

    Raises:
        WrongLayout: the ranks' parameters differ.
        AdamdError: whatever ``make`` raises.

    """

    def __init__(
        self,
        ranks: Ranks,
        make: Callable[[], Session],
        groups: Groups,
        *,
        adopt: bool,
        client: Client,
        metrics_of: Metrics | None = None,
    ) -> None:
        self._ranks, self._client, self._kind = ranks, client, kind_of(groups)
        self._binding: Binding | None = None  # on rank 0
        self._reader: Session | None = None
        self.doubt = 0
        described = ranks.agree(lambda: _described(groups))
        for rank, other in enumerate(described):
            if other != described[0]:
                raise WrongLayout(
                    f"rank {rank} has other parameters (names, shapes, dtypes) than rank 0. Ranks that do not train "
                    "one model need optimizers of their own: process_group=False, or a group of those that do"
                )

        def bind() -> Any:
            self._binding = Binding(make(), groups, adopt=adopt, metrics_of=metrics_of)
            session = self._binding.session
            return self._session_position(), session.layout, session.settings, self._binding.scheduler_values

        self._position, layout, settings, self.scheduler_values = ranks.lead(bind)
        self._bound = binding.bind_parameters(groups, layout) if self._binding is None else self._binding.bound
        with torch.no_grad():
            ranks.share(self._mirror.flat)
            if metrics_of is not None:
                leader = self._binding
                self.doubt = max(ranks.agree(lambda: leader.doubt if leader else binding.count_doubtful(self._bound)))
            if self._binding is None:
                if adopt:
                    group_settings.adopt(groups, self._bound.places, settings)
                self._mirror.write_to_model()

    @property
    def step_number(self) -> int:
        """The session's, as rank 0 last broadcast it."""
        step: int = self._position[1]
        return step

    @property
    def session(self) -> Session:
        """Rank 0's session; on another rank its own handle, for reading."""
        if self._binding is not None:
            return self._binding.session
        if self._reader is None:
            self._reader = self._client.session(self._position[0])
        return self._reader

    def step(self, groups: Groups, loss: float | None, *, changed: bool) -> bool:
        """Send rank 0's gradients, and copy the answer into the model of every rank.

        Returns False on all ranks where `Binding.step` would on one.

        Raises:
            AdamdError: what `Binding.step` raises, on all ranks; the models are as they were.

        """
        present: list[Any] = []

        def check() -> tuple[int, bool]:
            present.extend(binding.with_gradient(self._bound, groups, self._kind))
            if self._binding is None:
                binding.check_model_untouched(self._mirror, self._position[1])
                return len(present), changed
            self._binding.check_drift(present)
            return len(present), changed or self._binding.lacks_buffer(groups)

        agreed = self._ranks.agree(check)
        counts = [count for count, _ in agreed]
        if len(set(counts)) > 1:
            raise InvalidRequest(
                f"the ranks have gradients for {', '.join(map(str, counts))} parameters; a step is one, with the mean "
                "over all ranks: wrap the model in DistributedDataParallel, or all_reduce each p.grad"
            )
        if not present:
            return True
        if any(other for _, other in agreed):
            return False

        def send() -> Any:
            assert self._binding is not None
            all_moved = self._binding.send_gradients(present, groups, loss)
            return self._session_position(), all_moved

        self._position, all_moved = self._ranks.lead(send)
        self._ranks.share(self._mirror.flat)
        self._mirror.write_to_model(None if all_moved else present)
        if self._binding is not None:
            self._binding.mark_followed()
        return True

    def state(self) -> State:
        """Read the state from the server; any rank may, by itself, if it reaches the server."""
        if self._binding is not None:
            return self._binding.state()
        _, step, chain = self._position
        return binding.read_state(self.session, self._bound.places, self._kind, step, chain)

    @property
    def _mirror(self) -> Mirror:
        return self._bound.mirror

    def _session_position(self) -> tuple[str, int, str]:
        assert self._binding is not None
        session = self._binding.session
        return session.id, session.step_number, session.chain


AnyBinding: TypeAlias = Binding | Ensemble


def _described(groups: Groups) -> Any:
    places = parameters.places(groups)
    parameters.check(places)
    group_settings.fixed(groups)
    return [(place.name, place.group, tuple(place.tensor.shape), str(place.tensor.dtype)) for place in places]


def _tried(act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return act(), None
    except BaseException as error:  # the other ranks wait for an outcome, whatever it is
        return None, error


def _problem(error: BaseException | None) -> dict[str, Any] | None:
    if error is None:
        return None
    if isinstance(error, AdamdError):
        return {**error.problem(), "retry_after": error.retry_after}
    return {"code": None, "detail": f"{type(error).__name__}: {error}"}


def _error(problem: dict[str, Any], where: str) -> Exception:
    if problem["code"] is None:
        return RuntimeError(f"{where}: {problem['detail']}")
    retry_after = problem.pop("retry_after")
    problem["detail"] = f"{where}: {problem['detail']}"
    return from_problem(problem, int(problem.pop("status")), retry_after, ours=True)
