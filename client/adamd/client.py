"""The blocking client."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from adamd import _arrays, _calls, _flow
from adamd._flow import Request, Response, Send, Timeout
from adamd._progress import meter
from adamd._route import route
from adamd._transport import Transport
from adamd.errors import InvalidRequest, SessionDeleted, SessionExists, TransportError, UnknownSession, WrongLayout
from adamd.session import OnBadGradient, Session

Durability = Literal["committed", "memory"]


def connect(
    url: str | None = None,
    *,
    timeout: Timeout | float | None = None,
    api_key: str | None = None,
    on_bad_gradient: OnBadGradient = "raise",
    progress: bool | None = None,
) -> Client:
    """Return a client of the server at ``url``. Nothing is sent before its first call.

    Args:
        url: as ``http://localhost:8000``; by default ``$ADAMD_URL``, else this machine's port 8000. HTTP_PROXY,
            HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are honoured.
        timeout: per phase and overall; a number is the overall one, in seconds.
        api_key: sent as a bearer token; by default ``$ADAMD_API_KEY``.
        on_bad_gradient: what `Session.step` does with NaN or infinity, unless a session says otherwise.
        progress: bars for transfers; None draws those over 64 MB where stderr is a terminal.

    Raises:
        InvalidRequest: no such URL or option.

    """
    if not isinstance(timeout, Timeout):
        timeout = Timeout() if timeout is None else Timeout(total=timeout)
    return Client(url, timeout, api_key, on_bad_gradient, progress)


class Client:
    """A server's sessions. Safe to use from many threads; close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        url: str | None,
        timeout: Timeout,
        api_key: str | None,
        on_bad_gradient: OnBadGradient,
        progress: bool | None,
    ) -> None:
        self._bad = _checked_choice(on_bad_gradient)
        self._timeout = timeout
        self._known = False  # the server has answered once
        way = route(url)
        key = api_key or os.environ.get("ADAMD_API_KEY")
        sent = {"User-Agent": "adamd-python"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._transport = Transport(way, timeout, time.monotonic, meter(progress), sent)
        self.url = way.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<adamd.Client {self.url}>"

    def close(self) -> None:
        """Close the connections. Sessions live on, at the server."""
        self._transport.close()

    def create(
        self,
        parameters: Any,
        lr: float | None = None,
        *,
        name: str | None = None,
        optimizer: Literal["adam", "adamw"] = "adam",
        betas: Sequence[float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        maximize: bool | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        dtype: Literal["float32", "float64"] | None = None,
        durability: Durability = "committed",
        labels: Mapping[str, str] | None = None,
        on_bad_gradient: OnBadGradient | None = None,
    ) -> Session:
        """Make a session that starts from ``parameters``. Safe against lost answers: it is made once.

        Args:
            parameters: one array, or a dict of arrays; of any shapes, in float16, bfloat16, float32 or float64.
            lr: and the other settings: as in ``torch.optim.Adam``; None is its default (1e-3).
            name: to find it again: a-z, 0-9 and -, at most 63.
            optimizer: "adamw" decouples the weight decay (0.01 by default).
            betas: decay rates of exp_avg and exp_avg_sq, each in [0, 1).
            eps: added outside the square root.
            weight_decay: 0 or more.
            amsgrad: keep the largest exp_avg_sq.
            maximize: ascend.
            groups: overrides for some tensors, as ``[{"tensors": ["b"], "lr": 0.01}]``.
            dtype: the state's; float64 where a parameter is, else float32 (narrower ones widen exactly).
            durability: "memory" stores nothing: the session ends with the server's process.
            labels: your own words, to find it in the list.
            on_bad_gradient: see `Session.step`; the client's by default.

        Raises:
            SessionExists: the name is taken; ``extra["id"]`` and ``step`` say by what.
            InvalidSettings: a setting is out of range; ``extra["path"]`` names it.
            WrongDtype, WrongLayout: see `parameters`.

        """
        given = {"name": optimizer, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        settings = _calls.settings_document(given | {"amsgrad": amsgrad, "maximize": maximize, "groups": groups})
        document = {"name": name, "optimizer": settings, "durability": durability, "labels": dict(labels or {})}
        return self._create(_arrays.parameters(parameters, dtype), document, on_bad_gradient)

    def open(self, name: str, parameters: Any = None, lr: float | None = None, **options: Any) -> Session:
        """Resume the session ``name``, or create it where there is none.

        A session that is there keeps its own settings and step; read its parameters with `Session.parameters`.

        Args:
            name: the session's.
            parameters: what it starts from if it is new; names, shapes and dtype must be those of a session that is
                there. None only resumes.
            lr: of a new session.
            **options: of a new session: as in `create`.

        Raises:
            UnknownSession: there is none, and no parameters to make it from.
            WrongLayout: there is one, of other names, shapes or dtype.

        """
        bad = options.get("on_bad_gradient")
        given = None if parameters is None else _arrays.parameters(parameters, options.get("dtype"))
        try:
            return self._attached(name, given, bad)
        except (UnknownSession, SessionDeleted):
            if given is None:
                raise
        try:
            return self.create(parameters, lr, name=name, **options)
        except SessionExists as taken:  # another client was faster
            return self._attached(str(taken.extra.get("id", name)), given, bad)

    def session(self, ref: str, *, on_bad_gradient: OnBadGradient | None = None) -> Session:
        """Return the session with this id or name, as it stands now.

        Raises:
            UnknownSession, SessionDeleted: there is none.

        """
        return self._attached(ref, None, on_bad_gradient)

    def restore(
        self,
        source: str | os.PathLike[str] | bytes | bytearray | memoryview,
        name: str | None = None,
        *,
        durability: Durability | None = None,
        labels: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        on_bad_gradient: OnBadGradient | None = None,
    ) -> Session:
        """Make a new session from an exported state: the same bits, step counts and all.

        Args:
            source: a path that `Session.export` wrote, or its bytes.
            name: the new session's; the export's own name is not taken over.
            durability: the export's by default.
            labels: the export's by default.
            settings: to change some, as ``{"lr": 1e-4}``.
            on_bad_gradient: see `Session.step`.

        Raises:
            InvalidRequest, MalformedBody, InvalidState: it is no export, or a broken one.
            SessionExists: the name is taken.

        """
        changes: dict[str, Any] = {"name": name}
        changes |= {} if durability is None else {"durability": durability}
        changes |= {} if labels is None else {"labels": dict(labels)}
        request = _calls.restore(
            _bytes_of(source), changes, _calls.settings_document(settings or {}), secrets.token_hex(16)
        )
        return self._session(_calls.standing(self._run(request)), on_bad_gradient)

    def sessions(self, page_size: int = 100) -> Iterator[dict[str, Any]]:
        """Yield every session of the server in short: id, name, step, optimizer, parameters, dtype, labels, …."""
        token: str | None = None
        while True:
            page = _calls.read_json(self._run(_calls.page(page_size, token)))
            items, token = page.get("sessions"), page.get("next_page_token")
            if not isinstance(items, list) or not isinstance(token, str | None):
                raise _calls.bad_answer("a page that is no list of sessions")
            yield from items
            if not token:
                return

    def info(self) -> dict[str, Any]:
        """Return the server's version, bounds, and what its store promises."""
        return _calls.read_json(self._run(Request("GET", "/v1/info")))

    # -- the shell of the flow

    def _run(self, request: Request) -> Response:
        """Drive one call to its end, sleeping and sending as it asks."""
        flow = _flow.call(request, self._timeout, time.monotonic, random.random, known=self._known)
        outcome: Response | TransportError | None = None
        try:
            while True:
                event = flow.send(outcome)
                if isinstance(event, Send):
                    outcome = self._send(event)
                else:
                    time.sleep(event.seconds)
                    outcome = None
        except StopIteration as end:
            response: Response = end.value
            return response

    def _send(self, event: Send) -> Response | TransportError:
        try:
            response = self._transport.send(event.request, event.deadline)
        except TransportError as error:
            return error
        self._known = True
        return response

    def _create(self, given: _arrays.Given, document: Mapping[str, Any], bad: OnBadGradient | None) -> Session:
        request = _calls.create(given, document, secrets.token_hex(16))
        return self._session(_calls.standing(self._run(request)), bad)

    def _attached(self, ref: str, given: _arrays.Given | None, bad: OnBadGradient | None) -> Session:
        standing = _calls.standing(self._run(_calls.view(ref)))
        if given is not None:
            _check_same(standing, given)
        return self._session(standing, bad)

    def _session(self, standing: _calls.Standing, bad: OnBadGradient | None) -> Session:
        return Session(self._run, standing, _checked_choice(bad or self._bad))


def _check_same(standing: _calls.Standing, given: _arrays.Given) -> None:
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


def _bytes_of(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> memoryview:
    """Return bytes as they are, and a file mapped, so that a large one is not read twice."""
    if isinstance(source, bytes | bytearray | memoryview):
        return memoryview(source).cast("B")
    path = Path(source)
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{path} is empty; wanted what session.export() wrote")
    return memoryview(np.memmap(path, np.uint8, "r"))


def _checked_choice(given: str) -> OnBadGradient:
    if given == "raise":
        return "raise"
    if given == "skip":
        return "skip"
    raise InvalidRequest(f"on_bad_gradient is {given!r}; wanted 'raise' or 'skip'")
