"""Rounds over gRPC: the same outcomes and the same refusals as over HTTP."""

import threading
import time

import numpy as np
import pytest
from calling import F4, MIB, Caller, refused, watched
from google.protobuf.json_format import MessageToDict
from grpc import RpcError, StatusCode

from adamd.wire.v1 import adamd_pb2 as pb

S = StatusCode
ONE = np.ones(4, "<f4")
PATIENCE = 60


class Federation:
    """One session with rounds: FedAvg, so that its step is the mean itself."""

    def __init__(self, caller, size=4, **rounds):
        self.caller, self.size = caller, size
        optimizer = {"name": "sgd", "lr": 1.0}
        self.id = caller.create(
            size, durability=pb.DURABILITY_COMMITTED, optimizer=optimizer, rounds=rounds or {"quorum": 2}
        )
        self.start = np.frombuffer(caller.parameters(self.id)[1], "<f4")

    def give(self, client, values, number=1, piece=MIB, nbytes=None, **header):
        data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
        length = len(data) if nbytes is None else nbytes
        head = pb.ContributeHeader(session=self.id, round=number, client=client, nbytes=length, **header)

        def requests():
            yield pb.ContributeRequest(header=head, data=data[:piece])
            for start in range(piece, len(data), piece):
                yield pb.ContributeRequest(offset=start, data=data[start : start + piece])

        return self.caller.sent("Contribute", requests())

    def task(self, client="ward-7", **fields):
        return self.caller("GetTask", session=self.id, client=client, **fields)

    def round(self, number=0):
        return self.caller("GetRound", session=self.id, round=number).round

    def after(self, step):
        """What the rounds have added, once the session has made this step."""
        standing, data = self.caller.parameters(self.id, min_step=step, wait_s=30)
        assert standing.step >= step
        return np.frombuffer(data, "<f4") - self.start

    def unchanged(self):
        told = self.round()
        return told.received, MessageToDict(told).get("contributions"), self.caller.parameters(self.id)[1]


def test_a_round_from_the_task_to_the_step(caller):
    federation = Federation(caller, quorum=2, config={"epochs": 3})
    task = federation.task()
    assert (task.kind, task.round, task.base_step, task.selected) == (pb.TASK_KIND_TRAIN, 1, 0, True)
    assert MessageToDict(task.config) == {"epochs": 3} and task.wanted == 2 and not task.contributed
    assert task.chain == caller.parameters(federation.id)[0].chain
    first = federation.give("ward-7", ONE, num_examples=30, metrics={"loss": 0.5})
    assert (first.duplicate, first.round, first.received, first.wanted, first.step) == (False, 1, 1, 2, 0)
    assert federation.task().kind == pb.TASK_KIND_UNSPECIFIED
    session = caller("GetSession", session=federation.id).session
    assert session.rounds["quorum"] == 2 and (session.round.round, session.round.received) == (1, 1)
    federation.give("ward-8", 2 * ONE, num_examples=10, metrics={"loss": 0.1})
    assert np.allclose(federation.after(1), 1.25, atol=1e-6)
    told = federation.round(1)
    assert (told.state, told.closed_by, told.step) == (pb.ROUND_STATE_CLOSED, pb.CLOSED_BY_QUORUM, 1)
    assert [(one.client, one.counted, one.num_examples, one.metrics["loss"]) for one in told.contributions] == [
        ("ward-7", True, 30, 0.5),
        ("ward-8", True, 10, 0.1),
    ]
    assert told.metrics["loss"] == pytest.approx(0.4) and not told.HasField("epsilon")
    assert told.opened_at.ToMicroseconds() <= told.closed_at.ToMicroseconds()
    following = federation.task(wait_s=20)
    assert (following.round, following.base_step) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(0, 2.0), (pb.CONTRIBUTION_KIND_DELTA, 2.0), (pb.CONTRIBUTION_KIND_GRADIENT, -2.0)],
)
def test_every_kind_means_what_it_says(caller, kind, wanted):
    federation = Federation(caller, quorum=1)
    federation.give("a", 2 * ONE, kind=kind)
    assert np.allclose(federation.after(1), wanted, atol=1e-6)


def test_trained_parameters(caller):
    federation = Federation(caller, quorum=1)
    federation.give("a", federation.start + ONE, kind=pb.CONTRIBUTION_KIND_PARAMETERS)
    assert np.allclose(federation.after(1), 1, atol=1e-6)


def test_large_ones_come_in_pieces_and_in_other_encodings(caller):
    size = 400_000
    federation = Federation(caller, size=size, quorum=2)
    federation.give("a", np.full(size, 1, "<f2"), dtype=pb.DTYPE_FLOAT16, piece=100_000)
    federation.give(
        "b",
        np.arange(size, dtype="<u4").tobytes() + np.full(size, 3, "<f4").tobytes(),
        encoding=pb.ENCODING_SPARSE,
    )
    assert np.allclose(federation.after(1), 2, atol=1e-5)


def test_what_comes_again_and_what_comes_late(caller):
    federation = Federation(caller)
    federation.give("a", ONE)
    before = federation.unchanged()
    assert federation.give("a", ONE).duplicate
    refused(lambda: federation.give("a", 2 * ONE), S.ABORTED, "contribution_conflict")
    refused(lambda: federation.give("b", ONE, 2), S.FAILED_PRECONDITION, "step_gap")
    assert federation.unchanged() == before
    federation.give("b", ONE)
    federation.after(1)
    late = refused(lambda: federation.give("a", ONE), S.ABORTED, "round_closed")
    assert late.extra["counted"] is True and late.extra["round"] == 2 and late.step == 1
    assert refused(lambda: federation.give("c", ONE), S.ABORTED, "round_closed").extra["counted"] is False
    wrong = refused(lambda: federation.give("c", ONE, 2, if_match="0" * 64), S.FAILED_PRECONDITION, "history_lost")
    assert wrong.step == 1


def test_steps_and_rounds_do_not_mix(caller):
    federation, plain = Federation(caller), Federation.__new__(Federation)
    plain.caller, plain.id = caller, caller.create(4)
    refused(lambda: caller.step(federation.id, 1, ONE), S.FAILED_PRECONDITION, "rounds_only")
    for call in (lambda: plain.give("a", ONE), plain.task, lambda: plain.round(1)):
        refused(call, S.FAILED_PRECONDITION, "no_rounds")
    for name in ("CloseRound", "CancelRound"):
        refused(lambda name=name: caller(name, session=plain.id, round=1), S.FAILED_PRECONDITION, "no_rounds")
    refused(lambda: caller("ListRounds", session=plain.id), S.FAILED_PRECONDITION, "no_rounds")
    refused(lambda: caller("GetTask", session="s_none", client="a"), S.NOT_FOUND, "unknown_session")


def test_others_than_the_cohort_are_refused(caller):
    federation = Federation(caller, quorum=1, cohort=1, seed=3)
    names = ["a", "b", "c"]
    for name in names:
        federation.task(name)
    asked = {name for name in names if federation.task(name).kind == pb.TASK_KIND_TRAIN}
    assert len(asked) == 1
    other = next(name for name in names if name not in asked)
    refused(lambda: federation.give(other, ONE), S.PERMISSION_DENIED, "not_selected")


BAD = [
    ({"client": ""}, "invalid_request"),
    ({"client": "a b"}, "invalid_request"),
    ({"client": "a" * 65}, "invalid_request"),
    ({"number": 0}, "invalid_request"),
    ({"number": 2**53 + 1}, "invalid_request"),
    ({"kind": 9}, "invalid_request"),
    ({"num_examples": 0.0}, "invalid_request"),
    ({"num_examples": -1.0}, "invalid_request"),
    ({"num_examples": float("nan")}, "invalid_request"),
    ({"num_examples": float("inf")}, "invalid_request"),
    ({"metrics": {"loss": float("nan")}}, "invalid_request"),
    ({"dtype": 9}, "invalid_request"),
    ({"encoding": 9}, "invalid_request"),
    ({"encoding": pb.ENCODING_SPARSE_LAZY}, "invalid_request"),
    ({"if_match": "nonsense"}, "invalid_request"),
    ({"dtype": pb.DTYPE_FLOAT64, "values": np.ones(4)}, "wrong_dtype"),
    ({"tensors": ["nobody"]}, "wrong_layout"),
    ({"values": ONE[:3]}, "wrong_length"),
    ({"values": b""}, "wrong_length"),
    ({"values": np.float32([1, np.nan, 1, 1])}, "bad_gradient"),
    ({"nbytes": 12}, "wrong_length"),
]


@pytest.mark.parametrize(("fields", "code"), BAD)
def test_a_bad_contribution_is_refused_and_changes_nothing(caller, fields, code):
    federation = Federation(caller)
    before = federation.unchanged()
    arguments = {"client": "a", "values": ONE} | fields
    refused(lambda: federation.give(**arguments), S.INVALID_ARGUMENT, code)
    assert federation.unchanged() == before


def test_a_contribution_without_its_header(caller):
    refused(
        lambda: caller.sent("Contribute", iter([pb.ContributeRequest(data=b"x")])),
        S.INVALID_ARGUMENT,
        "invalid_request",
    )
    refused(lambda: caller.sent("Contribute", iter([])), S.INVALID_ARGUMENT, "invalid_request")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GetTask", {"client": "a b"}),
        ("GetTask", {"client": "a", "wait_s": 61}),
        ("GetTask", {"client": "a", "wait_s": -1}),
        ("GetTask", {"client": "a", "wait_s": float("nan")}),
        ("GetTask", {"wait_s": 1}),
        ("ListRounds", {"page_size": 1001}),
        ("ListRounds", {"page_token": "x"}),
        ("ListRounds", {"from_round": 1, "page_token": "2"}),
        ("ListRounds", {"from_round": 2**60}),
        ("GetRound", {"round": 2**60}),
        ("CloseRound", {}),
        ("CancelRound", {"round": 2**60}),
        ("Evaluate", {"round": 1, "client": "a", "num_examples": 1}),
        ("Evaluate", {"round": 1, "client": "a", "metrics": {"a": 1}}),
        ("Evaluate", {"round": 0, "client": "a", "num_examples": 1, "metrics": {"a": 1}}),
        ("Evaluate", {"round": 1, "client": "a", "num_examples": 1, "metrics": {"a": float("inf")}}),
    ],
)
def test_what_cannot_be_asked(caller, name, fields):
    federation = Federation(caller)
    refused(lambda: caller(name, session=federation.id, **fields), S.INVALID_ARGUMENT, "invalid_request")


def test_settings_of_rounds_that_are_refused(caller):
    made = lambda: Federation(caller, quorum=3, cohort=2)  # noqa: E731 - called by `refused`
    assert refused(made, S.INVALID_ARGUMENT, "invalid_settings").extra["path"] == "rounds.cohort"


def test_the_owner_closes_cancels_lists_and_changes_the_config(caller):
    federation = Federation(caller, quorum=3)
    named = {"session": federation.id, "round": 1}
    refused(lambda: caller("CloseRound", **named), S.FAILED_PRECONDITION, "too_few_contributions")
    federation.give("a", ONE)
    assert caller("CancelRound", **named).round.received == 0
    federation.give("a", ONE)
    caller("UpdateSession", session=federation.id, rounds={"config": {"epochs": 2}})
    told = caller("CloseRound", **named).round
    assert (told.closed_by, told.step) == (pb.CLOSED_BY_HAND, 1)
    refused(lambda: caller("CancelRound", **named), S.ABORTED, "round_closed")
    refused(lambda: federation.round(5), S.NOT_FOUND, "unknown_round")
    assert federation.round().config["epochs"] == 2 and federation.round().round == 2
    page = caller("ListRounds", session=federation.id, page_size=1)
    assert [one.round for one in page.rounds] == [1] and page.rounds[0] == told
    rest = caller("ListRounds", session=federation.id, page_token=page.next_page_token)
    assert [one.round for one in rest.rounds] == [2] and rest.next_page_token == ""


def test_evaluations(caller):
    federation = Federation(caller, quorum=1, evaluate=1)
    federation.task("a")
    federation.give("a", ONE)
    task = federation.task("a", wait_s=20)
    assert (task.kind, task.round) == (pb.TASK_KIND_EVALUATE, 2)
    evaluation = {"session": federation.id, "round": 2, "client": "a", "num_examples": 5, "metrics": {"accuracy": 0.5}}
    first, again = caller("Evaluate", **evaluation), caller("Evaluate", **evaluation)
    assert (first.duplicate, again.duplicate, first.step) == (False, True, 1)
    told = federation.round(2).evaluation
    assert (told.num_examples, told.clients, told.metrics["accuracy"]) == (5, 1, 0.5)


def test_a_step_that_does_not_come_in_time(caller):
    federation = Federation(caller)
    standing, data = caller.parameters(federation.id, min_step=1, wait_s=0.05)
    assert (standing.step, standing.nbytes, data) == (0, 0, b"")
    bad = ({"wait_s": 1}, {"min_step": 1, "wait_s": 61}, {"min_step": 2**60})
    for fields in bad:
        refused(lambda fields=fields: caller.parameters(federation.id, **fields), S.INVALID_ARGUMENT, "invalid_request")


def test_a_task_is_waited_for_and_a_caller_that_goes_away_waits_no_more(caller, grpc_server):
    federation = Federation(caller)
    federation.give("a", ONE)
    found = []
    thread = threading.Thread(target=lambda: found.append(federation.task("a", wait_s=30)))
    thread.start()
    other = Caller(grpc_server)
    call = other.channel.unary_unary(other.path("GetTask"), *other._types("GetTask"))
    request = pb.GetTaskRequest(session=federation.id, client="a", wait_s=60)
    future = call.future(request, timeout=PATIENCE)
    time.sleep(0.1)
    future.cancel()
    federation.give("b", ONE)
    thread.join(PATIENCE)
    assert found[0].round == 2
    with pytest.raises(RpcError):
        call(request, timeout=0.05)  # it has a task by now, or its deadline is over
        call(pb.GetTaskRequest(session="nobody", client="a"), timeout=PATIENCE)
    other.close()


def test_those_who_wait_leave_places_to_those_whom_they_wait_for(tmp_path):
    with watched(tmp_path / "one", env={"ADAMD_GRPC_CALLS": 4}) as own:
        caller = Caller(own)
        federation = Federation(caller)
        federation.give("a", ONE)
        wait = caller.channel.unary_unary(caller.path("GetTask"), *caller._types("GetTask"))
        request = pb.GetTaskRequest(session=federation.id, client="a", wait_s=60)
        waiting = [wait.future(request, timeout=PATIENCE) for _ in range(2)]

        def a_third():
            """Once both wait, a third is refused; until then it may be the second."""
            while True:
                wait(pb.GetTaskRequest(session=federation.id, client="a", wait_s=0.05), timeout=PATIENCE)

        error = refused(a_third, S.RESOURCE_EXHAUSTED, "busy")
        assert error.retry_after is not None
        federation.give("b", ONE)
        assert [future.result(PATIENCE).round for future in waiting] == [2, 2]
        caller.close()


def test_a_watch_tells_of_contributions(caller):
    federation = Federation(caller)
    watch = caller.received("WatchSession", session=federation.id)
    first = next(watch)
    assert first.standing.step == 0 and (first.round.round, first.round.received, first.round.wanted) == (1, 0, 2)
    federation.give("a", ONE)
    while (told := next(watch)).round.received != 1:
        pass
    assert told.standing.step == 0
    federation.give("b", ONE)
    while (told := next(watch)).standing.step != 1:
        pass
    while told.round.round != 2:
        told = next(watch)
    caller("DeleteSession", session=federation.id)
    refused(lambda: list(watch), S.NOT_FOUND, "session_deleted")


def test_the_wire_is_the_same_for_both_transports(caller, grpc_server):
    """A contribution by gRPC and the same by HTTP are one."""
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    federation = Federation(caller)
    federation.give("a", ONE, num_examples=3, dtype=F4)
    connection = HTTPConnection(urlsplit(grpc_server.url).netloc, timeout=PATIENCE)
    connection.request(
        "PUT",
        f"/v1/sessions/{federation.id}/rounds/1/contributions/a",
        ONE.tobytes(),
        {"Content-Type": "application/octet-stream", "Adamd-Num-Examples": "3"},
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
