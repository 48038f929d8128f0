"""A script with torch's own DistributedDataParallel, which knows nothing of Paceline, runs as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paceline import startup
from paceline_core.launch import Launch, Role, local_environments

from .conftest import Run
from .inprocess import launch as in_server
from .test_ring import launch

DDP = """
import os, time, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
assert (rank, world, int(os.environ["LOCAL_RANK"])) == (dist.get_rank(), dist.get_world_size(), 0)
torch.manual_seed(rank)
model = DistributedDataParallel(torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(40):
    optimizer.zero_grad()
    loss = model(torch.full((3, 4), float(rank))).square().mean()
    time.sleep(0.01)
    loss.backward()
    optimizer.step()
    CHANGE
torch.save(model.module.state_dict(), f"weights-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_it_is_measured_and_the_straggler_named(run: Run, tmp_path: Path) -> None:
    script = DDP.replace("CHANGE", "pass")
    outcome = run(script, "--slow", "worker-1=30ms", strategy="AllReduce", workers=3)
    assert outcome.code == 0, outcome.output
    assert outcome.result["verdict"]["worker"] == 1
    assert [w["step"] for w in outcome.result["workers"]] == [40, 40, 40]
    assert all(w["latency_seconds"] > 0 for w in outcome.result["workers"])
    own, kept = torch.load(tmp_path / "weights-2.pt"), load_file(outcome.folder / "weights.safetensors")
    assert all(torch.equal(own[name], kept[name]) for name in kept)


@pytest.mark.slow
def test_its_weights_are_compared_too(run: Run) -> None:
    change = "if step == 5 and rank == 1: model.module.bias.data.add_(1)"
    outcome = run(DDP.replace("CHANGE", change), strategy="AllReduce")
    assert outcome.code == 1, outcome.output
    assert "the weights of worker-1 differ from the others' after step 10: bias" in outcome.output


@pytest.mark.slow
def test_who_leaves_a_plain_ring_is_named(run: Run) -> None:
    change = "if step == 5 and rank == 1: os._exit(3)"
    outcome = run(DDP.replace("CHANGE", change), strategy="AllReduce", workers=3)
    assert outcome.code == 1, outcome.output
    assert outcome.result["error"]["replica"] == "worker-1"


@pytest.mark.slow
def test_a_script_that_reduces_by_itself_has_joined(run: Run) -> None:
    script = """
    import torch, torch.distributed as dist
    dist.init_process_group("gloo", init_method="env://")
    one = torch.ones(1)
    dist.all_reduce(one)
    assert one.item() == dist.get_world_size() == 2
    dist.destroy_process_group()
    """
    outcome = run(script, strategy="AllReduce")
    assert outcome.code == 0, outcome.output


@pytest.mark.slow
def test_an_error_before_there_is_a_model_is_told(run: Run) -> None:
    script = """
    import torch.distributed as dist
    dist.init_process_group("gloo")
    raise ValueError(f"of worker {dist.get_rank()}")
    """
    outcome = run(script, strategy="AllReduce")
    assert outcome.code == 1, outcome.output
    assert outcome.result["error"]["message"].startswith("ValueError: of worker")
    assert outcome.result["duration_seconds"] < 40


@pytest.mark.slow
def test_both_ways_in_one_script_are_refused(run: Run) -> None:
    script = """
    import torch, paceline, torch.distributed as dist
    dist.init_process_group("gloo")
    model = torch.nn.Linear(2, 2)
    paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """
    outcome = run(script, strategy="AllReduce")
    assert outcome.code == 1, outcome.output
    assert "the script has initialized torch.distributed itself" in outcome.output


def test_the_sitecustomize_that_is_there_is_run_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.there = 5")
    given = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")}
    worker = launch(Role.WORKER, 1).to_environment()
    environment = startup.environment(given | worker | {"PYTHONPATH": str(tmp_path)})
    code = "import sys; print(there, 'paceline' in sys.modules, [type(f).__name__ for f in sys.meta_path][0])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "5 False _Finder\n", done.stderr


def test_a_worker_of_a_ring_is_told_what_torchrun_tells() -> None:
    found = launch(Role.WORKER, 2, "ring-coordinator-0.ns:7070").to_environment()
    expected = {
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "ring-coordinator-0.ns",
        "MASTER_PORT": "7070",
    }
    assert {k: v for k, v in found.items() if not k.startswith("PACELINE_")} == expected
    pod = found | {"PACELINE_PROCESSES": "2", "PACELINE_ORDINAL": "1", "PACELINE_METRICS": "0:1"}
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [tuple(e[n] for n in names) for e in local_environments(pod)] == [("2", "0", "2"), ("3", "1", "2")]
    each = local_environments(pod | {"PACELINE_GPUS": "2"})  # which sees its own GPU alone, as number 0
    assert [tuple(e[n] for n in names) for e in each] == [("2", "0", "1"), ("3", "0", "1")]


@pytest.mark.parametrize("it", [launch(Role.COORDINATOR), in_server(Role.WORKER), in_server(Role.SERVER)])
def test_nobody_else_is(it: Launch) -> None:
    found = it.to_environment()
    assert all(name.startswith("PACELINE_") for name in found)
    assert (startup.environment(found) == found) == (it.role is not Role.WORKER)


@pytest.mark.parametrize("it", [launch(Role.WORKER), in_server(Role.WORKER)])
def test_a_worker_imports_torch_without_collecting_garbage_and_then_collects(it: Launch) -> None:
    given = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")}
    code = """if True:
        import gc, sys
        before = gc.get_stats()[0]["collections"]
        import torch
        print(gc.get_stats()[0]["collections"] - before, gc.isenabled(), gc.get_freeze_count() > 10_000)
        print([type(f).__name__ for f in sys.meta_path].count("_Finder"))
    """
    environment = startup.environment(given | it.to_environment())
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0 True True\n0\n", done.stderr
