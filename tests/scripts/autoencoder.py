"""A variational autoencoder: methods of the model beside forward, and a loss that is a function of several outputs."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import paceline


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 48)
        self.fc21 = nn.Linear(48, 8)
        self.fc22 = nn.Linear(48, 8)
        self.fc3 = nn.Linear(8, 48)
        self.fc4 = nn.Linear(48, 64)

    def encode(self, x):
        h = F.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def reparameterize(self, mu, logvar):
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)

    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar

    def loss(self, x):
        reconstruction, mu, logvar = self(x)
        bce = F.binary_cross_entropy(reconstruction, x, reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return (bce + kld) / len(x)


torch.manual_seed(1)
images, _ = load_digits(return_X_y=True)
data = torch.tensor(images, dtype=torch.float32) / 16
loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
model, optimizer = paceline.distribute(model, optimizer)
loader = paceline.shard(loader)
for _ in range(8):
    for x in loader:
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
with torch.no_grad():
    print(f"RESULT {model.loss(data).item():.4f}")
    model.decode(torch.randn(4, 8))
