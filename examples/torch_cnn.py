"""A small convolutional network on scikit-learn's digits, beside the same training with torch's own Adam.

Start a server (`adamd serve`), then: python examples/torch_cnn.py [steps] [curves.png]
"""

import torch
from curves import draw, steps_and_path, train_both
from sklearn.datasets import load_digits

steps, path = steps_and_path(400, "torch_cnn.png")
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)
TRAINED = 1500  # of 1797; the rest are for the test

model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(16, 32, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(512, 10),
)


def batches():
    """The same for every run: the numbers of 64 images."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randint(TRAINED, (64,), generator=generator)


def loss_of(network, picked):
    """Cross-entropy over the picked images."""
    return torch.nn.functional.cross_entropy(network(images[picked]), labels[picked])


model, curves = train_both(model, loss_of, batches(), lr=0.002)
with torch.no_grad():
    accuracy = (model(images[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean()
print(f"accuracy on {len(labels) - TRAINED} images that were not trained on: {accuracy.item():.1%}")
draw(path, curves, "A convolutional network on handwritten digits, 64 images a step")
