"""Takes contributions: refuses before the body is read, receives it as a step's, and makes it durable."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from time import time

import numpy as np
import xxhash

from adamd.errors import AdamdError, InvalidRequest, RoundClosed, WrongLayout
from adamd.wire.dtypes import storage
from adamd.wire.encodings import LAZY, RAW
from adamd.wire.layout import some
from adamd_service.aggregation import SentValues
from adamd_service.engine.cache import Hot
from adamd_service.engine.calls import StepCall
from adamd_service.engine.rounds.calls import ContributeCall, Contributed, Outcome
from adamd_service.engine.rounds.surroundings import Surroundings
from adamd_service.engine.rounds.values import spans_of
from adamd_service.engine.step import ReceivedStep
from adamd_service.engine.uploads import INLINE_BODY_BYTES
from adamd_service.records import BulkRef, Head
from adamd_service.rounds import KeptContribution, RoundsSettings
from adamd_service.rounds.rules import foresee, refusal
from adamd_service.rules import digest_start
from adamd_service.rules import foresee as foresee_step
from adamd_service.store.rounds import Admission, Look, Verdict


class Contributing:
    """Takes contributions by one path for all kinds: refused, or received, then kept until their round is closed."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    async def take(
        self, hot: Hot, head: Head, settings: RoundsSettings, call: ContributeCall, last: int | None
    ) -> Contributed:
        """Take one contribution; see `RoundsService.contribute` for what is refused. ``last``: the last round."""
        look = await self._around.workers.ask(self._around.store.rounds.look, head, call.client, call.round)
        self._require_acceptable(hot, head, settings, call, look, last)
        step_call = _as_step(head, settings, call)
        expected = self._around.uploads.expected(head, step_call)
        # Stale parameters cannot be turned into a gradient later: those that they were made from are gone then.
        converted = settings.buffered and call.kind == "parameters"
        logged = look.contribution is None and not converted
        with self._around.in_flight.hold(expected * call.body.weight):
            step = await self._around.uploads.receive(hot, head, step_call, expected, logged=logged, wiped=True)
            try:
                _require_plain(step, head, settings, call)
            except AdamdError:
                await self._around.workers.ask(self._discard, head.spec.id, step)
                raise
            one = _contribution(call, step)
            if look.contribution is not None:
                await self._around.workers.ask(self._discard, head.spec.id, step)
                word = "duplicate" if look.contribution.digest == one.digest else "conflict"
                verdict = Verdict(word, look.standing.received, look.standing.number)
            else:
                if converted:
                    one, step = await self._around.locked(hot, self._converted, hot, one, step)
                verdict = await self._around.workers.guard(
                    self._around.workers.ask(self._keep, head, settings, one, step, last)
                )
        if verdict.word not in ("accepted", "duplicate"):
            raise refusal(
                verdict.word,
                replace(look.standing, number=verdict.open or look.standing.number),
                call.round,
                call.client,
                verdict.counted,
            )
        outcome: Outcome = "accepted" if verdict.word == "accepted" else "duplicate"
        return Contributed(outcome, call.round, verdict.received, settings.quorum, verdict.open - 1)

    def _require_acceptable(
        self, hot: Hot, head: Head, settings: RoundsSettings, call: ContributeCall, look: Look, last: int | None
    ) -> None:
        diverged = hot.loaded is not None and hot.loaded.diverged  # as far as its state is here
        error = foresee_step(head, None, None, diverged=diverged) or foresee(
            look.standing,
            settings,
            call.round,
            call.client,
            waits=look.contribution is not None,
            counted=look.counted,
            if_match=call.if_match,
            last=last,
        )
        if error is not None:
            raise error

    def _keep(
        self, head: Head, settings: RoundsSettings, one: KeptContribution, step: ReceivedStep, last: int | None
    ) -> Verdict:
        """Make a contribution durable. Runs in a worker thread."""
        body = step.body.buffer
        inline = body.tobytes() if body.nbytes <= INLINE_BODY_BYTES else None
        if inline is None and step.bulk is None:
            staging = step.staging = self._around.store.stage(head.spec.id, step.attempt, body.nbytes, wiped=True)
            staging.write(memoryview(body))
            step.bulk = staging.finish()
        one = replace(one, bulk=step.bulk if inline is None and step.bulk is not None else BulkRef())
        admission = Admission(
            behind=settings.remembered,
            goes_on=settings.buffered,
            most=settings.max_contributions,
            last=last,
            drawn=settings.cohort > 0,
        )
        verdict = self._around.store.rounds.contribute(head, one, inline, admission)
        if verdict.word != "accepted":
            self._discard(head.spec.id, step)
        return verdict

    def _discard(self, session_id: str, step: ReceivedStep) -> None:
        with suppress(AdamdError):  # its TTL does the same, later
            self._around.store.discard(session_id, step.attempt, step.bulk or BulkRef())

    def _converted(self, hot: Hot, one: KeptContribution, step: ReceivedStep) -> tuple[KeptContribution, ReceivedStep]:
        """Return trained parameters as the pseudo-gradient that they mean, under the session's lock."""
        loaded = self._around.rebuilder.current(hot)
        spec, state = loaded.head.spec, loaded.state
        if loaded.head.step != one.round - 1 or state is None:
            raise RoundClosed(
                f"the parameters that round {one.round} began with are gone; send the difference (kind delta) where a "
                "contribution may come late",
                step=loaded.head.step,
                round=loaded.head.step + 1,
                counted=False,
            )
        self._around.device.fetch(state)
        spans, pulled = spans_of(spec.layout, step.present), state.params
        if spans is not None:
            pulled = np.concatenate([pulled[span.start : span.stop] for span in spans])
        values = SentValues(step.body.gradient, "parameters", pulled)
        out = self._around.pool.lease(pulled.nbytes).view(storage(spec.dtype))
        out[:] = values.read(0, len(out), out)
        body = out.view(np.uint8)
        digest = digest_start(RAW, spec.dtype, one.present, None)
        digest.update(body)
        one = replace(one, kind="gradient", encoding=RAW, dtype=spec.dtype, nbytes=body.nbytes)
        step.body.buffer = body
        return replace(one, body_digest=digest.hexdigest()), step


def _as_step(head: Head, settings: RoundsSettings, call: ContributeCall) -> StepCall:
    """Return a contribution as the step whose body it has: that is how it is received and checked."""
    layout = head.spec.layout
    if call.encoding == LAZY:
        raise InvalidRequest(f"{LAZY} is for steps; send a contribution as sparse or raw", step=head.step)
    private = {layout.names[place] for place in settings.private}
    if sent := [name for name in call.tensors if name in private]:
        raise _private_sent(tuple(sent), head)
    tensors = call.tensors
    if private and not tensors and call.decode is None:
        tensors = tuple(name for name in layout.names if name not in private)
    return StepCall(
        ref=call.ref,
        number=None,
        body=call.body,
        dtype=call.dtype,
        decode=call.decode,
        encoding=call.encoding,
        tensors=tensors,
        metrics=call.metrics,
    )


def _require_plain(step: ReceivedStep, head: Head, settings: RoundsSettings, call: ContributeCall) -> None:
    """Refuse what a decoded body may say, and a contribution may not."""
    if step.call.settings:
        raise InvalidRequest(
            "settings: a contribution changes none; PATCH the session", path="settings", step=head.step
        )
    names = head.spec.layout.names
    present = range(len(names)) if step.present is None else step.present
    if sent := [names[place] for place in settings.private if place in present]:
        raise _private_sent(tuple(sent), head)
    beside = [names[place] for place in (*settings.averaged, *settings.carry) if place in present]
    if call.kind == "gradient" and beside:
        raise InvalidRequest(
            f"these tensors are averaged, and a gradient has no values of them: {some(tuple(beside))}; send a "
            "delta, or parameters",
            step=head.step,
        )
    if not len(present):
        raise WrongLayout("a contribution has at least one tensor", step=head.step)


def _private_sent(names: tuple[str, ...], head: Head) -> WrongLayout:
    return WrongLayout(f"private tensors stay with the client, and these came: {some(names)}", step=head.step)


def _contribution(call: ContributeCall, step: ReceivedStep) -> KeptContribution:
    body_digest = step.body.digest()
    said = json.dumps([body_digest, call.kind, call.num_examples], separators=(",", ":"))
    return KeptContribution(
        round=call.round,
        client=call.client,
        attempt=step.attempt,
        digest=xxhash.xxh3_128_hexdigest(said.encode()),
        body_digest=body_digest,
        kind=call.kind,
        num_examples=call.num_examples,
        encoding=step.body.encoding,
        dtype=step.body.dtype,
        nbytes=step.body.buffer.nbytes,
        metrics=dict(step.call.metrics),
        present=step.present,
        received_at=time(),
    )
