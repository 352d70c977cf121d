"""Flower's records as a session's arrays and back, and the options of `adamd.flower`'s strategies."""

import inspect

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy

import adamd.flower
from adamd import fed
from adamd.errors import InvalidRequest, WrongDtype, WrongLayout
from adamd.flower import records

pytestmark = pytest.mark.flower
NOWHERE = "http://127.0.0.1:9"


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


MODEL = record(
    weight=np.arange(6, dtype=np.float32).reshape(2, 3),
    half=np.array([0.1, 0.2], np.float16),
    num_batches_tracked=np.array(7, np.int64),
    flag=np.array([True, False]),
)


def test_a_model_comes_back_in_its_own_dtypes_shapes_and_bits():
    form = records.form_of(MODEL)
    assert form.session == np.float32 and form.counters == ("num_batches_tracked", "flag")
    arrays = records.to_session(MODEL, form)
    assert {array.dtype.name for array in arrays.values()} == {"float32"} and arrays["weight"].shape == (2, 3)
    assert records.same(records.to_record(arrays, form), MODEL)
    assert {array.dtype.kind for array in records.to_parameters(MODEL).values()} == {"f", "i", "u"}


def test_one_float64_array_makes_a_float64_session():
    assert records.form_of(record(a=np.float32([1]), b=np.array([1.0]))).session == np.float64


def test_a_client_that_changes_nothing_changes_nothing():
    """Though the session's float32 parameters are not what a float16 model was handed."""
    form = records.form_of(record(half=np.zeros(3, np.float16)))
    handed = records.to_record({"half": np.array([0.1, 1 / 3, 1e-9], np.float32)}, form)
    change = records.change(handed, records.to_session(handed, form), form)
    assert change["half"].dtype == np.float32 and not change["half"].any()


def test_a_change_is_trained_minus_handed():
    form = records.form_of(MODEL)
    trained = records.to_record({name: array + 2 for name, array in records.to_session(MODEL, form).items()}, form)
    change = records.change(trained, records.to_session(MODEL, form), form)
    assert (change["weight"] == 2).all() and change["num_batches_tracked"] == 2


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (ArrayRecord(), "empty"),
        (record(z=np.array([1j])), "'z' is complex128"),
        (record(text=np.array(["a"])), "'text' is <U1"),
    ],
)
def test_what_is_no_model_is_refused(bad, wanted):
    with pytest.raises((WrongDtype, WrongLayout), match=wanted):
        records.form_of(bad)


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (record(a=np.zeros(2), c=np.zeros(1)), "other arrays than the model: b, c"),
        (record(a=np.zeros(3), b=np.zeros(1)), r"'a' is of shape \(3,\); the model's is \(2,\)"),
    ],
)
def test_another_model_is_refused(bad, wanted):
    form = records.form_of(record(a=np.zeros(2), b=np.zeros(1)))
    with pytest.raises(WrongLayout, match=wanted):
        records.to_session(bad, form)


def test_records_are_compared_bit_by_bit():
    one = record(a=np.array([0.0]))
    assert records.same(one, record(a=np.array([0.0])))
    for other in (record(a=np.array([-0.0])), record(b=np.array([0.0])), record(a=np.float32([0])), ArrayRecord()):
        assert not records.same(one, other)


NAMES = ("FedAdam", "FedYogi", "FedAdagrad", "FedAvg", "FedAvgM")


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_defaults_are_flowers(name):
    theirs = getattr(strategy, name)
    ours = getattr(adamd.flower, name)
    made, own = ours(url=NOWHERE), theirs()
    assert isinstance(made, theirs)
    parameters = inspect.signature(theirs.__init__).parameters
    assert len(parameters) > 10
    for argument in set(parameters) - {"self", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"}:
        assert getattr(made, argument) == getattr(own, argument)
    assert getattr(ours(url=NOWHERE, min_train_nodes=7), "min_train_nodes") == 7
    with pytest.raises(TypeError, match="min_trian_nodes"):
        ours(url=NOWHERE, min_trian_nodes=7)


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("FedAdam", {}, fed.FedAdam(0.1, 0.9, 0.99, 1e-3, "flower")),
        ("FedAdam", {"eta": 0.5, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.1}, fed.FedAdam(0.5, 0.8, 0.9, 0.1, "flower")),
        ("FedYogi", {}, fed.FedYogi(0.01, 0.9, 0.99, 1e-3, "flower")),
        ("FedAdagrad", {"eta": 0.2}, fed.FedAdagrad(0.2, 0.0, 1e-3, "flower")),
        ("FedAvg", {}, fed.FedAvg()),
        ("FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.9}, fed.FedAvgM(0.5, 0.9)),
    ],
)
def test_flowers_arguments_are_the_servers_settings(name, given, wanted):
    assert getattr(adamd.flower, name)(url=NOWHERE, **given)._optimizer() == wanted


def test_flowers_fedavg_takes_its_arguments_by_place():
    made = adamd.flower.FedAvg(0.5, 0.0, 3, session="s", url=NOWHERE)
    assert (made.fraction_train, made.fraction_evaluate, made.min_train_nodes) == (0.5, 0.0, 3)


def test_a_client_and_a_url_are_refused():
    with adamd.connect(NOWHERE) as client, pytest.raises(InvalidRequest, match="not both"):
        adamd.flower.FedAvg(client=client, url=NOWHERE)
