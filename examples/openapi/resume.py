"""A run that survives, by the generated client of rosenbrock.py: killed and started again, it goes on where it was.

PYTHONPATH=adamd-client python examples/openapi/resume.py http://127.0.0.1:8000 run-7
"""

import io
import json
import random
import struct
import sys
import time
import uuid

import httpx
from adamd_client import Client
from adamd_client.api.sessions import create_session, get_parameters, put_step
from adamd_client.models import CreateSessionJsonCreateDocument as Document
from adamd_client.types import File

url, name = sys.argv[1:3]
client = Client(base_url=url, headers={"Accept": "application/octet-stream"})


def call(attempt, fine=(200, 201)):
    """Return an answer; what got none, 408, 429 or 503 is sent again for a minute, for a step has a number."""
    until = time.monotonic() + 60
    while True:
        try:
            answer = attempt()
            if answer.status_code in fine:
                return answer
            if answer.status_code not in (408, 429, 503) or time.monotonic() > until:
                raise SystemExit(f"refused: {answer.content.decode()}")
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret


def loss_and_gradient(x, y):
    """Return Rosenbrock's function and its exact gradient."""
    a, t = 1 - x, y - x * x
    return a * a + 100 * (t * t), (-2 * a - 400 * x * t, 200 * t)


rules = {"target_loss": 0.1, "max_steps": 1000}
optimizer = {"name": "adam", "lr": 0.3, "stop": rules}
document = Document.from_dict({"name": name, "parameters": [-1.2, 1.0], "optimizer": optimizer})
key = str(uuid.uuid4())
# A 409 session_exists: this run has begun already.
call(lambda: create_session.sync_detailed(client=client, body=document, idempotency_key=key), fine=(201, 409))

answer = call(lambda: get_parameters.sync_detailed(name, client=client))
while "Adamd-Stop" not in answer.headers:
    loss, gradient = loss_and_gradient(*struct.unpack("<2d", answer.content))
    step, chain = int(answer.headers["Adamd-Step"]) + 1, answer.headers["ETag"]
    told = {"if_match": chain, "adamd_metrics": json.dumps({"loss": loss})}
    body = struct.pack("<2d", *gradient)
    # The lambda is called at once, so the loop's variables are still its own.
    answer = call(lambda: put_step.sync_detailed(name, step, client=client, body=File(io.BytesIO(body)), **told))  # noqa: B023 - called at once
    print(step, repr(loss), *struct.unpack("<2d", answer.content), flush=True)
print("stop", answer.headers["Adamd-Stop"])
