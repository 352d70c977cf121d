"""How a client comes to a session: make it, find it, restore it. Written once, for every shell; see `_track`."""

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
from adamd.sansio.arrays import Given
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
from adamd.sansio.tracking import Logic, OnBadGradient, Track, labels_document, settings_document
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
    on_bad_gradient: OnBadGradient,
    **others: Any,
) -> Logic[Track]:
    """Make a session; see `Client.create`."""
    given = {"name": optimizer, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    settings = settings_document(given | {"amsgrad": amsgrad, "maximize": maximize, "groups": groups} | others)
    document = {"name": name, "optimizer": settings, "durability": durability, "labels": labels_document(labels or {})}
    asked = arrays.parameters(parameters, dtype)
    standing: Standing = yield Create(asked, document, secrets.token_hex(16))
    if _said(standing) != _said(asked):  # the order is the server's: arrays are found by name
        raise operations.bad_answer("another session than the one asked for: its layout or dtype differs")
    return Track(standing, on_bad_gradient, _order(standing, asked))


def open_(
    name: str, parameters: Any, lr: float | None, options: dict[str, Any], on_bad_gradient: OnBadGradient
) -> Logic[Track]:
    """Resume a session, or make it where there is none; see `Client.open`."""
    keep = settings_match.choice(options.pop("on_other_settings", "raise")) == "keep"
    given = None if parameters is None else arrays.parameters(parameters, options.get("dtype"))

    def check(standing: Standing) -> Logic[None]:
        if not keep:
            yield from check_settings(standing, lr, options)

    try:
        return (yield from attach(name, given, on_bad_gradient, check))
    except (UnknownSession, SessionDeleted):
        if given is None:
            raise
    try:
        return (yield from create(parameters, lr, name=name, **options, on_bad_gradient=on_bad_gradient))
    except SessionExists as taken:  # another client was faster
        return (yield from attach(str(taken.extra.get("id", name)), given, on_bad_gradient, check))


def attach(
    ref: str,
    given: Given | None,
    on_bad_gradient: OnBadGradient,
    check: Callable[[Standing], Logic[None]] | None = None,
) -> Logic[Track]:
    """Find a session; where parameters are ``given``, they must fit it, and become its first if it has none yet."""
    standing: Standing = yield View(operations.reference(ref))
    if given is not None:
        _check_same(standing, given)
    if check is not None:
        yield from check(standing)
    if given is not None and standing.document.get("parameters_missing"):  # whoever made it did not come to send them
        standing = yield SetParameters(standing.id, body_of(given.parts, given.layout))
    return Track(standing, on_bad_gradient, _order(standing, given))


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
    found: Page = yield ListSessions(size, token)
    return found


def info() -> Logic[dict[str, Any]]:
    """Read what the server says of itself."""
    told: dict[str, Any] = yield Info()
    return told


def watch(ref: str, since: str | None) -> Logic[dict[str, Any] | None]:
    """Look where a session stands; None where it has not moved."""
    seen: dict[str, Any] | None = yield Watch(operations.reference(ref), since)
    return None if seen is None or seen["chain"] == since else seen


class Absence:
    """Whether a watched server is away: it is told once, and again only after it was back."""

    def __init__(self, url: str, tell: Callable[[AdamdError], None] | None) -> None:
        self._url = url
        self._tell = tell
        self._away = False

    def waiting(self, error: AdamdError) -> None:
        """Note that an attempt failed, and that another one follows."""
        if self._away:
            return
        self._away = True
        if self._tell is not None:
            self._tell(error)
        else:
            said = f"no answer from {self._url} ({error}); it is tried again until the client's time-out"
            warnings.warn(said, RuntimeWarning, stacklevel=2)

    def over(self) -> bool:
        """Note an answer, and say whether the server had been away."""
        was, self._away = self._away, False
        return was


def choice(given: str) -> OnBadGradient:
    """Check what is to be done with a bad gradient.

    Raises:
        InvalidRequest: something else.

    """
    if given == "raise":
        return "raise"
    if given == "skip":
        return "skip"
    raise InvalidRequest(f"on_bad_gradient is {given!r}; wanted 'raise' or 'skip'")


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
        told = json.loads(header.metadata["adamd"])
        document = {name: told[name] for name in RESTORED if name in told}
        document["optimizer"] = {**document["optimizer"], **settings}
        _ = document["state"], document["dtype"]
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(
            "this is no exported state: its metadata has no adamd document with optimizer, dtype and state; "
            "use what session.export() wrote"
        ) from None
    document |= changes
    tensors = ((item.tensor.name, item.dtype, item.tensor.shape) for item in header.tensors)
    head = safetensors.write_header(tensors, {"adamd": json.dumps(document)})
    return memoryview(head), body[header.data_start :]


def _said(one: Standing | Given) -> tuple[Any, ...]:
    return one.dtype, one.layout.vector, {tensor.name: tensor.shape for tensor in one.layout.tensors}


def _order(standing: Standing, given: Given | None) -> tuple[str, ...] | None:
    """Return the caller's order of the names, where the session's is another: a zip over two dicts goes by it."""
    if given is None or given.layout.vector:
        return None
    mine = given.order or given.layout.names
    return None if mine == standing.layout.names else mine


def _check_same(standing: Standing, given: Given) -> None:
    """Refuse to resume a session that these parameters do not fit."""
    who = f"session {standing.name or standing.id!r} at step {standing.step}"
    if standing.layout.vector != given.layout.vector:
        wanted = "one array" if standing.layout.vector else f"a dict of {', '.join(standing.layout.names[:8])}"
        raise WrongLayout(f"{who} has {wanted}; give parameters like that, or choose another name", step=standing.step)
    theirs = {t.name: t.shape for t in standing.layout.tensors}
    mine = {t.name: t.shape for t in given.layout.tensors}
    for name in sorted(theirs.keys() | mine.keys()):
        if theirs.get(name) != mine.get(name):
            raise WrongLayout(
                f"{who}: tensor {name!r} is {_shape(theirs, name)} there and {_shape(mine, name)} here; give the "
                "session's parameters, or choose another name",
                step=standing.step,
            )
    if standing.dtype != given.dtype:
        raise WrongLayout(
            f"{who} is {standing.dtype}, these parameters are {given.dtype}; give dtype={standing.dtype!r} parameters, "
            "or choose another name",
            step=standing.step,
        )


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"of shape {list(shapes[name])}" if name in shapes else "absent"


def _bytes_of(source: Source) -> memoryview:
    """Return bytes as they are, and a file mapped, so that a large one is not read twice."""
    if isinstance(source, bytes | bytearray | memoryview):
        return memoryview(source).cast("B")
    path = Path(source)
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{path} is empty; wanted what session.export() wrote")
    return memoryview(np.memmap(path, np.uint8, "r"))
