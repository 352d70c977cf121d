"""Rosenbrock's valley with Python's standard library alone, written from docs/protocol.md: a client in an afternoon.

It resumes: python examples/python/plain.py URL NAME goes on where the last run with this name ended.
"""

import http.client
import json
import os
import random
import struct
import sys
import time
import uuid
from urllib.parse import urlsplit

OCTETS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
TOTAL = 60.0  # seconds for one call, with all of its attempts


class Refused(Exception):
    """A problem document: `code` decides."""

    def __init__(self, problem):
        super().__init__(f"{problem['code']}: {problem['detail']}")
        self.code = problem["code"]


class Server:
    """One connection, made again when it breaks; and the rules of section 6."""

    def __init__(self, url):
        at = urlsplit(url)
        self.connection = http.client.HTTPConnection(at.hostname, at.port or 80, timeout=30)

    def call(self, method, path, body=None, **headers):
        """Return headers and body of a good answer."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        started, failures = time.monotonic(), 0
        while True:
            problem = {"code": "no_answer", "detail": f"{method} {path} got none"}
            wait = 0.0
            try:
                self.connection.request(method, path, body, sent)
                answer = self.connection.getresponse()
                content = answer.read()
                if answer.status < 300:
                    return answer.headers, content
                problem = json.loads(content)
                wait = float(answer.headers.get("Retry-After", 0))
                if answer.status not in (408, 429, 503):
                    raise Refused(problem)
            except (OSError, http.client.HTTPException):
                self.connection.close()
            wait += random.uniform(0, min(5.0, 0.1 * 2**failures))  # noqa: S311 - jitter, no secret
            failures += 1
            if time.monotonic() + wait - started > TOTAL:
                raise Refused(problem)
            time.sleep(wait)


def gradient(x, y):
    """Return the exact gradient."""
    t = y - x * x
    return -2 * (1 - x) - 400 * x * t, 200 * t


url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ADAMD_URL", "http://127.0.0.1:8000")
name = sys.argv[2] if len(sys.argv) > 2 else f"rosenbrock-plain-{uuid.uuid4()}"
server = Server(url)
session = f"/v1/sessions/{name}"
start = {"name": name, "parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.05}}
try:
    key = str(uuid.uuid4())
    server.call("POST", "/v1/sessions", json.dumps(start), Content_Type="application/json", Idempotency_Key=key)
except Refused as error:
    if error.code != "session_exists":
        raise
told, content = server.call("GET", f"{session}/parameters", **OCTETS)
while int(told["Adamd-Step"]) < 20:
    step = int(told["Adamd-Step"]) + 1
    body = struct.pack("<2d", *gradient(*struct.unpack("<2d", content)))
    told, content = server.call("PUT", f"{session}/steps/{step}", body, If_Match=told["ETag"], **OCTETS)
    print(told["Adamd-Step"], *struct.unpack("<2d", content), flush=True)
server.call("DELETE", session)
