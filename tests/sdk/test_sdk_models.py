"""State dicts to a session's arrays and back: counters, running statistics, and what stays at home."""

import numpy as np
import pytest

from adamd.errors import InvalidRequest, WrongDtype
from adamd.sansio.rounds import models
from adamd.sansio.rounds.models import Roles
from adamd.wire.layout import named_layout, vector_layout

MODEL = {
    "0.weight": np.zeros((2, 2), np.float32),
    "1.running_mean": np.zeros(2, np.float32),
    "1.running_var": np.ones(2, np.float32),
    "1.num_batches_tracked": np.array(7),
}


def test_counters_and_statistics_are_found():
    assert models.counters(MODEL) == ("1.num_batches_tracked",)
    assert models.statistics(MODEL) == ("1.running_mean", "1.running_var")
    assert models.counters(np.zeros(3)) == models.statistics(np.zeros(3)) == ()


def test_whole_numbers_become_floats_and_nothing_else_changes():
    floats = models.in_floats(MODEL, None)
    assert floats["1.num_batches_tracked"].dtype == np.float32 and floats["1.num_batches_tracked"] == 7
    assert floats["0.weight"] is MODEL["0.weight"]
    array = np.zeros(3)
    assert models.in_floats(array, "float32") is array


@pytest.mark.parametrize(("dtype", "most"), [(None, 2**24), ("float32", 2**24), ("float64", 2**53)])
def test_a_count_that_would_be_rounded_is_refused(dtype, most):
    for value in (most, -most):
        assert models.in_floats({"n": np.array([1, value])}, dtype)["n"][1] == value
        with pytest.raises(WrongDtype, match=str(most + 1)):
            models.in_floats({"n": np.array([1, value + np.sign(value)])}, dtype)
    assert models.in_floats({"n": np.zeros(0, np.int64)}, dtype)["n"].size == 0


def test_a_tensor_that_two_lists_match_belongs_to_the_first():
    roles = Roles.of({"averaged": ["a.*"], "carry": ["*.n", "b.x"], "private": ["b.*", "a.n"]})
    told = {name: (roles.is_carried(name), roles.is_private(name)) for name in ("a.w", "a.n", "b.n", "b.x", "b.y", "c")}
    assert told == {
        "a.w": (False, False),
        "a.n": (False, True),  # a name goes before a pattern
        "b.n": (True, False),
        "b.x": (True, False),
        "b.y": (False, True),
        "c": (False, False),
    }
    assert list(roles.shared({"a.w": 1, "b.y": 2, "c": 3})) == ["a.w", "c"]
    layout = named_layout({"a.w": (2,), "b.y": (3,), "c": ()})
    assert roles.shared_layout(layout).names == ("a.w", "c")
    plain = Roles.of({})
    assert plain.shared_layout(layout) is layout
    vector = vector_layout((3,))
    assert plain.shared_layout(vector) is vector and plain.shared([1, 2]) == [1, 2]


def test_a_plain_array_is_no_state_dict():
    with pytest.raises(InvalidRequest, match="one plain array"):
        models.state_dict(np.zeros(3), Roles.of({}))
