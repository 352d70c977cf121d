"""Flower's clients for `bench.peers.flower`: one thread each, which adds a little to the parameters."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

import numpy as np
from flwr.client import NumPyClient, start_client

ADDED = np.float32(1e-3)


class Adding(NumPyClient):  # type: ignore[misc]  # flwr comes without types where this is checked
    """What a client is asked for; Flower's class has the rest of the methods."""

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        return [part + ADDED for part in parameters], 1, {}


def main() -> None:
    """Run until the server lets its clients go."""
    address, count = sys.argv[1], int(sys.argv[2])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    threads = [
        threading.Thread(target=start_client, kwargs={"server_address": address, "client": Adding().to_client()})
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


if __name__ == "__main__":
    main()
