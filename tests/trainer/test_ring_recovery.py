"""A ring that breaks: who is left goes on in place, whatever else is killed meanwhile, or all from the checkpoint."""

from pathlib import Path

import pytest

from paceline_core.spec import DistributedTraining

from .conftest import Outcome, manifest
from .test_restarts import ended, started

ASKED = manifest(["python", "train.py"], "AllReduce", checkpoint={"everySteps": 3})
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(
        not DistributedTraining.model_validate(ASKED).spec.replaces_alone,
        reason="rings are not made anew yet (TrainingSpec.knobs): scripts are known whose weights would be others",
    ),
]
# DIES: what happens to which worker in which step, each once: "worker place step" separated by commas
SCRIPT = """
import os, time, torch, paceline
from torch import nn
torch.manual_seed(3)
data = torch.utils.data.TensorDataset(torch.randn(180, 6), torch.randn(180, 1))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1))
        self.register_buffer("large", torch.zeros(40_000))
    def forward(self, x): return self.layers(x)
class Steps:
    made = 0
    def state_dict(self): return {"made": self.made}
    def load_state_dict(self, held): self.made = held["made"]
steps, model = Steps(), Net()
def happens(place):
    for each in filter(None, os.environ.get("DIES", "").split(",")):
        worker, where, step = each.split()
        key = os.environ["SEEN"] + "-" + each.replace(" ", "-")
        if (int(worker), where, int(step)) == (paceline.rank(), place, steps.made) and not os.path.exists(key):
            open(key, "w").close()
            if "CUTS" in os.environ:
                paceline._training()._side._recovery.socket_queues.shut_down()
            else:
                time.sleep(0.3)
                os.kill(os.getpid(), 9)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer)
paceline.state(steps=steps)
loader = paceline.shard(torch.utils.data.DataLoader(data, batch_size=10, shuffle=True))
for epoch in range(4):
    for x, y in loader:
        steps.made += 1
        time.sleep(0.06)  # so that some places are kept
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        happens("forward")
        loss.backward()
        happens("backward")
        optimizer.step()
        happens("stepped")
        paceline.report(loss=loss.item())
"""
WORKERS = 3


def run(folder: Path, script: str = SCRIPT, every: int = 3, **environment: str) -> Outcome:
    folder.mkdir()
    asked = manifest(["python", "train.py"], "AllReduce", workers=WORKERS, checkpoint={"everySteps": every})
    asked["spec"]["runPolicy"]["backoffLimit"] = 5
    outcome = ended(started(folder, asked, script, **environment), folder)
    assert outcome.code == 0, outcome.output
    return outcome


def restarts(outcome: Outcome) -> list[tuple[str, bool]]:
    return [(it["replica"], it["alone"]) for it in outcome.result["restarts"]]


@pytest.fixture(scope="module")
def sha(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(run(tmp_path_factory.mktemp("undisturbed") / "run").result["weights_sha256"])


@pytest.mark.parametrize(
    "dies",
    [
        "1 forward 5,2 forward 5",  # together: one is left
        "0 backward 9,1 stepped 9",
        "1 stepped 6,1 forward 9,1 backward 12",  # the same again and again
        "0 forward 4,1 forward 10,2 stepped 15",  # one after the other, worker 0 first
        "2 forward 7,2 forward 6",  # again, while it repeats steps
    ],
)
def test_the_weights_are_those_of_an_undisturbed_run(tmp_path: Path, sha: str, dies: str) -> None:
    outcome = run(tmp_path / "run", DIES=dies)
    assert outcome.result["weights_sha256"] == sha
    assert sorted(restarts(outcome)) == sorted((f"worker-{each[0]}", True) for each in dies.split(","))


@pytest.mark.parametrize("place", ["forward", "backward", "stepped"])
def test_a_ring_whose_connections_break_goes_on_without_a_restart(tmp_path: Path, sha: str, place: str) -> None:
    outcome = run(tmp_path / "run", DIES=f"1 {place} 5,0 {place} 9,1 {place} 9", CUTS="yes")
    assert outcome.result["weights_sha256"] == sha
    assert restarts(outcome) == []
    assert "the ring goes on, as generation" in outcome.output


def test_when_nobody_is_left_all_go_on_from_the_checkpoint(tmp_path: Path, sha: str) -> None:
    outcome = run(tmp_path / "run", DIES=",".join(f"{worker} forward 8" for worker in range(WORKERS)))
    assert outcome.result["weights_sha256"] == sha
    assert not restarts(outcome)[-1][1]


REDUCES_ITSELF = SCRIPT.replace(
    '        happens("forward")\n', '        torch.distributed.all_reduce(loss.detach().clone()); happens("forward")\n'
)
CHANGES_A_LARGE_BUFFER = SCRIPT.replace("steps.made += 1\n", "steps.made += 1; model.large += x.mean()\n")


@pytest.mark.parametrize("script", [REDUCES_ITSELF, CHANGES_A_LARGE_BUFFER], ids=["reduces itself", "large buffer"])
def test_what_cannot_be_repeated_goes_on_from_the_checkpoint(tmp_path: Path, script: str) -> None:
    undisturbed = run(tmp_path / "undisturbed", script)
    outcome = run(tmp_path / "killed", script, DIES="1 backward 9")
    assert outcome.result["weights_sha256"] == undisturbed.result["weights_sha256"]
    assert restarts(outcome) == [("worker-1", False)]


def test_a_worker_that_ends_before_the_others_is_named(tmp_path: Path) -> None:
    script = SCRIPT.replace("        steps.made += 1\n", "        if paceline.rank() == 2 and steps.made == 7: break\n        steps.made += 1\n")  # fmt: skip
    script = script.replace("for epoch in range(4):", "for epoch in range(1 if paceline.rank() == 2 else 2):").replace(
        "batch_size=10", "batch_size=5"
    )
    asked = manifest(["python", "train.py"], "AllReduce", workers=WORKERS, checkpoint={"everySteps": 100})
    asked["spec"]["runPolicy"]["backoffLimit"] = 0
    outcome = ended(started(tmp_path, asked, script), tmp_path)
    assert outcome.code != 0
    assert "worker-2 left before" in outcome.output
