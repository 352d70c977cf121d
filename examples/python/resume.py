"""A run that resumes after a kill, logs its loss, and stops by a rule.

python examples/python/resume.py http://127.0.0.1:8000 run-7
"""

import sys

import numpy as np

import adamd

url, name = sys.argv[1:3]


def loss_and_gradient(parameters):
    """Return Rosenbrock's function and its exact gradient."""
    x, y = parameters
    a, t = 1 - x, y - x * x
    return float(a * a + 100 * (t * t)), np.array([-2 * a - 400 * x * t, 200 * t])


with adamd.connect(url) as client:
    # Creates the session, or resumes the one of this name.
    session = client.open(name, np.array([-1.2, 1.0]), lr=0.3, stop={"target_loss": 0.1, "max_steps": 1000})
    parameters = session.parameters()
    while session.stop is None:
        loss, gradient = loss_and_gradient(parameters)
        parameters = session.step(gradient, loss=loss)
        print(session.step_number, repr(loss), *(repr(float(value)) for value in parameters), flush=True)
    print("stop", session.stop)
