"""Flower's records as a session's arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from adamd.errors import WrongDtype, WrongLayout

Arrays: TypeAlias = dict[str, NDArray[Any]]
FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class ModelForm:
    """What a model's arrays are: by name the shape and the dtype, in the model's order.

    Attributes:
        shapes: by name.
        dtypes: by name; floats, and integers and truth values, as of torch's ``num_batches_tracked``.
        session: the dtype in which the session keeps all of them: float64 if one of them is, else float32.

    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    session: np.dtype[Any]

    @property
    def counters(self) -> tuple[str, ...]:
        """The names of the arrays that are not floats: they count, and are not learned."""
        return tuple(name for name, dtype in self.dtypes.items() if dtype.kind != "f")


def form_of(record: ArrayRecord) -> ModelForm:
    """Return the form of a record.

    Raises:
        WrongLayout: it is empty.
        WrongDtype: an array is complex, text, or of a float that NumPy does not have.

    """
    if not record:
        raise WrongLayout("the ArrayRecord is empty; wanted the model's arrays, as ArrayRecord(model.state_dict())")
    arrays = {name: array.numpy() for name, array in record.items()}
    for name, array in arrays.items():
        if array.dtype.name not in FLOATS and array.dtype.kind not in "iub":
            raise WrongDtype(f"array {name!r} is {array.dtype}; wanted {', '.join(FLOATS)}, or integers")
    wide = any(array.dtype == np.float64 for array in arrays.values())
    return ModelForm(
        {name: array.shape for name, array in arrays.items()},
        {name: array.dtype for name, array in arrays.items()},
        np.dtype(np.float64 if wide else np.float32),
    )


def to_parameters(record: ArrayRecord) -> Arrays:
    """Return a record's arrays as the SDK takes them: truth values as whole numbers."""
    arrays = {name: array.numpy() for name, array in record.items()}
    return {name: array.astype(np.uint8) if array.dtype.kind == "b" else array for name, array in arrays.items()}


def to_session(record: ArrayRecord, form: ModelForm) -> Arrays:
    """Return a record's arrays in the session's dtype.

    Raises:
        WrongLayout: its names or shapes are not the form's.

    """
    if record.keys() != form.shapes.keys():
        strange = sorted(record.keys() ^ form.shapes.keys())
        raise WrongLayout(f"the ArrayRecord has other arrays than the model: {', '.join(strange[:8])}")
    arrays = {name: record[name].numpy() for name in form.shapes}
    for name, array in arrays.items():
        if array.shape != form.shapes[name]:
            raise WrongLayout(f"array {name!r} is of shape {array.shape}; the model's is {form.shapes[name]}")
    return {name: array.astype(form.session) for name, array in arrays.items()}


def to_record(arrays: Mapping[str, NDArray[Any]], form: ModelForm) -> ArrayRecord:
    """Return the session's arrays as a record, each in the model's own dtype; integers are rounded to the nearest."""
    return ArrayRecord({name: Array(_narrowed(arrays[name], dtype)) for name, dtype in form.dtypes.items()})


def change(trained: ArrayRecord, handed: Mapping[str, NDArray[Any]], form: ModelForm) -> Arrays:
    """Return what training changed: trained − handed out, in the session's dtype.

    It is made from what the client was handed, not from what the session has: a float16 model is handed roundings of
    the session's float32 parameters, and a client that changes nothing must not move these.

    Raises:
        WrongLayout: the names or shapes are not the form's.

    """
    return {name: array - handed[name] for name, array in to_session(trained, form).items()}


def same(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Say whether two records have the same names, dtypes, shapes and bits."""
    return one is other or (
        one.keys() == other.keys()
        and all(
            (array.dtype, array.shape, array.data) == (other[name].dtype, other[name].shape, other[name].data)
            for name, array in one.items()
        )
    )


def _narrowed(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(array if dtype.kind == "f" else np.rint(array)).astype(dtype)
