"""One client of a federation as a process of its own.

It may be killed anywhere, and is started again in the same way. It writes every answer into its diary. Now and then it is slow, or sends its reply once more.
"""

import sys
import time
from pathlib import Path

import numpy as np

import adamd
from federated.learning import Hospital

PATIENCE = adamd.Timeout(total=240)
AGAIN, SLOW = 0.2, 0.1  # of the replies: sent twice; of the tasks: late


def joined(client, name, who):
    """Join, as often as it takes: a client that has never reached its server gives up within seconds."""
    until = time.monotonic() + PATIENCE.total
    while True:
        try:
            return client.federation(name, client=who)
        except adamd.RetriesExhausted:
            if time.monotonic() > until:
                raise


def main(url, name, shard, diary):
    hospital, rng = Hospital.load(Path(shard)), np.random.default_rng()
    with adamd.connect(url, timeout=PATIENCE) as client, open(diary, "a") as out:
        for task in joined(client, name, hospital.name).rounds():
            delta = hospital.delta(task.parameters, task.round)
            if rng.random() < SLOW:
                time.sleep(rng.uniform(0, 1))
            for _ in range(1 + (rng.random() < AGAIN)):
                answer = task.reply(delta=delta, num_examples=len(hospital.images))
                print(task.round, answer.outcome, answer.counted, file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
