"""Four processes train one model on handwritten digits, and none waits for the others (asynchronous SGD).

Start a server (`adamd serve`), then: python examples/many_clients.py. ADAMD_URL says where the server is.
Each process has a quarter of the images. It takes a gradient at the parameters that it saw last and pushes it; the
answer has what the others did meanwhile. A push has a key: a process that was killed may begin its share again, and the
batches that have counted are refused by their keys.
"""

import os
import secrets
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from sklearn.datasets import load_digits

import adamd

URL = os.environ.get("ADAMD_URL", "http://127.0.0.1:8000")
WORKERS, EPOCHS, BATCH = 4, 10, 32
digits = load_digits()
images = np.c_[digits.data / 16, np.ones(len(digits.data))]
labels = np.eye(10)[digits.target]
TEST = 360


def gradient(weights, rows):
    """Return the cross entropy of softmax regression on some images, and its gradient."""
    scores = images[rows] @ weights
    odds = np.exp(scores - scores.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    loss = -np.log((odds * labels[rows]).sum(1) + 1e-12).mean()
    return loss, images[rows].T @ (odds - labels[rows]) / len(rows)


def work(ref, worker):
    """Push the gradients of this worker's share; return how stale each was that counted."""
    share = np.arange(TEST + worker, len(images), WORKERS)
    rng, stale = np.random.default_rng(worker), []
    with adamd.connect(URL) as client:
        session = client.session(ref)
        weights = session.parameters()
        for epoch in range(EPOCHS):
            order = rng.permutation(share)
            for first in range(0, len(order), BATCH):
                before = session.step_number
                loss, grads = gradient(weights, order[first : first + BATCH])
                try:
                    weights = session.push(grads, loss=loss, key=f"{worker}/{epoch}/{first}")
                    stale.append(session.step_number - before - 1)
                except adamd.errors.IdempotencyMismatch:  # it counted before this worker was started again
                    weights = session.parameters()
    return stale


def main():
    """Make the session, let the workers work, and tell what came of it."""
    with adamd.connect(URL) as client:
        session = client.create(np.zeros((65, 10)), lr=0.01, name=f"many-{secrets.token_hex(4)}")
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as processes:
            stale = np.concatenate(list(processes.map(work, [session.id] * WORKERS, range(WORKERS))))
        right = (images[:TEST] @ session.parameters()).argmax(1) == digits.target[:TEST]
        print(f"{len(stale)} gradients pushed, {session.step_number} steps taken, by {WORKERS} processes")
        print(f"mean staleness {stale.mean():.1f} steps, accuracy {right.mean():.1%}")


if __name__ == "__main__":
    main()
