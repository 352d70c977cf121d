"""Rosenbrock's valley by the Python SDK: what all the others are compared with."""

import os
import sys

import numpy as np

import adamd

url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ADAMD_URL", "http://127.0.0.1:8000")


def gradient(parameters):
    """Return the exact gradient."""
    x, y = parameters
    t = y - x * x
    return np.array([-2 * (1 - x) - 400 * x * t, 200 * t])


with adamd.connect(url) as client:
    session = client.create(np.array([-1.2, 1.0]), lr=0.05)
    parameters = session.parameters()
    for step in range(1, 21):
        parameters = session.step(gradient(parameters))
        print(step, *(repr(float(value)) for value in parameters))
    session.delete()
