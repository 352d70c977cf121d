"""Creates, changes and deletes sessions. Synchronous: it runs in worker threads."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from adamd.errors import (
    Damaged,
    IdempotencyMismatch,
    InvalidSettings,
    InvalidState,
    Moved,
    NoRounds,
    ParametersFixed,
    SessionExists,
    SettingsConflict,
)
from adamd.wire.dtypes import storage
from adamd.wire.layout import Layout
from adamd_service.aggregation.settings import MOST_WHOLE
from adamd_service.engine.cache import Hot, LoadedSession, is_finite
from adamd_service.engine.calls import CreateCall, Floats, SavedState, SessionView
from adamd_service.engine.rebuilding import Rebuilder, settings_of
from adamd_service.engine.step import settings_with
from adamd_service.optim import (
    BEST,
    BOUNDS,
    Device,
    Settings,
    SettingsError,
    State,
    check_bounds,
    check_groups,
    check_scalars,
    check_state,
    each,
    parse_settings,
    plan,
    to_json,
)
from adamd_service.records import Head, IdempotencyKey, SnapshotRef, Spec
from adamd_service.rounds.settings import RoundsSettings, check_new, parse_rounds, with_config, with_seed
from adamd_service.rules import first_chain
from adamd_service.store import RedisStore, Repeated, Taken

RACES = 16


def check_create(call: CreateCall) -> Settings:
    """Check a creation's settings against its layout, before anything is written.

    Raises:
        InvalidSettings: with the path of what is wrong.

    """
    try:
        settings = parse_settings(dict(call.optimizer))
        check_groups(settings, call.layout.names)
        check_scalars(settings, call.layout.names, storage(call.dtype))
    except SettingsError as error:
        raise InvalidSettings(error.message, path=error.path) from None
    if call.rounds is not None:
        rounds_of(call)
    for name in each(settings):
        if call.saved is None and (name not in call.bounds or call.parameters is None):
            raise InvalidSettings(
                f'{name} is "array": its numbers and the parameters come with the creation, or in a restored state',
                path=name,
            )
    return settings


def rounds_of(call: CreateCall) -> RoundsSettings:
    """Return the settings of a new session's rounds, with a seed that is drawn where none is given.

    Raises:
        InvalidSettings: with the path of what is wrong.

    """
    try:
        rounds = parse_rounds(call.rounds, call.layout)
        check_new(rounds)
    except SettingsError as error:
        raise InvalidSettings(error.message, path=error.path) from None
    if call.durability == "memory":
        raise InvalidSettings(
            'rounds are kept in the store, and this session would not be: durability "committed"', path="durability"
        )
    return with_seed(rounds, secrets.randbelow(MOST_WHOLE), secrets.randbelow(MOST_WHOLE))


def state_of(call: CreateCall, settings: Settings, device: Device) -> State | None:
    """Return the state that a session starts from; None where its parameters come later.

    Raises:
        InvalidState: a restored state that no optimizer could have (negative v, NaN), or one for other settings.

    """
    if call.parameters is None:
        return None
    device.prepare(settings, storage(call.dtype))
    state = State.fresh(call.parameters, len(call.layout.tensors), settings)
    if call.saved is not None:
        _install(state, call.saved, settings, call.layout.names)
    state.slots |= {name: call.bounds[name] for name in each(settings) if call.saved is None}
    _require_sound(state, settings, call.layout, first=call.saved is None)
    return state


def _require_sound(state: State, settings: Settings, layout: Layout, *, first: bool) -> None:
    """Refuse a state that no optimizer could have, or a ``first`` one outside of its bounds."""
    try:
        check_state(state)
        check_bounds(state, settings, layout.names, layout.bounds, inside=first)
    except SettingsError as error:
        raise InvalidSettings(error.message, path=error.path) from None
    except ValueError as error:
        raise InvalidState(str(error)) from None


def _install(state: State, saved: SavedState, settings: Settings, names: Sequence[str]) -> None:
    slots = dict(saved.slots)
    best = slots.pop(BEST, None) if state.best is not None else None  # a session may begin to keep them
    if state.counts and set(slots) != set(state.slots):  # without tensors there is nothing to tell arrays by
        raise InvalidState(
            f"the state has {', '.join(sorted(slots)) or 'no arrays'}; {state.optimizer.name} with these settings "
            f"has {', '.join(state.slots) or 'none'}"
        )
    state.slots |= slots
    state.best = state.best if best is None else best
    state.counts = list(saved.counts)
    if any(count > saved.step for count in saved.counts):
        raise InvalidState(f"a tensor was updated {max(saved.counts)} times in {saved.step} steps")
    try:
        state.carry(saved.carried)
        if state.carried is not None:  # an update must follow from what is carried, whatever anyone wrote there
            plan(settings, names, state.counts, [True] * len(names), state.params.dtype, state.carried)
    except ValueError as error:
        raise InvalidState(f"state.carried: {error}") from None


def first_head(call: CreateCall, settings: Settings, state: State | None, session_id: str) -> Head:
    """Return the head of a session that starts from ``state``."""
    spec = Spec(
        id=session_id,
        name=call.name,
        tenant="default",
        layout=call.layout,
        dtype=call.dtype,
        durability=call.durability,
        labels=dict(call.labels),
        created_at=time.time(),
        rounds=None if call.rounds is None else rounds_of(call).to_json(),
    )
    incarnation = secrets.token_hex(16)
    step = 0 if call.saved is None else call.saved.step
    chain = _first_chain(spec, incarnation, step, state)
    return Head(
        spec=spec,
        incarnation=incarnation,
        step=step,
        chain=chain,
        prev_chain="",
        settings=to_json(settings),
        settings_revision=0,
        parameters_missing=state is None,
        progress={} if call.saved is None else _first_progress(call.saved, settings),
    )


def _first_progress(saved: SavedState, settings: Settings) -> dict[str, Any]:
    """Return the progress that a restored session begins with.

    Before the first step there is none. A lowest loss is dropped if its parameters are to be kept but were not sent.
    """
    unknown = {"lowest", "lowest_step"} if settings.keep_best and BEST not in saved.slots else set()
    return {} if saved.step == 0 else {name: value for name, value in saved.progress.items() if name not in unknown}


def _first_chain(spec: Spec, incarnation: str, step: int, state: State | None) -> str:
    digest = xxhash.xxh3_128()
    for array in () if state is None else state.kept.values():
        digest.update(array.view(np.uint8))
    document: dict[str, Any] = {
        "layout": spec.layout.to_json(),
        "dtype": spec.dtype,
        "step": step,
        "counts": [] if state is None else state.counts,
    }
    if state is not None and state.carried is not None:
        document["carried"] = state.numbers
    return first_chain(incarnation, document, digest.hexdigest())


class Lifecycle:
    """Creates, patches and deletes durable sessions, and sets their parameters before step 1."""

    def __init__(self, store: RedisStore, rebuilder: Rebuilder, device: Device) -> None:
        self._store = store
        self._rebuilder = rebuilder
        self._device = device

    def create(self, head: Head, state: State | None, key: IdempotencyKey | None, *, restored: bool) -> SessionView:
        """Write a new session; a repeated creation answers the session that there is.

        Raises:
            SessionExists: the name is taken; ``extra`` has its ``id`` and its ``step``.
            IdempotencyMismatch: the key came with another creation.

        """
        counts = () if state is None else tuple(state.counts)
        arrays = first_arrays(state, restored=restored)
        outcome = self._store.create(head, arrays, counts, key, None if state is None else state.numbers)
        if isinstance(outcome, Taken):
            if outcome.reason == "idempotency":
                raise IdempotencyMismatch("this Idempotency-Key was used to create another session; use a new key")
            raise SessionExists(
                f"the name {head.spec.name!r} is taken by session {outcome.id} at step {outcome.step}; "
                "open it, delete it, or choose another name",
                step=outcome.step,
                id=outcome.id,
            )
        if isinstance(outcome, Repeated):
            head = self._store.load_head(outcome.id)
            return SessionView(head, settings_of(head), diverged=False, repeated=True)
        head = self._store.load_head(head.spec.id)
        return SessionView(head, settings_of(head), diverged=False)

    def patch(
        self,
        hot: Hot,
        optimizer: Mapping[str, Any] | None,
        labels: Mapping[str, str] | None,
        if_match: str | None = None,
        rounds: object = None,
    ) -> SessionView:
        """Change settings (they count from the next step), labels, and the ``config`` of later rounds.

        Raises:
            Moved: the session's chain is not ``if_match``.
            InvalidSettings: with the path of what is wrong.
            NoRounds: the session has none to change.
            SettingsConflict: others changed the session every time.

        """
        for _ in range(RACES):
            loaded = self._rebuilder.current(hot)
            head = loaded.head
            require_chain(head, if_match)
            settings = settings_with(loaded.settings, optimizer, head)
            spec = head.spec if labels is None else replace(head.spec, labels=dict(labels))
            spec = spec if rounds is None else _with_rounds(spec, rounds)
            after = replace(head, spec=spec, settings=to_json(settings), settings_revision=head.settings_revision + 1)
            step = self._store.patch(hot.id, head, after, if_match) if hot.durable else head.step
            if step is None:
                continue
            if step == head.step:
                loaded.head, loaded.settings = after, settings
            else:  # another replica has made steps meanwhile: the cache follows them
                loaded = self._rebuilder.current(hot)
            self._device.prepare(settings, storage(head.spec.dtype))
            return SessionView(loaded.head, loaded.settings, loaded.diverged)
        raise SettingsConflict("others changed this session every time; try again", step=head.step, retry_after=0.2)

    def end(self, hot: Hot, if_match: str | None = None) -> None:
        """Delete a session.

        Raises:
            Moved: its chain is not ``if_match``; the store compares it, or another replica's step would be lost.

        """
        for _ in range(RACES):
            if if_match is not None:
                with suppress(Damaged):  # its chain is compared by the store alone: it can be deleted all the same
                    require_chain(self._rebuilder.head(hot), if_match)
            if not hot.durable or self._store.delete(hot.id, if_match):
                hot.drop()
                return
        raise SettingsConflict("others changed this session every time; try again", retry_after=0.2)

    def set_parameters(self, hot: Hot, flat: Floats) -> SessionView:
        """Set the parameters of a session that has made no step.

        Raises:
            ParametersFixed: it has, or contributions wait that were made from other parameters.
            InvalidState: one of them is not finite.

        """
        for _ in range(RACES):
            loaded = self._rebuilder.current(hot)
            head, settings = loaded.head, loaded.settings
            require_unfixed(head)
            self._require_none_waiting(head)
            self._device.prepare(settings, storage(head.spec.dtype))
            state = State.fresh(flat, len(head.spec.layout.tensors), settings)
            if each(settings):  # they were given at creation, and parameters can be set again before step 1
                assert loaded.state is not None
                state.slots |= {name: loaded.state.slots[name] for name in each(settings)}
            _require_sound(state, settings, head.spec.layout, first=True)
            chain = _first_chain(head.spec, head.incarnation, 0, state)
            after = replace(head, chain=chain, parameters_missing=False)
            if not hot.durable:
                hot.loaded = LoadedSession(after, settings, state)
                return SessionView(after, settings, diverged=False)
            if self._store.put_parameters(head, after, first_arrays(state, restored=False), tuple(state.counts)):
                hot.drop()
                del loaded, state  # or they stay in memory while they are read back
                current = self._rebuilder.current(hot)  # others may have changed the settings meanwhile
                return SessionView(current.head, current.settings, diverged=False)
        raise SettingsConflict("others changed this session every time; try again", retry_after=0.2)

    def _require_none_waiting(self, head: Head) -> None:
        if head.spec.rounds is not None and self._store.rounds.look(head).standing.received:
            raise ParametersFixed(
                "contributions to round 1 wait, made from the parameters that are there; cancel the round first",
                step=head.step,
            )


def _with_rounds(spec: Spec, patch: object) -> Spec:
    if spec.rounds is None:
        raise NoRounds("this session has no rounds; make one with rounds")
    try:
        return replace(spec, rounds=with_config(parse_rounds(spec.rounds, spec.layout), patch).to_json())
    except SettingsError as error:
        raise InvalidSettings(error.message, path=error.path) from None


def require_chain(head: Head, if_match: str | None) -> None:
    """Raise Moved where the session is no longer where the caller believes it to be."""
    if if_match is not None and head.chain != if_match:
        raise Moved(
            f"the session is at step {head.step}, with chain {head.chain[:12]}…; If-Match says {if_match[:12]}…. "
            "GET it again, and decide anew",
            step=head.step,
        )


def require_unfixed(head: Head) -> None:
    """Raise ParametersFixed where the session has made a step."""
    if head.step > 0:
        raise ParametersFixed(
            f"parameters can be set only before step 1; this session is at {head.step}", step=head.step
        )


def first_arrays(state: State | None, *, restored: bool) -> Mapping[str, Floats]:
    """Return the arrays of a first snapshot: a new session's optimizer arrays follow from its settings."""
    if state is None:
        return {}
    if restored:  # at step 0 too its arrays may be any
        return state.kept
    return {name: array for name, array in state.arrays.items() if name in ("params", *BOUNDS)}


def memory_hot(head: Head, settings: Settings, state: State | None) -> tuple[Hot, LoadedSession]:
    """Return a memory session."""
    loaded = LoadedSession(head, settings, state, diverged=state is not None and not is_finite(state))
    return Hot(head.spec.id, durable=False, loaded=loaded), loaded


def snapshot_ref(head: Head, state: State) -> SnapshotRef:
    """Return a reference for a snapshot of this very step, its arrays still to be written."""
    return SnapshotRef(secrets.token_hex(8), head.step, head.chain, tuple(state.counts), (), state.numbers)
