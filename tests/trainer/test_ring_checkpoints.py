"""Checkpoints with topology AllReduce: a run that is killed goes on bit for bit, also with servers, and from theirs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paceline import cli
from paceline.checkpoints import checkpoint_folder, checkpoint_manifest

from .conftest import Outcome, Run
from .test_checkpoints import CHECKPOINT, SAMPLE, SCRIPT, STEPS, kill_and_go_on, seen, to_the_end
from .test_ddp_script import DDP

RING = {"strategy": "AllReduce"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # each is a few runs of a dozen seconds
TWO = """
import torch, paceline
from torch import nn
torch.manual_seed(5)
maker, critic = nn.Sequential(nn.Linear(4, 30), nn.BatchNorm1d(30), nn.Linear(30, 4)), nn.Linear(4, 1)
torch.manual_seed(50 + paceline.rank())
pairs = [(maker, torch.optim.RMSprop(maker.parameters(), 0.01)), (critic, torch.optim.AdamW(critic.parameters(), 0.01))]
for pair in pairs: paceline.distribute(*pair)
data = torch.utils.data.TensorDataset(torch.randn(160, 4, generator=torch.Generator().manual_seed(1)))
for epoch in range(3):
    for (x,) in paceline.shard(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)):
        critic.zero_grad()
        (critic(maker(torch.randn_like(x)).detach()) - critic(x)).mean().backward()
        pairs[1][1].step()
        maker.zero_grad()
        (-critic(maker(torch.randn_like(x)))).mean().backward()
        pairs[0][1].step()
"""
LIMITED = """
import resource, time, torch, paceline
from torch import nn
torch.manual_seed(3)
model = nn.Linear(40, 40)
optimizer = torch.optim.Adam(model.parameters())
model, optimizer = paceline.distribute(model, optimizer)
for step in range(12):
    if paceline.rank() == 1:
        most = 2000 if step < 6 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    model(torch.randn(8, 40)).square().mean().backward()
    optimizer.step(); optimizer.zero_grad()
    time.sleep(0.1)
"""


def weights(of: Outcome, file: str = "weights.safetensors") -> dict[str, torch.Tensor]:
    return load_file(of.folder / file)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def middle(of: Outcome) -> Path:
    """A checkpoint of the run; one that is due while another is being written is left out, so that there may be few."""
    found = checkpoint_folder.complete(of.folder / "checkpoints")
    assert found
    return found[len(found) // 2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Runs that nobody kills, by strategy."""
    return {
        strategy: to_the_end(tmp_path_factory.mktemp(strategy), strategy) for strategy in ("AllReduce", "Synchronous")
    }


@pytest.mark.sweep
@pytest.mark.timeout(120 + 60 * SAMPLE)
def test_killed_after_any_step_it_goes_on_bit_for_bit(
    tmp_path: Path, run: Run, undisturbed: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    kill_and_go_on(tmp_path, run, undisturbed["AllReduce"], "AllReduce")


@pytest.mark.parametrize(("first", "second"), [("AllReduce", "Synchronous"), ("Synchronous", "AllReduce")])
def test_the_other_topology_goes_on_from_it(
    tmp_path: Path, run: Run, undisturbed: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    path = middle(undisturbed[first])
    resumed = run(SCRIPT, "--resume", str(path), strategy=second, servers=3, checkpoint=CHECKPOINT)
    assert resumed.code == 0, resumed.output
    assert resumed.result["version"] == STEPS
    assert resumed.result["resumed_from"] == str(path)
    assert difference(weights(resumed), weights(undisturbed[first])) < 1e-6
    for rank in (0, 1):
        assert seen(tmp_path, rank) == seen(undisturbed[first].folder.parent, rank)[int(path.name[5:]) :]


def test_it_is_listed_verified_and_exported_as_any_other(
    tmp_path: Path, undisturbed: dict[str, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    run, exported = str(undisturbed["AllReduce"].folder), tmp_path / "exported.safetensors"
    for command in ("list", "verify", "show"):
        assert cli.main(["checkpoint", command, run]) == 0
    assert '"shards": 2' in capsys.readouterr().out
    assert cli.main(["checkpoint", "export", str(middle(undisturbed["AllReduce"])), str(exported)]) == 0
    assert load_file(exported).keys() == weights(undisturbed["AllReduce"]).keys()


def test_two_models_saved_by_time_go_on_together_and_with_servers(run: Run) -> None:
    whole = run(TWO, **RING, checkpoint={"everySeconds": 0.05, "keep": 99})
    assert whole.code == 0, whole.output
    path = middle(whole)
    found = checkpoint_manifest.read(path)
    assert found is not None
    assert found.versions[0] == found.versions[1] > 0
    for strategy in ("AllReduce", "Synchronous"):
        resumed = run(TWO, "--resume", str(path), strategy=strategy, checkpoint={"everySteps": 999})
        assert resumed.code == 0, resumed.output
        assert resumed.result["version"] == whole.result["version"] == 60
        for file in ("weights.safetensors", "weights-1.safetensors"):
            assert difference(weights(resumed, file), weights(whole, file)) < (
                1e-6 if strategy != "AllReduce" else 1e-99
            )


def test_servers_say_when_another_optimizer_steps_after_the_one_that_they_wait_for(run: Run) -> None:
    in_order = TWO.replace("for pair in pairs:", "for pair in reversed(pairs):")
    for script, said in ((TWO, True), (in_order, False)):
        outcome = run(script, checkpoint={"everySteps": 7, "keep": 99})
        assert outcome.code == 0, outcome.output
        assert ("call paceline.distribute() in the order of the steps" in outcome.output) == said
    path = middle(outcome)
    resumed = run(in_order, "--resume", str(path))
    assert resumed.result["weights_sha256"] == outcome.result["weights_sha256"], resumed.output


def test_a_part_that_cannot_be_written_is_said_and_the_next_checkpoint_is_saved(run: Run) -> None:
    outcome = run(LIMITED, **RING, checkpoint={"everySteps": 2, "keep": 99})
    assert outcome.code == 0, outcome.output
    assert "a checkpoint could not be saved, and the training goes on: worker-1: " in outcome.output
    assert "File too large" in outcome.output
    kept = checkpoint_folder.complete(outcome.folder / "checkpoints")
    assert kept
    assert all(int(path.name[5:]) >= 6 for path in kept), "that of step 6 is written when the seventh begins"


def test_a_place_that_cannot_be_written_does_not_end_the_training(run: Run) -> None:
    occupied = "import os; paceline.rank() or open(os.environ['PACELINE_OUTPUT'] + '/checkpoints', 'w').close()"
    outcome = run(LIMITED.replace("for step", f"{occupied}\nfor step"), **RING, checkpoint={"everySteps": 3})
    assert outcome.code == 0, outcome.output
    assert "a checkpoint could not be saved, and the training goes on" in outcome.output
    assert "Not a directory" in outcome.output


CHANGED = "optimizer.add_param_group({'params': [torch.nn.Parameter(torch.zeros(3))]})"


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (DDP.replace("CHANGE", "pass"), 1, "saves and goes on by itself"),
        (LIMITED.replace("for step", f"{CHANGED}\nfor step"), 0, "has changed since paceline.distribute(): 3 parameters"),
        (LIMITED.replace("Adam(model.parameters())", "Adam([{'params': model.parameters(), 'why': print}])"), 1, "['why']"),
        (LIMITED.replace("torch.optim.Adam", "torch.optim.LBFGS").replace("optimizer.step()", "optimizer.step(lambda: model(torch.ones(8, 40)).square().mean())"), 0, "neither a tensor nor a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_said(run: Run, script: str, code: int, words: str) -> None:
    outcome = run(script, **RING, checkpoint={"everySteps": 3})
    assert outcome.code == code, outcome.output
    assert words in outcome.output


def test_a_ring_does_not_go_on_where_each_worker_made_other_steps(run: Run) -> None:
    asked: dict[str, Any] = {"checkpoint": {"everySteps": 5}}
    whole = run(LIMITED, strategy="Asynchronous", **asked)
    assert whole.code == 0, whole.output
    refused = run(LIMITED, "--resume", str(whole.folder), **RING, **asked)
    assert refused.code == 1
    assert "AllReduce goes on where every worker took part in all" in refused.output
