"""Services as contenders: sessions of adamd, bare and by the SDK, and the naive service."""

from __future__ import annotations

import http.client
import json
import secrets
from typing import Any, Literal

import numpy as np

import adamd
from bench.clock import Floats, timed
from bench.processes import Service

OCTETS = "application/octet-stream"
Durability = Literal["committed", "memory"]


class Bare:
    """A client with nothing that could be slow: http.client, one sendall, readinto one buffer."""

    def __init__(self, service: Service) -> None:
        self._connection = http.client.HTTPConnection(service.host, service.port, timeout=120)

    def exchange(self, method: str, path: str, body: memoryview, into: memoryview) -> http.client.HTTPResponse:
        """Send ``body``, fill ``into`` with the answer."""
        connection = self._connection
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("Content-Type", OCTETS)
        connection.putheader("Content-Length", str(body.nbytes))
        connection.endheaders()
        connection.sock.sendall(body)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{method} {path}: {response.status} {response.read(500)!r}")
        while into:
            count = response.readinto(into)
            if not count:
                raise SystemExit(f"{method} {path}: the answer is {into.nbytes} bytes short")
            into = into[count:]
        response.read()
        return response

    def json(self, method: str, path: str, document: Any = None) -> Any:
        """Make a small request."""
        body = None if document is None else json.dumps(document)
        self._connection.request(method, path, body, {} if body is None else {"Content-Type": "application/json"})
        return self._answer(method, path)

    def raw(self, method: str, path: str, body: Floats) -> Any:
        """Send a flat vector."""
        self._connection.request(method, path, memoryview(body).cast("B"), {"Content-Type": OCTETS})
        return self._answer(method, path)

    def contribute(self, path: str, body: memoryview, kind: str, num_examples: float) -> Any:
        """Send a contribution to a round."""
        headers = {"Content-Type": OCTETS, "Adamd-Kind": kind, "Adamd-Num-Examples": f"{num_examples:g}"}
        self._connection.request("PUT", path, body, headers)
        return self._answer("PUT", path)

    def parameters(self, path: str, into: Floats, query: str = "") -> Floats:
        """Fill ``into`` with a session's parameters."""
        self._connection.request("GET", f"{path}/parameters{query}", headers={"Accept": OCTETS})
        response = self._connection.getresponse()
        view, done = memoryview(into).cast("B"), 0
        while done < view.nbytes and (count := response.readinto(view[done:])):
            done += count
        if response.status != 200 or done < view.nbytes or response.read():
            raise SystemExit(f"GET {path}/parameters: {response.status}, {done} bytes of {view.nbytes}")
        return into

    def _answer(self, method: str, path: str) -> Any:
        response = self._connection.getresponse()
        raw = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {raw[:500]!r}")
        return json.loads(raw) if raw else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Session:
    """A session of adamd, by the bare client."""

    tolerance = 0.0

    def __init__(
        self, name: str, service: Service, durability: Durability, parameters: Floats, gradient: Floats
    ) -> None:
        self.name = name
        self._bare = Bare(service)
        layout = [{"name": "vector", "shape": [len(parameters)]}]
        asked = {"layout": layout, "dtype": "float32", "durability": durability, "optimizer": {"name": "adam"}}
        self._path = f"/v1/sessions/{self._bare.json('POST', '/v1/sessions', asked)['id']}"
        self._bare.raw("PUT", f"{self._path}/parameters", parameters)
        self._up = memoryview(gradient).cast("B")
        self.answer = np.empty_like(parameters)
        self._down = memoryview(self.answer).cast("B")
        self.number = 0

    @timed
    def step(self) -> None:
        self.number += 1
        self._bare.exchange("PUT", f"{self._path}/steps/{self.number}", self._up, self._down)

    def settle(self) -> None:
        pass

    def snapshot_step(self) -> int:
        """Return the step of the newest snapshot."""
        found: int | None = self._bare.json("GET", self._path)["snapshot_step"]
        return found or 0

    def close(self) -> None:
        self._bare.json("DELETE", self._path)
        self._bare.close()


class BySdk:
    """A session of adamd, by its own SDK."""

    tolerance = 0.0

    def __init__(self, name: str, url: str, durability: Durability, parameters: Floats, gradient: Floats) -> None:
        self.name = name
        self._client = adamd.connect(url, progress=False)
        self._session = self._client.create(parameters, lr=1e-3, durability=durability)
        self._gradient = gradient
        self.answer = np.empty_like(parameters)

    @timed
    def step(self) -> None:
        self._session.step(self._gradient, out=self.answer)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._session.delete()
        self._client.close()


class Naive:
    """The naive service, by the bare client."""

    tolerance = 1e-6

    def __init__(self, name: str, service: Service, parameters: Floats, gradient: Floats) -> None:
        self.name = name
        self._bare = Bare(service)
        self._path = f"/{secrets.token_hex(4)}"
        self._bare.raw("PUT", self._path, parameters)
        self._up = memoryview(gradient).cast("B")
        self.answer = np.empty_like(parameters)
        self._down = memoryview(self.answer).cast("B")

    @timed
    def step(self) -> None:
        self._bare.exchange("POST", f"{self._path}/step", self._up, self._down)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._bare.json("DELETE", self._path)
        self._bare.close()
