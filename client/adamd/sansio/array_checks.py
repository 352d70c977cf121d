"""Refuses arrays whose conversion would lose a mask, labels, a unit or an order.

Kinds of other libraries are recognised by their attributes; nothing is imported for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

import numpy as np

from adamd.errors import InvalidRequest, RequestError, WrongDtype, WrongLayout
from adamd.wire.dtypes import ITEMSIZE, Array

Refusal: TypeAlias = tuple[type[RequestError], str]
PLAIN = {int, float, np.ndarray}
BYTES = "Bbc"  # memoryview formats of plain bytes


def check(value: Any, what: str) -> None:
    """Refuse a value of which NumPy would drop something: a mask, labels, a unit, or an order it never had.

    Raises:
        InvalidRequest, WrongLayout, WrongDtype: the words say what would be lost, and what to give instead.

    """
    if type(value) is np.ndarray or isinstance(value, int | float):
        return
    if isinstance(value, list | tuple):
        if not set(map(type, value)) <= PLAIN:
            for item in value:
                if item is not None and not isinstance(item, str | np.generic):
                    check(item, f"{what}, or a part of it,")
        return
    refusal = _array_refusal(value) if isinstance(value, np.ndarray) else _other_refusal(value)
    if refusal is not None:
        error, message = refusal
        raise error(f"{what} {message}")


def check_dtype(array: Array, kind: str, value: Any, what: str) -> None:
    """Refuse an array of no floating-point dtype that travels, with what is right for its kind.

    Raises:
        WrongDtype: it is none.

    """
    if kind in ITEMSIZE:
        return
    message = _of_kind(array, value)
    if message is None:
        target = "float32" if kind.startswith("float8") else "float64"
        message = f"{kind}; {', '.join(ITEMSIZE)} can be sent. Convert it: numpy.asarray(x, {target!r})"
    raise WrongDtype(f"{what} is {message}")


def unreadable(value: Any, error: Exception, what: str) -> RequestError:
    """Return the refusal of what NumPy, or the array's own library, cannot make an array of."""
    if isinstance(error, ValueError) and isinstance(value, list | tuple):
        return WrongLayout(
            f"{what} is no array: its lists are of different lengths, or hold arrays of different shapes"
        )
    if hasattr(value, "__cuda_array_interface__"):
        return InvalidRequest(f"{what} is on a GPU, and does not come here by itself: give x.get()")
    name = type(value).__name__
    if "Tracer" in name:
        return InvalidRequest(f"{what} is a tracer, which has no numbers: take the step outside of jit, grad and vmap")
    return InvalidRequest(f"{what} is a {name} that is no array of numbers: {_line(error)}")


def number(name: str, value: Any) -> float | None:
    """Return a metric as a number, and NaN or infinity as None, so that they do not cost the step.

    Raises:
        InvalidRequest: it is no single real number.

    """
    if type(value) is float:
        return _finite(value)
    where = f"metric {name!r}"
    if value is None or isinstance(value, str | bytes | bytearray | memoryview):
        raise InvalidRequest(f"{where} is {type(value).__name__}; wanted a number")
    check(value, where)
    value = value.detach() if hasattr(value, "detach") else value
    size = getattr(value, "size", 1)
    size = getattr(value, "numel", size) if callable(size) else size
    size = size() if callable(size) else size
    if isinstance(size, int) and size != 1:
        raise InvalidRequest(f"{where} has {size} elements; wanted one number: its mean(), say")
    try:
        item = value.item() if hasattr(value, "item") else value
        if isinstance(item, complex):
            raise InvalidRequest(f"{where} is complex; wanted a real number: abs(x), or its real part")
        return _finite(float(item))
    except OverflowError:
        return None
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"{where} is {type(value).__name__}; wanted a number: {_line(error)}") from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and abs(value) < 2.0**1023 else None


def _array_refusal(value: Any) -> Refusal | None:
    """Say what a subclass of NumPy's array has beside its numbers."""
    if isinstance(value, np.ma.MaskedArray):
        count = int(np.count_nonzero(np.ma.getmaskarray(value)))
        if count == 0:
            return None
        return InvalidRequest, (
            f"has {count} masked elements, whose masks would be lost: give x.filled(0) where they count as zero; in a "
            "gradient adamd.Sparse(indices, values, lazy=True) leaves elements untouched"
        )
    if hasattr(value, "unmasked") and np.any(value.mask):  # astropy
        return (
            InvalidRequest,
            "has masked elements, whose masks would be lost: give x.filled(0) where they count as zero",
        )
    unit = getattr(value, "unit", None) or getattr(value, "units", None)
    if unit is not None and str(unit):
        return _unit(value, unit)
    attributes = [name for name in getattr(value, "__dict__", ()) if not name.startswith("_")]
    if attributes and not isinstance(value, np.memmap):
        kind, names = type(value).__name__, ", ".join(attributes[:4])
        return InvalidRequest, f"is a {kind}, and what it has beside its numbers ({names}) would be lost: give " + (
            "numpy.asarray(x) where the numbers are all that is meant"
        )
    return None


def _other_refusal(value: Any) -> Refusal | None:
    """Say what an object of another library is that would not come as what it says."""
    if value is None:
        return InvalidRequest, "is None; wanted an array. A tensor that has none is left out of the dict"
    if isinstance(value, str | bytes | bytearray):
        how = "numpy.frombuffer(x, 'float32'), where it holds such" if not isinstance(value, str) else "float(x)"
        return WrongDtype, f"is {type(value).__name__}, which is no array of numbers; give {how}"
    if isinstance(value, memoryview) and value.format in BYTES:
        return (
            WrongDtype,
            "is memory of bytes, of no number's type; give numpy.frombuffer(x, 'float32'), where it holds such",
        )
    if isinstance(value, AbstractSet):
        return WrongLayout, "is a set, which has no order; give a list in the parameters' order"
    if isinstance(value, Iterator) or type(value).__name__ in ("dict_values", "dict_keys", "map", "filter"):
        return WrongLayout, "is something to iterate over, and no array; give list(x)"
    if hasattr(value, "detach"):
        return _tensor_refusal(value)
    return _labelled(value) or _sparse(value) or _bare(value)


def _labelled(value: Any) -> Refusal | None:
    if hasattr(value, "iloc"):  # pandas
        axes = [axis for axis in (getattr(value, "index", None), getattr(value, "columns", None)) if axis is not None]
        if all(_counts(axis) for axis in axes):
            return None
        return WrongLayout, (
            f"is a {type(value).__name__}, and its labels would be lost: the session goes by place. Give x.to_numpy(), "
            "after x.reindex(...) where its labels are not in the parameters' order"
        )
    if hasattr(value, "dims") and hasattr(value, "values"):  # xarray
        return WrongLayout, (
            "has named dimensions, and their names would be lost: the session goes by place. Give x.values, after "
            "x.transpose(...) where they are not in the parameters' order"
        )
    if hasattr(value, "columns") and (hasattr(value, "to_numpy") or hasattr(value, "to_pandas")):  # polars, pyarrow
        return WrongLayout, (
            "has named columns, and their names would be lost: the session goes by place. Give x.to_numpy(), or a dict "
            "of the columns"
        )
    if hasattr(value, "magnitude") and str(getattr(value, "units", "dimensionless")) != "dimensionless":  # pint
        return _unit(value, value.units)
    return None


def _counts(axis: Any) -> bool:
    """Say whether labels are 0, 1, 2, … as pandas gives them where nobody gave any."""
    return np.array_equal(np.asarray(axis), np.arange(len(axis)))


def _unit(value: Any, unit: Any) -> Refusal:
    how = "x.to_value(unit)" if hasattr(value, "to_value") else "x.to(unit).magnitude"
    return InvalidRequest, f"has the unit {str(unit)[:40]}, which would be lost: give {how}, always of the same unit"


def _sparse(value: Any) -> Refusal | None:
    if hasattr(value, "nnz") or hasattr(value, "dense_shape"):
        dense = next((name for name in ("toarray", "todense") if hasattr(value, name)), None)
        return InvalidRequest, "is sparse: give " + (
            f"x.{dense}(), or, as a gradient," if dense else "it dense, or, as a gradient,"
        ) + " adamd.Sparse(indices, values)"
    return None


def _bare(value: Any) -> Refusal | None:
    """Say so where there is a shape and a dtype, and no numbers."""
    ways = ("__array__", "__array_interface__", "__dlpack__", "__cuda_array_interface__", "__buffer__")
    if hasattr(value, "shape") and hasattr(value, "dtype") and not any(hasattr(value, way) for way in ways):
        return (
            InvalidRequest,
            f"is a {type(value).__name__}: a shape without numbers. Give an array: numpy.zeros(x.shape, x.dtype)",
        )
    return None


def _tensor_refusal(value: Any) -> Refusal | None:
    if hasattr(value, "full_tensor"):
        return InvalidRequest, "is a part of a distributed tensor: give x.full_tensor()"
    if getattr(value, "is_meta", False):
        return InvalidRequest, "is on the meta device, which keeps no numbers; make it on a real one"
    if getattr(value, "is_quantized", False):
        return WrongDtype, "is quantized: give x.dequantize()"
    if getattr(value, "is_nested", False):
        return WrongLayout, "is a nested tensor, of rows of different lengths: give x.to_padded_tensor(0)"
    if "strided" not in str(getattr(value, "layout", "strided")):
        return InvalidRequest, (
            "is sparse: give x.to_dense(); or, as a gradient, adamd.Sparse(x.indices()[0], x.values()) after "
            "x = x.coalesce(), where its rows are sparse"
        )
    return None


def _of_kind(array: Array, value: Any) -> str | None:
    """Say what an array of no dtype that travels is, and what to give; None where it can just be converted."""
    kind, name = array.dtype.kind, array.dtype.name
    if array.dtype.names is not None:
        fields = ", ".join(array.dtype.names[:8])
        return f"structured, of the fields {fields}; give a dict: {{n: x[n] for n in x.dtype.names}}"
    if kind == "c":
        return f"{name}; a session is real. Give numpy.stack((x.real, x.imag), -1), and gradients in that shape"
    if kind in "iu":
        return (
            f"{name}: whole numbers. What only counts, as BatchNorm's num_batches_tracked does, is not trained: leave "
            "it out. Convert what is trained: numpy.asarray(x, 'float32')"
        )
    if kind == "b":
        return "bool; where True is to count as 1: numpy.asarray(x, 'float32')"
    if kind in "SUT":
        return f"text ({name}); numbers can be sent"
    if kind in "mM":
        return f"{name}; a time in numbers can be sent: x / numpy.timedelta64(1, 's'), of a difference of times"
    if kind == "O":
        return _of_objects(array, value)
    return None


def _of_objects(array: Array, value: Any) -> str:
    if array.ndim == 0:
        return f"a {type(value).__name__}, which is no array of numbers"
    flat = array.reshape(-1)
    odd = next((i for i, item in enumerate(flat) if not isinstance(item, int | float | np.number)), 0)
    if len(flat) == 0:
        return "an array of objects (dtype=object); give numpy.asarray(x, 'float32')"
    what = f"an array of objects (dtype=object): element {odd} is a {type(flat[odd]).__name__}"
    if isinstance(flat[odd], np.ndarray | list | tuple):
        return f"{what}. Give one rectangular array, or a dict of arrays"
    if flat[odd] is None:
        return f"{what}. Every element has to be a number"
    return f"{what}. Where all are numbers: numpy.asarray(x, 'float64')"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
