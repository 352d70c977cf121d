"""A client for `bench.versions`: steps a session as it is told, and answers with the seconds of each step.

It runs on the SDK of whichever checkout its PYTHONPATH names, so it uses nothing that an older one may lack.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import adamd


def main(url: str, size: int, durability: str) -> None:
    """Make a session, and serve the turns that come on stdin until it ends."""
    gradient = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    out = np.empty_like(gradient)
    with adamd.connect(url) as client:
        session = client.create(np.zeros(size, np.float32), lr=1e-3, durability=durability)  # type: ignore[arg-type]  # a word from argv
        print(json.dumps(adamd.__file__), flush=True)
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                began = time.perf_counter()
                session.step(gradient, out=out)
                seconds.append(time.perf_counter() - began)
            print(json.dumps(seconds), flush=True)
        session.delete()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
