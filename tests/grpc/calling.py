"""Calling gRPC by hand: grpcio's own channels and protobuf's own messages, so that no SDK hides what is sent."""

import json
import queue
from contextlib import contextmanager

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from adamd.errors import from_problem
from adamd.wire import channel
from adamd.wire.v1 import adamd_pb2 as pb
from servers import Server

MIB = 1 << 20
F4 = pb.DTYPE_FLOAT32


def refused(call, status, code):
    """The call ends with this status, and its details have this code; returns the error as the SDK would raise it."""
    try:
        got = call()
        if not isinstance(got, str):
            got = str(got)[:300]
    except grpc.RpcError as error:
        assert error.code() == status, (error.code(), error.details())
        info, retry = details(error)
        assert info.reason == code.upper() and info.domain == "adamd", info
        problem = json.loads(info.metadata["problem"])
        assert problem["code"] == code and problem["detail"] and problem["type"] == f"urn:adamd:problem:{code}"
        assert error.details() == problem["detail"]
        after = None if retry is None else retry.retry_delay.ToMilliseconds() / 1e3
        made = from_problem(problem, problem["status"], after)
        assert made.code == code
        return made
    raise AssertionError(f"not refused: {got}")


def details(error):
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    info, retry = ErrorInfo(), None
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry = RetryInfo()
            detail.Unpack(retry)
    return info, retry


class Caller:
    """One channel to a server; every method of the service by its name."""

    def __init__(self, server, timeout=60, options=()):
        self.timeout = timeout
        self.target = server.grpc_url.removeprefix("grpc://")
        # A subchannel of its own: else channels to one address share a connection, and its limits.
        own = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(self.target, [*channel.client_options(), *own, *options])

    def close(self):
        self.channel.close()

    def path(self, name):
        return f"/{channel.SERVICE}/{name}"

    def _types(self, name):
        return getattr(pb, f"{name}Request").SerializeToString, getattr(pb, f"{name}Response").FromString

    def __call__(self, name, timeout=None, /, **fields):
        """A unary call."""
        request, response = self._types(name)
        call = self.channel.unary_unary(self.path(name), request, response)
        return call(getattr(pb, f"{name}Request")(**fields), timeout=timeout or self.timeout)

    def received(self, name, timeout=None, /, **fields):
        """A call with a stream of answers."""
        request, response = self._types(name)
        call = self.channel.unary_stream(self.path(name), request, response)
        return call(getattr(pb, f"{name}Request")(**fields), timeout=timeout or self.timeout)

    def sent(self, name, requests, timeout=None):
        """A call with a stream of requests."""
        request, response = self._types(name)
        return self.channel.stream_unary(self.path(name), request, response)(requests, timeout=timeout or self.timeout)

    def stream(self, timeout=None):
        return Stream(self, timeout or self.timeout)

    # -- sessions

    def create(self, size=4, dtype=F4, parameters=True, durability=pb.DURABILITY_MEMORY, **fields):
        made = [pb.Tensor(name="parameters", shape=[size])]
        layout = fields.pop("layout", None) or pb.Layout(tensors=made, vector=True)
        count = sum(int(np.prod(t.shape)) for t in layout.tensors)
        kind = "<f4" if dtype == F4 else "<f8"
        inside = parameters and count * np.dtype(kind).itemsize <= channel.UNARY
        if inside:
            fields["parameters"] = np.linspace(-1, 1, count).astype(kind).tobytes()
        session = self("CreateSession", layout=layout, dtype=dtype, durability=durability, **fields).session
        if parameters and not inside:
            self.set_parameters(session.id, np.linspace(-1, 1, count).astype(kind).tobytes())
        return session.id

    def set_parameters(self, session, data, piece=MIB, **first):
        def requests():
            yield pb.SetParametersRequest(session=session, data=data[:piece], **first)
            for start in range(piece, len(data), piece):
                yield pb.SetParametersRequest(offset=start, data=data[start : start + piece])

        return self.sent("SetParameters", requests())

    def parameters(self, session, **fields):
        """(standing, bytes), the pieces checked."""
        return whole(self.received("GetParameters", session=session, **fields))

    def step(self, session, number, gradient, **header):
        timeout = header.pop("timeout", None)
        return self(
            "Step", timeout, header=pb.StepHeader(session=session, step=number, **header), gradient=raw(gradient)
        )

    def standing(self, session):
        """Everything that a refused request must not change."""
        told = self("GetSession", session=session).session
        standing, data = self.parameters(session)
        optimizer = MessageToDict(told.optimizer)
        return told.step, told.chain, standing.chain, data, told.settings_revision, optimizer


def raw(gradient):
    return gradient if isinstance(gradient, bytes) else np.ascontiguousarray(gradient).tobytes()


def whole(pieces):
    """(standing, bytes) of an answer in pieces: the first has the standing, offsets follow each other."""
    standing, data = None, bytearray()
    for piece in pieces:
        assert piece.HasField("standing") == (standing is None)
        standing = standing or piece.standing
        assert piece.offset == len(data) and (piece.data or standing.nbytes == 0)
        data += piece.data
    assert standing is not None and standing.nbytes == len(data)
    return standing, bytes(data)


class Stream:
    """One StepStream under way."""

    def __init__(self, caller, timeout):
        self._requests = queue.SimpleQueue()
        request, response = caller._types("StepStream")
        method = caller.channel.stream_stream(caller.path("StepStream"), request, response)
        self.call = method(iter(self._requests.get, None), timeout=timeout)

    def put(self, **fields):
        self._requests.put(pb.StepStreamRequest(**fields))

    def begin(self, session, number, gradient, piece=MIB, **header):
        """Send a whole step."""
        data = raw(gradient)
        head = pb.StepHeader(session=session, step=number, nbytes=header.pop("nbytes", len(data)), **header)
        self.put(header=head, data=data[:piece])
        for start in range(piece, len(data), piece):
            self.put(offset=start, data=data[start : start + piece])

    def answer(self):
        """(standing, bytes) of the next answer."""
        first = next(self.call)
        assert first.HasField("standing")
        data = bytearray(first.data)
        while len(data) < first.standing.nbytes:
            piece = next(self.call)
            assert not piece.HasField("standing") and piece.offset == len(data) and piece.data
            data += piece.data
        return first.standing, bytes(data)

    def step(self, *args, **header):
        self.begin(*args, **header)
        return self.answer()

    def end(self):
        """Half-close; whatever still comes is returned."""
        self._requests.put(None)
        return list(self.call)

    def cancel(self):
        self._requests.put(None)
        self.call.cancel()


@contextmanager
def watched(where, *options, env=None):
    """A server of a test's own; at its end it has not written a traceback, and ends cleanly."""
    one = Server(where, *options, env=env).start()
    try:
        yield one
    finally:
        status = one.stop()
    assert status == 0, one.log()
    assert "Traceback" not in one.log() and "unexpected error" not in one.log(), one.log()
