"""A client's training: some epochs of plain SGD on its own images, the same bits every time."""

from __future__ import annotations

import numpy as np

from adamd.demo import digits
from adamd.demo.digits import Images, Params
from adamd.demo.federated.roles import BOOST

EPOCHS, BATCH, RATE = 2, 16, 0.1
LARGEST_LOSS = 50.0  # what a client tells where its loss is infinite


def train(parameters: Params, images: Images, seed: tuple[int, int]) -> tuple[Params, float]:
    """Return the parameters after training, and the last epoch's mean loss.

    Args:
        parameters: where it starts; they stay as they are.
        images: the client's own.
        seed: of the order of the images: the client's place and the round.

    """
    trained = {name: np.array(array, np.float64) for name, array in parameters.items()}
    rng = np.random.default_rng(seed)
    count = max(1, len(images) // BATCH)
    losses: list[float] = []
    with np.errstate(divide="ignore"):  # log(0), where the parameters are an attacker's work
        for _ in range(EPOCHS):
            losses = []
            for batch in np.array_split(rng.permutation(len(images)), count):
                loss, gradient = digits.loss_and_gradient(trained, images, batch)
                losses.append(min(loss, LARGEST_LOSS))
                for name, slope in gradient.items():
                    trained[name] -= RATE * slope
    return trained, float(np.mean(losses))


def poisoned(parameters: Params, trained: Params) -> Params:
    """Return what an attacker sends: away from what was learned, and far (a scaled sign flip)."""
    return {name: array - BOOST * (trained[name] - array) for name, array in parameters.items()}
