"""Real trainings on this machine, which go on until the test ends them."""

import json
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.trainer.conftest import command, environment, manifest, write

WORKERS, STEPS, PAUSE = 3, 3000, 0.1
SLOW, LATE = "1", 0.15  # the slow worker, and by how many seconds
SCRIPT = f"""
import os, pathlib, time, torch, paceline
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = torch.utils.data.TensorDataset(torch.randn(8 * {WORKERS} * {STEPS}, 32))
batches = paceline.shard(torch.utils.data.DataLoader(data, batch_size=8))
BEFORE
model, optimizer = paceline.distribute(model, optimizer, total_steps={STEPS})
for (x,) in batches:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    time.sleep({PAUSE} + LATE)
    loss.backward()
    optimizer.step()
    paceline.report(loss=loss)
"""
# All workers begin at once, when everything has been imported: two cores are few for so many processes.
TOGETHER = """
pathlib.Path(f"ready-{os.getpid()}").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""
SLOW_BY_ITSELF = f"{LATE} * (paceline.rank() == {SLOW})"  # where there is no --slow


def script(before: str = "", late: str = "0") -> str:
    """Trains for minutes; `before` comes first, and each step takes `late` seconds more."""
    return SCRIPT.replace("BEFORE", before).replace("LATE", late)


@dataclass(frozen=True)
class Asked:
    """A training to be run; `slow` is the part of worker 1 that is to be slow, or nothing."""

    name: str
    mode: str
    slow: str = ""
    servers: int = 1
    more: dict[str, Any] = field(default_factory=dict)


class Training:
    """One that runs."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.asked, self._folder = asked, folder
        policy = {"startTimeoutSeconds": 120}
        whole = manifest(["python", "train.py"], asked.mode, WORKERS, asked.servers, runPolicy=policy, **asked.more)
        whole["metadata"]["name"] = asked.name
        folder.mkdir()
        slow = ["--slow", f"worker-{SLOW}={asked.slow}:{LATE * 1000:g}ms"] if asked.slow else []
        file = write(folder, script(TOGETHER), whole)
        with (folder / "output.txt").open("w") as output:
            self.process = subprocess.Popen(
                command(file, folder / "run", *slow), cwd=folder, env=environment(), stdout=output, stderr=output
            )

    @property
    def metrics(self) -> dict[str, str]:
        """Where its processes serve their metrics, by name; nothing before they begin."""
        self._runs()
        file = self._folder / "run/endpoints.json"
        return json.loads(file.read_text())["metrics"] if file.exists() else {}

    @property
    def ready(self) -> bool:
        """Whether all its workers are at the point from which they begin together."""
        self._runs()
        return len(list(self._folder.glob("ready-*"))) == WORKERS

    def go(self) -> None:
        """Let it begin."""
        (self._folder / "go").touch()

    def _runs(self) -> None:
        assert self.process.poll() is None, (self._folder / "output.txt").read_text()


def end(trainings: Sequence[Training]) -> None:
    """As with Ctrl-C in each, and wait until nothing of them runs any more."""
    for training in trainings:
        training.process.send_signal(signal.SIGINT)
    for training in trainings:
        training.process.wait(timeout=60)
