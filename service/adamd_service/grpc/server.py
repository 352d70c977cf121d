"""The gRPC server: methods, limits, health, reflection, and an orderly end."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adamd.wire import channel, pieces
from adamd.wire.channel import SERVICE
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.engine import Engine
from adamd_service.grpc.calls import Guard, Single, Streaming, reading
from adamd_service.grpc.rounds import RoundMethods
from adamd_service.grpc.sessions import SessionMethods, WatchMethod
from adamd_service.grpc.steps import StepMethods
from adamd_service.grpc.transfers import TransferMethods, read_parameters, read_state
from adamd_service.telemetry import Telemetry

SPARE = 16  # calls beyond the bound that are still heard, to be refused with details


class GrpcServer:
    """Serves one engine by gRPC on the running event loop.

    Args:
        engine: what it serves.
        telemetry: counts the calls.

    """

    def __init__(self, engine: Engine, telemetry: Telemetry) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(_of_interest)
        keep_memory()
        limits = engine.limits
        self._guard = Guard(telemetry, limits.calls, limits.upload_gap, lambda: engine.draining)
        self._server = grpc.aio.server(
            options=channel.server_options(limits.streams), maximum_concurrent_rpcs=limits.calls + SPARE
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        methods = grpc.method_handlers_generic_handler(SERVICE, _methods(engine, self._guard))
        self._server.add_generic_rpc_handlers((methods,))
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen at a port, 0 for a free one; `port` tells which.

        Raises:
            OSError: it is taken, or not ours to take.

        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, str(error)) from None  # most likely: gRPC gives no errno
        await self._server.start()
        await self.serving(True)
        self.port = bound

    async def serving(self, well: bool) -> None:
        """Set the answer to health checks."""
        status = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def drain(self) -> None:
        """End the calls that only wait, and say that no new ones are wanted; the engine refuses them already."""
        await self._health.enter_graceful_shutdown()
        self._guard.wake()

    async def stop(self, grace: float) -> None:
        """Wait for the calls under way, at most ``grace`` seconds, then end them."""
        await self._server.stop(grace)
        # The calls have ended, but not quite their tasks, and gRPC would write a traceback for each that is cancelled.
        last = [task for task in asyncio.all_tasks() if task.get_name() == "rpc_task"]
        if last:
            await asyncio.wait(last, timeout=1.0)


def _methods(engine: Engine, guard: Guard) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    sessions, steps = SessionMethods(engine), StepMethods(engine, guard)
    transfers, watch, rounds = TransferMethods(engine, guard), WatchMethod(engine, guard), RoundMethods(engine, guard)

    def single(
        name: str, work: Single, read: Callable[[bytes], Any], write: Callable[[Any], bytes]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        served: Any = guard.single(name, work)
        return grpc.stream_unary_rpc_method_handler(served, reading(read), write)

    def plain(name: str, work: Single) -> grpc.RpcMethodHandler[Any, Any]:
        message: Any = getattr(pb, f"{name}Request")
        return single(name, work, message.FromString, _serialized)

    def stream(
        name: str, work: Streaming, read: Callable[[bytes], Any], write: Callable[[Any], bytes]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        served: Any = guard.streaming(name, work)
        return grpc.stream_stream_rpc_method_handler(served, reading(read), write)

    return {
        "CreateSession": plain("CreateSession", sessions.create),
        "GetSession": plain("GetSession", sessions.get),
        "ListSessions": plain("ListSessions", sessions.list),
        "UpdateSession": plain("UpdateSession", sessions.update),
        "DeleteSession": plain("DeleteSession", sessions.delete),
        "GetServerInfo": plain("GetServerInfo", sessions.info),
        "GetParameters": stream(
            "GetParameters",
            transfers.get_parameters,
            pb.GetParametersRequest.FromString,
            pieces.PARAMETERS_RESPONSE.write,
        ),
        "SetParameters": single("SetParameters", transfers.set_parameters, read_parameters, _serialized),
        "ExportState": stream(
            "ExportState", transfers.export_state, pb.ExportStateRequest.FromString, pieces.STATE_RESPONSE.write
        ),
        "RestoreSession": single("RestoreSession", transfers.restore, read_state, _serialized),
        "WatchSession": stream("WatchSession", watch.watch_session, pb.WatchSessionRequest.FromString, _serialized),
        "GetTask": plain("GetTask", rounds.get_task),
        "Contribute": single("Contribute", rounds.contribute, pieces.CONTRIBUTE_REQUEST.read, _serialized),
        "Evaluate": plain("Evaluate", rounds.evaluate),
        "GetRound": plain("GetRound", rounds.get_round),
        "ListRounds": plain("ListRounds", rounds.list_rounds),
        "CloseRound": plain("CloseRound", rounds.close_round),
        "CancelRound": plain("CancelRound", rounds.cancel_round),
        "Step": single("Step", steps.step, pieces.STEP_REQUEST.read, pieces.STEP_RESPONSE.write),
        "StepStream": stream("StepStream", steps.step_stream, pieces.STREAM_REQUEST.read, pieces.STREAM_RESPONSE.write),
    }


def _serialized(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw


def _of_interest(record: logging.LogRecord) -> bool:
    """Drop what gRPC says of clients that went away: a traceback each."""
    return "ExecuteBatchError" not in record.getMessage()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 32 * 1024 * 1024  # bytes: idle ones at the top of a heap, and the largest block that comes from a heap


def keep_memory() -> bool:
    """Tell the C library's malloc to keep what it has, within bounds; False where it is not glibc's.

    gRPC allocates each message anew. glibc maps fresh pages for blocks of that size, or trims its heaps after each, and
    the kernel clears the pages every time: a third of the server's time for a step of 40 MB each way (100 ms of CPU,
    then 65; 213,000 page faults in 20 steps, then 57,000).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
