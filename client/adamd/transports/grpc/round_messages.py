"""Converts operations on rounds to gRPC messages, and checked messages to results. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from adamd.fed.records import Round
from adamd.sansio.operations import (
    Assignment,
    Contribute,
    Evaluate,
    ListRounds,
    Received,
    RoundsPage,
    bad_answer,
    is_chain,
    reference,
)
from adamd.sansio.rounds import documents
from adamd.transports.grpc.messages import flat, sayable, whole
from adamd.wire.protobuf_tables import CLOSER_NAMES, DTYPES, ENCODINGS, KINDS, STATE_NAMES, TASK_NAMES, plain
from adamd.wire.v1 import adamd_pb2 as pb


@sayable("the contribution's metrics")
def contribution(operation: Contribute) -> tuple[pb.ContributeHeader, tuple[memoryview, ...]]:
    """Return a contribution's header and its body."""
    dtype, views, names = flat(operation.body)
    header = pb.ContributeHeader(
        session=reference(operation.ref),
        round=operation.round,
        client=operation.client,
        if_match=operation.chain or "",
        nbytes=sum(view.nbytes for view in views),
        encoding=ENCODINGS[operation.body.encoding],
        tensors=names,
        kind=KINDS[operation.kind],
        num_examples=operation.num_examples,
        metrics=_numbers(operation.metrics),
    )
    if dtype is not None:
        header.dtype = DTYPES[dtype]
    return header, views


@sayable("the evaluation's metrics")
def evaluation(operation: Evaluate) -> pb.EvaluateRequest:
    """Return the request."""
    return pb.EvaluateRequest(
        session=reference(operation.ref),
        round=operation.round,
        client=operation.client,
        num_examples=operation.num_examples,
        metrics=_numbers(operation.metrics),
    )


def listing(operation: ListRounds) -> pb.ListRoundsRequest:
    """Return the request."""
    request = pb.ListRoundsRequest(session=reference(operation.ref), page_size=operation.size)
    if operation.token is None:
        request.from_round = operation.start
    else:
        request.page_token = operation.token
    return request


def assignment(response: pb.GetTaskResponse) -> Assignment | None:
    """Read a task; None where none came.

    Raises:
        TransportError: it is none.

    """
    if response.kind == pb.TASK_KIND_UNSPECIFIED:
        return None
    if not is_chain(response.chain):
        raise bad_answer("a task without a chain")
    document = {
        "kind": TASK_NAMES.get(response.kind),
        "round": response.round,
        "base_step": response.base_step,
        "selected": response.selected,
        "contributed": response.contributed,
        "config": whole(plain(response.config)),
        "deadline": _seconds(response, "deadline"),
        "received": response.received,
        "wanted": response.wanted,
        "private": list(response.private_tensors),
    }
    return documents.assignment(document, response.chain)


def received(response: pb.ContributeResponse | pb.EvaluateResponse) -> Received:
    """Read what a server says of a reply."""
    if isinstance(response, pb.EvaluateResponse):
        return Received(response.duplicate, response.step)
    return Received(response.duplicate, response.step, response.received, response.wanted)


def round_(message: pb.Round) -> Round:
    """Read a round, by way of the document that HTTP has.

    Raises:
        TransportError: it is none.

    """
    evaluated = message.evaluation if message.HasField("evaluation") else None
    return documents.round_(
        {
            "round": message.round,
            "state": STATE_NAMES.get(message.state),
            "base_step": message.base_step,
            "opened_at": _seconds(message, "opened_at"),
            "deadline": _seconds(message, "deadline"),
            "closed_at": _seconds(message, "closed_at"),
            "closed_by": CLOSER_NAMES.get(message.closed_by),
            "received": message.received,
            "wanted": message.wanted,
            "config": whole(plain(message.config)),
            "metrics": dict(message.metrics),
            "evaluation": None
            if evaluated is None
            else {
                "num_examples": evaluated.num_examples,
                "clients": evaluated.clients,
                "metrics": dict(evaluated.metrics),
            },
            "contributions": [_contribution(one) for one in message.contributions],
            "epsilon": message.epsilon if message.HasField("epsilon") else None,
            "step": message.step if message.HasField("step") else None,
            "left_out": {name: getattr(message.left_out, name) for name in ("contributions", "metrics", "names")},
            "failure": {"code": message.failure.code, "detail": message.failure.detail}
            if message.HasField("failure")
            else None,
        }
    )


def page(response: pb.ListRoundsResponse) -> RoundsPage:
    """Read a page of rounds."""
    return RoundsPage(tuple(map(round_, response.rounds)), response.next_page_token or None)


def _contribution(one: pb.Contribution) -> dict[str, Any]:
    told = {"client": one.client, "num_examples": one.num_examples, "metrics": dict(one.metrics)}
    for name in ("weight", "norm", "clipped", "staleness", "counted"):
        told[name] = getattr(one, name) if one.HasField(name) else None
    return told | {"reason": one.reason or None}


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return metrics without those that are no numbers: protobuf's maps have no such values."""
    return {name: value for name, value in metrics.items() if value is not None}


def _seconds(message: Any, name: str) -> float | None:
    moment: Timestamp = getattr(message, name)
    return moment.ToMicroseconds() / 1e6 if message.HasField(name) else None
