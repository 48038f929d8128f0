"""Whole runs that are killed and go on from a checkpoint: the weights are those of a run that nobody killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from paceline import cli
from paceline.checkpoints import checkpoint_folder
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.local.preflight import ARRIVALS

from .conftest import Outcome, Run, command, environment, eventually, manifest, write

STEPS = 30
SAMPLE = int(os.environ.get("PACELINE_KILL_STEPS", "1"))  # of the steps at which a run is killed; `make sweep`: all
SCRIPT = """
import os, time, torch, paceline
from torch import nn
torch.manual_seed(3)
data = torch.utils.data.TensorDataset(torch.randn(200, 8), torch.randn(200, 1))
model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
each_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
each_step = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.001, 0.01, 3, cycle_momentum=False)
model, optimizer = paceline.distribute(model, optimizer)
torch.manual_seed(100 + paceline.rank())
paceline.state(each_epoch=each_epoch, each_step=each_step)
loader = paceline.shard(torch.utils.data.DataLoader(data, batch_size=10, shuffle=True, num_workers=1))
looked_at = paceline.shard(torch.utils.data.DataLoader(torch.randn(20, 8), batch_size=5))
rank, stop = map(int, os.environ.get("STOP", "0:0").split(":"))
seen, step = open(f"{os.environ['SEEN']}-{paceline.rank()}", "a"), 0
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        each_step.step()
        paceline.report(loss=loss.item())
        print(epoch, x.sum().item(), file=seen, flush=True)
        step += 1
        if stop == step and rank == paceline.rank():
            with open(os.environ["SEEN"] + "-stopped", "w") as file: print(os.getpid(), file=file)
            time.sleep(60)
    each_epoch.step()
    model.eval()
    for x in looked_at: model(x)
    model.train()
"""
CHECKPOINT = {"everySteps": 4, "keep": 9}


def seen(folder: Path, worker: int) -> list[str]:
    return (folder / f"seen-{worker}").read_text().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return to_the_end(tmp_path_factory.mktemp("undisturbed"))


def to_the_end(where: Path, strategy: str = "Synchronous") -> Outcome:
    """A run that nobody kills."""
    asked = manifest(["python", "train.py"], strategy, servers=2, checkpoint=CHECKPOINT)
    file = write(where, SCRIPT, asked)
    told = environment() | {"SEEN": str(where / "seen")}
    subprocess.run(command(file, where / "run"), cwd=where, env=told, check=True, timeout=110)
    return Outcome(0, "", where / "run")


def stops() -> list[tuple[int, int, bool]]:
    """Step, worker, and whether everything is killed at once."""
    seed = int(os.environ.get("PACELINE_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    first = CHECKPOINT["everySteps"] + 2  # the checkpoint of step 4 is awaited
    steps = sorted(chance.sample(range(first, STEPS + 1), min(SAMPLE, STEPS + 1 - first)))
    return [(step, chance.randrange(2), chance.random() < 0.5) for step in steps]


def killed(tmp_path: Path, step: int, worker: int, cut: bool, strategy: str = "Synchronous") -> Path:
    """The folder of a run in which a worker was killed after this step, or, as by a power cut, everything."""
    folder = tmp_path / f"killed-{step}"
    stopped = tmp_path / "seen-stopped"
    stopped.unlink(missing_ok=True)
    asked = manifest(["python", "train.py"], strategy, servers=2, checkpoint=CHECKPOINT)
    asked["spec"]["runPolicy"]["backoffLimit"] = 0
    file = write(tmp_path, SCRIPT, asked)
    told = environment() | {"SEEN": str(tmp_path / "seen"), "STOP": f"{worker}:{step}"}
    with subprocess.Popen(command(file, folder), cwd=tmp_path, env=told, stdout=subprocess.DEVNULL) as process:
        eventually(lambda: stopped.exists() and stopped.read_text().endswith("\n"))
        eventually(lambda: bool(checkpoint_folder.complete(folder / "checkpoints")))
        os.kill(process.pid if cut else int(stopped.read_text()), signal.SIGKILL)
        assert process.wait(60) == (-signal.SIGKILL if cut else 1)
    return folder


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(120 + 60 * SAMPLE)
def test_killed_after_any_step_it_goes_on_bit_for_bit(
    tmp_path: Path, run: Run, undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    kill_and_go_on(tmp_path, run, undisturbed, "Synchronous")


def kill_and_go_on(tmp_path: Path, run: Run, undisturbed: Outcome, strategy: str) -> None:
    """The run that goes on ends with the weights of the one that nobody killed, and reads what that one read."""
    for step, worker, cut in stops():
        print(f"killed after step {step}: {'everything' if cut else f'worker-{worker}'}")
        folder = killed(tmp_path, step, worker, cut, strategy)
        newest = checkpoint_folder.complete(folder / "checkpoints")[0]
        made = int(newest.name[5:])
        for rank in (0, 1):
            (tmp_path / f"seen-{rank}").unlink()
        resumed = run(SCRIPT, "--resume", str(folder), strategy=strategy, servers=2, checkpoint=CHECKPOINT)
        assert resumed.code == 0, resumed.output
        assert resumed.result["weights_sha256"] == undisturbed.result["weights_sha256"]
        assert resumed.result["version"] == STEPS
        assert f"resumed    from step {made} of {newest}" in resumed.output
        for rank in (0, 1):
            assert seen(tmp_path, rank) == seen(undisturbed.folder.parent, rank)[made:]
            (tmp_path / f"seen-{rank}").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_what_goes_on_from_its_end_has_made_its_steps(run: Run, strategy: str, tmp_path: Path) -> None:
    script = """
import torch, paceline
model = torch.nn.Linear(4, 1)
model, optimizer = paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=6)
for x in paceline.shard(torch.utils.data.DataLoader(torch.ones(12, 4), batch_size=1)):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
"""
    saves = {"everySteps": 6, "to": str(tmp_path / "saved")}
    assert run(script, strategy=strategy, checkpoint=saves).code == 0
    (newest, *_) = checkpoint_folder.complete(tmp_path / "saved" / "test")
    assert int(newest.name[5:]) == 6
    again = run(script, "--resume", str(newest), strategy=strategy, checkpoint=saves)
    assert again.code == 0, again.output
    assert [(w["step"], w["total_steps"]) for w in again.result["workers"]] == [(6, 6)] * 2


DRAWS_ITSELF = """
import torch, paceline
class Stream:  # read in advance of a step, as a loader is
    def __init__(self): self.place = 0
    def __iter__(self): return self
    def __next__(self):
        self.place += 1
        return self.place / 10
    def state_dict(self): return {"place": self.place}
    def load_state_dict(self, state): self.place = state["place"]
torch.manual_seed(5)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
schedule, stream = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), Stream()
model, optimizer = paceline.distribute(model, optimizer, total_steps=10)
torch.manual_seed(paceline.rank())
paceline.state(schedule=schedule, stream=stream)
while schedule.last_epoch < 10:
    x = torch.rand(2, 4) + next(stream)
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    schedule.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_a_script_that_draws_its_own_batches_goes_on_bit_for_bit(run: Run, strategy: str, tmp_path: Path) -> None:
    saves = {"everySteps": 7, "to": str(tmp_path / "saved")}
    whole = run(DRAWS_ITSELF, strategy=strategy, checkpoint=saves)
    assert whole.code == 0, whole.output
    (newest,) = checkpoint_folder.complete(tmp_path / "saved" / "test")
    again = run(DRAWS_ITSELF, "--resume", str(newest), strategy=strategy, checkpoint=saves)
    assert again.code == 0, again.output
    assert [w["step"] for w in again.result["workers"]] == [10] * 2
    assert again.result["weights_sha256"] == whole.result["weights_sha256"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_name_and_others_go_on_with_other_servers(
    tmp_path: Path, run: Run, undisturbed: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    place = tmp_path / "run" / "checkpoints"
    shutil.copytree(undisturbed.folder / "checkpoints", place)
    newest, second, *_ = checkpoint_folder.complete(place)
    damaged = newest / "ps-1.0.optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed = run(SCRIPT, "--resume", str(tmp_path / "run"), workers=2, servers=3)
    assert resumed.code == 0, resumed.output
    assert f"passed over: {damaged}: has" in resumed.output
    assert resumed.result["resumed_from"] == str(second)
    assert resumed.result["weights_sha256"] == undisturbed.result["weights_sha256"]
    assert cli.main(["checkpoint", "verify", str(tmp_path / "run")]) == 1
    assert cli.main(["checkpoint", "list", str(tmp_path / "run")]) == 0
    assert cli.main(["checkpoint", "show", str(second)]) == 0
    assert cli.main(["checkpoint", "export", str(second), str(tmp_path / "exported.safetensors")]) == 0
    exported = load_file(tmp_path / "exported.safetensors")
    assert exported.keys() == load_file(undisturbed.folder / "weights.safetensors").keys()
    assert cli.main(["run", str(tmp_path / "training.yaml"), "--resume", str(newest)]) == cli.BAD_INPUT
    told = capsys.readouterr()
    assert str(damaged) in told.err
    assert f"{second}  step {int(second.name[5:])}" in told.out


def refused(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", str(file), *arguments]) == cli.BAD_INPUT
    return capsys.readouterr().err


def a_file(tmp_path: Path, **asked: Any) -> Path:
    return write(tmp_path, SCRIPT, manifest([sys.executable, "train.py"], **asked))


def a_checkpoint(root: Path) -> Path:
    """One without files, of two workers."""
    path = checkpoint_folder.of_step(root, 4)
    path.mkdir(parents=True)
    checkpoint_folder.commit(path, Manifest(4, (4,), "test", "ab", 1.5, 1, 2))
    return path


def test_what_cannot_be_resumed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = a_checkpoint(tmp_path / "to" / "test")
    (tmp_path / "empty").mkdir()
    file = a_file(tmp_path, workers=3)
    assert "there is no checkpoint" in refused(file, capsys, "--resume", str(tmp_path / "empty"))
    assert "there is no checkpoint" in refused(file, capsys, "--resume", str(tmp_path / "nowhere"))
    assert "with 2 workers, and this training has 3" in refused(file, capsys, "--resume", str(found))
    file = a_file(tmp_path, checkpoint={**CHECKPOINT, "to": str(tmp_path / "to")})
    assert "has checkpoints of another run: go on from them (--resume" in refused(file, capsys)
    (tmp_path / "occupied").touch()
    file = a_file(tmp_path, checkpoint={**CHECKPOINT, "to": str(tmp_path / "occupied")})
    assert f"spec.checkpoint.to: {tmp_path}/occupied is not a folder" in refused(file, capsys)
    assert cli.main(["checkpoint", "list", str(tmp_path / "occupied")]) == cli.BAD_INPUT
    assert cli.main(["checkpoint", "list", str(tmp_path / "empty")]) == cli.BAD_INPUT


def test_a_replay_and_a_run_that_goes_on_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = a_file(tmp_path, strategy="Asynchronous")
    found, old = a_checkpoint(tmp_path / "saved"), tmp_path / "old"
    old.mkdir()
    shutil.copy(file, old / "manifest.yaml")
    (old / ARRIVALS).touch()
    (old / "result.json").write_text(json.dumps({"result": "Succeeded", "resumed_from": str(found)}))
    assert f"went on from {found}" in refused(file, capsys, "--replay", str(old))
    assert "a replay follows a whole run" in refused(file, capsys, "--replay", str(old), "--resume", str(found))
