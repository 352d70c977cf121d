"""Rules that advise to stop, and what they are made from."""

import json

import pytest

from adamd_service.optim import SettingsError
from adamd_service.optim.monitoring.progress import Progress, from_json
from adamd_service.optim.monitoring.stop_rules import Stop, advice, parse_stop


def after(losses, tolerance=0.0):
    """What a session remembers after these losses, from step 1."""
    found = Progress()
    for number, loss in enumerate(losses, 1):
        if loss is not None:
            found = found.told(number, loss, tolerance)
    return found


def reason(rules, step=1, losses=(), norms=()):
    stop = parse_stop(rules)
    tolerance = stop.relative_loss.tolerance if stop.relative_loss else 0.0
    found = after(losses, tolerance)
    for norm in norms:
        found = found.measured(norm)
    return advice(stop, step, found)


def test_no_rule_says_nothing():
    assert reason({}, 10**9, [1.0, 1.0], [1.0, 0.0]) is None
    assert Stop().model_dump(exclude_none=True) == {}


def test_max_steps():
    assert [reason({"max_steps": 3}, step) for step in (2, 3, 4)] == [None, "max_steps", "max_steps"]
    assert reason({"max_steps": 3.0}, 3) == "max_steps"  # protobuf's objects have no integers


def test_the_gradients_norm_against_the_first_one():
    rule = {"gradient_norm": 0.5}
    assert reason(rule) is None
    assert [reason(rule, norms=[4.0, norm]) for norm in (2.1, 2.0, 0.0)] == [None, "gradient_norm", "gradient_norm"]
    assert reason(rule, norms=[4.0, 2.0, 3.0]) is None  # about the last step only
    assert reason(rule, norms=[0.0]) == "gradient_norm"


def test_a_target_stays_reached():
    rule = {"target_loss": -1.5}
    assert [reason(rule, losses=losses) for losses in ([], [-1.4], [-1.5], [-2.0, 9.0])] == [
        None,
        None,
        "target_loss",
        "target_loss",
    ]


def test_a_plateau_is_a_window_of_losses_without_progress():
    rule = {"relative_loss": {"window": 3, "tolerance": 0.1}}
    assert reason(rule, losses=[10.0, 9.5, 9.2]) is None  # two without progress
    assert reason(rule, losses=[10.0, 9.5, 9.2, 9.0]) == "relative_loss"  # 9.0 is a tenth lower, not more
    assert reason(rule, losses=[10.0, 9.5, 9.2, 8.99]) is None  # slow progress adds up
    assert reason(rule, losses=[10.0, 9.5, None, None, None, 9.2]) is None  # steps without a loss do not count
    assert reason(rule, losses=[10.0, 9.5, 9.2, 9.1, 1.0]) is None
    assert reason(rule, losses=[-10.0, -10.5, -10.9, -11.0]) == "relative_loss"  # of the magnitude
    assert reason(rule, losses=[-10.0, -10.5, -10.9, -11.1]) is None
    flat = {"relative_loss": {"window": 2}}
    assert [reason(flat, losses=[1.0] * count) for count in (2, 3)] == [None, "relative_loss"]


def test_the_first_of_several_reasons_is_told():
    rules = {"max_steps": 1, "target_loss": 5.0, "gradient_norm": 1.0, "relative_loss": {"window": 1}}
    assert reason(rules, 1, [4.0, 4.0], [1.0]) == "target_loss"
    assert reason(rules, 1, [6.0, 6.0], [1.0]) == "gradient_norm"
    assert reason(rules, 1, [6.0, 6.0], [1.0, 2.0]) == "relative_loss"
    assert reason(rules, 1, [6.0], [1.0, 2.0]) == "max_steps"


def test_the_lowest_loss_is_that_of_the_parameters_before_its_step():
    found = after([3.0, 1.0, None, 1.0, 2.0])
    assert (found.loss, found.lowest, found.lowest_step) == (2.0, 1.0, 1)
    assert after([0.0]).to_json() == {"loss": 0.0, "lowest": 0.0, "lowest_step": 0, "reference": 0.0}


def test_progress_travels_as_json():
    assert Progress().to_json() == {}
    for found in (Progress(), after([3.0, 0.0, 5.0]).measured(2.0).measured(0.0), Progress(stalls={"x": 1e-20})):
        assert from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {"los": 1.0},
        {"loss": "1"},
        {"loss": True},
        {"loss": None},
        {"loss": float("nan")},
        {"loss": float("inf")},
        {"lowest_step": 1.5},
        {"stale": -1},
        {"stale": 2**60},
        {"stalls": []},
        {"stalls": {"x": "y"}},
        {"stalls": {str(i): 1.0 for i in range(9)}},
        {"loss": 10**400},
    ],
)
def test_no_other_progress_is_taken(raw):
    with pytest.raises(ValueError, match="wanted"):
        from_json(raw)


@pytest.mark.parametrize(
    ("raw", "path", "said"),
    [
        (None, "", "is null; wanted an object"),
        ([], "", "is a list of 0"),
        ({1: 2}, "", "is an object of 1"),
        ({"max_step": 1}, "max_step", "did you mean max_steps?"),
        ({"zzz": 1}, "zzz", "known are max_steps, gradient_norm, relative_loss, target_loss"),
        ({"max_steps": 0}, "max_steps", "is 0; wanted a whole number of steps, 1 or more"),
        ({"max_steps": 1.5}, "max_steps", "is 1.5"),
        ({"max_steps": True}, "max_steps", "is true"),
        ({"max_steps": None}, "max_steps", "is null"),
        ({"max_steps": 10**400}, "max_steps", "is a number of more than 60 digits"),
        ({"gradient_norm": 0}, "gradient_norm", "is 0; wanted a finite number above 0, at most 1"),
        ({"gradient_norm": 1.1}, "gradient_norm", "is 1.1"),
        ({"gradient_norm": float("nan")}, "gradient_norm", "is nan"),
        ({"target_loss": "low"}, "target_loss", "is 'low'; wanted a finite number"),
        ({"target_loss": float("inf")}, "target_loss", "is inf"),
        ({"relative_loss": 5}, "relative_loss", "is 5; wanted an object such as"),
        ({"relative_loss": {}}, "relative_loss.window", "is missing; wanted a whole number"),
        ({"relative_loss": {"window": 1, "patience": 2}}, "relative_loss.patience", "is unknown; known are"),
        ({"relative_loss": {"window": 1, "tolerance": 1}}, "relative_loss.tolerance", "is 1; wanted"),
        ({"relative_loss": {"window": 1, "tolerance": -1e-9}}, "relative_loss.tolerance", "wanted"),
    ],
)
def test_what_is_no_rule_is_refused(raw, path, said):
    with pytest.raises(SettingsError, match=said.replace("?", r"\?")) as refused:
        parse_stop(raw)
    assert refused.value.path == path
