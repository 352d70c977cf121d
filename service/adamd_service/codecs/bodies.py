"""Reads bodies into typed calls: JSON, safetensors and flat vectors, each checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from adamd.errors import InvalidRequest, InvalidState, WrongLayout
from adamd.wire import headers, numbers, safetensors
from adamd.wire import layout as layouts
from adamd.wire.buffers import Bytes
from adamd.wire.dtypes import Array, check_widens, storage, vector, widen
from adamd.wire.layout import Layout, Tensor, shown, some
from adamd_service.codecs.checks import (
    MAX_LABEL,
    MAX_LABEL_NAME,
    MAX_LABELS,
    metrics,
    parse_json,
    settings,
    step_members,
    validated,
)
from adamd_service.engine import CreateCall, Gradient, SavedState
from adamd_service.optim import ARRAY, BEST, BOUNDS, FAMILY, NONE, SURROUNDING, progress_from_json
from adamd_service.records import Spec

PARAMS = "param"  # an exported tensor is param:<name>, and <state array>:<name>
SAFETENSORS_WEIGHT = 3  # a creation's body: itself, the flat vector, the state's copy
# A restored session goes on counting: far below 2^53, where a number in JSON stops being exact.
Count = Annotated[int, Field(ge=0, le=headers.MAX_STEP // 2)]


class StateDocument(BaseModel):
    """The counts of an exported state."""

    model_config = ConfigDict(strict=True, extra="forbid")

    step: Count
    counts: dict[str, Count]
    carried: dict[str, dict[str, float]] = Field(default_factory=dict)
    progress: dict[str, Any] = Field(default_factory=dict)


class CreateDocument(BaseModel):
    """A session to be created. Give `parameters`, or `layout` and `dtype` and PUT them later."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str | None = Field(None, pattern=f"^{headers.NAME_PATTERN}$", description="unique; usable in place of the id")
    optimizer: dict[str, Any] = Field(
        default_factory=lambda: {"name": "adam"},
        description='{"name": "adam", "lr": 0.001, …}; GET /v1/info lists the optimizers, and the settings of each',
    )
    parameters: Any = Field(
        None, description="a number, a nested list, or an object of them: tensors, sorted by name without a layout"
    )
    layout: list[dict[str, Any]] | None = Field(None, description='[{"name": "w", "shape": [784, 10]}, …]')
    dtype: Literal["float32", "float64"] | None = Field(None, description="the state's; where it is absent, float64")
    durability: Literal["committed", "memory"] = Field(
        "committed", description="memory: nothing is stored, and the session ends with the server's process"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="your own words, to find the session in the list"
    )
    vector: bool | None = Field(None, description="safetensors: the one tensor is a plain array")
    rounds: dict[str, Any] | None = Field(
        None, description='{"quorum": 6, …}: the session takes contributions to rounds instead of steps'
    )
    state: StateDocument | None = Field(None, description="safetensors: restore an exported state")


# What an export's metadata says besides, which a restore does not need.
EXPORTED = {"id", "step", "chain", "incarnation", "settings_revision", "created_at", "parameters_missing"} | {
    "diverged",
    "lr",
    "stop",
    "warnings",
    "progress",
    "snapshot_step",
    "round",
}


def check_labels(labels: dict[str, str] | None) -> None:
    """Raise InvalidRequest where a label is longer than one may be."""
    for name, value in (labels or {}).items():
        if not 1 <= len(name) <= MAX_LABEL_NAME or len(value) > MAX_LABEL:
            raise InvalidRequest(
                f"labels: a name has 1 to {MAX_LABEL_NAME} characters, a value at most {MAX_LABEL}", path="labels"
            )


def _document(raw: Any) -> CreateDocument:
    if not isinstance(raw, dict):
        raise InvalidRequest(f"wanted a JSON object, got {shown(raw)}")
    document = validated(CreateDocument, raw)
    check_labels(document.labels)
    return document


def create_from_json(body: memoryview, key: str | None) -> CreateCall:
    """Read a creation from JSON. Numbers without a dtype are float64."""
    document = _document(parse_json(body))
    if document.state is not None:
        raise InvalidRequest("state: a state is restored from safetensors", path="state")
    dtype = document.dtype or "float64"
    if document.parameters is not None:
        layout, flat = _arrays(document.parameters, dtype)
        if document.vector not in (None, layout.vector):
            raise InvalidRequest("vector: parameters say by themselves whether they are one array", path="vector")
        if document.layout is not None:
            target = _layout_beside(document, layout)
            layout, flat = target, _ordered(layout, flat, target)
    elif document.layout is not None:
        if document.dtype is None:
            raise InvalidRequest("dtype: a layout without parameters needs one", path="dtype")
        layout, flat = _layout(document), None
    else:
        raise InvalidRequest("parameters: missing; give them, or a layout with a dtype", path="parameters")
    is_sorted = document.layout is None and isinstance(document.parameters, dict)
    order = tuple(document.parameters) if is_sorted else ()
    return replace(_call(document, layout, dtype, flat, None, key, body), sent_order=order)


def _layout_beside(document: CreateDocument, layout: Layout) -> Layout:
    """Return the document's layout, which says the order of the tensors in its parameters."""
    if layout.vector:
        raise InvalidRequest("layout: one array has no order to keep; leave it out", path="layout")
    target = _layout(document)
    shapes, target_shapes = ({t.name: t.shape for t in side.tensors} for side in (layout, target))
    for name in (*shapes, *target_shapes):
        if shapes.get(name) != target_shapes.get(name):
            words = (f"of shape {list(side[name])}" if name in side else "absent" for side in (target_shapes, shapes))
            raise WrongLayout("tensor {} is {} in layout and {} in parameters".format(shown(name), *words))
    return target


def create_from_vector(
    raw: Any, parameters: bytes | None, dtype: str | None, key: str | None, digest: str
) -> CreateCall:
    """Make a creation of a document with a layout, and perhaps of the flat vector.

    ``dtype`` is the vector's, the session's if None; ``digest`` is of the whole request.
    """
    document = _document(raw)
    if document.dtype is None or document.layout is None:
        missing = "dtype" if document.dtype is None else "layout"
        raise InvalidRequest(f"{missing}: missing; a session has a layout, and is float32 or float64", path=missing)
    layout, flat = _layout(document), None
    if parameters is not None:
        flat = vector(memoryview(parameters), layout.size, dtype, document.dtype)
    return replace(_call(document, layout, document.dtype, flat, None, key, memoryview(b"")), digest=digest)


def create_from_safetensors(body: memoryview, key: str | None) -> CreateCall:
    """Read a creation, or a state to restore, from safetensors with its document under `adamd`."""
    header = safetensors.read_header(body)
    raw = parse_json(header.metadata.get("adamd", "{}").encode())
    if isinstance(raw, dict) and raw.get("state") is not None:
        raw = {name: value for name, value in raw.items() if name not in EXPORTED}
    document = _document(raw)
    data = body[header.data_start :]
    tensors = {stored.tensor.name: (stored, _view(data, stored)) for stored in header.tensors}
    if document.parameters is not None:
        raise InvalidRequest("parameters: they are the tensors of this body", path="parameters")
    if document.state is not None:
        return _restore(document, document.state, tensors, key, body)
    bound_arrays = {name: array for name, array in tensors.items() if side_of(document.optimizer, name) is not None}
    arrays = {name: array for name, array in tensors.items() if name not in bound_arrays}
    if not arrays:
        raise InvalidRequest("the body has no tensors")
    dtype = document.dtype or ("float64" if any(s.dtype == "float64" for s, _ in arrays.values()) else "float32")
    layout = _layout_of(document, {name: stored.tensor.shape for name, (stored, _) in arrays.items()})
    flat = _joined(layout, {name: _widened(s.dtype, array, dtype) for name, (s, array) in arrays.items()}, dtype)
    bounds = {name: _widened(stored.dtype, array, dtype) for name, (stored, array) in bound_arrays.items()}
    call = _call(
        document, layout, dtype, flat, None, key, body, named_bounds(document.optimizer, layout, dtype, bounds)
    )
    return call if document.layout is not None else replace(call, sent_order=tuple(arrays))


def _restore(
    document: CreateDocument, state: StateDocument, arrays: dict[str, Any], key: str | None, body: memoryview
) -> CreateCall:
    if document.dtype is None:
        raise InvalidRequest("dtype: an exported state says its own", path="dtype")
    prefixes = {PARAMS, BEST, *SURROUNDING, *(array for optimizer in FAMILY.values() for _, array in optimizer.arrays)}
    groups: dict[str, dict[str, Array]] = {PARAMS: {}}
    for full, (stored, array) in arrays.items():
        prefix, _, name = full.partition(":")
        if prefix not in prefixes or not name:
            raise WrongLayout(f"tensor {shown(full)}: a state has {', '.join(f'{p}:<name>' for p in sorted(prefixes))}")
        if stored.dtype != document.dtype:
            raise InvalidState(f"tensor {shown(full)} is {stored.dtype}; the state is {document.dtype}")
        groups.setdefault(prefix, {})[name] = array.reshape(stored.tensor.shape)
    layout = _layout_of(document, {name: array.shape for name, array in groups[PARAMS].items()})
    if set(state.counts) != set(layout.names):
        raise InvalidState("state.counts: wanted one count for each tensor")
    if any(set(numbers) != set(layout.names) for numbers in state.carried.values()):
        raise InvalidState("state.carried: wanted one number for each tensor")
    try:
        progress_from_json(state.progress)
    except ValueError as error:
        raise InvalidState(f"state.progress: {error}") from None
    flats = {prefix: _joined(layout, group, document.dtype) for prefix, group in groups.items()}
    saved = SavedState(
        step=state.step,
        counts=tuple(state.counts[name] for name in layout.names),
        slots={prefix: flat for prefix, flat in flats.items() if prefix != PARAMS},
        carried={what: tuple(numbers[name] for name in layout.names) for what, numbers in state.carried.items()},
        progress=state.progress,
    )
    return _call(document, layout, document.dtype, flats[PARAMS], saved, key, body)


def _call(
    document: CreateDocument,
    layout: Layout,
    dtype: Literal["float32", "float64"],
    flat: Array | None,
    saved: SavedState | None,
    key: str | None,
    body: memoryview,
    bounds_by_side: dict[str, Array] | None = None,
) -> CreateCall:
    if not layout.names:
        raise WrongLayout("a session has at least one tensor, of no elements perhaps; this one would have none at all")
    # Without parameters they are refused: a layout alone may name any size.
    element_bounds = {} if flat is None else listed_bounds(document.optimizer, layout, dtype)
    return CreateCall(
        layout=layout,
        dtype=dtype,
        optimizer={**document.optimizer, **dict.fromkeys(bound_sides(document.optimizer, layout), ARRAY)},
        bounds={**(bounds_by_side or {}), **element_bounds},
        parameters=flat,
        name=document.name,
        durability=document.durability,
        labels=document.labels,
        rounds=document.rounds,
        saved=saved,
        key=key,
        digest=xxhash.xxh3_128_hexdigest(body),
    )


def _layout_of(document: CreateDocument, shapes: dict[str, tuple[int, ...]]) -> Layout:
    """Return the document's layout where it gives one (it keeps an order), else the names sorted."""
    if document.layout is not None:
        layout = _layout(document)
        if {t.name: t.shape for t in layout.tensors} != shapes:
            raise WrongLayout("the layout in the metadata is not that of the tensors")
        return layout
    layout = layouts.named_layout(shapes)
    return layouts.checked(layout.tensors, vector=document.vector is True)


def _layout(document: CreateDocument) -> Layout:
    return layouts.from_json(document.layout, vector=document.vector is True)


def parameters_from_json(body: memoryview, spec: Spec) -> Array:
    """Read parameters for a session's layout; flat, in the session's dtype."""
    return _match(_arrays(parse_json(body), spec.dtype), spec)


def parameters_from_safetensors(body: memoryview, spec: Spec) -> Array:
    """Read parameters for a session's layout; flat, in the session's dtype."""
    return _match(_from_safetensors(body, spec.dtype), spec)


def _match(read: tuple[Layout, Array], spec: Spec) -> Array:
    layout, flat = read
    if spec.layout.vector and layout.vector:  # a plain array has no name to match
        layout = Layout((Tensor(spec.layout.names[0], layout.tensors[0].shape),), vector=True)
    if {t.name: t.shape for t in layout.tensors} != {t.name: t.shape for t in spec.layout.tensors}:
        raise WrongLayout("the names and shapes are not those of this session's layout")
    return _ordered(layout, flat, spec.layout)


def _ordered(layout: Layout, flat: Array, target: Layout) -> Array:
    """Return a flat vector in the order of another layout of the same tensors."""
    if layout.names == target.names:
        return flat
    parts = {t.name: flat[layout.bounds[i] : layout.bounds[i + 1]] for i, t in enumerate(layout.tensors)}
    return np.concatenate([parts[name] for name in target.names])


def gradient_from_json(body: memoryview, spec: Spec) -> Gradient:
    """Read `{"gradient": …, "metrics": {…}, "settings": {…}}`; a tensor that is null or missing is left out."""
    raw = step_members(parse_json(body))
    step_settings, step_metrics = settings(raw.get("settings")), metrics(raw.get("metrics"))
    return replace(_named(raw["gradient"], "gradient", spec), settings=step_settings, metrics=step_metrics)


def contribution_from_json(kind: str, body: memoryview, spec: Spec) -> Gradient:
    """Read `{"delta": …, "metrics": {…}}`, its first member named as the kind of the contribution."""
    raw = parse_json(body)
    if not isinstance(raw, dict) or kind not in raw or not set(raw) <= {kind, "metrics"}:
        strange = next((name for name in raw if name not in (kind, "metrics")), None) if isinstance(raw, dict) else None
        came = "" if strange is None else f"{shown(strange)} is unknown here; "
        if strange in headers.KINDS:
            came = f"the body has {shown(strange)}, and {headers.KIND} says {kind}; "
        if strange == "num_examples":
            came = f"the number of examples is told by the header {headers.NUM_EXAMPLES}; "
        raise InvalidRequest(
            f'{came}wanted {{"{kind}": …}} and, if you like, "metrics"; {headers.KIND} says what the numbers are',
            path=kind,
        )
    return replace(_named(raw[kind], kind, spec), metrics=metrics(raw.get("metrics")))


def _named(tensors: Any, what: str, spec: Spec) -> Gradient:
    """Read a vector by the names of its tensors; those that are null or missing are left out."""
    if spec.layout.vector:
        tensors = {spec.layout.names[0]: tensors}
    if not isinstance(tensors, dict):
        raise WrongLayout(f"{what}: wanted an object with the tensors {some(spec.layout.names)}")
    arrays = {
        name: numbers.array_from_json(
            value, spec.dtype, what if spec.layout.vector else f"{what}.{name[:64]}", finite=False
        )
        for name, value in tensors.items()
        if value is not None
    }
    present = _present(spec, {name: array.shape for name, array in arrays.items()})
    flat = _flat([arrays[spec.layout.names[i]] for i in present], spec.dtype)
    return Gradient(spec.dtype, flat, _all_or(present, spec))


def gradient_from_safetensors(body: memoryview, spec: Spec) -> Gradient:
    """Read a gradient by names; tensors that are not there are left out. Mixed dtypes widen to the session's."""
    header = safetensors.read_header(body)
    data = body[header.data_start :]
    stored = {item.tensor.name: item for item in header.tensors}
    present = _present(spec, {name: item.tensor.shape for name, item in stored.items()})
    ordered = [stored[spec.layout.names[i]] for i in present]
    kinds = {item.dtype for item in ordered}
    for kind in kinds:
        check_widens(kind, spec.dtype)
    dtype = kinds.pop() if len(kinds) == 1 else spec.dtype
    aligned = np.frombuffer(data, np.uint8).ctypes.data % 8 == 0 if data.nbytes else True
    if tuple(ordered) == header.tensors and len({item.dtype for item in ordered}) == 1 and aligned:
        flat: Bytes = np.frombuffer(data, np.uint8)
    else:
        arrays = [_view(data, item) for item in ordered]
        if any(item.dtype != dtype for item in ordered):
            arrays = [_widened(item.dtype, array, dtype) for item, array in zip(ordered, arrays, strict=True)]
        flat = _flat(arrays, dtype)
    return Gradient(dtype, flat, _all_or(present, spec))


def _present(spec: Spec, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    for name, shape in shapes.items():
        index = spec.layout.index.get(name)
        if index is None:
            raise WrongLayout(f"this session has no tensor {shown(name)}; it has {some(spec.layout.names)}")
        expected = spec.layout.tensors[index].shape
        if shape != expected:
            raise WrongLayout(f"tensor {shown(name)} has shape {list(shape)}; this session's has {list(expected)}")
    if not shapes and spec.layout.tensors:
        raise WrongLayout("the gradient has no tensors at all: that would be no step")
    return sorted(spec.layout.index[name] for name in shapes)


def _all_or(present: list[int], spec: Spec) -> tuple[int, ...] | None:
    return None if len(present) == len(spec.layout.tensors) else tuple(present)


def _flat(arrays: list[Array], dtype: str) -> Bytes:
    if not arrays:
        return np.empty(0, np.uint8)
    return np.concatenate([array.reshape(-1) for array in arrays]).astype(storage(dtype), copy=False).view(np.uint8)


def _arrays(raw: Any, dtype: str) -> tuple[Layout, Array]:
    if isinstance(raw, dict):
        arrays = {n: numbers.array_from_json(value, dtype, f"parameters.{n[:64]}") for n, value in raw.items()}
        layout = layouts.named_layout({name: array.shape for name, array in arrays.items()})
        return layout, _joined(layout, arrays, dtype)
    array = numbers.array_from_json(raw, dtype, "parameters")
    return layouts.vector_layout(array.shape), array.reshape(-1)


def _from_safetensors(body: memoryview, dtype: str) -> tuple[Layout, Array]:
    header = safetensors.read_header(body)
    data = body[header.data_start :]
    arrays = {s.tensor.name: _widened(s.dtype, _view(data, s), dtype) for s in header.tensors}
    layout = layouts.named_layout({s.tensor.name: s.tensor.shape for s in header.tensors})
    return layout, _joined(layout, arrays, dtype)


def _joined(layout: Layout, arrays: dict[str, Array], dtype: str) -> Array:
    """Join tensors into one flat vector in layout order.

    Raises:
        WrongLayout: a tensor is missing or has another size.

    """
    flat = np.empty(layout.size, storage(dtype))
    for i, tensor in enumerate(layout.tensors):
        array = arrays.get(tensor.name)
        if array is None or array.size != tensor.size:
            raise WrongLayout(f"tensor {shown(tensor.name)} is missing or has another size than its parameters")
        flat[layout.bounds[i] : layout.bounds[i + 1]] = array.reshape(-1)
    if len(arrays) != len(layout.tensors):
        raise WrongLayout("there are tensors that the parameters do not have")
    return flat


def _widened(dtype: str, array: Array, into: str) -> Array:
    check_widens(dtype, into, "tensor")
    return widen(array, dtype, into)


def _view(data: memoryview, stored: safetensors.Stored) -> Array:
    part = data[stored.start : stored.end]
    return cast(Array, np.frombuffer(part, storage(stored.dtype)).reshape(stored.tensor.shape))


def side_of(optimizer: Mapping[str, Any], name: str) -> str | None:
    """Return which bound a tensor of a creation is: `lower:NAME` where the optimizer's lower is "array"; None: none."""
    side, _, rest = name.partition(":")
    return side if rest and side in BOUNDS and optimizer.get(side) == ARRAY else None


def named_bounds(
    optimizer: Mapping[str, Any], layout: Layout, dtype: str, tensors: Mapping[str, Array]
) -> dict[str, Array]:
    """Join the tensors `lower:NAME` and `upper:NAME` of a creation."""
    flats = {}
    for side in BOUNDS:
        arrays = {name.partition(":")[2]: array for name, array in tensors.items() if side_of(optimizer, name) == side}
        if arrays:
            flats[side] = _flat_bound(side, layout, dtype, arrays)
    return flats


def bound_sides(optimizer: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return which bounds the settings give by element."""
    return [side for side in BOUNDS if isinstance(optimizer.get(side), (dict, list) if layout.vector else dict)]


def listed_bounds(optimizer: Mapping[str, Any], layout: Layout, dtype: str) -> dict[str, Array]:
    """Read bounds that are numbers by tensor in the optimizer's settings, or a list for the one that a vector is."""
    flats = {}
    for side in bound_sides(optimizer, layout):
        values, where = optimizer[side], f"optimizer.{side}"
        if isinstance(values, list):
            values = {layout.names[0]: values}
        arrays = {name: numbers.array_from_json(value, dtype, f"{where}.{name[:64]}") for name, value in values.items()}
        flats[side] = _flat_bound(side, layout, dtype, arrays)
    return flats


def _flat_bound(side: str, layout: Layout, dtype: str, tensors: Mapping[str, Array]) -> Array:
    """Return a bound for each element; a tensor may have one number, and one that is not named has none.

    Raises:
        WrongLayout: a tensor that there is not, or another shape.

    """
    flat = np.full(layout.size, NONE[side], storage(dtype))
    for name, array in tensors.items():
        index = layout.index.get(name)
        if index is None:
            raise WrongLayout(f"{side}: there is no tensor {shown(name)}; there are {some(layout.names)}")
        shape = layout.tensors[index].shape
        if array.shape not in ((), shape):
            raise WrongLayout(
                f"{side}: tensor {shown(name)} has shape {list(shape)}, its bounds {list(array.shape)}; "
                "wanted the same, or one number"
            )
        flat[layout.bounds[index] : layout.bounds[index + 1]] = array.reshape(-1)
    return flat
