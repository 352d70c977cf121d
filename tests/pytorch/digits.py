"""A small convolutional network over scikit-learn's digits, trained beside torch's own optimizer."""

import copy
from functools import cache

import torch
from sklearn.datasets import load_digits

TRAINED = 1500  # of 1797 images; the rest are for the test


@cache
def images():
    data = load_digits()
    return torch.tensor(data.images / 16.0).unsqueeze(1), torch.tensor(data.target)


def batches(steps, size=32, seed=1):
    """Yield the same batches for every seed."""
    x, y = images()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randint(TRAINED, (size,), generator=generator)
        yield x[picked], y[picked]


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    ).to(dtype)


def twins(dtype=torch.float32):
    """Two equal networks: one for adamd, one for torch."""
    made = network(dtype)
    return made, copy.deepcopy(made)


def loss_of(model, batch):
    dtype = next(model.parameters()).dtype
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x.to(dtype)), y)


def train(model, optimizer, given):
    """The plain loop."""
    for batch in given:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def train_both(pairs, given):
    """The plain loop for several (model, optimizer), batch by batch."""
    for batch in given:
        for model, optimizer in pairs:
            train(model, optimizer, [batch])


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def distance(one, two):
    """L2 of the difference, over all parameters."""
    return float((flat(one).double() - flat(two).double()).norm())


def correct(model):
    """How many of the test images the model reads right."""
    x, y = images()
    with torch.no_grad():
        read = model(x[TRAINED:].to(next(model.parameters()).dtype)).argmax(1)
    return int((read == y[TRAINED:]).sum())


def bound(model):
    """The acceptance line: how far 200 steps may lead apart."""
    return 1e-9 if next(model.parameters()).dtype == torch.float64 else 5e-3
