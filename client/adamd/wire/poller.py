"""Chooses how gRPC waits for its sockets, before gRPC is imported: it asks only then.

From grpcio 1.80 on, gRPC's event engine waits for the sockets in threads of its own, and hands every read from one to
the next until it reaches the thread that has been waiting for the answer. Its older way, which the same core still
has, lets that thread read the socket itself. For Python, whose every message then costs a few switches between
threads less, that halves a large step's context switches; ARCHITECTURE.md has what was measured, and what was not.

In the older way a connection is looked after by whoever waits for an answer. Between two attempts nobody does, and gRPC
itself looks every 5 s only: a server that was back after 0.2 s was found after 6 to 55 s. So it is told to look often.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

NAME = "GRPC_EXPERIMENTS"  # gRPC's own switch
OLDER = "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints"
CHOICE = {
    NAME: OLDER,
    "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "100",  # as the first pause between two connections
}
FIRST, LAST = (1, 80), (1, 85)  # grpcio that takes the event engine by itself, and still has the other way


@contextmanager
def chosen() -> Iterator[bool]:
    """Surround the import of gRPC; yields whether the older way is chosen by it.

    An application's own choice stands: what it has in ``GRPC_EXPERIMENTS``, or a gRPC that it has imported before.
    The environment is afterwards what it was, so that no child inherits the choice.
    """
    if NAME in os.environ or "grpc" in sys.modules or not _knows():
        yield False
        return
    added = {name: value for name, value in CHOICE.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield True
    finally:
        for name in added:
            del os.environ[name]


def _knows() -> bool:
    """Say whether the installed grpcio is one of those; others would complain on stderr about unknown names."""
    try:
        major, minor = version("grpcio").split(".")[:2]
        return FIRST <= (int(major), int(minor)) <= LAST
    except (PackageNotFoundError, ValueError):
        return False
