"""Creates, finds and restores sessions: the logic of a client's calls, shared by all shells."""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from adamd.errors import AdamdError, InvalidRequest, SessionDeleted, SessionExists, UnknownSession, WrongLayout
from adamd.sansio import arrays, operations, settings_match
from adamd.sansio.arrays import Parameters
from adamd.sansio.operations import (
    Create,
    Info,
    ListSessions,
    Page,
    Restore,
    SetParameters,
    Standing,
    View,
    Watch,
    body_of,
)
from adamd.sansio.settings_match import check_settings
from adamd.sansio.tracking import (
    Logic,
    OnBadGradient,
    Track,
    labels_document,
    own_names,
    plain_document,
    settings_document,
)
from adamd.wire import safetensors

Durability: TypeAlias = Literal["committed", "memory"]
Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
RESTORED = ("name", "optimizer", "layout", "vector", "dtype", "durability", "labels", "state")


def create(
    parameters: Any,
    lr: float | None = None,
    *,
    name: str | None = None,
    optimizer: str = "adam",
    betas: Sequence[float] | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    amsgrad: bool | None = None,
    maximize: bool | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    durability: Durability = "committed",
    labels: Mapping[str, str] | None = None,
    rounds: Mapping[str, Any] | None = None,
    on_bad_gradient: OnBadGradient,
    **others: Any,
) -> Logic[Track]:
    """Make a session; see `Client.create`. One with ``rounds`` takes contributions; see `Client.open_federation`."""
    given = {"name": optimizer, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    settings = settings_document(given | {"amsgrad": amsgrad, "maximize": maximize, "groups": groups} | others)
    document = {"name": name, "optimizer": settings, "durability": durability, "labels": labels_document(labels or {})}
    document |= {} if rounds is None else {"rounds": plain_document("rounds", rounds)}
    initial = arrays.parameters(parameters, dtype)
    standing: Standing = yield Create(initial, document, secrets.token_hex(16))
    if _signature(standing) != _signature(initial):  # the order is the server's: arrays are found by name
        raise operations.bad_answer("another session than the one asked for: its layout or dtype differs")
    return Track(standing, on_bad_gradient, _order(standing, initial))


def open_(
    name: str, parameters: Any, lr: float | None, options: dict[str, Any], on_bad_gradient: OnBadGradient
) -> Logic[Track]:
    """Resume a session, or make it where there is none; see `Client.open`."""
    keep = settings_match.choice(options.pop("on_other_settings", "raise")) == "keep"

    def check(standing: Standing) -> Logic[None]:
        if not keep:
            yield from check_settings(standing, lr, options)

    return (yield from open_or_create(name, parameters, {"lr": lr, **options}, on_bad_gradient, check))


def open_or_create(
    name: str,
    parameters: Any,
    options: dict[str, Any],
    on_bad_gradient: OnBadGradient,
    check: Callable[[Standing], Logic[None]],
) -> Logic[Track]:
    """Resume a session that passes the ``check``, or make it of these options where there is none."""
    initial = None if parameters is None else arrays.parameters(parameters, options.get("dtype"))
    try:
        return (yield from attach(name, initial, on_bad_gradient, check))
    except (UnknownSession, SessionDeleted):
        if initial is None:
            raise
    try:
        return (yield from create(parameters, name=name, **options, on_bad_gradient=on_bad_gradient))
    except SessionExists as taken:  # another client was faster
        return (yield from attach(str(taken.extra.get("id", name)), initial, on_bad_gradient, check))


def attach(
    ref: str,
    initial: Parameters | None,
    on_bad_gradient: OnBadGradient,
    check: Callable[[Standing], Logic[None]] | None = None,
) -> Logic[Track]:
    """Find a session. ``initial`` parameters must fit it, and are sent if it has none yet."""
    standing: Standing = yield View(operations.reference(ref))
    if initial is not None:
        _check_same(standing, initial)
    if check is not None:
        yield from check(standing)
    if initial is not None and standing.document.get("parameters_missing"):  # its creator did not send them
        standing = yield SetParameters(standing.id, body_of(initial.parts, initial.layout))
    return Track(standing, on_bad_gradient, _order(standing, initial))


def restore(
    source: Source,
    name: str | None,
    durability: Durability | None,
    labels: Mapping[str, str] | None,
    settings: Mapping[str, Any] | None,
    on_bad_gradient: OnBadGradient,
) -> Logic[Track]:
    """Make a session from an exported state; see `Client.restore`."""
    changes: dict[str, Any] = {"name": name}
    changes |= {} if durability is None else {"durability": durability}
    changes |= {} if labels is None else {"labels": labels_document(labels)}
    pieces = _renamed(_bytes_of(source), changes, settings_document(settings or {}))
    standing = yield Restore(pieces, secrets.token_hex(16))
    return Track(standing, on_bad_gradient)


def page(size: int, token: str | None) -> Logic[Page]:
    """Read a page of the list."""
    result: Page = yield ListSessions(size, token)
    return result


def info() -> Logic[dict[str, Any]]:
    """Read what the server says of itself."""
    document: dict[str, Any] = yield Info()
    return document


def watch(ref: str, since: str | None) -> Logic[dict[str, Any] | None]:
    """Look where a session stands; None where it has not moved."""
    document: dict[str, Any] | None = yield Watch(operations.reference(ref), since)
    return None if document is None or document["chain"] == since else document


class Absence:
    """Tells once that a watched server is away, and again only after it was back."""

    def __init__(self, url: str, tell: Callable[[AdamdError], None] | None) -> None:
        self._url = url
        self._tell = tell
        self._away = False

    def note_failure(self, error: AdamdError) -> None:
        """Note that an attempt failed, and that another one follows."""
        if self._away:
            return
        self._away = True
        if self._tell is not None:
            self._tell(error)
        else:
            message = f"no answer from {self._url} ({error}); it is tried again until the client's time-out"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def note_answer(self) -> bool:
        """Note an answer, and say whether the server had been away."""
        was, self._away = self._away, False
        return was


def delete(ref: str) -> Logic[None]:
    """End a session that nobody needs to have opened, whatever its step."""
    yield operations.Delete(operations.reference(ref))


def choice(value: str) -> OnBadGradient:
    """Check an ``on_bad_gradient``.

    Raises:
        InvalidRequest: something else.

    """
    if value == "raise":
        return "raise"
    if value == "skip":
        return "skip"
    raise InvalidRequest(f"on_bad_gradient is {value!r}; wanted 'raise' or 'skip'")


def _renamed(
    body: memoryview, changes: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[memoryview, memoryview]:
    """Return an exported state under another name, its arrays uncopied.

    Raises:
        InvalidRequest: it is safetensors, but no export.
        MalformedBody: it is not even that.

    """
    header = safetensors.read_header(body)
    try:
        exported = json.loads(header.metadata["adamd"])
        document = {name: exported[name] for name in RESTORED if name in exported}
        optimizer = {**document["optimizer"]}
        _ = document["state"], document["dtype"]
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(
            "this is no exported state: its metadata has no adamd document with optimizer, dtype and state; "
            "use what session.export() wrote"
        ) from None
    document["optimizer"] = {**optimizer, **own_names(settings, optimizer)}
    document |= changes
    tensors = ((item.tensor.name, item.dtype, item.tensor.shape) for item in header.tensors)
    head = safetensors.write_header(tensors, {"adamd": json.dumps(document)})
    return memoryview(head), body[header.data_start :]


def _signature(source: Standing | Parameters) -> tuple[Any, ...]:
    return source.dtype, source.layout.vector, {tensor.name: tensor.shape for tensor in source.layout.tensors}


def _order(standing: Standing, initial: Parameters | None) -> tuple[str, ...] | None:
    """Return the caller's order of the names, or None if it is the session's. Answers keep it, for zip over dicts."""
    if initial is None or initial.layout.vector:
        return None
    order = initial.order or initial.layout.names
    return None if order == standing.layout.names else order


def _check_same(standing: Standing, initial: Parameters) -> None:
    """Refuse to resume a session that these parameters do not fit."""
    who = f"session {standing.name or standing.id!r} at step {standing.step}"
    if standing.layout.vector != initial.layout.vector:
        expected = "one array" if standing.layout.vector else f"a dict of {', '.join(standing.layout.names[:8])}"
        raise WrongLayout(
            f"{who} has {expected}; give parameters like that, or choose another name", step=standing.step
        )
    session_shapes = {t.name: t.shape for t in standing.layout.tensors}
    shapes = {t.name: t.shape for t in initial.layout.tensors}
    for name in sorted(session_shapes.keys() | shapes.keys()):
        if session_shapes.get(name) != shapes.get(name):
            raise WrongLayout(
                f"{who}: tensor {name!r} is {_shape(session_shapes, name)} there and {_shape(shapes, name)} here; give "
                "the session's parameters, or choose another name",
                step=standing.step,
            )
    if standing.dtype != initial.dtype:
        raise WrongLayout(
            f"{who} is {standing.dtype}, these parameters are {initial.dtype}; give dtype={standing.dtype!r} "
            "parameters, or choose another name",
            step=standing.step,
        )


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"of shape {list(shapes[name])}" if name in shapes else "absent"


def _bytes_of(source: Source) -> memoryview:
    """Return bytes as they are, and a file as a memory map, so that a large one is not read twice."""
    if isinstance(source, bytes | bytearray | memoryview):
        return memoryview(source).cast("B")
    path = Path(source)
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{path} is empty; wanted what session.export() wrote")
    return memoryview(np.memmap(path, np.uint8, "r"))
