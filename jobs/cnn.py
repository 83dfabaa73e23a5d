"""A convolutional network for MNIST with 93,322 parameters, for jobs/cnn.toml: `python jobs/cnn.py` trains it once, `network` reads what was trained."""

from pathlib import Path

import torch
from torch import nn

from hpcHess.networks import datasets

TRAINED = Path(__file__).with_name("cnn.pt")


def untrained():
    """784 pixels → 8 and 16 maps by 3 × 3 convolutions, each pooled by 2 → 224 → 10 classes."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 224), nn.ReLU(), nn.Linear(224, 10)),
    )


def network():
    """The factory: training again would end elsewhere in the last digits, and `solve --refine exact` asks for the same parameters."""
    if not TRAINED.exists():
        raise FileNotFoundError(f"there is no {TRAINED.name}: python jobs/cnn.py trains it")
    model = untrained()
    model.load_state_dict(torch.load(TRAINED, weights_only=True))
    return model.eval()


def train(samples=20_000, epochs=2, batch=64, rate=1e-3):
    """Adam on the first samples of MNIST; the accuracy on the next 10,000."""
    torch.manual_seed(0)
    inputs, labels = datasets.load("mnist", samples + 10_000, "classify")[:2]
    inputs, labels = torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)
    model = untrained()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for epoch in range(epochs):
        for chosen in torch.randperm(samples).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            correct = (model(inputs[samples:]).argmax(dim=1) == labels[samples:]).double().mean()
        print(f"epoch {epoch + 1}: {100 * correct:.2f} % of 10,000 other samples")
    torch.save(model.state_dict(), TRAINED)


if __name__ == "__main__":
    train()
