"""The flow alone: attempts, pauses and ends, on a clock that the test turns."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamd import errors
from adamd.errors import InvalidRequest, RetriesExhausted, TransportError
from adamd.sansio.operations import Delete, Info, Update
from adamd.sansio.retry import Backoff, Got, Send, Tell, Timeout, call
from adamd.transports.http.messages import Response, refusal

GOOD = Got({"version": "1"})
BUSY = errors.Busy("too much at once")
LOST = TransportError("the connection ended", phase="silent")
REFUSED = TransportError("connection refused", phase="connect")


class Shell:
    """Drives a flow: each attempt takes `costs` seconds and ends as `outcomes` say (the last one repeats)."""

    def __init__(self, outcomes, cost=0.0, timeout=None, jitter=1.0, known=True, operation=Info()):
        self.now, self.sent, self.waits, self.told = 0.0, 0, [], []
        flow = call(operation, timeout or Timeout(), lambda: self.now, lambda: jitter, answered=known)
        self.result, self.error, value = None, None, None
        try:
            while True:
                event = flow.send(value)
                if isinstance(event, Send):
                    value = outcomes[min(self.sent, len(outcomes) - 1)]
                    self.sent += 1
                    self.now += cost
                    self.deadline = event.deadline
                elif isinstance(event, Tell):
                    self.told.append(event.words)
                    value = None
                else:
                    self.waits.append(event.seconds)
                    self.now += event.seconds
                    value = None
        except StopIteration as end:
            self.result = end.value
        except errors.AdamdError as error:
            self.error = error


def test_a_good_answer_ends_it():
    shell = Shell([GOOD])
    assert (shell.result, shell.sent, shell.waits) == (GOOD.result, 1, [])


def again(kind):
    return issubclass(kind, errors.Unavailable | errors.UploadTimeout | TransportError)


@pytest.mark.parametrize("kind", [k for k in errors.CODES.values() if again(k)], ids=lambda k: k.code)
def test_what_will_pass_is_tried_again(kind):
    assert Shell([kind("not now"), LOST, GOOD]).sent == 3


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_a_proxy_says_of_a_server_that_is_away_is_tried_again(status):
    assert Shell([refusal(Response(status, {})), GOOD]).sent == 2
    assert Shell([refusal(Response(500, {})), GOOD]).sent == 1


@pytest.mark.parametrize("kind", [k for k in errors.CODES.values() if not again(k)], ids=lambda k: k.code)
def test_a_refusal_is_raised_at_once_by_its_code(kind):
    refused = refusal(problem(kind("no", step=41, id="s_1")))
    shell = Shell([refused])
    assert shell.error is refused and type(refused) is kind
    assert (refused.step, refused.extra["id"], shell.sent) == (41, "s_1", 1)


def test_what_no_attempt_can_mend_is_raised_at_once():
    shell = Shell([TransportError("untrusted certificate", phase="connect", permanent=True)])
    assert type(shell.error) is TransportError
    assert shell.sent == 1


def test_a_settings_conflict_is_tried_again_only_where_it_was_an_update():
    conflict = errors.SettingsConflict("others")
    assert Shell([conflict, GOOD]).error is conflict
    assert Shell([conflict, GOOD], operation=Update("s", {"lr": 1}, None)).result == GOOD.result


def test_a_deletion_whose_answer_was_lost_has_succeeded():
    gone = errors.SessionDeleted("gone")
    shell = Shell([LOST, gone], operation=Delete("s"))
    assert (shell.error, shell.result, shell.sent) == (None, None, 2)
    assert Shell([gone], operation=Delete("s")).error is gone


def problem(error, **fields):
    kind = {"content-type": "application/problem+json"}
    return Response(error.status, kind | fields, json.dumps(error.problem()).encode())


def busy(retry_after):
    return errors.Busy("too much at once", retry_after=retry_after)


def test_retry_after_is_waited_for():
    assert Shell([busy(7), GOOD], jitter=0.0).waits == [7.01]
    assert refusal(problem(BUSY, **{"retry-after": "7"})).retry_after == 7


def test_retry_after_may_be_a_date_against_the_answers_own():
    fields = {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert refusal(Response(503, fields)).retry_after == 30
    for bad in ({"retry-after": fields["retry-after"]}, {"retry-after": "soon"}, {"retry-after": "nan"}):
        assert refusal(Response(503, bad)).retry_after is None


def test_a_retry_after_beyond_the_budget_gives_up_at_once_and_says_it():
    shell = Shell([busy(3600)])
    assert (shell.sent, shell.error.retry_after) == (1, 3600.0)
    assert isinstance(shell.error.extra["last"], errors.Busy)


def test_a_server_that_was_never_there_is_given_up_soon_and_one_that_restarts_is_not():
    fresh = Shell([REFUSED], known=False, timeout=Timeout(first=3, total=100))
    assert isinstance(fresh.error, RetriesExhausted)
    assert fresh.now <= 3
    assert Shell([REFUSED], known=True, timeout=Timeout(first=3, total=100)).now > 3
    for met in (LOST, BUSY):
        assert Shell([met, REFUSED], known=False, timeout=Timeout(first=3, total=100)).now > 3


@given(
    outcomes=st.lists(st.sampled_from([LOST, REFUSED, BUSY, busy(2.0), errors.Unavailable("a proxy")]), max_size=40),
    end=st.sampled_from([GOOD, errors.StepConflict("no"), LOST]),
    cost=st.floats(0, 50),
    jitter=st.floats(0, 1, exclude_max=True),
    total=st.floats(0.001, 20),
)
def test_every_run_ends_in_its_budget_as_its_last_outcome_says(outcomes, end, cost, jitter, total):
    shell = Shell([*outcomes, end], cost, Timeout(total=total), jitter)
    assert shell.deadline == total
    assert shell.now < total + cost + 1e-9  # a pause never passes the end; an attempt's own deadline ends the attempt
    assert len(shell.waits) == shell.sent - 1
    for index, wait in enumerate(shell.waits):
        told = outcomes[index].retry_after or 0.0 if index < len(outcomes) else 0.0
        assert told + 0.01 <= wait <= told + 5.0
    if isinstance(shell.error, RetriesExhausted):
        last = [*outcomes, end][min(shell.sent - 1, len(outcomes))]
        assert shell.error.extra["last"] is last
        assert str(shell.sent) in str(shell.error)
    else:
        assert shell.sent == len(outcomes) + 1
        assert shell.result == GOOD.result if end is GOOD else isinstance(shell.error, errors.StepConflict)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_have_full_jitter_and_a_cap(attempt, jitter):
    backoff = Backoff(first=0.1, cap=5.0)
    assert backoff.pause(attempt, 0.0) == 0.01
    assert backoff.pause(attempt, jitter) <= min(5.0, 0.1 * 2.0 ** min(attempt - 1, 60))


def test_an_answer_that_is_not_adamds_is_told_with_what_it_says():
    said = str(refusal(Response(404, {"content-type": "text/html"}, b"<h1>nginx</h1>")))
    assert "404" in said and "nginx" in said and "URL" in said
    assert "https://elsewhere" in str(refusal(Response(308, {"location": "https://elsewhere/"})))
    for body in (b"[1]", b"{", b"[" * 100_000, b"{}"):
        assert isinstance(refusal(Response(422, {"content-type": "application/json"}, body)), errors.AdamdError)


def test_a_timeout_is_positive_seconds():
    Timeout(total=math.inf)
    for bad in (0, -1, math.nan, None, "5"):
        with pytest.raises(InvalidRequest, match="Timeout.connect"):
            Timeout(connect=bad)


def test_a_server_that_is_away_is_told_once_with_the_time_left_and_once_when_it_is_back():
    away = Shell([LOST] * 20 + [GOOD], cost=1.0, jitter=0.5, timeout=Timeout(total=100))
    assert len(away.told) == 2
    first, last = away.told
    assert first.startswith(
        "asking for the server's info: no answer for 3 s (the connection ended); it is tried again for 9"
    )
    assert "answered again, after" in last
    assert Shell([LOST, LOST, GOOD], cost=0.1).told == []
    assert "until it answers" in Shell([LOST] * 20 + [GOOD], cost=1.0, timeout=Timeout(total=math.inf)).told[0]
    gone = Shell([LOST], cost=1.0, timeout=Timeout(total=20))
    assert len(gone.told) == 1 and gone.error.__cause__ is None and gone.error.extra["last"] is LOST
