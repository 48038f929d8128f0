"""Handwritten digits: a small convolutional network on the 1,797 images that come with scikit-learn."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import paceline
from paceline.examples.saving import save

TEST_IMAGES = 360


def data() -> tuple[TensorDataset, TensorDataset]:
    """Images [n, 1, 8, 8] from 0 to 1 and their digits [n]: training and test set, always divided alike."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def network() -> nn.Module:
    """Two convolutions with BatchNorm, and a linear layer for the ten digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    """The share of test images that the model reads correctly."""
    images, labels = test.tensors
    model.eval()
    with torch.no_grad():
        right: float = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


def main() -> None:
    """Train, and test at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16, help="images in each worker's step")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--save", metavar="FILE", help="where worker 0 writes the weights, as safetensors")
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = data()
    model = network()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.momentum)
    batches = paceline.shard(DataLoader(train, batch_size=options.batch_size, shuffle=True, drop_last=True))
    steps = options.epochs * len(batches)
    model, optimizer = paceline.distribute(model, optimizer, total_steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.05, 1 - step / steps))
    paceline.state(schedule=schedule)

    loss = torch.tensor(torch.nan)  # of a training that goes on from a checkpoint: the epochs before pass at once
    for epoch in range(options.epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            paceline.report(loss=loss)
        if paceline.rank() == 0 and (epoch + 1) % 5 == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

    if paceline.rank() == 0:
        right = accuracy(model, test)
        paceline.report(accuracy=right)
        print(f"test accuracy {right:.1%}")
        if options.save:
            save(model, options.save)


if __name__ == "__main__":
    main()
