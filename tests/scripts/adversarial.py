"""A generative adversarial network: two models with BatchNorm, an optimizer each, by turns."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import paceline


def weights_init(m):
    name = m.__class__.__name__
    if name.find("Linear") != -1:
        torch.nn.init.normal_(m.weight, 0.0, 0.05)
    elif name.find("BatchNorm") != -1:
        torch.nn.init.normal_(m.weight, 1.0, 0.02)
        torch.nn.init.zeros_(m.bias)


torch.manual_seed(2)
images, _ = load_digits(return_X_y=True)
loader = DataLoader(torch.tensor(images, dtype=torch.float32) / 8 - 1, batch_size=64, shuffle=True, drop_last=True)
netG = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
netD = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
netG.apply(weights_init)
netD.apply(weights_init)
criterion = nn.BCEWithLogitsLoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=1e-3, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=1e-3, betas=(0.5, 0.999))
netD, optimizerD = paceline.distribute(netD, optimizerD)
netG, optimizerG = paceline.distribute(netG, optimizerG)
for _ in range(3):
    for real in paceline.shard(loader):
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = netG(torch.randn(len(real), 16))
        netD.zero_grad()
        errD = criterion(netD(real), ones) + criterion(netD(fake.detach()), zeros)
        errD.backward()
        optimizerD.step()
        netG.zero_grad()
        errG = criterion(netD(fake), ones)
        errG.backward()
        optimizerG.step()
print(f"RESULT {errD.item():.4f}")
