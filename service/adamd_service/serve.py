"""Runs a server: starts store, engine, HTTP and gRPC, and ends them in order."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import math
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import uvicorn

from adamd.errors import Unavailable
from adamd.wire.poller import chosen
from adamd_service import machine, ports
from adamd_service.device.choose import device_of
from adamd_service.device.cupy_runtime import found
from adamd_service.device.runtime import DeviceLost, Runtime
from adamd_service.engine import LIFE, Engine
from adamd_service.http.api.app import application
from adamd_service.http.server.connection import guarded
from adamd_service.http.server.host_and_origin_check import doors
from adamd_service.optim import warm_up
from adamd_service.settings import ServerSettings, unknown
from adamd_service.store import EmbeddedStore, RedisStore, StoreLoading, StoreRefused
from adamd_service.store.opening import HOLD_SECONDS, bulk_files
from adamd_service.telemetry import Telemetry, configure_logging

if TYPE_CHECKING:  # an extra that may be missing
    from adamd_service.grpc.server import GrpcServer

LOST = FAILED = 70  # the exit status after a GPU was lost, or a background task failed: EX_SOFTWARE
PRESENCE_SECONDS = 10.0  # between two signs of life of a replica (each lasts three times as long)
QUIET_SECONDS = 3.0  # that a person waits without a word
LOOK_SECONDS = 1.0  # between two looks at the file descriptors
REMIND_SECONDS = 60.0  # between two log lines that they are used up
log = structlog.get_logger()


class UvicornServer(uvicorn.Server):
    """uvicorn, which makes the engine refuse new work at the first SIGTERM."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self.ending = asyncio.Event()
        self.failed = False
        self._at_a_terminal = _has_terminal()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM without raising them again at the end: engine and store still have to close."""
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else nohup has said that it does not matter
            signals.append(signal.SIGHUP)
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _hung_up(self) -> None:
        """End in order where the terminal was closed; to a daemon SIGHUP means to read its settings again."""
        if self._at_a_terminal and not _has_terminal():
            self.handle_exit(signal.SIGHUP, None)
        else:
            log.info("SIGHUP: there is nothing to read again; SIGTERM ends this server")

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task. If it fails, that is logged, and the server ends in order."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        self.failed = True
        log.critical("a background task failed; the server ends", exc_info=task.exception())
        self.handle_exit(signal.SIGTERM, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new work with 503 at once; uvicorn then waits for what runs."""
        self._engine.draining = True
        self.ending.set()
        super().handle_exit(sig, frame)


def serve(
    settings: ServerSettings,
    say: Callable[[str], None],
    runtimes: Callable[[], Sequence[Runtime]] = found,
) -> None:
    """Serve until SIGTERM or SIGINT. ``say`` gets the lines for a person; the last one is the ready line. ``runtimes``
    finds the GPUs.

    Raises:
        DeviceRefused: the device that the settings ask for cannot be had.

    """
    configure_logging(settings.log_level)
    descriptors = machine.raise_descriptors()
    for line in unknown(os.environ):
        say(line)
    ports.check(settings.host, settings.port, None if settings.grpc_port == "off" else settings.grpc_port)
    warm_up((np.dtype(np.float32), np.dtype(np.float64)), patiently(say))
    gc.freeze()  # half a million objects of the compiler's: looking through them took a fifth of a small step's time
    device = device_of(settings.device, settings.device_bytes, _end_with, say, runtimes)
    with store_of(settings, say) as store:
        replica = secrets.token_hex(6)
        _try_writing(store, replica, say)
        engine = Engine(store, settings.limits(), replica, device)
        uvicorn_loop(settings, engine, say, descriptors)


def patiently(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Callable[[float], None]:
    """Return a function that reports the kernels' progress, but only if they take long because they are compiled."""
    last_line_at = started = clock()

    def progress(share: float) -> None:
        nonlocal last_line_at
        now = clock()
        if now - last_line_at < QUIET_SECONDS or share == 1:
            return
        why = (
            " (the first start on a machine compiles them, in half a minute; later ones read them from a cache)"
            if last_line_at == started
            else ""
        )
        last_line_at = now
        say(f"preparing the kernels{why}: {share:.0%}")

    return progress


def _end_with(error: DeviceLost) -> None:
    """End the process at once: every later call of CUDA would fail too. What was committed is in the store, and another
    replica, or this one started again, goes on from there.
    """
    log.critical("the GPU is lost; this process ends, so that another one goes on", reason=str(error))
    sys.stderr.flush()
    os._exit(LOST)


@contextmanager
def store_of(settings: ServerSettings, say: Callable[[str], None]) -> Iterator[RedisStore]:
    """Connect to the store that the settings name, or start the private one."""
    embedded, url = None, _url(settings)
    if url is None:
        embedded = EmbeddedStore(settings.data_dir, fsync=settings.fsync, memory=settings.store_bytes)
        say(f"starting the private store in {settings.data_dir}")
        embedded.start()
        url = embedded.url
    try:
        store = _connected(settings, url, embedded, say)
        with _bulk(settings, store):
            yield store
        store.close()
    finally:
        if embedded is not None:
            embedded.stop()


def _bulk(settings: ServerSettings, store: RedisStore) -> AbstractContextManager[object]:
    """Open the bulk directory: to write there, or for what is there already.

    Beside a store that replicas share there is one only where it is named.
    """
    written, private, data_dir = settings.bulk_in_files, settings.store_is_private, settings.data_dir.expanduser()
    path = data_dir / "bulk" if settings.bulk_dir is None else settings.bulk_dir.expanduser().absolute()
    wanted = written or (store.bulk.notes.identity() is not None if private else settings.bulk_dir is not None)
    if not wanted:
        return nullcontext()
    # With everysec the private store's own sync flushes the device: what was written past the page cache goes along.
    synced = not private or settings.fsync == "always" or _device_of(path) != _device_of(data_dir / "store")
    return bulk_files(
        path,
        store,
        synced=synced,
        written=written,
        spare=settings.bulk_spare_bytes,
        shared=not private,
        server=f"{socket.gethostname()}:{settings.port}",
        hold=0.0 if private and settings.fsync == "always" else HOLD_SECONDS,
        option="--data-dir" if settings.bulk_dir is None else "--bulk-dir",
        allow_lost=settings.allow_lost_vectors,
    )


def _device_of(path: Path) -> int:
    """Return the device of a directory, or of what it will be made in."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return there.stat().st_dev


def _url(settings: ServerSettings) -> str | None:
    """Return the URL of the store that the settings name; None where they name none."""
    if settings.redis_url_file is None:
        return None if settings.redis_url is None else settings.redis_url.get_secret_value()
    if settings.redis_url is not None:
        raise StoreRefused("--redis-url and --redis-url-file (or their variables) both name a store; give one of them")
    try:
        return settings.redis_url_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StoreRefused(f"--redis-url-file: cannot read {settings.redis_url_file}: {why}") from None


def _connected(
    settings: ServerSettings, url: str, embedded: EmbeddedStore | None, say: Callable[[str], None]
) -> RedisStore:
    """Return the store once it has said what it keeps; wait while it loads its data."""
    last_line_at = -QUIET_SECONDS
    store = RedisStore.connect(url, timeout=settings.store_timeout, max_connections=2 * settings.threads)
    store.most_sessions = settings.max_sessions
    if embedded is not None:
        store.belongs_to(embedded)
    while True:
        try:
            store.check(allow_lossy=settings.allow_lossy_store, trusted=settings.store_trusted)
            return store
        except StoreLoading as loading:
            if time.monotonic() - last_line_at >= QUIET_SECONDS:
                last_line_at = time.monotonic()
                say(str(loading))
            time.sleep(0.1)


def _try_writing(store: RedisStore, replica: str, say: Callable[[str], None]) -> None:
    """Write once before the server is ready. Without permission to write it does not start. With a full store it does:
    deleting sessions is what helps.

    Raises:
        StoreRefused: the store's user may not do what adamd does.

    """
    try:
        store.try_writing(replica, LIFE)
    except Unavailable as error:
        say(f"the store takes no writes now, so /readyz is 503 until it does: {error}")


def uvicorn_loop(settings: ServerSettings, engine: Engine, say: Callable[[str], None], descriptors: int) -> None:
    """Run uvicorn on uvloop and httptools until it is told to stop, then close the engine."""
    telemetry = Telemetry(engine)
    config = uvicorn.Config(
        application(
            engine,
            telemetry,
            doors(settings.host, settings.allowed_host, settings.cors_origin),
            settings.root_path,
        ),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=guarded(settings.upload_gap, machine.connections(descriptors)),
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
        backlog=ports.BACKLOG,
    )
    server = UvicornServer(config, engine)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_run(server, engine, telemetry, settings, say))


async def _run(
    server: UvicornServer, engine: Engine, telemetry: Telemetry, settings: ServerSettings, say: Callable[[str], None]
) -> None:
    listening = ports.listen(settings.host, settings.port, "HTTP")
    bound, port = listening.getsockname()[:2]
    host, everywhere = _openable(settings.host, bound)
    addresses = [f"http://{host}:{port}"]
    grpc_server = await _grpc(engine, telemetry, settings, say)
    if grpc_server is not None:
        addresses.append(f"grpc://{host}:{grpc_server.port}")
    beat = server.begin(_presence(engine, grpc_server))
    ready = server.begin(_announce(server, f"{' and '.join(addresses)}{everywhere}", engine, say))
    look = server.begin(_descriptors(engine))
    end = server.begin(_end(server, grpc_server, settings.shutdown_grace))
    try:
        await server.serve(sockets=[listening])
    finally:
        server.ending.set()
        await asyncio.wait([end])  # its failure is told already, and engine and store still have to close
        for task in (beat, ready, look):
            task.cancel()
        await asyncio.gather(beat, ready, look, return_exceptions=True)
        await engine.close()
    if server.failed:
        raise SystemExit(FAILED)


async def _grpc(
    engine: Engine, telemetry: Telemetry, settings: ServerSettings, say: Callable[[str], None]
) -> GrpcServer | None:
    """Start gRPC beside HTTP; None where it is off, or not installed and not asked for."""
    if settings.grpc_port == "off":
        return None
    try:
        with chosen():
            from adamd_service.grpc.server import GrpcServer
    except ModuleNotFoundError as error:
        missing = f"{error.name} is missing: pip install 'adamd[service]'"
        if "grpc_port" in settings.model_fields_set:
            raise SystemExit(f"adamd: no gRPC: {missing}") from None
        say(f"serving HTTP only: {missing}")
        return None
    grpc_server = GrpcServer(engine, telemetry)
    try:
        await grpc_server.start(settings.host, settings.grpc_port)
    except OSError as error:
        raise ports.refusal(settings.host, settings.grpc_port, "gRPC", error) from None
    return grpc_server


async def _end(server: UvicornServer, grpc_server: GrpcServer | None, grace: float) -> None:
    """End gRPC when uvicorn begins to end."""
    await server.ending.wait()
    if grpc_server is None:
        return
    await grpc_server.drain()
    await grpc_server.stop(grace)


def _openable(host: str, bound: str) -> tuple[str, str]:
    """Return the host of a URL that can be opened here, and what to say beside it where others reach it elsewhere."""
    address, note = ipaddress.ip_address(bound), ""
    if address.is_unspecified:
        host, note = ("::1" if address.version == 6 else "127.0.0.1"), ", also for other machines"
    return (f"[{host}]" if ":" in host else host), note


def _has_terminal() -> bool:
    """Say whether a terminal can still send this process signals."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _announce(server: UvicornServer, addresses: str, engine: Engine, say: Callable[[str], None]) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.01)
    say(f"adamd is ready at {addresses} — updates run on {engine.device.described} — {engine.store.promise}")


async def _descriptors(engine: Engine) -> None:
    """Log when file descriptors are used up: libraries then close new connections and say nothing."""
    last_logged_at = -math.inf
    while True:
        free, now = machine.descriptor_is_free(), time.monotonic()
        if not free and now - last_logged_at > REMIND_SECONDS:
            last_logged_at = now
            log.error("file descriptors are used up, new connections are refused; raise their limit (ulimit -n)")
        elif free and engine.out_of_descriptors:
            last_logged_at = -math.inf
            log.info("there are file descriptors again")
        engine.out_of_descriptors = not free
        await asyncio.sleep(LOOK_SECONDS)


async def _presence(engine: Engine, grpc_server: GrpcServer | None) -> None:
    """Tell the other replicas that this one lives, so that they answer 421 for its memory sessions and not 404. Check
    what the store promises, and log a change.
    """
    promise = engine.store.promise
    while True:
        well = True
        try:
            await engine.keep_house()
        except Exception as error:  # the store is away; the next sign of life will say so again
            log.warning("no sign of life to the store", reason=str(error))
            well = False
        if engine.store.promise != promise:
            promise = engine.store.promise
            log.warning("what the store promises has changed", promise=promise)
        if grpc_server is not None:
            await grpc_server.serving(well)
        await asyncio.sleep(PRESENCE_SECONDS)
