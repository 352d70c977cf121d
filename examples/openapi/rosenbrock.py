"""Rosenbrock's valley by a client that nobody wrote: openapi-python-client made it from the server's own document.

pip install openapi-python-client
openapi-python-client generate --url http://127.0.0.1:8000/openapi.json --config examples/openapi/config.yml
PYTHONPATH=adamd-client python examples/openapi/rosenbrock.py
"""

import io
import os
import struct
import sys
import uuid

from adamd_client import Client
from adamd_client.api.sessions import create_session, delete_session, get_parameters, put_step
from adamd_client.models import CreateSessionJsonCreateDocument as Document
from adamd_client.types import File

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ADAMD_URL", "http://127.0.0.1:8000")
# No OpenAPI document may have Accept as a parameter, so it is said once, here: parameters come as bytes, not as text.
client = Client(base_url=url, headers={"Accept": "application/octet-stream"}, raise_on_unexpected_status=True)


def decode(answer):
    """Return the floats of a binary answer."""
    if not isinstance(answer, File):
        raise SystemExit(f"refused: {answer}")
    return struct.unpack("<2d", answer.payload.read())


def gradient(x, y):
    """Return the exact gradient."""
    t = y - x * x
    return -2 * (1 - x) - 400 * x * t, 200 * t


document = Document.from_dict({"parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.05}})
session = create_session.sync(client=client, body=document, idempotency_key=str(uuid.uuid4()))
parameters = decode(get_parameters.sync(session.id, client=client))
for step in range(1, 21):
    body = File(io.BytesIO(struct.pack("<2d", *gradient(*parameters))))
    parameters = decode(put_step.sync(session.id, step, client=client, body=body))
    print(step, *parameters)
delete_session.sync_detailed(session.id, client=client)
