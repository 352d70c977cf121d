"""The coordinator of a federation as a process of its own.

It opens the run by its name, and prints each closed round.
"""

import sys

import adamd
from federated.learning import open_run
from federated.whole_run import OPTIONS


def main(url, name):
    with adamd.connect(url, timeout=240) as client:
        for done in open_run(client, name, **OPTIONS).follow(after=0, every=0.1):
            print(done.round, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
