"""A client's flow alone, without a server: what it asks next, and what error feedback makes of each answer."""

import json

import numpy as np
import pytest

from adamd import errors
from adamd.errors import RetriesExhausted, TransportError
from adamd.sansio.gradient_encoding import EncodingOptions, TopK
from adamd.sansio.operations import (
    AskTask,
    Assignment,
    Contribute,
    Evaluate,
    ReadParameters,
    Received,
    Standing,
    Stepped,
    View,
)
from adamd.sansio.rounds import documents, participation
from adamd.wire.layout import named_layout

LAYOUT = named_layout({"w": (4,)})
CHAINS = ["0" * 63 + str(step) for step in range(8)]


def standing(**rounds):
    return Standing("s_1", "run", 0, CHAINS[0], LAYOUT, "float32", {"name": "sgd"}, False, {"rounds": rounds})


def joined(**options):
    flow = participation.join("run", "a", EncodingOptions.of(**options), 25.0)
    assert next(flow) == View("run")
    with pytest.raises(StopIteration) as end:
        flow.send(standing(quorum=1))
    return end.value.value


def assignment(number, kind="train", contributed=False):
    return Assignment(kind, number, number - 1, CHAINS[number - 1], True, contributed, (), {})


def given_task(member, number, start=0.0, contributed=False):
    """Drive a member to a task of round ``number``, at parameters of this value."""
    flow = member.task()
    assert next(flow) == AskTask("s_1", "a", 25.0)
    read = flow.send(assignment(number, contributed=contributed))
    return filled(flow, read, number - 1, start)


def filled(flow, read, step, start):
    assert isinstance(read, ReadParameters)
    (view,) = read.into
    view[:] = np.full(4, start, np.float32).tobytes()
    with pytest.raises(StopIteration) as end:
        flow.send(Stepped(step, CHAINS[step], False, False))
    return end.value.value


def sent(member, task, change):
    """Reply with parameters that are so much further; returns the flow, and the delta that is sent, decoded."""
    values = {"parameters": {"w": task.parameters["w"] + np.asarray(change, np.float32)}}
    flow = member.reply(task, values, 1, {})
    operation = next(flow)
    assert isinstance(operation, Contribute) and operation.kind == "delta"
    body = b"".join(operation.body.pieces)
    indices, numbers = np.frombuffer(body[:4], "<u4"), np.frombuffer(body[4:], "<f4")
    assert operation.body.encoding == "sparse" and len(indices) == 1
    return flow, (int(indices[0]), float(numbers[0]))


def answered(flow, outcome):
    with pytest.raises(StopIteration) as end:
        flow.throw(outcome) if isinstance(outcome, Exception) else flow.send(outcome)
    return end.value.value


ACCEPTED = Received(False, 0, 1, 1)
SPARSE = {"encoding": TopK(0.25)}  # one of four


def test_nothing_to_do_asks_again_and_the_end_ends():
    flow = joined().task()
    asked = next(flow)
    assert flow.send(None) == flow.send(None) == asked
    with pytest.raises(StopIteration) as end:
        flow.send(assignment(3, "stop"))
    assert end.value.value is None


def test_parameters_of_another_step_or_history_are_not_trained_from():
    flow = joined().task()
    next(flow)
    for step, chain in ((1, CHAINS[1]), (0, CHAINS[5])):  # closed meanwhile; another history
        assert isinstance(flow.send(assignment(1)), ReadParameters)
        assert isinstance(flow.send(Stepped(step, chain, False, False)), AskTask)
    task = filled(flow, flow.send(assignment(2)), 1, 3.0)
    assert task.assignment.round == 2 and (task.parameters["w"] == 3).all()
    assert task.pulled is None  # raw parameters travel as they are


def test_what_an_encoding_drops_comes_with_the_next_reply():
    member = joined(**SPARSE)
    flow, first = sent(member, given_task(member, 1), [4, 3, 0, 0])
    assert first == (0, 4.0) and answered(flow, ACCEPTED).counted is True
    flow, second = sent(member, given_task(member, 2), [0, 2, 0, 0])
    assert second == (1, 5.0)
    assert answered(flow, Received(True, 1)).outcome == "duplicate"
    flow, third = sent(member, given_task(member, 3), [1, 0, 0, 0])
    assert third == (0, 1.0)


@pytest.mark.parametrize(
    ("outcome", "counted", "following"),
    [
        (errors.RoundClosed("late", round=2, counted=False), False, 1.0),  # it did not count, and had dropped nothing
        (errors.RoundClosed("late", round=2, counted=True), True, 4.0),  # its first copy did: 3 is still to come
        (errors.RoundClosed("late", round=2, counted=None), None, 1.0),
        (errors.RoundClosed("late", round=2, counted="unknown"), None, 1.0),
        (errors.ContributionConflict("other", round=2), False, 1.0),
        (errors.NotSelected("others", round=2), False, 1.0),
        (errors.HistoryLost("went back"), False, 1.0),
        (errors.StepGap("went back"), False, 1.0),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_a_reply_that_was_not_accepted_is_an_answer(outcome, counted, following):
    member = joined(**SPARSE)
    flow, _ = sent(member, given_task(member, 1), [4, 3, 0, 0])
    answer = answered(flow, outcome)
    assert answer.counted is counted and answer.detail == outcome.detail and answer.round == 1
    _, value = sent(member, given_task(member, 2), [0, 1, 0, 0])
    assert value == (1, following)


@pytest.mark.parametrize(
    ("number", "contributed", "following"),
    [
        (1, False, 6.0),  # it never came: what was dropped before it is still to come
        (2, False, 1.0),  # it may have counted: nothing that it carried may count twice
        (1, True, 1.0),
    ],
)
def test_an_answer_that_never_came(number, contributed, following):
    member = joined(**SPARSE)
    flow, _ = sent(member, given_task(member, 1), [9, 5, 0, 0])
    answered(flow, ACCEPTED)
    flow, value = sent(member, given_task(member, 1), [8, 0, 0, 0])
    assert value == (0, 8.0)
    with pytest.raises(RetriesExhausted):
        flow.throw(RetriesExhausted("no answer"))
    _, value = sent(member, given_task(member, number, contributed=contributed), [0, 1, 0, 0])
    assert value == (1, following)


def test_a_refusal_changes_no_error_feedback():
    member = joined(**SPARSE)
    flow, _ = sent(member, given_task(member, 1), [9, 5, 0, 0])
    answered(flow, ACCEPTED)
    flow, _ = sent(member, given_task(member, 2), [8, 0, 0, 0])
    with pytest.raises(errors.Diverged):
        flow.throw(errors.Diverged("no more"))
    _, value = sent(member, given_task(member, 2), [0, 1, 0, 0])
    assert value == (1, 6.0)


def test_a_gradient_does_not_get_what_a_delta_dropped():
    member = joined(**SPARSE)
    flow, _ = sent(member, given_task(member, 1), [9, 5, 0, 0])
    answered(flow, ACCEPTED)
    flow = member.reply(given_task(member, 2), {"gradient": {"w": np.ones(4, np.float32)}}, 1, {})
    operation = next(flow)
    assert operation.kind == "gradient"
    assert float(np.frombuffer(b"".join(operation.body.pieces)[4:], "<f4")[0]) == 1.0


def test_parameters_that_were_rounded_on_their_way_go_back_as_a_difference():
    member = joined(answer_dtype="float16")
    flow = member.task()
    next(flow)
    read = flow.send(assignment(1))
    assert (read.dtype, read.rounded) == ("float16", True)
    (view,) = read.into
    view[:] = np.full(4, 0.5, np.float16).tobytes()
    with pytest.raises(StopIteration) as end:
        flow.send(Stepped(0, CHAINS[0], False, False))
    task = end.value.value
    flow = member.reply(task, {"parameters": {"w": np.full(4, 0.75, np.float32)}}, 1, {})
    operation = next(flow)
    assert operation.kind == "delta"
    assert list(np.frombuffer(b"".join(operation.body.pieces), "<f4")) == [0.25] * 4


def test_a_reply_names_the_history_that_it_builds_on():
    member = joined()
    flow = member.reply(given_task(member, 2), {"delta": {"w": np.ones(4, np.float32)}}, 30, {"loss": float("nan")})
    operation = next(flow)
    assert (operation.round, operation.client, operation.chain) == (2, "a", CHAINS[1])
    assert (operation.num_examples, operation.metrics) == (30.0, {"loss": None})
    task = participation.Assigned(assignment(2, "evaluate"), None, None)
    operation = next(member.reply(task, {}, 5, {"accuracy": 0.5}))
    assert operation == Evaluate("s_1", 2, "a", 5.0, {"accuracy": 0.5})


ROUND = {
    "round": 3,
    "state": "closed",
    "base_step": 2,
    "opened_at": "2026-11-29T11:04:00.125Z",
    "closed_at": 1796000000.5,
    "closed_by": "deadline",
    "received": 2,
    "wanted": 3,
    "config": {"epochs": 1},
    "metrics": {"loss": 0.5},
    "evaluation": {"num_examples": 5, "clients": 1, "metrics": {"accuracy": 0.5}},
    "contributions": [{"client": "a", "num_examples": 3, "weight": 1.5, "counted": False, "reason": "norm_filter"}],
    "epsilon": 1.5,
    "step": 3,
}
TASK = {"kind": "train", "round": 1, "base_step": 0, "selected": True, "private": ["head.*"], "config": {}}


def test_documents_are_read():
    read = documents.round_(ROUND)
    assert read.opened_at.isoformat() == "2026-11-29T11:04:00.125000+00:00" and read.closed_at.microsecond == 500_000
    assert (read.contributions[0].reason, read.contributions[0].counted) == ("norm_filter", False)
    assert (read.evaluation.num_examples, read.evaluation.metrics, read.epsilon) == (5.0, {"accuracy": 0.5}, 1.5)
    assert documents.assignment(TASK, CHAINS[0]).private == ("head.*",)
    assert documents.rounds_page({"rounds": [ROUND], "next_page_token": "7"}).token == "7"


@pytest.mark.parametrize(
    ("read", "document", "member", "value"),
    [
        *((documents.round_, ROUND, member, None) for member in ("round", "state", "base_step")),
        (documents.round_, ROUND, "state", "ajar"),
        (documents.round_, ROUND, "closed_by", "magic"),
        (documents.round_, ROUND, "contributions", [{}]),
        (documents.round_, ROUND, "contributions", 7),
        (documents.round_, ROUND, "contributions", ["a"]),
        (lambda raw: documents.assignment(raw, CHAINS[0]), TASK, "kind", "dance"),
        (lambda raw: documents.assignment(raw, CHAINS[0]), TASK, "round", -1),
        (lambda raw: documents.assignment(raw, CHAINS[0]), TASK, "private", [7]),
        (documents.received, {"outcome": "accepted", "step": 1}, "outcome", "perhaps"),
        (documents.rounds_page, {"rounds": []}, "rounds", {}),
        (documents.rounds_page, {"rounds": []}, "next_page_token", 7),
    ],
)
def test_what_no_server_says_is_a_typed_error(read, document, member, value):
    read(json.loads(json.dumps(document)))
    with pytest.raises(TransportError, match="Is this an adamd server"):
        read({**document, member: value})


@pytest.mark.parametrize("value", ["soon", float("nan"), 1e300, None, [], True])
def test_a_time_that_is_none_is_none(value):
    assert documents.moment(value) is None
