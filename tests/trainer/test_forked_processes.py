"""A process that a worker forks is not the worker: it says no goodbye, tells no failure and sends nothing."""

import pytest

from paceline_core.modes import MODES

from .conftest import Run

FORKS = """
import multiprocessing, os, sys, torch, paceline
torch.manual_seed(0)

class Data(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index):
        paceline.report(of_a_data_set=index)
        return torch.ones(4)

model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)

def step(x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()

def ends(how):
    child = os.fork()
    if child == 0:
        how()
        sys.exit()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fails(): raise ValueError("of a forked process")
def leaves(): sys.exit("of a forked process")
def trains(): step(torch.ones(3, 4))
def joins(): paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=1.0))
def reports(): paceline.report(loss=float("nan"))
def gathers(): paceline.all_gather(1)
def forward():
    with torch.no_grad(): model(torch.ones(3, 4))

for number in range(4):
    step(torch.ones(3, 4))
print("codes", [ends(how) for how in (lambda: None, forward, reports, fails, leaves, trains, joins, gathers)])
multiprocessing.get_context("fork").Process(target=forward).start()
loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
for x in paceline.shard(loader):
    step(x)
for number in range(4):
    step(torch.ones(3, 4))
print("all steps made")
"""
WITHIN = """
import multiprocessing, sys, torch, paceline

def train(fails):
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    model, optimizer = paceline.distribute(model, optimizer)
    for number in range(5):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
    if fails: raise ValueError("in a process of multiprocessing")

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=train, args=(FAILS,))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_what_a_forked_process_does_is_not_the_worker_s_doing(run: Run, strategy: str) -> None:
    outcome = run(FORKS, strategy=strategy, name=strategy)
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("all steps made") == 2, outcome.output
    assert outcome.output.count("codes [0, 0, 0, 1, 1, 1, 1, 1]") == 2, outcome.output
    assert "was called in one forked from it" in outcome.output
    assert [w["step"] for w in outcome.result["workers"]] == [12, 12]
    assert [w["loss"] for w in outcome.result["workers"]] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_a_process_of_multiprocessing_may_be_the_one_that_joins(run: Run, strategy: str) -> None:
    outcome = run(WITHIN.replace("FAILS", "False"), strategy=strategy)
    assert outcome.code == 0, outcome.output
    assert [w["step"] for w in outcome.result["workers"]] == [5, 5]
    failed = run(WITHIN.replace("FAILS", "True"), strategy=strategy)
    assert failed.code == 1
    assert "ValueError: in a process of multiprocessing" in failed.result["error"]["message"], failed.output
