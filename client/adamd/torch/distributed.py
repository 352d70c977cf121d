"""One optimizer on all ranks of a `torch.distributed` group: rank 0 speaks with the server, the others follow it.

Each collective first carries whether it went well, so that what fails on one rank is raised on all: nobody waits for
an answer that will not come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from adamd.client import Client
from adamd.errors import AdamdError, InvalidRequest, WrongLayout, from_problem
from adamd.session import Session
from adamd.torch import group_settings, parameters
from adamd.torch.binding import Bond, Groups, Metrics, check_untouched, found_in, in_order, present_in, read_state
from adamd.torch.host_mirror import Mirror
from adamd.torch.kinds import kind_of
from adamd.torch.state_dicts import State


class Ranks:
    """The processes of a group. Every method but ``leads`` is a collective: all ranks call it, in one order."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._source = distributed.get_global_rank(group, 0)
        self.leads: bool = distributed.get_rank(group) == 0

    @classmethod
    def of(cls, group: Any) -> Ranks | None:
        """Return a group's ranks: the default group's where it is None; or None, where this process is on its own.

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
        """Run ``act`` on every rank and return all results, by rank; raise everywhere what one of them raises."""
        mine, failed = _tried(act)
        found: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(found, (mine, _problem(failed)), self._group)
        if failed is not None:
            raise failed
        for rank, (_, problem) in enumerate(found):
            if problem is not None:
                raise _error(problem, f"on rank {rank}")
        return [result for result, _ in found]

    def lead(self, act: Callable[[], Any]) -> Any:
        """Run ``act`` on rank 0 and return its result on all; raise everywhere what it raises."""
        mine, failed = _tried(act) if self.leads else (None, None)
        told = [(mine, _problem(failed))]
        distributed.broadcast_object_list(told, self._source, self._group)
        if failed is not None:
            raise failed
        result, problem = told[0]
        if problem is not None:
            raise _error(problem, "on rank 0")
        return result

    def share(self, flat: torch.Tensor) -> None:
        """Copy rank 0's buffer into that of the others, bit for bit. NCCL moves only what is on a device."""
        data = flat.view(torch.uint8)
        moved = data.cuda() if distributed.get_backend(self._group) == "nccl" else data
        distributed.broadcast(moved, self._source, self._group)
        if moved is not data:
            data.copy_(moved)


class Ensemble:
    """The bond of every rank: rank 0 has the session, the others what it tells.

    Args:
        ranks: of the group.
        make: returns the session; called on rank 0.
        groups: this rank's ``param_groups``, alike on all ranks.
        adopt: the session was there before: its settings are copied into the groups. Its parameters are in any case.
        resumed: as `Bond` takes it.
        client: with which the others read the state, if they are asked for it.

    Raises:
        WrongLayout: the ranks have other parameters than each other.
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
        resumed: Metrics | None = None,
    ) -> None:
        self._ranks, self._client, self._kind = ranks, client, kind_of(groups)
        self._bond: Bond | None = None  # on rank 0
        self._followed: Session | None = None
        self.doubt = 0
        told = ranks.agree(lambda: _described(groups))
        for rank, other in enumerate(told):
            if other != told[0]:
                raise WrongLayout(
                    f"rank {rank} has other parameters (names, shapes, dtypes) than rank 0. Ranks that do not train "
                    "one model need optimizers of their own: process_group=False, or a group of those that do"
                )

        def open_it() -> Any:
            self._bond = Bond(make(), groups, adopt=adopt, resumed=resumed)
            return self._standing(), self._bond.session.layout, self._bond.session.settings, self._bond.recalled

        self._told, layout, settings, self.recalled = ranks.lead(open_it)
        self._kept = found_in(groups, layout) if self._bond is None else self._bond.kept
        with torch.no_grad():
            ranks.share(self._mirror.flat)
            if resumed is not None:
                self.doubt = max(ranks.agree(lambda: in_order(self._kept) if self._bond is None else self._bond.doubt))
            if self._bond is None:
                if adopt:
                    group_settings.adopt(groups, self._kept.places, settings)
                self._mirror.write()

    @property
    def step_number(self) -> int:
        """The session's, as rank 0 has told it."""
        step: int = self._told[1]
        return step

    @property
    def session(self) -> Session:
        """Rank 0's session; on another rank a handle of its own, for reading."""
        if self._bond is not None:
            return self._bond.session
        if self._followed is None:
            self._followed = self._client.session(self._told[0])
        return self._followed

    def step(self, groups: Groups, loss: float | None, *, changed: bool) -> bool:
        """Send rank 0's gradients, and copy the answer into the model of every rank.

        Returns False on all ranks where `Bond.step` would on one.

        Raises:
            AdamdError: what `Bond.step` raises, on all ranks; the models are as they were.

        """
        present: list[Any] = []

        def ready() -> tuple[int, bool]:
            present.extend(present_in(self._kept, groups, self._kind))
            if self._bond is None:
                check_untouched(self._mirror, self._told[1])
                return len(present), changed
            self._bond.check(present)
            return len(present), changed or self._bond.lacks(groups)

        agreed = self._ranks.agree(ready)
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

        def take() -> Any:
            assert self._bond is not None
            every = self._bond.take(present, groups, loss)
            return self._standing(), every

        self._told, every = self._ranks.lead(take)
        self._ranks.share(self._mirror.flat)
        self._mirror.write(None if every else present)
        if self._bond is not None:
            self._bond.written()
        return True

    def state(self) -> State:
        """Read the state from the server; any rank may, by itself, if it reaches the server."""
        if self._bond is not None:
            return self._bond.state()
        _, step, chain = self._told
        return read_state(self.session, self._kept.places, self._kind, step, chain)

    @property
    def _mirror(self) -> Mirror:
        return self._kept.mirror

    def _standing(self) -> tuple[str, int, str]:
        assert self._bond is not None
        session = self._bond.session
        return session.id, session.step_number, session.chain


def _described(groups: Groups) -> Any:
    places = parameters.places(groups)
    parameters.check(places)
    group_settings.fixed(groups)
    return [(place.name, place.group, tuple(place.tensor.shape), str(place.tensor.dtype)) for place in places]


def _tried(act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return act(), None
    except BaseException as error:  # the other ranks wait for a word, whatever it was
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
