"""The command adamd with devices that are this CPU.

There are DEVICES of them; the first is lost after LOST_AFTER launches.
"""

import functools
import os

from adamd_service import __main__ as command
from adamd_service import serve as serving
from device.host_runtime import HostRuntime


def runtimes():
    after = os.environ.get("LOST_AFTER")
    return [
        HostRuntime(1 << 30, name=f"host {number}", lost_after=int(after) if after and number == 0 else None)
        for number in range(int(os.environ.get("DEVICES", "1")))
    ]


if __name__ == "__main__":
    serving.serve = functools.partial(serving.serve, runtimes=runtimes)
    command.main()
