"""The clients' shares of the images: unequal in size, and each with digits of its own (non-IID)."""

from __future__ import annotations

import numpy as np

from adamd.demo.digits import DIGITS, Images

ALPHA = 0.5  # the smaller, the fewer digits a client knows
LEAST = 24  # images of a client


def partition(images: Images, clients: int) -> list[Images]:
    """Return each client's images, each image at one client; the same every time.

    The images of each digit are divided by shares from a Dirichlet distribution (Hsu, Qi and Brown 2019,
    "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"), drawn again until
    every client has at least `LEAST`.
    """
    rng = np.random.default_rng(4)
    while True:
        places: list[list[int]] = [[] for _ in range(clients)]
        for digit in range(DIGITS):
            of_digit = rng.permutation(np.flatnonzero(images.digits == digit))
            shares = rng.dirichlet(np.full(clients, ALPHA))
            cuts = (np.cumsum(shares)[:-1] * len(of_digit)).astype(int)
            for client, part in enumerate(np.split(of_digit, cuts)):
                places[client] += part.tolist()
        if min(map(len, places)) >= LEAST:
            return [Images(images.pixels[part], images.digits[part]) for part in places]
