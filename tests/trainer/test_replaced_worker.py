"""A worker that is killed where all wait for each other: another goes on where it was, and the others wait for it."""

import os
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from .conftest import Outcome, manifest
from .test_checkpoints import SCRIPT, seen
from .test_restarts import ended, killed_when, started, steps_of

SAMPLE = int(os.environ.get("PACELINE_KILL_STEPS", "2"))  # kills; `make sweep` has more
STEPS = 21  # of each of the three workers
SLOW = SCRIPT.replace("    optimizer.zero_grad()", "    optimizer.zero_grad(); time.sleep(0.02)")
MODES = ("Synchronous",)  # and "AllReduce", once rings are made anew where they broke


def asked(mode: str, workers: int, every: int) -> dict[str, Any]:
    return manifest(["python", "train.py"], mode, workers=workers, servers=2, checkpoint={"everySteps": every})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    @cache
    def of_mode(mode: str) -> Outcome:
        where = tmp_path_factory.mktemp(mode)
        return ended(started(where, asked(mode, 3, 1000)), where)

    return of_mode


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(60 + 60 * SAMPLE)
@pytest.mark.parametrize("mode", MODES)
def test_whichever_worker_is_killed_it_alone_is_replaced_and_the_weights_are_the_same(
    tmp_path: Path, undisturbed: Callable[[str], Outcome], mode: str
) -> None:
    expected = undisturbed(mode)
    seed = int(os.environ.get("PACELINE_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(SAMPLE):
        folder = tmp_path / str(number)
        folder.mkdir()
        worker, step = chance.randrange(3), chance.randrange(1, STEPS - 3)  # it has not ended then
        print(f"killed around step {step}: worker-{worker}")
        runner = started(folder, asked(mode, 3, 1000), SLOW)
        killed_when(folder, runner, f"worker-{worker}", lambda: steps_of(folder, worker) >= step)  # noqa: B023
        outcome = ended(runner, folder)
        assert outcome.code == 0, outcome.output
        assert outcome.result["weights_sha256"] == expected.result["weights_sha256"]
        assert [(it["replica"], it["alone"]) for it in outcome.result["restarts"]] == [(f"worker-{worker}", True)]
        assert not (folder / "run/attempt-1").exists()
        for other in {0, 1, 2} - {worker}:  # each step once: nothing was begun anew
            assert seen(folder, other) == seen(expected.folder.parent, other)
        assert dict.fromkeys(seen(folder, worker)) == dict.fromkeys(seen(expected.folder.parent, worker))
        assert re.search(rf"worker-{worker} goes on where it was lost: after step \d+", outcome.output)


BASE = """
import os, time, torch, paceline
from torch import nn
torch.manual_seed(3)
data = torch.utils.data.TensorDataset(torch.randn(96, 6), torch.randn(96, 1))
def net(): return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1))
def dies(place):
    key = os.environ["SEEN"] + "-died"
    if paceline.rank() == int(os.environ.get("VICTIM", "1")) and os.environ.get("DIES") == f"{place} {step}" and not os.path.exists(key):
        time.sleep(1)
        open(key, "w").close()
        os.kill(os.getpid(), 9)
step = 0
"""
LOOP = """
loader = paceline.shard(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
for epoch in range(3):
    for x, y in loader:
        step += 1
        time.sleep(0.06)  # so that some places are kept
        dies("drawn")
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        dies("backward")
        optimizer.step()
        dies("stepped")
        paceline.report(loss=loss.item())
"""
ADAM = "model = net(); optimizer = torch.optim.Adam(model.parameters(), lr=0.01)\n"
DISTRIBUTE = "model, optimizer = paceline.distribute(model, optimizer)\n"
SCRIPTS = {  # script, whether the worker is replaced alone
    "plain": (BASE + ADAM + DISTRIBUTE + LOOP, True),
    "weights that are loaded after distribute": (
        BASE + ADAM + DISTRIBUTE + "model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()})\n" + LOOP,
        True,
    ),
    "its own scheduler and average": (
        BASE + ADAM + "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)\n" + DISTRIBUTE
        + "average = torch.optim.swa_utils.AveragedModel(model); paceline.state(scheduler=scheduler, average=average)\n"
        + LOOP.replace('        dies("stepped")', '        dies("stepped"); scheduler.step(); average.update_parameters(model)'),
        True,
    ),
    "two batches for a step": (
        BASE + ADAM + DISTRIBUTE
        + LOOP.replace("optimizer.zero_grad()", "optimizer.zero_grad() if step % 2 else None")
        .replace("loss.backward()", "\n        with paceline.no_sync() if step % 2 else __import__('contextlib').nullcontext(): loss.backward()")
        .replace("optimizer.step()", "optimizer.step() if step % 2 == 0 else None"),
        True,
    ),
    "an optimizer that calls a closure": (
        BASE + ADAM + DISTRIBUTE
        + LOOP.replace("        loss.backward()\n", "").replace("optimizer.zero_grad()", "pass")
        .replace("loss = nn", "closure = lambda: (optimizer.zero_grad(), nn").replace("model(x), y)", "model(x), y).backward())")
        .replace("optimizer.step()", "optimizer.step(closure)").replace("paceline.report(loss=loss.item())", "pass"),
        True,
    ),
    "two models by turns": (
        BASE + "model, other = net(), net()\n"
        "optimizer = torch.optim.Adam(model.parameters(), lr=0.01); second = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)\n"
        + DISTRIBUTE + "other, second = paceline.distribute(other, second)\n"
        + LOOP + "        second.zero_grad(); (other(x) - model(x).detach()).square().mean().backward(); second.step()\n",
        True,
    ),
    "a gradient that is not finite": (
        BASE + ADAM + DISTRIBUTE
        + LOOP.replace("loss.backward()", "(loss * (float('nan') if step == 4 and paceline.rank() == 0 else 1)).backward()"),
        True,
    ),
    "weights that are clipped after each step": (
        BASE + ADAM + DISTRIBUTE + LOOP + "        for p in model.parameters(): p.data.clamp_(-0.2, 0.2)\n", True),
    "an evaluation that is shared out, and a scheduler, in each epoch": (
        BASE + ADAM + "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)\n" + DISTRIBUTE
        + "paceline.state(scheduler=scheduler)\nlooked_at = paceline.shard(torch.utils.data.DataLoader(data, batch_size=24))\n"
        + LOOP + "    scheduler.step()\n    for x, y in looked_at: model(x); time.sleep(0.1)\n",
        True,
    ),
    "two loaders at once": (
        BASE + ADAM + DISTRIBUTE
        + "second = paceline.shard(torch.utils.data.DataLoader(torch.randn(96, 6), batch_size=8, shuffle=True))\n"
        + LOOP.replace("for x, y in loader:", "for (x, y), z in zip(loader, second):").replace("model(x), y", "model(x + z), y"),
        True,
    ),
    "a mean over all workers": (
        BASE + ADAM + DISTRIBUTE + LOOP + "        paceline.mean(loss.item())\n", False),
    "batches of its own": (
        BASE + ADAM + """
class Steps:
    made = 0
    def state_dict(self): return {"made": self.made}
    def load_state_dict(self, held): self.made = held["made"]
steps = Steps()
""" + DISTRIBUTE + "paceline.state(steps=steps)\n"
        + LOOP.replace("for epoch in range(3):", "while steps.made < 12:")
        .replace("for x, y in loader:", "for x, y in [data[torch.randint(96, (8,)) + 0]]:")
        .replace("step += 1", "steps.made += 1; step = steps.made"),
        False,
    ),
}  # fmt: skip


NOT_IN_A_RING = ("an optimizer that calls a closure",)
PLACES = ("drawn 7", "backward 6", "stepped 8", "drawn 1")
CASES = [(mode, script, place) for mode in MODES for script in SCRIPTS for place in PLACES]
if "PACELINE_KILL_STEPS" not in os.environ:  # `make sweep` has all
    CASES = [(mode, "plain", place) for mode in MODES for place in PLACES]
    CASES += [(MODES[0], s, PLACES[n % 4]) for n, s in enumerate(SCRIPTS) if n]


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("mode", "script", "place"), CASES)
def test_scripts_whose_worker_is_killed(tmp_path: Path, mode: str, script: str, place: str) -> None:
    text, alone = SCRIPTS[script]
    victim = str(CASES.index((mode, script, place)) % 2)
    if "not finite" in script:  # of worker 0, by a count of steps that begins anew with its process
        victim = "1"
    outcomes = []
    for name, dies in (("undisturbed", ""), ("killed", place)):
        (tmp_path / name).mkdir()
        runner = started(tmp_path / name, asked(mode, 2, 3), text, DIES=dies, VICTIM=victim)
        outcomes.append(ended(runner, tmp_path / name))
        assert outcomes[-1].code == 0, outcomes[-1].output
    undisturbed, outcome = outcomes
    assert outcome.result["weights_sha256"] == undisturbed.result["weights_sha256"]
    restarts = [(it["replica"], it["alone"]) for it in outcome.result["restarts"]]
    early = place == "drawn 1"  # before what cannot be repeated has been seen
    if mode == "AllReduce" and script in NOT_IN_A_RING:
        assert not restarts[-1][1]  # all, in the end
        return
    assert restarts == [(f"worker-{victim}", alone or (script == "a mean over all workers" and early))]
