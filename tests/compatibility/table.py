"""A row of the table: a feature of ordinary scripts, as a script, and what comes of it in each mode."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODES = ("Synchronous", "Asynchronous", "AllReduce")
SERVERS = ("Synchronous", "Asynchronous")

# In front of every script. Alone a script sees the whole batch; two workers see a half each, so that the mean of their
# gradients is that of the whole. In Asynchronous the second worker joins and leaves at once: with two, what becomes of
# the weights is a matter of the order of arrival (tests/trainer/test_runs.py replays such runs), and no one process
# makes the same steps.
PRELUDE = """
import torch, paceline
from torch import nn
from torch.nn import functional as F
R, W = paceline.rank(), paceline.world_size()
STEPS, ALONE, SHARED = 6, MODE == "alone", MODE in ("Synchronous", "AllReduce")
def draw(step, n=8, width=6):
    g = torch.Generator().manual_seed(1000 + step)
    return torch.randn(n, width, generator=g), torch.randint(0, 3, (n,), generator=g)
def part(*tensors):
    return tensors if not SHARED else tuple(t[R::W] for t in tensors)
def batch(step, n=8, width=6):
    return part(*draw(step, n, width))
def seeded(make):
    torch.manual_seed(5 + R)  # another start on each worker: worker 0's counts
    return make()
def net():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)))
def train(model, optimizer, steps=range(STEPS), after=lambda step: None):
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(step)
"""


@dataclass(frozen=True)
class Row:
    """One feature. `script` leaves the trained model in `model`, or several in `models`, and may leave `result`."""

    name: str
    script: str
    refused: Mapping[str, str] = field(default_factory=dict)  # mode -> a pattern of the words
    note: str = ""
    exact: bool = False  # bit for bit; else within 1e-6 of the largest weight
    compared: Mapping[str, bool] = field(
        default_factory=dict
    )  # mode -> whether one process has the same weights; True if not named
    alike: bool = True  # whether the workers' models end with the same weights
    saved: bool = True  # whether the file of weights holds what worker 0's model holds
    pairs: int = 1  # calls of paceline.distribute()
    dtype: str = "float64"  # torch's default
    spec: Mapping[str, Any] = field(default_factory=dict)  # more of the resource
    tolerance: float = 1e-6

    def same(self, mode: str) -> bool:
        """Whether one process has the same weights."""
        return self.compared.get(mode, True)


def refused(words: str, *modes: str) -> dict[str, str]:
    """Refused with these words in these modes."""
    return dict.fromkeys(modes, words)
