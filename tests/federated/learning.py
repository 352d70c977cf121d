"""Federated learning of handwritten digits, small enough for tests: shards, local training, and rounds without a server."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from adamd import fed
from adamd.demo import digits
from adamd_service.aggregation import Contribution, aggregate_round, parse_aggregation
from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan

DTYPE = np.float32
EPOCHS, RATE, BATCH = 2, 0.1, 16  # of the training at a client


@dataclass(frozen=True)
class Hospital:
    """One client: its images, and what it does to its update before it sends it."""

    name: str
    images: digits.Images
    times: float = 1.0  # -5: an attacker, who pushes the other way, five times as far

    @classmethod
    def load(cls, path):
        """Read what `save` wrote."""
        with np.load(path) as kept:
            return cls(path.stem, digits.Images(kept["pixels"], kept["digits"]), float(kept["times"]))

    def save(self, directory):
        """Write it for a process of its own, and return the file."""
        path = directory / f"{self.name}.npz"
        np.savez(path, pixels=self.images.pixels, digits=self.images.digits, times=self.times)
        return path

    def delta(self, parameters, number):
        """Return trained - pulled by tensor, after some epochs of SGD from these parameters in round ``number``."""
        rng = np.random.default_rng((*self.name.encode(), number))
        trained = {name: array.astype(np.float64) for name, array in parameters.items()}
        for _ in range(EPOCHS):
            order = rng.permutation(len(self.images))
            for start in range(0, len(order), BATCH):
                _, gradient = digits.loss_and_gradient(trained, self.images, order[start : start + BATCH])
                trained = {name: array - RATE * gradient[name] for name, array in trained.items()}
        return {name: (self.times * (trained[name] - parameters[name])).astype(DTYPE) for name in parameters}


@cache
def data():
    return digits.load()


def start():
    return {name: array.astype(DTYPE) for name, array in digits.start().items()}


def accuracy(parameters):
    """Return the share of the test's images that are read right, in percent."""
    _, test = data()
    return 100.0 * digits.right(parameters, test) / len(test)


def shards(count, alpha, seed):
    """Split the images among clients, each digit by a draw from Dirichlet(alpha): Hsu et al. 2019, arXiv:1909.06335.

    A client that would have fewer than a batch's images is never drawn: it is drawn anew.
    """
    images, _ = data()
    rng = np.random.default_rng(seed)
    while True:
        owners = np.empty(len(images), np.int64)
        for digit in range(digits.DIGITS):
            places = rng.permutation(np.flatnonzero(images.digits == digit))
            cuts = np.cumsum(rng.dirichlet(np.full(count, alpha)))[:-1] * len(places)
            for owner, part in enumerate(np.split(places, cuts.astype(np.int64))):
                owners[part] = owner
        if np.bincount(owners, minlength=count).min() >= BATCH:
            break
    return [
        Hospital(f"ward-{owner:02d}", digits.Images(images.pixels[owners == owner], images.digits[owners == owner]))
        for owner in range(count)
    ]


def open_run(client, name, count, **options):
    """Open a federation of digits, FedAvg with all ``count`` clients in each round, or find it."""
    return client.open_federation(name, start(), strategy=fed.FedAvg(), quorum=count, **options)


def learned(hospitals, rounds, optimizer=None, **settings):
    """Train for some rounds, all clients in each, and return the parameters: what a server does, without a server."""
    optimizer = parse_settings(optimizer or {"name": "sgd", "lr": 1.0})
    aggregation = parse_aggregation(settings, quorum=len(hospitals), buffered=False)
    parameters = start()
    names, bounds = list(parameters), np.cumsum([0, *(array.size for array in parameters.values())]).tolist()
    state = State.fresh(np.concatenate([array.reshape(-1) for array in parameters.values()]), len(names), optimizer)
    out = np.empty_like(state.params)
    for number in range(1, rounds + 1):
        given = [
            Contribution(
                one.name,
                -np.concatenate([part.reshape(-1) for part in one.delta(parameters, number).values()]),
                len(one.images),
            )
            for one in hospitals
        ]
        aggregate_round(given, aggregation, out)
        updates = plan(optimizer, names, state.counts, [True] * len(names), state.params.dtype)
        apply(state, out, updates, bounds, None, ReferenceKernel())
        parameters = {
            name: state.params[begin:end].reshape(parameters[name].shape)
            for name, begin, end in zip(names, bounds, bounds[1:], strict=False)
        }
    return parameters
