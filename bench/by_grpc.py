"""Small steps over gRPC by grpcio and protobuf's own messages: unary calls beside one stream, in lockstep and ahead.

Each in the form in which grpcio is fastest at it. A unary call is that by the blocking API, which waits in the calling
thread; a stream by asyncio's, because the blocking one hands every message through two threads more. Both are told.
"""

from __future__ import annotations

import asyncio
import time
from queue import SimpleQueue
from typing import Any

import numpy as np

from adamd.wire import channel
from adamd.wire.poller import chosen
from adamd.wire.v1 import adamd_pb2 as pb
from bench.clock import Floats, timed
from bench.processes import Service

with chosen():  # as the SDK does, which comes later here
    import grpc

AHEAD = 20  # steps that a pipelining client has sent before it takes the first answer


class _Session:
    """A `memory` session over a channel of its own."""

    tolerance = 0.0

    def __init__(self, name: str, service: Service, parameters: Floats, gradient: Floats) -> None:
        self.name = name
        own = ("grpc.use_local_subchannel_pool", 1)  # else all of them would share one connection
        self.channel = grpc.insecure_channel(service.grpc, [*channel.client_options(), own])
        vector = pb.Layout(tensors=[pb.Tensor(name="vector", shape=[len(parameters)])], vector=True)
        created = self.unary("CreateSession")(
            pb.CreateSessionRequest(
                layout=vector,
                dtype=pb.DTYPE_FLOAT32,
                durability=pb.DURABILITY_MEMORY,
                parameters=parameters.tobytes(),
            )
        )
        self.session: str = created.session.id
        self.gradient = gradient
        self.answer: Floats = parameters
        self.number = 0

    def unary(self, method: str) -> Any:
        request, response = getattr(pb, f"{method}Request"), getattr(pb, f"{method}Response")
        return self.channel.unary_unary(f"/{channel.SERVICE}/{method}", request.SerializeToString, response.FromString)

    def header(self, nbytes: int = 0) -> pb.StepHeader:
        self.number += 1
        return pb.StepHeader(session=self.session, step=self.number, nbytes=nbytes)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self.unary("DeleteSession")(pb.DeleteSessionRequest(session=self.session))
        self.channel.close()


class Unary(_Session):
    """A call for each step."""

    def __init__(self, name: str, service: Service, parameters: Floats, gradient: Floats) -> None:
        super().__init__(name, service, parameters, gradient)
        self._call = self.unary("Step")

    @timed
    def step(self) -> None:
        told = self._call(pb.StepRequest(header=self.header(), gradient=self.gradient.tobytes()))
        self.answer = np.frombuffer(told.parameters, np.float32)


class Lockstep(_Session):
    """One stream: a step, its answer, the next step; by asyncio, whose loop's own start and end are not timed."""

    def __init__(self, name: str, service: Service, parameters: Floats, gradient: Floats) -> None:
        super().__init__(name, service, parameters, gradient)
        self._loop = asyncio.new_event_loop()
        self._stream, self._call = self._loop.run_until_complete(self._opened(service))

    async def _opened(self, service: Service) -> tuple[Any, Any]:
        own = ("grpc.use_local_subchannel_pool", 1)
        opened = grpc.aio.insecure_channel(service.grpc, [*channel.client_options(), own])
        method: Any = opened.stream_stream(
            f"/{channel.SERVICE}/StepStream",
            pb.StepStreamRequest.SerializeToString,
            pb.StepStreamResponse.FromString,
        )
        return opened, method()

    def step(self) -> float:
        return self._loop.run_until_complete(self._step())

    async def _step(self) -> float:
        started = time.perf_counter()
        data = self.gradient.tobytes()
        await self._call.write(pb.StepStreamRequest(header=self.header(len(data)), data=data))
        first = await self._call.read()
        data = first.data
        while len(data) < first.standing.nbytes:
            data += (await self._call.read()).data
        self.answer = np.frombuffer(data, np.float32)
        return time.perf_counter() - started

    async def _ended(self) -> None:
        await self._call.done_writing()
        if await self._call.read() is not grpc.aio.EOF:
            raise SystemExit(f"{self.name}: an answer too many")
        await self._stream.close()

    def close(self) -> None:
        self._loop.run_until_complete(self._ended())
        self._loop.close()
        super().close()


class Blocking(_Session):
    """The same by the blocking API."""

    def __init__(self, name: str, service: Service, parameters: Floats, gradient: Floats) -> None:
        super().__init__(name, service, parameters, gradient)
        self._requests: SimpleQueue[pb.StepStreamRequest | None] = SimpleQueue()
        method = self.channel.stream_stream(
            f"/{channel.SERVICE}/StepStream",
            pb.StepStreamRequest.SerializeToString,
            pb.StepStreamResponse.FromString,
        )
        self._call = method(iter(self._requests.get, None))

    @timed
    def step(self) -> None:
        self.send()
        self.take()

    def send(self) -> None:
        data = self.gradient.tobytes()
        self._requests.put(pb.StepStreamRequest(header=self.header(len(data)), data=data))

    def take(self) -> None:
        first = next(self._call)
        data = first.data
        while len(data) < first.standing.nbytes:
            data += next(self._call).data
        self.answer = np.frombuffer(data, np.float32)

    def close(self) -> None:
        self._requests.put(None)
        for _ in self._call:
            raise SystemExit(f"{self.name}: an answer too many")
        super().close()


class Pipelined(Blocking):
    """One stream, some steps ahead: what a client does whose gradients do not wait for the last answer."""

    def step(self) -> float:
        return self._ahead() / AHEAD

    @timed
    def _ahead(self) -> None:
        for _ in range(AHEAD):
            self.send()
        for _ in range(AHEAD):
            self.take()
