"""What the functions of the API do in the processes that a training script starts."""

import os
import subprocess
import sys

import pytest

import paceline
from paceline_core.errors import UsageError
from paceline_core.launch import Role

from .conftest import Run
from .inprocess import launch

SHOW = "import sys, paceline; print(paceline.rank(), paceline.world_size(), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "0 1 False\n"),
        (launch(Role.WORKER, workers=5, ordinal=3, metrics="fd:999").to_environment(), "3 5 False\n"),
        (launch(Role.SERVER, workers=5).to_environment(), "0 1 False\n"),
    ],
)
def test_a_rank_is_known_without_taking_part(variables: dict[str, str], said: str) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=inherited | variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == said, done.stderr


def test_alone_the_values_are_ones_own() -> None:
    value, loader = {"loss": 0.5}, [1, 2]
    assert paceline.all_gather(value)[0] is value
    assert paceline.mean(value) is value
    assert paceline.shard(loader) is loader
    with pytest.raises(UsageError, match="not set"):
        paceline.all_gather({1})


SPAWNED = """
import torch, paceline
from torch.utils.data import DataLoader, TensorDataset

def seed(number):
    print("loads for", paceline.rank(), "of", paceline.world_size(), flush=True)

if __name__ == "__main__":
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = TensorDataset(torch.ones(8, 4))
    loader = DataLoader(data, 2, num_workers=1, worker_init_fn=seed, multiprocessing_context="METHOD")
    model, optimizer = paceline.distribute(model, optimizer)
    for (x,) in paceline.shard(loader):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_the_processes_of_a_data_loader_know_their_rank(run: Run, method: str) -> None:
    outcome = run(SPAWNED.replace("METHOD", method))
    assert outcome.code == 0, outcome.output
    assert [f"[worker-{r}] loads for {r} of 2" in outcome.output for r in (0, 1)] == [True, True], outcome.output


INSIDE = """
import torch, paceline
from torch.utils.data import DataLoader, Dataset

class Asks(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        paceline.all_gather(index)

list(paceline.shard(DataLoader(Asks(), 2, num_workers=1)))
"""


@pytest.mark.slow
def test_the_processes_of_a_data_loader_cannot_ask_the_others(run: Run) -> None:
    outcome = run(INSIDE)
    assert outcome.code == 1
    assert "all_gather(), mean() and shard() are for the script's own process" in outcome.output
