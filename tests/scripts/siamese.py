"""A siamese network: a data set of pairs, gradient accumulation, an average of the weights, a checkpoint, a plateau."""

import random

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import paceline


class Pairs(Dataset):
    def __init__(self):
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images, dtype=torch.float32) / 16
        self.labels = torch.tensor(labels)
        chance = random.Random(0)
        same = [[i for i, label in enumerate(labels) if label == digit] for digit in range(10)]
        self.others = [
            chance.choice(same[labels[i]]) if chance.random() < 0.5 else chance.randrange(len(labels))
            for i in range(len(labels))
        ]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        other = self.others[i]
        return self.images[i], self.images[other], (self.labels[i] == self.labels[other]).float()


class SiameseNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward_once(self, x):
        return self.body(x)

    def forward(self, a, b):
        a, b = self.forward_once(a), self.forward_once(b)
        return self.head(torch.cat([(a - b).abs(), a * b], 1)).squeeze(1)


torch.manual_seed(3)
loader = DataLoader(Pairs(), batch_size=32, shuffle=True, num_workers=1)
model = SiameseNetwork()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
model, optimizer = paceline.distribute(model, optimizer)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
for _ in range(4):
    for i, (a, b, same) in enumerate(paceline.shard(loader)):
        loss = F.binary_cross_entropy_with_logits(model(a, b), same)
        (loss / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
    right = count = 0
    with torch.no_grad():
        for a, b, same in loader:
            right += ((average(a, b) > 0) == (same > 0)).sum().item()
            count += len(same)
    scheduler.step(1 - right / count)
    if paceline.rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "siamese.pt")
print(f"RESULT {right / count:.4f}")
