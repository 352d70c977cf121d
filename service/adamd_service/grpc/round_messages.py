"""Converts what rounds tell to messages, and fields of their messages to the engine's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from adamd.errors import InvalidRequest
from adamd.wire.protobuf_tables import CLOSERS, KIND_NAMES, STATES, TASKS, struct
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.aggregation import Kind
from adamd_service.codecs import rounds
from adamd_service.engine.rounds import Task
from adamd_service.rounds import Counted, LeftOut, RoundDocument


def task(found: Task | None) -> pb.GetTaskResponse:
    """Return a task; one of no kind where none came in time."""
    if found is None:
        return pb.GetTaskResponse()
    return pb.GetTaskResponse(
        kind=TASKS[found.kind],
        round=found.round,
        base_step=found.base_step,
        chain=found.chain,
        selected=bool(found.selected),
        contributed=found.contributed,
        config=struct(found.config),
        deadline=moment(found.deadline),
        received=found.received,
        wanted=found.wanted,
        private_tensors=found.private,
    )


def standing(found: Task) -> pb.RoundStanding:
    """Return how far a session's open round is."""
    return pb.RoundStanding(round=found.round, received=found.received, wanted=found.wanted)


def told(document: RoundDocument) -> pb.Round:
    """Return what is known of a round."""
    message = pb.Round(
        round=document.round,
        state=STATES[document.state],
        base_step=document.base_step,
        opened_at=moment(document.opened_at),
        deadline=moment(document.deadline),
        closed_at=moment(document.closed_at),
        received=document.received,
        wanted=document.wanted,
        config=struct(document.config),
        metrics=document.metrics,
        contributions=[_contribution(one) for one in document.contributions],
        epsilon=document.epsilon,
        step=document.step,
    )
    if document.closed_by is not None:
        message.closed_by = CLOSERS[document.closed_by]
    evaluated = document.evaluation
    if evaluated is not None:
        message.evaluation.num_examples, message.evaluation.clients = evaluated.num_examples, evaluated.clients
        message.evaluation.metrics.update(evaluated.metrics)
    if document.left_out != LeftOut():
        message.left_out.MergeFrom(pb.LeftOut(**asdict(document.left_out)))
    if document.failure is not None:
        message.failure.MergeFrom(pb.RoundFailure(**asdict(document.failure)))
    return message


def _contribution(one: Counted) -> pb.Contribution:
    message = pb.Contribution(
        client=one.client,
        num_examples=one.num_examples,
        metrics=numbers(one.metrics),
        weight=one.weight,
        norm=one.norm,
        clipped=one.clipped,
        staleness=one.staleness,
        reason=one.reason or "",
    )
    if one.counted is not None:
        message.counted = one.counted
    return message


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics without those that are null: protobuf's maps have no such values."""
    return {name: value for name, value in metrics.items() if value is not None}


def moment(seconds: float | None) -> Timestamp | None:
    """Return Unix seconds as protobuf has them."""
    if seconds is None:
        return None
    found = Timestamp()
    found.FromMicroseconds(round(seconds * 1e6))
    return found


def kind(value: int) -> Kind:
    """Return what the numbers of a contribution are.

    Raises:
        InvalidRequest: a number that this version does not know.

    """
    if value and value not in KIND_NAMES:
        raise InvalidRequest(f"kind: {value} is none that this server knows", path="kind")
    return rounds.kind(KIND_NAMES.get(value), "kind")
