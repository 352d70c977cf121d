"""A small convolutional network on handwritten digits, with Adam at a server.

Start a server (`adamd serve`), then: python examples/torch_digits.py [run-name]
With a name, the same command again goes on where the last one ended. ADAMD_URL says where the server is.
"""

import sys

import torch
from sklearn.datasets import load_digits

import adamd.torch

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)
train, test = slice(0, 1500), slice(1500, None)

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(16, 32, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(512, 10),
)

# The only line that is not plain PyTorch:
optimizer = adamd.torch.Adam(model.named_parameters(), lr=0.001, session=sys.argv[1] if sys.argv[1:] else None)

for epoch in range(1, 6):
    for batch in torch.randperm(1500).split(50):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch])
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(
        f"epoch {epoch}, step {optimizer.session.step_number}: loss {loss.item():.3f}, accuracy {accuracy.item():.1%}"
    )

optimizer.close()
