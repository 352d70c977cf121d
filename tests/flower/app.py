"""A Flower run as a process, with Flower's strategies or adamd's; a line is a round.

Usage: app.py JSON. The test_durable_strategies.py beside it says what may stand in it.
"""

import json
import os
import signal
import sys

import flwr.serverapp.strategy
import numpy as np
from flwr.app import ArrayRecord, MetricRecord

import adamd.flower
from adamd import fed
from adamd.federation import FederatedRun
from flower.in_process import Clients, as_server_app, start


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_contributions(count):
    """End this process by kill -9 when so many replies have been contributed."""
    contribute, left = FederatedRun.contribute, [count]

    def contribute_or_die(run, *args, **named):
        if left[0] == 0:
            die()
        left[0] -= 1
        return contribute(run, *args, **named)

    FederatedRun.contribute = contribute_or_die


def main(
    strategy,
    given,
    rounds,
    durable=None,
    aggregate=None,
    dtype="float64",
    nodes=None,
    fails=(),
    nan=(),
    poisoned=(),
    dies_in=None,
    dies_after=None,
    waits=False,
    changes=None,
    fraction_evaluate=0.0,
):
    """Run it. durable: arguments of adamd's own, or None for Flower's strategy; changes: a round whose arrays are changed."""
    as_server_app()
    if dies_after is not None:
        die_in_contributions(dies_after)
    where = flwr.serverapp.strategy if durable is None else adamd.flower
    own = dict(durable or {})
    if aggregate is not None:
        own["aggregate"] = getattr(fed, aggregate)()
    kind = getattr(where, strategy)

    class Decaying(kind):
        """As Flower's users make their own strategies: a hook that changes the clients' settings as rounds go by."""

        def configure_train(self, server_round, arrays, config, grid):
            config["lr"] = 0.5 * config["lr"] if server_round % 5 == 0 else config["lr"]
            if server_round == changes:
                arrays = ArrayRecord([arrays.to_numpy_ndarrays()[0] + 1])
            return super().configure_train(server_round, arrays, config, grid)

    config = flwr.app.ConfigRecord({"lr": 1.0})
    grid = Clients(
        nodes={int(node): count for node, count in nodes.items()} if nodes else {1: 5, 2: 40, 3: 11},
        fails=map(tuple, fails),
        nan=map(tuple, nan),
        poisoned=map(tuple, poisoned),
        before=lambda number: die() if number == dies_in else None,
    )

    def look(number, arrays):
        [values] = arrays.to_numpy_ndarrays()
        print(json.dumps({"round": number, "values": values.tolist(), "lr": config["lr"]}), flush=True)
        if waits:
            sys.stdin.readline()
        return MetricRecord({"mean": float(np.mean(values))})

    made = Decaying(fraction_evaluate=fraction_evaluate, **given, **own)
    result = made.start(grid, ArrayRecord([start(dtype)]), num_rounds=rounds, train_config=config, evaluate_fn=look)
    told = {
        "trained": {number: dict(record) for number, record in result.train_metrics_clientapp.items()},
        "evaluated": {number: dict(record) for number, record in result.evaluate_metrics_clientapp.items()},
        "asked": sorted(set(grid.asked)),
        "last": result.arrays.to_numpy_ndarrays()[0].tolist(),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
