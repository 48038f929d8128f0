"""Scripts that read, compare and repeat their data, in every mode and in real processes."""

import re
from itertools import pairwise

import pytest

from paceline_core.modes import MODES

from .conftest import Run

HEAD = """
import torch, paceline
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(SEED)
rank, size = paceline.rank(), paceline.world_size()
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
data = TensorDataset(torch.arange(40))

def step(batch):
    optimizer.zero_grad()
    model(batch[0].float().unsqueeze(1)).mean().backward()
    optimizer.step()
"""

EPOCHS = (
    HEAD
    + """
loader = DataLoader(data, 4, shuffle=True)
assert paceline.all_gather(rank) == list(range(size)), "before distribute too"
if rank:
    torch.manual_seed(99)
model, optimizer = paceline.distribute(model, optimizer)
orders = []
for epoch in range(3):
    if rank == 0:
        next(iter(paceline.shard(loader)))
    mine = []
    for number, batch in enumerate(paceline.shard(loader)):
        if rank == 1 and number == 2:
            list(paceline.shard(loader))
        mine += batch[0].tolist()
        step(batch)
    parts = paceline.all_gather(mine)
    assert sorted(parts[0] + parts[1]) == list(range(40)), parts
    orders.append(parts[0])
assert len({tuple(o) for o in orders}) == 3
where = paceline.mean({"rank": rank, "one": torch.ones(2)})
assert where["rank"] == (size - 1) / 2 and where["one"].tolist() == [1, 1]
if rank == 0:
    print("ORDER", orders)
"""
)


@pytest.mark.slow
@pytest.mark.timeout(300)  # three runs, one after the other
@pytest.mark.parametrize("strategy", MODES)
def test_epochs_looks_and_seeds(run: Run, strategy: str) -> None:
    found, asked = [], {"strategy": strategy}
    if MODES[strategy].knobs.repeats:  # on a machine that is busy with other things a worker may come very late
        asked |= {"parameterServer": {"strategy": strategy, "asynchronous": {"maxStaleness": 1000}}}
    for seed in (1, 1, 2):
        outcome = run(EPOCHS.replace("SEED", str(seed)), **asked)
        assert outcome.code == 0, outcome.output
        found += re.findall("ORDER.*", outcome.output)
    assert found[0] == found[1] != found[2]


ACCUMULATED = (
    HEAD
    + """
import time
model, optimizer = paceline.distribute(model, optimizer)
given = []
for number, batch in enumerate(paceline.shard(DataLoader(data, 2))):
    given.append(batch[0].tolist())
    if number % 2 == 0:
        optimizer.zero_grad()
    model(batch[0].float().unsqueeze(1)).mean().backward()
    if number % 2:
        if rank == 1:
            time.sleep(0.3)
        optimizer.step()
        if not paceline.last_step().accepted and rank == 1:
            print("REJECTED", given[-2:])
if rank == 1:
    print("GIVEN", given)
"""
)


@pytest.mark.slow
def test_all_batches_of_a_rejected_step_come_again(run: Run) -> None:
    server = {"strategy": "Asynchronous", "asynchronous": {"maxStaleness": 1, "onStale": "Recompute"}}
    outcome = run(ACCUMULATED.replace("SEED", "0"), parameterServer=server)
    assert outcome.code == 0, outcome.output
    given = next(eval(text) for text in re.findall(r"GIVEN (.*)", outcome.output))
    rejected = [eval(text) for text in re.findall(r"REJECTED (.*)", outcome.output)]
    assert rejected, outcome.output
    steps = [given[i : i + 2] for i in range(0, len(given), 2)]
    again = [a for a, b in pairwise(steps) if a == b]
    assert again == rejected
    assert len(given) == 10 + 2 * len(rejected)


SAME = (
    HEAD
    + """
model, optimizer = paceline.distribute(model, optimizer)
for number in range(60):
    x = torch.rand(4) * 1000 + OWN
    optimizer.zero_grad()
    loss = model(x.unsqueeze(1)).square().mean()
    loss.backward()
    optimizer.step()
    paceline.report(loss=paceline.mean(loss) if AVERAGED else loss)
"""
)
TOLD = "all workers have reported the same loss for 20 steps: do they all read the same data? see paceline.shard"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
@pytest.mark.parametrize(("own", "averaged", "times"), [("0", "False", 1), ("rank", "False", 0), ("rank", "True", 0)])
def test_workers_that_read_the_same_are_told_so_once(
    run: Run, strategy: str, own: str, averaged: str, times: int
) -> None:
    script = SAME.replace("SEED", "0").replace("OWN", own).replace("AVERAGED", averaged)
    outcome = run(script, strategy=strategy)
    assert outcome.code == 0, outcome.output
    assert outcome.output.count(TOLD) == times, outcome.output


UNLIKE = "import paceline\npaceline.mean(1) if paceline.rank() else paceline.all_gather(1)\n"
EARLY = "import paceline\npaceline.all_gather(1)\nif paceline.rank() == 0:\n    paceline.all_gather(1)\n"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (UNLIKE, "every worker must make the same calls in the same order"),
        (EARLY, "worker-1 has left: it will not call paceline.all_gather()"),
    ],
)
def test_calls_that_do_not_match_fail_in_words(run: Run, script: str, words: str, strategy: str) -> None:
    outcome = run(script, strategy=strategy)
    assert outcome.code == 1
    assert words in outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_a_script_that_only_gathers_ends_well(run: Run, strategy: str) -> None:
    outcome = run("import paceline\nprint('SUM', sum(paceline.all_gather(paceline.rank() + 1)))\n", strategy=strategy)
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("SUM 3") == 2
