"""A small network in plain NumPy that reads handwritten digits, with its gradient written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Params: TypeAlias = dict[str, Array]
SIDE, DIGITS, HIDDEN, BATCH = 8, 10, 48, 64
TEST_IMAGES = 360


@dataclass(frozen=True)
class Images:
    """Images as rows of 64 grey values in [0, 1], and the digit that each shows."""

    pixels: Array
    digits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)


def load() -> tuple[Images, Images]:
    """Return the images to learn from and those to test with: the same split every time.

    Raises:
        ModuleNotFoundError: scikit-learn, which has the images, is missing.

    """
    from sklearn.datasets import load_digits

    dataset = load_digits()
    order = np.random.default_rng(0).permutation(len(dataset.target))
    pixels, digits = dataset.data[order] / 16.0, dataset.target[order].astype(np.int64)
    return Images(pixels[TEST_IMAGES:], digits[TEST_IMAGES:]), Images(pixels[:TEST_IMAGES], digits[:TEST_IMAGES])


def start() -> Params:
    """Return the network before it has learned anything."""
    rng = np.random.default_rng(1)
    return {
        "hidden": rng.standard_normal((SIDE * SIDE, HIDDEN)) * np.sqrt(2 / (SIDE * SIDE)),
        "hidden_bias": np.zeros(HIDDEN),
        "output": rng.standard_normal((HIDDEN, DIGITS)) * np.sqrt(1 / HIDDEN),
        "output_bias": np.zeros(DIGITS),
    }


def batches(images: Images, epochs: int) -> list[NDArray[np.int64]]:
    """Return which images each step looks at: shuffled, the same way every time."""
    rng = np.random.default_rng(2)
    count = len(images) // BATCH
    return [part for _ in range(epochs) for part in np.split(rng.permutation(len(images))[: count * BATCH], count)]


def loss_and_gradient(params: Params, images: Images, batch: NDArray[np.int64]) -> tuple[float, Params]:
    """Return the mean cross-entropy of a batch, and its derivative by every parameter."""
    x, labels = images.pixels[batch], images.digits[batch]
    rows = np.arange(len(batch))
    hidden = np.maximum(x @ params["hidden"] + params["hidden_bias"], 0.0)
    guess = softmax(hidden @ params["output"] + params["output_bias"])
    loss = -float(np.log(guess[rows, labels]).mean())

    error = guess  # d loss / d (softmax's input)
    error[rows, labels] -= 1.0
    error /= len(batch)
    back = (error @ params["output"].T) * (hidden > 0.0)
    gradient = {
        "hidden": x.T @ back,
        "hidden_bias": back.sum(0),
        "output": hidden.T @ error,
        "output_bias": error.sum(0),
    }
    return loss, gradient


def softmax(scores: Array) -> Array:
    """Return each row as probabilities; its largest score is taken off first, so that nothing overflows."""
    raised: Array = np.exp(scores - scores.max(1, keepdims=True))
    total: Array = raised.sum(1, keepdims=True)
    return np.divide(raised, total, out=raised)


def right(params: Params, images: Images) -> int:
    """Return how many images the network reads right."""
    hidden = np.maximum(images.pixels @ params["hidden"] + params["hidden_bias"], 0.0)
    scores = hidden @ params["output"] + params["output_bias"]
    return int((scores.argmax(1) == images.digits).sum())


def size(params: Params) -> int:
    """Return the number of parameters."""
    return sum(array.size for array in params.values())


def same_bits(first: Params, other: Params) -> bool:
    """Say whether two networks are equal, every bit of every parameter."""
    return all(first[name].tobytes() == other[name].tobytes() for name in first)
