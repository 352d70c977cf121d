"""The command adamd, killed at a chosen place.

DIES_AT is written, named, collecting or unlinking; DIES_AFTER says how often it passes there before. STORE_PID dies
(kill -9) as well, or alone where SPARED is set: then this process goes on. With STANDS_STILL nobody dies: once there is
a file of that name, the process stops itself there (SIGSTOP) until SIGCONT.
"""

import os
import signal

from adamd_service import __main__ as command
from adamd_service.store import RedisStore, chunks, garbage
from adamd_service.store.snapshots import StoredSnapshots

left = [int(os.environ.get("DIES_AFTER", "0"))]


def strike(at):
    if os.environ["DIES_AT"] != at or left[0] < 0:
        return
    if "STANDS_STILL" in os.environ and not os.path.exists(os.environ["STANDS_STILL"]):
        return
    left[0] -= 1
    if left[0] >= 0:
        return
    if "STANDS_STILL" in os.environ:
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    if "STORE_PID" in os.environ:
        os.kill(int(os.environ["STORE_PID"]), signal.SIGKILL)
    if "SPARED" not in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, at):
    real = getattr(owner, name)

    def method(*args, **more):
        strike(at)
        return real(*args, **more)

    setattr(owner, name, method)


write_array = chunks.write_array


def written(client, key_of, name, data, pace, *more):
    def paced(nbytes):
        if pace is not None:  # a snapshot in the background, not the one that a session begins with
            strike("written")
            pace(nbytes)

    return write_array(client, key_of, name, data, paced, *more)


if __name__ == "__main__":
    chunks.write_array = written
    before(StoredSnapshots, "commit", "named")
    before(RedisStore, "collect", "collecting")
    before(garbage, "_unlinked", "unlinking")
    command.main()
