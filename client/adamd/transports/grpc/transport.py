"""Operations over gRPC, on one channel and a few kept streams. Blocking, and safe to use from many threads.

Watches have channels of their own. Each holds a stream for seconds, and a connection has 128 of them (the server's
bound): the steps of a client that watches many sessions would wait for one.

Steps travel on a StepStream, which is kept for the next step, of whatever session: a stream's step takes half the time
of a unary call's (ARCHITECTURE.md), and large vectors go in pieces anyway.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from adamd.errors import TransportError
from adamd.sansio import operations
from adamd.sansio.operations import Operation, Stepped
from adamd.sansio.retry import Timeout
from adamd.transports.cancellation import Cancellation
from adamd.transports.endpoint import Route
from adamd.transports.grpc import messages
from adamd.transports.grpc.calls import AttemptLimits, Call, interrupted, lost_a_lock
from adamd.transports.grpc.inactivity import InactivityMonitor
from adamd.transports.grpc.stream import StepStream
from adamd.transports.progress import Meter
from adamd.transports.silence import Silence
from adamd.wire import channel, pieces
from adamd.wire.v1 import adamd_pb2 as pb

WATCHES_PER_CHANNEL = 32  # on one connection
MAX_IDLE_STREAMS = 16  # idle streams kept at most; each is a call at the server


@dataclass(slots=True)
class WatchChannel:
    """A channel for watches, and the number of watches on it."""

    channel: grpc.Channel
    watches: int = 0


class GrpcTransport:
    """Brings operations to one server. Not for use on both sides of a fork: gRPC's threads do not survive one.

    Args:
        route: the server.
        timeout: ``connect`` and ``inactivity`` count here; ``total`` comes with each operation as its deadline.
        clock: monotonic seconds.
        meter: draws long transfers.
        key: sent as a bearer token.

    """

    def __init__(
        self, route: Route, timeout: Timeout, clock: Callable[[], float], meter: Meter, key: str | None
    ) -> None:
        self.url = route.url
        self._route = route
        self._timeout = timeout
        self._clock = clock
        self._meter = meter
        self._silence = Silence(route.url, clock)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._watch_channels: list[WatchChannel] = []
        self._idle: list[StepStream] = []
        self._owner = os.getpid()
        self._closed = False
        self._monitor = InactivityMonitor(timeout.inactivity, clock)

    def send(self, operation: Operation, deadline: float, stop: Cancellation) -> Any:
        """Try one operation once, and return its result.

        Raises:
            TransportError: there is no answer; ``extra["phase"]`` says how far it came.
            AdamdError: the server's refusal.

        """
        with self._silence.attempt(operation) as attempt, self._connection(operation) as opened:
            limits = AttemptLimits(
                deadline, self._timeout.inactivity, self._clock, stop, self._monitor, self._meter, attempt
            )
            try:
                return self._perform(operation, Call(opened, limits, self._metadata))
            except ValueError as error:  # gRPC's word for a channel that was closed under the call
                if self._closed:
                    raise _closed() from error
                raise
            except TransportError as error:
                raise self._route.explain(error) from error.__cause__
            except BaseException as error:
                if interrupted(error):
                    self._leave()
                if lost_a_lock(error):
                    raise KeyboardInterrupt from error
                raise

    def _leave(self) -> None:
        """Abandon the channels: Ctrl-C inside gRPC's own code may have left them in disorder.

        A thread closes them later. Closing or dropping them here could wait for ever, for a call whose end nobody
        takes; the thread harms nobody if it never ends.
        """
        with self._lock:
            channels, _ = self._take_all()
        grace = min(2 * self._timeout.inactivity, 120.0)  # for the calls of other threads
        with suppress(RuntimeError):  # the process ends
            threading.Thread(target=_close_later, args=(channels, grace), name="adamd-left", daemon=True).start()

    def _take_all(self) -> tuple[list[grpc.Channel], list[StepStream]]:
        """Take the channels and idle streams out of this transport, under its lock."""
        opened = [self._channel] if self._channel is not None else []
        channels, idle = [*opened, *(entry.channel for entry in self._watch_channels)], self._idle
        self._channel, self._watch_channels, self._idle = None, [], []
        return channels, idle

    def _perform(self, operation: Operation, call: Call) -> Any:
        match operation:
            case operations.Step():
                return self._step(operation, call)
            case operations.Create():
                return call.create(operation)
            case operations.Restore():
                return call.restore(operation)
            case operations.ReadParameters():
                return call.read_parameters(operation)
            case operations.SetParameters(ref, body):
                return call.set_parameters(ref, body)
            case operations.Export():
                return call.export(operation)
            case operations.Watch():
                return call.watch(operation)
            case operations.Contribute():
                return call.contribute(operation)
            case _:
                return call.small(operation)

    def close(self) -> None:
        """End every call and the connection; a later operation is refused."""
        with self._lock:
            self._closed = True
            channels, idle = self._take_all()
        if self._owner == os.getpid():
            for stream in idle:
                stream.cancel()
            for opened in channels:
                opened.close()
            self._monitor.close()

    @contextmanager
    def _connection(self, operation: Operation) -> Iterator[grpc.Channel]:
        """Return an operation's channel: for a watch one with room, for anything else the common one."""
        with self._lock:
            self._refuse_when_unusable()
            if not isinstance(operation, operations.WAITING):
                if self._channel is None:
                    self._channel = _channel(self._route, self._timeout)
                opened, watch_channel = self._channel, None
            else:
                roomy = (entry for entry in self._watch_channels if entry.watches < WATCHES_PER_CHANNEL)
                watch_channel = next(roomy, None)
                if watch_channel is None:
                    watch_channel = WatchChannel(_channel(self._route, self._timeout))
                    self._watch_channels.append(watch_channel)
                watch_channel.watches += 1
                opened = watch_channel.channel
        try:
            yield opened
        finally:
            if watch_channel is not None:
                with self._lock:
                    watch_channel.watches -= 1

    def _refuse_when_unusable(self) -> None:
        if self._closed:
            raise _closed()
        if self._owner != os.getpid():
            words = "gRPC does not survive a fork: connect in the child, or use the server's http:// address"
            raise TransportError(words, phase="connect", permanent=True)

    def _step(self, operation: operations.Step, call: Call) -> Stepped:
        """Take a step; a kept stream that turns out to be dead is replaced at once."""
        header, views = messages.step(operation)
        idle = self._idle_stream()
        if idle is not None:
            try:
                return self._exchange(idle, operation, header, views, call)
            except TransportError as error:
                if error.extra.get("phase") != "silent" or call.limits.stop.cancelled:
                    raise
        codecs = pieces.STREAM_REQUEST, pieces.STREAM_RESPONSE
        stream = StepStream(call.method("stream_stream", "StepStream", *codecs), self._metadata)
        return self._exchange(stream, operation, header, views, call)

    def _exchange(
        self,
        stream: StepStream,
        operation: operations.Step,
        header: pb.StepHeader,
        views: tuple[memoryview, ...],
        call: Call,
    ) -> Stepped:
        done, broken = False, False
        down = sum(view.nbytes for view in operation.into)
        try:
            with call.limits.guarded(header.nbytes, down) as handle:
                handle.begin(stream)
                answer = stream.exchange(operation, header, views, handle.sent, handle.got)
            done = True
        except BaseException as error:
            broken = interrupted(error)  # a thread of its own ends it
            raise
        finally:
            if not broken:
                self._give_back(stream, keep=done)
        return answer

    def _idle_stream(self) -> StepStream | None:
        """Return the youngest idle stream that is alive; None if there is none."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                stream = self._idle.pop()
            if stream.alive:
                return stream
            stream.cancel()

    def _give_back(self, stream: StepStream, *, keep: bool) -> None:
        with self._lock:
            if keep and not self._closed and len(self._idle) < MAX_IDLE_STREAMS:
                self._idle.append(stream)
                return
        stream.cancel()


def _close_later(channels: list[grpc.Channel], seconds: float) -> None:
    time.sleep(seconds)
    for channel_ in channels:
        channel_.close()


def _closed() -> TransportError:
    return TransportError("this client is closed; connect again", phase="connect", permanent=True)


def _channel(route: Route, timeout: Timeout) -> grpc.Channel:
    connect = min(round(timeout.connect * 1000), 1_000_000)
    options: list[tuple[str, int | str]] = [
        *channel.client_options(),
        # gRPC's own pauses between connections stay below the flow's, and each has Timeout's time.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.min_reconnect_backoff_ms", connect),
        ("grpc.enable_retries", 0),  # the flow decides
        ("grpc.use_local_subchannel_pool", 1),  # a connection of this client's own
        ("grpc.primary_user_agent", "adamd-python"),
    ]
    if route.loopback:
        options.append(("grpc.enable_http_proxy", 0))
    if route.scheme == "grpc":
        return grpc.insecure_channel(route.authority, options)
    return grpc.secure_channel(route.authority, grpc.ssl_channel_credentials(_roots()), options)


def _roots() -> bytes | None:
    """Return what SSL_CERT_FILE names, else the system's trust; None leaves it to gRPC's own list."""
    path = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path and Path(path).exists() else None
