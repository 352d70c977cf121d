"""Talking HTTP by hand: the standard library's client and raw sockets, so that no SDK hides what is sent."""

import http.client
import json
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from servers import Server

OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
SAFE_DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        def no_constant(name):
            raise AssertionError(f"{name} in JSON")

        return json.loads(self.body, parse_constant=no_constant)

    @property
    def step(self):
        return int(self.headers["Adamd-Step"])

    @property
    def chain(self):
        return self.headers["ETag"]

    def array(self, dtype="<f4"):
        assert self.headers["Content-Type"] == "application/octet-stream"
        return np.frombuffer(self.body, dtype)

    def good(self, status=200):
        assert self.status == status, (self.status, self.body[:500])
        return self

    def problem(self, status, code):
        """It is a problem document of RFC 9457 with this code; returns it."""
        assert self.status == status, (self.status, self.body[:500])
        assert self.headers["Content-Type"] == "application/problem+json"
        document = self.json
        assert document["code"] == code, document
        assert document["status"] == status
        assert document["type"] == f"urn:adamd:problem:{code}"
        assert document["title"] and document["detail"]
        assert len(self.body) < 10_000
        return document


class Talk:
    """One keep-alive connection to a server."""

    def __init__(self, server, timeout=60):
        at = urlsplit(server.url)
        self.address = at.hostname, at.port
        self.timeout = timeout
        self.connection = http.client.HTTPConnection(*self.address, timeout=timeout)

    def __call__(self, method, path, body=None, headers=None):
        if isinstance(body, dict | list):
            body, headers = json.dumps(body).encode(), {**JSON, **(headers or {})}
        self.connection.request(method, path, body, headers or {})
        response = self.connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def close(self):
        self.connection.close()

    def socket(self):
        return socket.create_connection(self.address, self.timeout)

    def raw(self, data, *, finish=True, method="GET"):
        """Send these very bytes on a connection of their own; returns the reply, None where none came."""
        with self.socket() as sock:
            try:
                sock.sendall(data)
                if finish:
                    sock.shutdown(socket.SHUT_WR)
            except (ConnectionResetError, BrokenPipeError):
                pass  # refused early: the answer is there
            return read_reply(sock, method)

    # -- sessions

    def create(self, parameters, *, headers=None, **document):
        return self("POST", "/v1/sessions", {"parameters": parameters, **document}, headers).good(201).json

    def vector(self, size, dtype="float32", **document):
        """A session of ``size`` parameters, all of them known."""
        made = self(
            "POST", "/v1/sessions", {"layout": layout(parameters=[size]), "vector": True, "dtype": dtype, **document}
        )
        made = made.good(201).json
        start = np.linspace(-1, 1, size).astype(dtype)
        self("PUT", f"/v1/sessions/{made['id']}/parameters", start.tobytes(), OCTETS).good()
        return made["id"]

    def standing(self, session):
        """Everything that a refused request must not change."""
        view = self("GET", f"/v1/sessions/{session}").good()
        parameters = self(
            "GET", f"/v1/sessions/{session}/parameters", headers={"Accept": "application/octet-stream"}
        ).good()
        told = view.json
        return view.step, view.chain, parameters.chain, parameters.body, told["settings_revision"], told["optimizer"]

    def put(self, session, number, gradient, headers=None):
        body = gradient if isinstance(gradient, bytes) else np.ascontiguousarray(gradient).tobytes()
        return self("PUT", f"/v1/sessions/{session}/steps/{number}", body, {**OCTETS, **(headers or {})})


@contextmanager
def watched(where, *options, env=None):
    """A server of a test's own; at its end it has not answered 5xx, not written a traceback, and ends cleanly."""
    one = Server(where, *options, env=env).start()
    try:
        yield one
        never_answered_5xx(one)
    finally:
        status = one.stop()
    assert status == 0, one.log()
    assert "Traceback" not in one.log()


def never_answered_5xx(server):
    """By its own count, this server has never answered with a fault of its own."""
    talk = Talk(server)
    lines = talk("GET", "/metrics").good().body.decode().splitlines()
    talk.close()
    faults = [line for line in lines if line.startswith("adamd_problems_total") and 'status="5' in line]
    assert not faults, (faults, [line for line in server.lines if "refused" in line or "rror" in line][-20:])


def layout(**shapes):
    return [{"name": name, "shape": list(shape)} for name, shape in shapes.items()]


def read_reply(sock, method="GET"):
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
        return Reply(response.status, response.headers, response.read())
    except (ConnectionResetError, http.client.RemoteDisconnected, http.client.BadStatusLine):
        return None


def safetensors(header, data=b"", *, length=None):
    """A body with this header (an object, or bytes as they are), true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def packed(tensors, metadata=None):
    """A true safetensors body: name -> (code, shape, bytes)."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = {"adamd": json.dumps(metadata)}
    for name, (code, shape, raw) in tensors.items():
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return safetensors(header, data)


def unpacked(body):
    """Name -> array, and the adamd document, of a safetensors body."""
    (length,) = struct.unpack_from("<Q", body)
    header = json.loads(body[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__", {}).get("adamd", "{}"))
    data = body[8 + length :]
    arrays = {}
    for name, item in header.items():
        start, end = item["data_offsets"]
        arrays[name] = np.frombuffer(data[start:end], SAFE_DTYPES[item["dtype"]]).reshape(item["shape"])
    return arrays, metadata
