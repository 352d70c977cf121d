"""The blocking client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self, Unpack

from adamd.drivers.blocking import Shell
from adamd.errors import AdamdError
from adamd.fed.options import FederationOptions
from adamd.federation import FederatedRun, Federation
from adamd.sansio import opening
from adamd.sansio.gradient_encoding import Encoding, EncodingOptions
from adamd.sansio.opening import Durability, Source
from adamd.sansio.retry import Timeout
from adamd.sansio.rounds import coordination, participation
from adamd.sansio.tracking import Logic, OnBadGradient, Track
from adamd.session import Session
from adamd.transports.select import transport

__all__ = ["Client", "Durability", "connect"]


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
        url: as ``http://localhost:8000`` or ``grpc://localhost:50051`` (``https://``, ``grpcs://``: TLS); by default
            ``$ADAMD_URL``, else this machine's port 8000. HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are
            honoured. A gRPC client does not survive a fork: connect in the child.
        timeout: per phase and overall; a number is the overall one, in seconds.
        api_key: sent as a bearer token, for a proxy that wants one: the server itself checks none so far, which is
            told; by default ``$ADAMD_API_KEY``.
        on_bad_gradient: what `Session.step` does with NaN or infinity, unless a session says otherwise.
        progress: bars for transfers; None draws those over 64 MB where stderr is a terminal.

    Raises:
        InvalidRequest: no such URL or option.
        ModuleNotFoundError: ``grpc://`` without ``pip install 'adamd[grpc]'``.

    """
    return Client(url, timeout, api_key, on_bad_gradient, progress)


class Client:
    """A server's sessions. Safe to use from many threads; close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        url: str | None,
        timeout: Timeout | float | None,
        api_key: str | None,
        on_bad_gradient: OnBadGradient,
        progress: bool | None,
    ) -> None:
        self._bad = opening.choice(on_bad_gradient)
        limits = Timeout.of(timeout)
        self._transport = transport(url, limits, api_key, progress)
        self._shell = Shell(self._transport, limits)
        self._longest_wait = limits.longest_wait
        self.url = self._transport.url
        self._closing: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<adamd.Client {self.url}>"

    def close(self) -> None:
        """Close the connections. Sessions live on, at the server."""
        for act in tuple(self._closing):
            act()
        self._transport.close()

    def _before_closing(self, act: Callable[[], None]) -> Callable[[], None]:
        """Have something called before the connections are closed; what is returned takes that back."""
        self._closing.append(act)
        return partial(self._closing.remove, act)

    def create(
        self,
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
        on_bad_gradient: OnBadGradient | None = None,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
        **settings: Any,
    ) -> Session:
        """Make a session that starts from ``parameters``. Safe against lost answers: it is made once.

        Args:
            parameters: one array, or a dict of arrays; of any shapes, in float16, bfloat16, float32 or float64.
            lr: and the other settings: as in ``torch.optim.Adam``; None is its default (1e-3).
            name: to find it again: letters, digits, ``.``, ``_`` and ``-``, at most 128; not ``s_…``, ``m_…``, as ids.
            optimizer: "adamw" decouples the weight decay (0.01 by default); "nadam", "radam", "adamax", "yogi",
                "adagrad", "rmsprop", "sgd", "lion", "schedule_free_adamw", "fedadam", …: see docs/protocol.md.
            betas: decay rates of exp_avg and exp_avg_sq, each in [0, 1).
            eps: added outside the square root.
            weight_decay: 0 or more.
            amsgrad: keep the largest exp_avg_sq.
            maximize: ascend.
            groups: overrides for some tensors, by names or patterns, as ``[{"tensors": ["*.bias"], "lr": 0.01}]``.
            dtype: the state's; float64 where a parameter is, or a list of numbers, else float32 (narrower ones widen).
            durability: "memory" stores nothing: the session ends with the server's process.
            labels: your own words, to find it in the list.
            on_bad_gradient: see `Session.step`; the client's by default.
            encoding: how gradients travel: "raw" in their own dtype; rounded to "float16", "bfloat16" or "int8" (with a
                scale for each 256); or only the largest, `adamd.TopK(0.01)`. `Session.encoding` changes it.
            error_feedback: what such an encoding drops goes along with the next gradient.
            answer_dtype: "float16", "bfloat16" or "float32": parameters are rounded to it on their way here. They come
                as arrays of that dtype; bfloat16, which NumPy does not have, as float32 of the same value.
            settings: others that the optimizer has, by torch's names: momentum, alpha, lr_decay, …; and what surrounds
                each update: schedule, gradient_scale, clip_norm, clip_value, ema_decay, and bounds, lower and upper: a
                number, or an array with one for each element (a dict of them, where the parameters are one).

        Raises:
            SessionExists: the name is taken; ``extra["id"]`` and ``step`` say by what.
            InvalidSettings: a setting is out of range; ``extra["path"]`` names it.
            WrongDtype, WrongLayout: see `parameters`.

        """
        own = "self", "on_bad_gradient", "settings"
        given = {option: value for option, value in locals().items() if option not in (*own, "own")}
        encoding_options = EncodingOptions.from_options(given)
        choice = self._choice(on_bad_gradient)
        return self._session(opening.create(**given, **settings, on_bad_gradient=choice), encoding_options)

    def open(self, name: str, parameters: Any = None, lr: float | None = None, **options: Any) -> Session:
        """Resume the session ``name``, or create it where there is none.

        A session that is there keeps its own settings and step; read its parameters with `Session.parameters`.

        Args:
            name: the session's.
            parameters: what it starts from if it is new; names, shapes and dtype must be those of a session that is
                there. None only resumes.
            lr: and the other settings that are given must be those of a session that is there.
            **options: as in `create`; labels of a new session only. ``on_other_settings="keep"`` lets a session that
                is there have other settings, as one has whose lr was changed on the way.

        Raises:
            UnknownSession: there is none, and no parameters to make it from.
            WrongLayout: there is one, of other names, shapes or dtype.
            InvalidSettings: there is one, with other settings than those given, or without one of this name.

        """
        bad = self._choice(options.pop("on_bad_gradient", None))
        encoding_options = EncodingOptions.from_options(options)
        return self._session(opening.open_(name, parameters, lr, options, bad), encoding_options)

    def session(
        self,
        ref: str,
        *,
        on_bad_gradient: OnBadGradient | None = None,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
    ) -> Session:
        """Return the session with this id or name, as it stands now; the options are those of `create`.

        Raises:
            UnknownSession, SessionDeleted: there is none.

        """
        encoding_options = EncodingOptions.of(encoding, error_feedback, answer_dtype)
        return self._session(opening.attach(ref, None, self._choice(on_bad_gradient)), encoding_options)

    def restore(
        self,
        source: Source,
        name: str | None = None,
        *,
        durability: Durability | None = None,
        labels: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        on_bad_gradient: OnBadGradient | None = None,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
    ) -> Session:
        """Make a new session from an exported state: the same bits, step counts and all.

        Args:
            source: a path that `Session.export` wrote, or its bytes.
            name: the new session's; the export's own name is not taken over.
            durability: the export's by default.
            labels: the export's by default.
            settings: to change some, as ``{"lr": 1e-4}``.
            on_bad_gradient: see `Session.step`.
            encoding: as in `create`.
            error_feedback: as in `create`.
            answer_dtype: as in `create`.

        Raises:
            InvalidRequest, MalformedBody, InvalidState: it is no export, or a broken one.
            SessionExists: the name is taken.

        """
        bad = self._choice(on_bad_gradient)
        encoding_options = EncodingOptions.of(encoding, error_feedback, answer_dtype)
        return self._session(opening.restore(source, name, durability, labels, settings, bad), encoding_options)

    def sessions(self, page_size: int = 100) -> Iterator[dict[str, Any]]:
        """Yield every session of the server in short: id, name, step, optimizer, parameters, dtype, labels, …."""
        token: str | None = None
        while True:
            page = self._shell.run(opening.page(page_size, token))
            yield from page.sessions
            if (token := page.token) is None:
                return

    def watch(
        self, ref: str, every: float = 0.5, *, away: Callable[[AdamdError], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield where a session stands, now and whenever it has moved, until it is deleted.

        While the server is away it is tried again, for as long as the client's time-out says; when it is back, where
        the session stands is told again.

        Args:
            ref: its id or name.
            every: seconds between two looks at least; steps in between are told together.
            away: is called once when the server stops answering; by default that is a warning.

        Yields:
            step, chain, settings, lr (the next step's, by the schedule), diverged, and the metrics that the last step
            carried, as ``{"loss": 0.31}``.

        Raises:
            UnknownSession, SessionDeleted: there is none, or no more.

        """
        since, absence = None, opening.Absence(self.url, away)
        while True:
            document = self._shell.run(opening.watch(ref, since), absence.note_failure)
            if absence.note_answer() and document is None:
                since = None
                continue
            if document is not None:
                since = document["chain"]
                yield document
            time.sleep(every)

    def federation(
        self,
        ref: str,
        *,
        client: str,
        encoding: Encoding = "raw",
        error_feedback: bool = True,
        answer_dtype: str | None = None,
        residuals: str | os.PathLike[str] | None = None,
    ) -> Federation:
        """Take part in the federation with this id or name, as one of its clients.

        Args:
            ref: its id or name.
            client: this client's name in it, the same at each start: 1 to 64 of letters, digits, ``.``, ``_``, ``-``.
            encoding: how replies travel, as in `create`; a lossy one sends what training changed.
            error_feedback: what such an encoding drops goes along with this client's next reply.
            answer_dtype: what parameters are rounded to on their way here, as in `create`.
            residuals: a file for what the encoding drops, so that a restart does not lose it; one for each client of
                each federation. By default it is kept in memory only.

        Raises:
            UnknownSession, SessionDeleted: there is none.
            NoRounds: it is a session of plain steps.
            InvalidRequest: no such name or encoding; or the file is another client's, or another federation's.

        """
        encoding_options = EncodingOptions.of(encoding, error_feedback, answer_dtype)
        logic = participation.join(ref, client, encoding_options, self._longest_wait, residuals)
        return Federation(self._shell.run, self._shell.run(logic))

    def open_federation(self, name: str, parameters: Any = None, **options: Unpack[FederationOptions]) -> FederatedRun:
        """Resume the federation ``name``, or make it where there is none.

        Args:
            name: the session's; see `create`.
            parameters: what it starts from if it is new: one array, a dict of arrays, or a torch model's
                ``state_dict()``. Names and shapes must be those of one that is there.
            **options: strategy, num_rounds, cohort, min_replies, timeout, aggregate, …: see `fed.FederationOptions`.
                Those of a federation that is there must be the same, but for ``config``; without parameters and
                options it is taken as it is.

        Raises:
            UnknownSession: there is none, and no parameters to make it from.
            InvalidSettings: there is one, with other settings; the words say which. Or a setting is out of range.
            WrongLayout: there is one, of other names, shapes or dtype.
            InvalidRequest: options are missing, or do not fit; the words have the numbers.
            NoRounds: the name is a session's of plain steps.

        """
        coordinator = self._shell.run(coordination.open_(name, parameters, options))
        return FederatedRun(self._shell.run, coordinator)

    def delete(self, ref: str) -> None:
        """End the session or federation with this id or name, whatever its step: also one that cannot be opened.

        Raises:
            UnknownSession, SessionDeleted: there is none, or no more.

        """
        self._shell.run(opening.delete(ref))

    def info(self) -> dict[str, Any]:
        """Return the server's version, bounds, and what its store promises."""
        return self._shell.run(opening.info())

    def _choice(self, on_bad_gradient: OnBadGradient | None) -> OnBadGradient:
        return opening.choice(on_bad_gradient or self._bad)

    def _session(self, logic: Logic[Track], encoding_options: EncodingOptions) -> Session:
        track = self._shell.run(logic)
        track.encoder.choose(encoding_options, track.now.dtype)
        return Session(self._shell.run, track)
